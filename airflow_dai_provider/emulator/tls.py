"""Certificates that nobody has vouched for, for an emulator that speaks TLS."""

import ssl
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509

_KEY_BITS = 2048


class SelfSigned:
    """A certificate that is its own authority, with a fresh key.

    Clients refuse it, unless :attr:`pem` is written to a file that they are told to trust.

    :param hosts: the host names and addresses that it is for; by others, also those who trust it are refused.
    :param expired: whether its time is over.
    """

    def __init__(self, hosts: Sequence[str] = ("127.0.0.1", "::1", "localhost"), *, expired: bool = False) -> None:
        """Make nothing yet: the certificate is made when it is needed."""
        self._hosts = tuple(hosts)
        self._expired = expired

    @property
    def pem(self) -> str:
        """The certificate, without its key."""
        return self._made[0]

    @property
    def private_key_pem(self) -> str:
        """The key, for a server in another process."""
        return self._made[1]

    def context(self) -> ssl.SSLContext:
        """Return what a server needs of it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # The ssl module reads a key from a file only: one for its owner, gone at once.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "server.pem")
            file.touch(mode=0o600)
            file.write_text("".join(self._made), encoding="ascii")
            context.load_cert_chain(file)
        return context

    @cached_property
    def _made(self) -> tuple[str, str]:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "DAI emulator")])
        end = datetime.now(UTC) + timedelta(days=-1 if self._expired else 30)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - timedelta(days=60))
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in self._hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        encoding = serialization.Encoding.PEM
        private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return certificate.public_bytes(encoding).decode("ascii"), private.decode("ascii")


def _general_name(host: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
