"""An authority that issues certificates for tests, in memory.

authority = Authority()
authority.issue("a.example", key="RSA")     PEM: certificate, key
authority.pem                               what verifies it
"""

from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
DAY = timedelta(days=1)


@cache
def rsa_key(bits: int, number: int) -> rsa.RSAPrivateKey:
    """Slow to make, so each is made once."""
    return rsa.generate_private_key(65537, bits)


def new_key(kind: str = "EC", bits: int = 2048, number: int = 0) -> Key:
    return ec.generate_private_key(ec.SECP256R1()) if kind == "EC" else rsa_key(bits, number)


def key_pem(key: Key, passphrase: bytes = b"") -> bytes:
    how = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


class Authority:
    def __init__(self, name: str = "Test authority") -> None:
        self.key = new_key()
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.revoked: list[int] = []
        self.serials: dict[str, int] = {}  # by common name
        self.pem = self._sign(self.name, self.key, [(x509.BasicConstraints(True, None), True)])

    def issue(
        self,
        *names: str,
        key: str | Key = "EC",
        common_name: str = "",
        begins: timedelta = -DAY,
        ends: timedelta = 30 * DAY,
        features: tuple[x509.TLSFeatureType, ...] = (),
        with_key: bool = True,
    ) -> bytes:
        """`begins` and `ends` are counted from now; `names` are host names or IP addresses."""
        made = new_key(key) if isinstance(key, str) else key
        subject = x509.Name(
            [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name or (*names, "client")[0])]
        )
        extensions: list[tuple[x509.ExtensionType, bool]] = [(x509.BasicConstraints(False, None), True)]
        if names:
            extensions.append((x509.SubjectAlternativeName([_general(name) for name in names]), False))
        if features:
            extensions.append((x509.TLSFeature(features), False))
        certificate = self._sign(subject, made, extensions, begins, ends)
        return certificate + (key_pem(made) if with_key else b"")

    def revocations(self, ends: timedelta = 30 * DAY) -> bytes:
        """The list of `revoked` serial numbers; it ends so long from now."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(self.name, now - 30 * DAY, now + ends)
        for serial in self.revoked:
            entry = x509.RevokedCertificateBuilder(serial, now - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _sign(
        self,
        subject: x509.Name,
        key: Key,
        extensions: list[tuple[x509.ExtensionType, bool]],
        begins: timedelta = -DAY,
        ends: timedelta = 30 * DAY,
    ) -> bytes:
        now, serial = datetime.now(UTC), x509.random_serial_number()
        self.serials[str(subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)] = serial
        builder = x509.CertificateBuilder(
            self.name, subject, key.public_key(), serial, now + begins, now + ends
        )
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, is_critical)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
