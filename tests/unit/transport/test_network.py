"""Both sessions: redirects, proxies, TLS, and where a token may go."""

from __future__ import annotations

import itertools
import logging
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.api_core import exceptions

from airflow_dai_provider.api.retry import may_have_acted
from airflow_dai_provider.emulator import DaiEmulator, Fault, SelfSigned
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from tests.support.authentication import FORMS, Form
from tests.support.authorities import write_authority
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.emulators import bearers
from tests.support.hooks import MakeHook
from tests.support.log import Log
from tests.support.payloads import NAME, SIGNED_URL, creative
from tests.support.tiny_server import Exchange, Serve, TinyServer
from tests.support.token_server import PROXY_PASSWORD, TokenServer

pytestmark = pytest.mark.usefixtures("few_authorities", "fake_time")

POLL = ("get_operation", NAME)
REDIRECTS = [301, 302, 303, 307, 308]

both_hooks = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture
def server(tiny_server: Serve) -> TinyServer:
    """Give a server that returns an operation: a proxy, or where a redirect leads."""
    return tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}))


@both_hooks
@pytest.mark.parametrize("host", ["dai.example", "192.0.2.1:8080", "[2001:db8::1]", "127.0.0.1.dai.example"])
def test_credentials_do_not_leave_over_plain_http(
    tokens: TokenServer, connect: Connect, server: TinyServer, monkeypatch: pytest.MonkeyPatch, form: Form, host: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.endpoint)
    connect(keyfile_dict=tokens.key, dai_api_endpoint=f"http://{host}")

    with tokens.fails(ValueError, re.escape(f"Refusing to send credentials to http://{host} over plain HTTP")):
        form(POLL)
    with tokens.fails(ValueError, "Refusing"), DaiHook() as hook:
        hook.get_conn()

    assert tokens.asked == 0
    assert server.requests == []


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_redirect_is_not_followed(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, server: TinyServer, status: int
) -> None:
    location = {"Location": f"{server.endpoint}/v1/{NAME}"}
    emulator.inject(Fault(status=status, body=b"", headers=location, times=None))

    with tokens.fails(exceptions.FailedPrecondition, "a redirect, which is not followed with credentials"):
        keyed_hook.get_operation(NAME)
    with tokens.fails(exceptions.FailedPrecondition, "a redirect, which is not followed with credentials"):
        keyed_hook.cancel_operation(NAME)

    assert server.requests == []
    assert len(emulator.requests) == 2


@pytest.mark.parametrize(
    "location",
    [b"", b"http://[bad", b"//", b"http://", b"caf\xe9", b"\xff\xfe", b"javascript:x", b"http://a:99999/"],
    ids=str,
)
def test_a_redirect_with_an_invalid_location_is_reported_as_a_redirect(
    connect: Connect, make_hook: MakeHook, tiny_server: Serve, location: bytes
) -> None:
    connect(is_anonymous=True)
    answer = b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"
    server = tiny_server(lambda exchange: exchange.raw(answer))

    with pytest.raises(exceptions.FailedPrecondition, match="returned 302 .*a redirect"):
        make_hook(api_endpoint=server.endpoint).get_operation(NAME)
    assert len(server.requests) == 1


