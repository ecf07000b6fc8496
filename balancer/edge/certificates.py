"""Certificates and trust as files: read, tried, and refused with a sentence.

RULES: reads the files that are named, nothing else, and each once: what was checked is what is served. OpenSSL reads
files only, so it gets their text from a memfd. `ssl` and `cryptography` are imported when the first file is read: a
balancer without TLS does without their 10 MB. Certificates live by the calendar: `calendar_time`, and no other clock.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from balancer.config.words import quote, split_words

if TYPE_CHECKING:
    from datetime import datetime
    from ssl import SSLContext

    from cryptography.x509 import Certificate

MOST = 1 << 20  # bytes of a file
FORM = "FILE, or FILE key=FILE where the key is in another one"
_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_LIST = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CertificateFile:
    """A certificate with its chain and its private key. `names` are the host names that it is for, in lower case;
    `key_type` is "EC", "RSA" or what else there is; times are seconds since 1970."""

    path: str
    key_path: str  # the same for both in one file
    pem: bytes = field(repr=False)  # certificate, chain and key
    names: tuple[str, ...] = ()
    key_type: str = ""
    not_before: float = 0.0
    not_after: float = 0.0
    subject: str = ""  # as RFC 4514 writes it: CN=a.example.com
    issuer: str = ""
    read_at: float = field(default=0.0, compare=False)  # the same file, read again, is the same certificate

    def __str__(self) -> str:
        return quote(self.path) + (f" key={quote(self.key_path)}" if self.key_path != self.path else "")

    def load_into(self, context: "SSLContext") -> None:
        """Have a context present this certificate to its peers. Raises ssl.SSLError."""
        with _as_file(self.pem) as path:
            context.load_cert_chain(path, password="")  # an encrypted key must not ask at the terminal


@dataclass(frozen=True, slots=True)
class TrustFile:
    """Certificates of authorities, or revocation lists, in PEM. `not_after`: when the first of the lists is too old,
    seconds since 1970."""

    path: str
    pem: bytes = field(repr=False)
    not_after: float = field(default=inf, compare=False)  # follows from `pem`

    def __str__(self) -> str:
        return self.path

    def load_into(self, context: "SSLContext") -> None:
        """Have a context trust these authorities, or look at these lists. Raises ssl.SSLError."""
        with _as_file(self.pem) as path:
            context.load_verify_locations(path)


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path at which OpenSSL finds `data`. Loading a path twice could load what nobody has checked."""
    fd = os.memfd_create("balancer-pem", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def parse_certificate(text: str) -> CertificateFile:
    """The certificate of "/etc/x.pem" or "/etc/x/fullchain.pem key=/etc/x/privkey.pem". Raises ValueError."""
    path, *more = split_words(text) or [""]
    keys = [word.removeprefix("key=") for word in more if word.startswith("key=")]
    if not path or len(more) > 1 or len(keys) != len(more):
        raise ValueError(f"{text!r} is not understood: write {FORM}")
    pem = _read(path)
    if keys:
        pem += b"\n" + _read(keys[0])
    return read_certificate(path, pem, calendar_time(), keys[0] if keys else path)


def calendar_time() -> float:
    """Seconds since 1970."""
    return time.time()


def read_certificate(path: str, pem: bytes, now: float, key_path: str = "") -> CertificateFile:
    """The certificate in `pem`; `now` is seconds since 1970. Raises ValueError with the sentence for what is wrong."""
    key_path = key_path or path
    blocks = _BEGIN.findall(pem)
    if b"CERTIFICATE" not in blocks:
        raise ValueError(f"{path} holds no certificate in PEM")
    if not any(block.endswith(b"PRIVATE KEY") for block in blocks):
        raise ValueError(f"{key_path} holds no private key in PEM; the key belongs behind the certificates")
    if b"ENCRYPTED PRIVATE KEY" in blocks or b"Proc-Type: 4,ENCRYPTED" in pem:
        raise ValueError(f"the key in {key_path} is encrypted, and nothing here could ask for its passphrase")
    leaf = _parse_leaf(path, pem)
    found = CertificateFile(
        path,
        key_path,
        pem,
        _names_of(leaf),
        _key_type(leaf),
        leaf.not_valid_before_utc.timestamp(),
        leaf.not_valid_after_utc.timestamp(),
        leaf.subject.rfc4514_string(),
        leaf.issuer.rfc4514_string(),
        now,
    )
    _try(found.load_into, server_context(), path)
    if found.not_after <= now:
        raise ValueError(f"the certificate in {path} has expired on {leaf.not_valid_after_utc:%Y-%m-%d}")
    if _must_staple(leaf):
        raise ValueError(
            f"the certificate in {path} demands a stapled OCSP answer (Must-Staple), which the balancer does not give"
        )
    return found


def _parse_leaf(path: str, pem: bytes) -> "Certificate":
    """The first certificate: the one that is served, those behind it are its chain."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ValueError(f"the first certificate in {path} cannot be read: it is damaged") from None


def _names_of(leaf: "Certificate") -> tuple[str, ...]:
    """The DNS names; without any the common name, as clients before 2017 read it."""
    from cryptography import x509

    extension = _extension(leaf, x509.SubjectAlternativeName)
    names = extension.get_values_for_type(x509.DNSName) if extension is not None else []
    if not names:
        common = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        names = [str(one.value) for one in common]
    return tuple(dict.fromkeys(name.lower().removesuffix(".") for name in names))


def _must_staple(leaf: "Certificate") -> bool:
    from cryptography import x509

    features = _extension(leaf, x509.TLSFeature)
    return features is not None and x509.TLSFeatureType.status_request in features


def _extension(leaf: "Certificate", kind: Any) -> Any:
    """The value of an extension; None when the certificate has none, or one that cannot be read."""
    from cryptography import x509

    try:
        return leaf.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, ValueError):
        return None


def _key_type(leaf: "Certificate") -> str:
    """Certificates for the same name and with keys of different types are served together."""
    name = type(leaf.public_key()).__name__
    return "EC" if "Elliptic" in name else name.removesuffix("PublicKey").lstrip("_")


def parse_trust(text: str) -> TrustFile:
    """A file of authorities in PEM. Raises ValueError."""
    found = TrustFile(text, _read(text))
    if b"CERTIFICATE" not in _BEGIN.findall(found.pem):
        raise ValueError(f"{text} holds no certificate in PEM")
    _try(found.load_into, server_context(), text)
    return found


def parse_revoked(text: str) -> TrustFile:
    """A file of revocation lists in PEM. Raises ValueError."""
    found = TrustFile(text, _read(text))
    if b"X509 CRL" not in _BEGIN.findall(found.pem):
        raise ValueError(f"{text} holds no revocation list in PEM")
    _try(found.load_into, server_context(), text)
    ends = [end.timestamp() for _, end in _ends_of_lists(found) if end is not None]
    return replace(found, not_after=min(ends, default=inf))


def _ends_of_lists(trust: TrustFile) -> "list[tuple[str, datetime | None]]":
    """The issuer of each revocation list, and when the next one is due."""
    from cryptography import x509

    lists = [x509.load_pem_x509_crl(block) for block in _LIST.findall(trust.pem)]
    return [(one.issuer.rfc4514_string(), one.next_update_utc) for one in lists]


def expired_lists(trust: TrustFile, now: float) -> list[str]:
    """A sentence on each revocation list that OpenSSL takes for too old at `now`, seconds since 1970."""
    return [
        f"the revocation list of {issuer} in {trust.path} has expired on {end:%Y-%m-%d}: no certificate of "
        "that authority is accepted"
        for issuer, end in _ends_of_lists(trust)
        if end is not None and end.timestamp() <= now
    ]


def server_context() -> "SSLContext":
    """A context for the side of the server, with nothing in it."""
    import ssl

    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


_SENTENCES = {
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
    "KEY_TYPE_MISMATCH": "the key does not belong to the certificate",
    "NO_CERTIFICATE_ASSIGNED": "the key does not belong to the certificate",  # it is of another type
    "EE_KEY_TOO_SMALL": "OpenSSL takes its key for too short",
    "CA_KEY_TOO_SMALL": "OpenSSL takes a key in its chain for too short",
    "CA_MD_TOO_WEAK": "OpenSSL takes a signature in its chain for too weak",
    "EE_MD_TOO_WEAK": "OpenSSL takes its signature for too weak",
}


def _try(load: Callable[["SSLContext"], None], context: "SSLContext", path: str) -> None:
    """What OpenSSL says of a file decides."""
    import ssl

    try:
        load(context)
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        raise ValueError(f"{path}: {_SENTENCES.get(reason, f'OpenSSL refuses it: {reason}')}") from None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MOST + 1)
    except PermissionError:
        sentence = (
            f"cannot read {path}: permission denied; the user that the balancer becomes must be able to"
        )
        raise ValueError(sentence) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no path"
        raise ValueError(f"cannot read {path}: {reason}") from None
    if len(data) > MOST:
        raise ValueError(f"{path} has more than {MOST >> 20} MB")
    return data
