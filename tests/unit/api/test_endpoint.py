"""Which endpoint counts, what is one, and where a token may go."""

import pytest

from airflow_dai_provider.api.endpoint import (
    EMULATOR_VARIABLE,
    EXTRA_KEY,
    Endpoint,
    emulator_endpoint,
    parse_endpoint,
    service_endpoint,
)


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("dai.googleapis.com", "https://dai.googleapis.com"),
        ("dai.googleapis.com:443", "https://dai.googleapis.com"),
        ("dai.googleapis.com:0443", "https://dai.googleapis.com"),
        ("DAI.GoogleAPIs.com", "https://dai.googleapis.com"),
        ("http://dai.internal:80", "http://dai.internal"),
        ("http://dai.internal:443", "http://dai.internal:443"),
        ("[2001:DB8::1]:443", "https://[2001:db8::1]"),
        ("https://dai.googleapis.com", "https://dai.googleapis.com"),
        ("https://dai.googleapis.com/", "https://dai.googleapis.com"),
        ("http://dai.internal:8080", "http://dai.internal:8080"),
        ("HTTPS://dai.googleapis.com", "https://dai.googleapis.com"),
        ("  dai.googleapis.com\n", "https://dai.googleapis.com"),
        ("localhost", "https://localhost"),
        ("localhost:1", "https://localhost:1"),
        ("localhost:65535", "https://localhost:65535"),
        ("127.0.0.2:80", "https://127.0.0.2:80"),
        ("[::1]:80", "https://[::1]:80"),
        ("[::1]", "https://[::1]"),
        ("http://[2001:db8::1]:80/", "http://[2001:db8::1]"),
        ("a-b_c.example", "https://a-b_c.example"),
    ],
)
def test_an_endpoint_is_scheme_host_and_port(value: str, url: str) -> None:
    assert parse_endpoint(value, "it") == Endpoint(url)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "None",
        "  ",
        "/",
        "://",
        "https://",
        "https:///v1",
        "//host",
        ":80",
        "https://:80",
        "host:",
        "https://host:/",
        "host:0",
        "host:-1",
        "host:65536",
        "host:99999",
        "host:port",
        "host:+80",
        "host:8_0",
        "host: 80",
        "host:80:90",
        "::1",
        "::1:80",
        "[::1",
        "[host]",
        "host/v1",
        "host//",
        "https://host/v1",
        "host?x=1",
        "host#x",
        "user@host",
        "https://user:secret@host",
        "https://@host",
        "ftp://host",
        "file:///etc/passwd",
        "unix:///run/dai.sock",
        "https://https://host",
        "http:localhost:80",
        "host,other",
        "two hosts",
        "https://two hosts",
        "ho\tst",
        "ho\r\nst",
        "ho\0st",
        "ho\u00a0st",
        "host\\path",
        "https://host\\@other",
    ],
)
def test_anything_else_is_refused(value: str) -> None:
    with pytest.raises(
        ValueError, match="^Invalid it .*: expected 'host', 'host:port' or 'https://host:port'"
    ) as caught:
        parse_endpoint(value, "it")
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("url", "loopback", "token"),
    [
        ("https://dai.googleapis.com", False, True),
        ("https://10.0.0.1:8443", False, True),
        ("https://localhost", True, True),
        ("http://localhost", True, True),
        ("http://LOCALHOST:8080", True, True),
        ("http://127.0.0.1:8080", True, True),
        ("http://127.0.0.2", True, True),
        ("http://[::1]:8080", True, True),
        ("http://dai.googleapis.com", False, False),
        ("http://10.0.0.1", False, False),
        ("http://0.0.0.0:8080", False, False),
        ("http://[::]:8080", False, False),
        ("http://[2001:db8::1]", False, False),
        ("http://localhost.example.com", False, False),
        ("http://127.0.0.1.example.com", False, False),
        ("http://mylocalhost", False, False),
        ("http://128.0.0.1", False, False),
    ],
)
def test_a_token_goes_over_tls_or_stays_on_this_machine(url: str, loopback: bool, token: bool) -> None:
    endpoint = parse_endpoint(url, "it")
    assert (endpoint.is_loopback, endpoint.accepts_token) == (loopback, token)