@both_hooks
@pytest.mark.parametrize("with_key", [False, True], ids=["anonymous", "key"])
def test_the_netrc_is_not_used(
    tokens: TokenServer,
    emulator: DaiEmulator,
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: Form,
    with_key: bool,
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password of-netrc\ndefault login me password of-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    connect(**({"keyfile_dict": tokens.key} if with_key else {"is_anonymous": True}))
    name = emulator.start_ingest()

    form(("get_operation", name), ("cancel_operation", name), api_endpoint=emulator.endpoint)

    assert bearers(emulator) == [f"Bearer {tokens.issued[0]}" if with_key else None] * 2


@both_hooks
@pytest.mark.parametrize("address", ["http://{host}", "{host}", "http://user:" + PROXY_PASSWORD + "@{host}"])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_carries_what_leaves_this_machine(
    connect: Connect, server: TinyServer, monkeypatch: pytest.MonkeyPatch, form: Form, variable: str, address: str
) -> None:
    connect(is_anonymous=True, num_retries=0, dai_api_endpoint="http://dai.example:8080")
    monkeypatch.setenv(variable, address.format(host=server.host))

    assert form(POLL)[0].name == NAME

    (request,) = server.requests
    assert request.path == f"http://dai.example:8080/v1/{NAME}"
    assert "authorization" not in request.headers
    assert ("proxy-authorization" in request.headers) == ("user" in address)


@both_hooks
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_sees_what_stays_on_this_machine(
    emulator: DaiEmulator,
    connect: Connect,
    server: TinyServer,
    monkeypatch: pytest.MonkeyPatch,
    form: Form,
    variable: str,
    host: str,
) -> None:
    connect(is_anonymous=True, num_retries=0, dai_api_endpoint=emulator.endpoint.replace("127.0.0.1", host))
    monkeypatch.setenv(variable, server.endpoint)
    name = emulator.start_ingest()

    form(*[("get_operation", name)] * 2)

    assert server.requests == []
    assert len(emulator.requests) == 2


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_no_proxy_sees_the_token_of_what_stays_on_this_machine(
    keyed_hook: DaiHook, emulator: DaiEmulator, server: TinyServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    name = emulator.start_ingest()
    keyed_hook.get_operation(name)  # the token is there; the request for one may well go through a proxy
    monkeypatch.setenv(variable, server.endpoint)

    assert keyed_hook.get_operation(name).name == name
    assert server.requests == []


@both_hooks
def test_no_proxy_is_used_where_the_environment_says_so(
    connect: Connect, server: TinyServer, monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    connect(is_anonymous=True, num_retries=0, dai_api_endpoint="http://dai.invalid")
    monkeypatch.setenv("NO_PROXY", ".invalid")
    monkeypatch.setenv("HTTP_PROXY", server.endpoint)

    with pytest.raises(exceptions.ServiceUnavailable, match="got no response from http://dai.invalid"):
        form(POLL)
    assert server.requests == []


@both_hooks
def test_https_goes_through_the_tunnel_of_a_proxy(
    tokens: TokenServer,
    connect: Connect,
    tiny_server: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: Form,
) -> None:
    certificate = SelfSigned(["dai.example"])

    def respond(exchange: Exchange) -> None:
        if exchange.command == "CONNECT":
            exchange.tunnel_to_itself(certificate.context())
        else:
            exchange.answer(200, {"name": NAME})

    proxy = tiny_server(respond)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(write_authority(tmp_path, certificate)))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HTTPS_PROXY", proxy.endpoint)
    connect(keyfile_dict=tokens.key, num_retries=0, dai_api_endpoint="https://dai.example")

    form(POLL)

    # google-auth sends requests of its own through the proxy.
    tunnel, get = (request for request in proxy.requests if request.path in ("dai.example:443", f"/v1/{NAME}"))
    assert tunnel.http_method == "CONNECT"
    assert "authorization" not in tunnel.headers
    assert get.headers["authorization"] == f"Bearer {tokens.issued[0]}"


@both_hooks
@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_refused_tunnel_is_an_error(
    tokens: TokenServer,
    connect: Connect,
    tiny_server: Serve,
    monkeypatch: pytest.MonkeyPatch,
    form: Form,
    status: int,
) -> None:
    proxy = tiny_server(lambda exchange: exchange.answer(status))
    monkeypatch.setenv("HTTPS_PROXY", proxy.endpoint)
    connect(keyfile_dict=tokens.key, num_retries=0, dai_api_endpoint="https://dai.example")

    with tokens.fails(exceptions.ServiceUnavailable, f"got no response from https://dai.example: .*{status}"):
        form(POLL)

    tunnels = [request for request in proxy.requests if request.path == "dai.example:443"]
    assert [request.http_method for request in tunnels] == ["CONNECT"]
    assert "authorization" not in tunnels[0].headers


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("form", "step"), [("sync", POLL), ("sync", ("create_creative", creative(SIGNED_URL))), ("async", POLL)], ids=str
)
def test_the_password_of_a_proxy_is_not_shown(
    tokens: TokenServer,
    connect: Connect,
    closed_port: int,
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
    form: str,
    step: tuple[object, ...],
    scheme: str,
) -> None:
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://user:{PROXY_PASSWORD}@127.0.0.1:{closed_port}")
    connect(is_anonymous=True, num_retries=1)

    with tokens.fails(exceptions.ServiceUnavailable, f"got no response from {scheme}://dai.example"):
        FORMS[form](step, api_endpoint=f"{scheme}://dai.example")
    assert slept == [0.5], "A proxy that is down has passed nothing on, so the call is retried, also a create."


# TLS


@pytest.fixture
def tls(tiny_server: Serve, tmp_path: Path) -> tuple[TinyServer, Path]:
    """Give a server that speaks TLS, and the file of the authority that vouches for it."""
    certificate = SelfSigned(["127.0.0.1"])
    server = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}), certificate.context())
    return server, write_authority(tmp_path, certificate)


