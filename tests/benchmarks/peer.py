"""Run the server in a process of its own, with new keys, and return the environment for its clients."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from counters import Counters
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from processes import ScenarioError, clean_environment, running_script
from server import LOOPBACK


@contextmanager
def server(work: Path) -> Iterator[dict[str, str]]:
    """Start the server in ``work``, yield the environment for its clients, and stop it afterwards."""
    certificate, counters = work / "server.pem", work / "counters"
    _write_certificate(certificate)
    Counters(counters)
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with running_script("server.py", str(certificate), str(counters), env=clean_environment(), **streams) as process:
        ports = (process.stdout.readline() if process.stdout else "").split()
        if len(ports) != 2:
            raise ScenarioError("the server has not started")
        endpoint, token_endpoint = (f"https://{LOOPBACK}:{port}" for port in ports)
        yield clean_environment() | {
            "AIRFLOW_HOME": str(work / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(_connection(endpoint, f"{token_endpoint}/token")),
            "REQUESTS_CA_BUNDLE": str(certificate),
            "BENCHMARK_ENDPOINT": endpoint,
            "BENCHMARK_COUNTERS": str(counters),
        }


def _connection(endpoint: str, token_uri: str) -> dict[str, object]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = {
        "type": "service_account",
        "project_id": "benchmark",
        "private_key_id": "benchmark",
        "private_key": _pem(key),
        "client_email": "benchmark@benchmark.iam.gserviceaccount.com",
        "token_uri": token_uri,
    }
    extra = {"keyfile_dict": json.dumps(account), "dai_api_endpoint": endpoint, "project": "benchmark"}
    return {"conn_type": "google_cloud_platform", "extra": extra}


def _write_certificate(path: Path) -> None:
    """Write a self-signed certificate with its key: elliptic as Google's is, and cheap for clients."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, LOOPBACK)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_text(_pem(key) + certificate.public_bytes(serialization.Encoding.PEM).decode())
    path.chmod(0o600)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