@pytest.mark.parametrize("url", ["", "http://", "https//x"])
def test_what_is_no_url_is_no_loopback_address(url: str) -> None:
    assert not Endpoint(url).is_loopback
    assert not Endpoint(url).accepts_token


@pytest.mark.parametrize(
    ("argument", "environ", "url"),
    [
        (None, {}, None),
        (None, {EMULATOR_VARIABLE: ""}, None),
        (None, {"OTHER_EMULATOR_HOST": "localhost:1"}, None),
        (None, {EMULATOR_VARIABLE: "localhost:8080"}, "http://localhost:8080"),
        ("", {EMULATOR_VARIABLE: "localhost:8080"}, "http://localhost:8080"),
        (None, {EMULATOR_VARIABLE: "[::1]:8080"}, "http://[::1]:8080"),
        (None, {EMULATOR_VARIABLE: "http://localhost:8080/"}, "http://localhost:8080"),
        (None, {EMULATOR_VARIABLE: "https://localhost:8080"}, "https://localhost:8080"),
        ("dai.googleapis.com", {EMULATOR_VARIABLE: "localhost:8080"}, None),
        ("dai.googleapis.com", {EMULATOR_VARIABLE: "no endpoint"}, None),
    ],
)
def test_the_emulator_counts_when_its_variable_is_set_and_no_argument_is(
    argument: str | None, environ: dict[str, str], url: str | None
) -> None:
    assert emulator_endpoint(argument, environ) == (Endpoint(url) if url else None)


@pytest.mark.parametrize(
    ("argument", "extra", "universe", "url"),
    [
        (None, {}, "googleapis.com", "https://dai.googleapis.com"),
        ("", {}, "googleapis.com", "https://dai.googleapis.com"),
        (None, {}, "example.goog", "https://dai.example.goog"),
        (None, {EXTRA_KEY: None}, "googleapis.com", "https://dai.googleapis.com"),
        (None, {EXTRA_KEY: ""}, "googleapis.com", "https://dai.googleapis.com"),
        (None, {EXTRA_KEY: "dai.internal"}, "googleapis.com", "https://dai.internal"),
        (None, {EXTRA_KEY: "http://localhost:81"}, "googleapis.com", "http://localhost:81"),
        ("dai.other", {EXTRA_KEY: "dai.internal"}, "googleapis.com", "https://dai.other"),
        ("dai.other", {EXTRA_KEY: "no endpoint"}, "googleapis.com", "https://dai.other"),
    ],
)
def test_the_argument_counts_before_the_extra_and_the_extra_before_google(
    argument: str | None, extra: dict[str, object], universe: str, url: str
) -> None:
    assert service_endpoint(argument, extra, universe) == Endpoint(url)


def test_the_message_names_the_setting_that_is_wrong() -> None:
    with pytest.raises(ValueError, match="^Invalid DAI_EMULATOR_HOST 'host:x'"):
        emulator_endpoint(None, {EMULATOR_VARIABLE: "host:x"})
    with pytest.raises(ValueError, match="^Invalid DAI_EMULATOR_HOST '  '"):
        emulator_endpoint(None, {EMULATOR_VARIABLE: "  "})
    with pytest.raises(ValueError, match="^Invalid api_endpoint 'host:x'"):
        service_endpoint("host:x", {EXTRA_KEY: "dai.internal"}, "googleapis.com")
    with pytest.raises(ValueError, match="^Invalid dai_api_endpoint in the connection's extra 'host:x'"):
        service_endpoint(None, {EXTRA_KEY: "host:x"}, "googleapis.com")