@both_hooks
def test_a_custom_authority_is_trusted(
    connect_key: Connect,
    tokens: TokenServer,
    tls: tuple[TinyServer, Path],
    monkeypatch: pytest.MonkeyPatch,
    form: Form,
) -> None:
    server, authority = tls
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    connect_key(dai_api_endpoint=server.host, num_retries=0)

    assert form(POLL)[0].name == NAME
    assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {tokens.issued[0]}"]
    assert DaiHook().endpoint.url == f"https://{server.host}"


@both_hooks
@pytest.mark.parametrize("bundle", [None, "folder"])
def test_an_untrusted_certificate_ends_a_call_at_once(
    connect_key: Connect,
    tokens: TokenServer,
    tls: tuple[TinyServer, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
    form: Form,
    bundle: str | None,
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    if bundle:
        empty = tmp_path / "authorities"
        empty.mkdir()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(empty))
    server, _ = tls
    connect_key(dai_api_endpoint=server.host)

    with tokens.fails(exceptions.FailedPrecondition, r"certificate is not trusted \(REQUESTS_CA_BUNDLE names"):
        form(POLL)
    assert server.requests == []
    assert slept == []


@both_hooks
def test_a_certificate_of_another_name_is_not_trusted(
    connect_key: Connect, tls: tuple[TinyServer, Path], monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    server, authority = tls
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    connect_key(dai_api_endpoint=f"localhost:{server.server_port}")

    with pytest.raises(exceptions.FailedPrecondition, match="certificate is not trusted"):
        form(POLL)
    assert server.requests == []


@dataclass
class Inspected:
    """A server in front of which a proxy that opens TLS, with a certificate of its own, can stand for a while."""

    server: TinyServer
    clock: Clock
    foreign: SelfSigned
    until: float = 0.0
    on_handshake: Callable[[], object] = bool

    def is_away(self) -> bool:
        return self.clock.now < self.until

    def stand(self, seconds: float = 100) -> None:
        self.until = self.clock.now + seconds


@pytest.fixture
def inspected(
    tiny_server: Serve, tmp_path: Path, clock: Clock, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> Inspected:
    """Give such a server, to which the connection leads."""
    certificate = SelfSigned(["127.0.0.1"])
    foreign_certificate = SelfSigned(["127.0.0.1"])
    context, foreign = certificate.context(), foreign_certificate.context()

    def respond(exchange: Exchange) -> None:
        done = {"done": True, "response": {"name": "creatives/a"}} if clock.slept else {}
        # So that the next request shakes hands again.
        exchange.answer(200, {"name": NAME, **done}, Connection="close")

    def choose(connection: ssl.SSLObject, *_: object) -> None:
        if inspected.is_away():
            inspected.on_handshake()
            connection.context = foreign

    context.sni_callback = choose
    inspected = Inspected(tiny_server(respond, context), clock, foreign_certificate)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(write_authority(tmp_path, certificate)))
    connect(is_anonymous=True, dai_api_endpoint=inspected.server.host)
    return inspected


@both_hooks
def test_an_untrusted_certificate_in_the_middle_of_a_wait_is_an_outage(inspected: Inspected, form: Form) -> None:
    *_, ended = form(POLL, inspected.stand, ("wait_for_operation", NAME))
    assert ended.done
    assert not inspected.is_away()


@both_hooks
def test_an_untrusted_certificate_that_stays_ends_a_wait_as_unavailable(
    inspected: Inspected, form: Form, clock: Clock
) -> None:
    began = clock.now
    with pytest.raises(exceptions.ServiceUnavailable, match="certificate is not trusted"):
        form(POLL, lambda: inspected.stand(1e6), ("wait_for_operation", NAME))
    assert 300 <= clock.now - began < 360


@pytest.mark.parametrize(
    "step", [("cancel_operation", NAME), ("create_creative", creative())], ids=["cancel", "create"]
)
def test_what_an_untrusted_certificate_has_kept_back_is_sent_again(
    inspected: Inspected, step: tuple[object, ...]
) -> None:
    FORMS["sync"](POLL, lambda: inspected.stand(1), step)
    assert [request.http_method for request in inspected.server.requests] == ["GET", "POST"]


def test_a_creative_is_not_started_with_an_untrusted_certificate_at_the_first_contact(
    inspected: Inspected, slept: list[float]
) -> None:
    inspected.stand()
    with pytest.raises(exceptions.FailedPrecondition, match="certificate is not trusted") as caught:
        FORMS["sync"](("create_creative", creative()))
    assert not may_have_acted(caught.value)
    assert slept == []


@pytest.mark.parametrize("names", [NAME, [NAME]], ids=["one", "a list"])
def test_a_sensor_outlasts_an_untrusted_certificate(inspected: Inspected, names: object) -> None:
    sensor = DaiOperationSensor(task_id="wait", operation_name=names)
    assert not sensor.poke({})
    inspected.stand()
    assert sensor.poke({})
    assert not inspected.is_away()


def test_authorities_that_are_replaced_in_the_middle_of_a_wait_are_an_outage(
    inspected: Inspected, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock
) -> None:
    bundle, content = tmp_path / "ca.pem", (tmp_path / "ca.pem").read_text()
    sleep = DaiHook._sleep

    def replace(seconds: float) -> None:
        sleep(seconds)
        bundle.write_text(content if len(clock.slept) > 2 else "")

    monkeypatch.setattr(DaiHook, "_sleep", staticmethod(replace))
    *_, ended = FORMS["sync"](POLL, bundle.unlink, ("wait_for_operation", NAME))
    assert ended.done


@both_hooks
@pytest.mark.parametrize("handshakes", [0, 2])
def test_authorities_that_are_replaced_for_good_are_read_again(
    inspected: Inspected, tmp_path: Path, form: Form, handshakes: int
) -> None:
    """The server has its new certificate some handshakes before the client has its authority."""
    number = itertools.count()

    def replace() -> None:
        if next(number) >= handshakes:
            write_authority(tmp_path, inspected.foreign)

    inspected.on_handshake = replace
    *_, ended = form(POLL, lambda: inspected.stand(1e6), ("wait_for_operation", NAME))
    assert ended.done


@both_hooks
def test_a_missing_file_of_authorities_is_an_error(
    connect_key: Connect,
    tokens: TokenServer,
    tls: tuple[TinyServer, Path],
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
    form: Form,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    connect_key(dai_api_endpoint=tls[0].host)

    with tokens.fails(exceptions.FailedPrecondition, "/nowhere/ca.pem"):
        form(POLL)
    assert slept == []


@both_hooks
def test_a_server_without_tls_is_an_error(
    connect_key: Connect, emulator: DaiEmulator, tokens: TokenServer, form: Form
) -> None:
    connect_key(dai_api_endpoint=emulator.host, num_retries=0)

    with tokens.fails(exceptions.ServiceUnavailable, f"got no response from https://{emulator.host}"):
        form(POLL)
    assert emulator.requests == []


# What is shown


def test_a_create_shows_no_signature(keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, log: Log) -> None:
    """Nor do its repeats and the look at its operation; what a failing line would show is checked at the end."""
    emulator.inject(Fault(method="creatives.create", status=429))
    operation = keyed_hook.create_creative(creative(SIGNED_URL))
    emulator.inject(Fault(method="operations.get", status=503))
    operation = keyed_hook.get_operation(operation.name)
    assert operation.metadata is not None
    assert "s1gn4ture" in operation.metadata["creativeUrl"]

    logging.getLogger("tests").info("%s %s %s", operation, operation.ingest, operation.to_dict())
    emulator.inject(Fault(method="creatives.create", status=503))
    with tokens.fails(exceptions.ServiceUnavailable, "creatives.create of a creative returned 503"):
        keyed_hook.create_creative(creative(SIGNED_URL))

    assert len([line for line in log.ours if "; attempt" in line]) == 2


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(status=503), id="503"),
        pytest.param(Fault(status=401), id="401"),
        pytest.param(Fault(drop="before"), id="dropped"),
        pytest.param(Fault(truncate=9), id="cut off"),
    ],
)
def test_a_filter_is_not_shown_with_its_urls(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    """Not by this package, that is: at the level of debugging, urllib3 shows every address."""
    caplog.set_level("INFO")
    emulator.inject(fault)
    emulator.inject(Fault(method="operations.list", status=403))

    with tokens.fails(exceptions.PermissionDenied, "operations.list"):
        list(keyed_hook.list_operations(f'creativeUrl = "{SIGNED_URL}"'))
