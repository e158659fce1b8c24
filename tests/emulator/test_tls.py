"""TLS: certificates that a client must refuse, and the same ones where it has been told to trust them."""

import os
import ssl
import tempfile
import warnings
from pathlib import Path

import pytest
import requests
from emulator_testing import get

from airflow_dai_provider.emulator import DaiEmulator, Fault, SelfSigned


def authority(folder: Path, certificate: str | None) -> str:
    assert certificate is not None
    file = folder / "authority.pem"
    file.write_text(certificate)
    return str(file)


def test_certificate_does_not_verify_until_it_is_trusted(tmp_path: Path) -> None:
    with DaiEmulator(tls=True) as emulator:
        assert emulator.endpoint.startswith("https://127.0.0.1:")
        assert emulator.control_endpoint.startswith(emulator.endpoint)
        with pytest.raises(requests.exceptions.SSLError, match="self-signed certificate"):
            get(emulator)
        assert emulator.requests == []
        trusted = authority(tmp_path, emulator.certificate)
        for host in (emulator.endpoint, emulator.endpoint.replace("127.0.0.1", "localhost")):
            assert requests.get(f"{host}/v1/operations", verify=trusted, timeout=5).json() == {}
        assert len(emulator.requests) == 2


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        (SelfSigned(hosts=("dai.example",)), "IP address mismatch"),
        (SelfSigned(expired=True), "certificate has expired"),
    ],
)
def test_trusted_certificate_can_be_invalid(tmp_path: Path, certificate: SelfSigned, words: str) -> None:
    with DaiEmulator(tls=certificate) as emulator:
        with pytest.raises(requests.exceptions.SSLError, match=words):
            get(emulator, verify=authority(tmp_path, emulator.certificate))
        assert emulator.requests == []


def test_context_can_be_the_callers(tmp_path: Path) -> None:
    certificate = SelfSigned()
    with DaiEmulator(tls=certificate.context()) as emulator:
        assert emulator.certificate is None
        trusted = authority(tmp_path, certificate.pem)
        assert get(emulator, verify=trusted).status_code == 200


def test_plain_http_has_no_certificate(emulator: DaiEmulator) -> None:
    assert emulator.certificate is None
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(emulator.endpoint.replace("http:", "https:"), timeout=5)


def test_plain_http_is_refused_by_tls() -> None:
    with DaiEmulator(tls=True) as emulator, pytest.raises(requests.ConnectionError):
        requests.get(emulator.endpoint.replace("https:", "http:"), timeout=5)


@pytest.mark.parametrize("reset", [True, False])
def test_connection_can_be_dropped_over_tls(tmp_path: Path, reset: bool) -> None:
    with DaiEmulator(tls=True) as emulator:
        trusted = authority(tmp_path, emulator.certificate)
        emulator.inject(Fault(drop="before", reset=reset))
        # Python's ssl module shows a reset as an end.
        with pytest.raises(requests.ConnectionError):
            get(emulator, verify=trusted)
        emulator.inject(Fault(truncate=1))
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            get(emulator, verify=trusted)
        assert get(emulator, verify=trusted).status_code == 200


def test_key_file_is_only_for_its_owner_and_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    modes = []
    load = ssl.SSLContext.load_cert_chain

    def watch(context: ssl.SSLContext, file: Path) -> None:
        modes.append((oct(file.stat().st_mode & 0o777), oct(file.parent.stat().st_mode & 0o777)))
        load(context, file)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    umask = os.umask(0)
    try:
        certificate = SelfSigned()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            certificate.context()
    finally:
        os.umask(umask)
    assert modes == [("0o600", "0o700")]
    assert list(tmp_path.iterdir()) == []
    assert "PRIVATE KEY" not in certificate.pem + repr(certificate)


def test_certificate_is_one_for_all_servers_and_fresh_for_each_new_one() -> None:
    certificate = SelfSigned()
    assert certificate.pem == certificate.pem != SelfSigned().pem
