"""TLS in front of clients: its options, and the contexts that handshakes begin with.

RULES
- A context is chosen by the server name before its TLS object exists. Were it exchanged during the handshake (the
  module's SNI callback), a client without a certificate would get in where one is required: OpenSSL keeps the
  verification of the first context.
- There is one context for each set of certificates that a name can get, and it never changes its trust. A ticket that a
  context gave out before it verified clients would let its owner in without a certificate.
- Contexts are made in the master, before the fork: their ticket keys are the same in every worker then, so a session is
  resumed wherever its client comes next.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from ipaddress import ip_address
from itertools import chain
from typing import TYPE_CHECKING, Any

from balancer.config.option import optional, options_in
from balancer.config.units import parse_positive_duration
from balancer.edge.certificates import (
    CertificateFile,
    TrustFile,
    parse_certificate,
    parse_revoked,
    parse_trust,
    server_context,
)
from balancer.edge.hello import MOST_NAME
from balancer.edge.renewal import CertificateHandover

if TYPE_CHECKING:
    from ssl import SSLContext

TICKETS_LAST = (
    86_400.0  # seconds: workers that begin later get new contexts, and with them another key for tickets
)

TAKES_RELOAD = "that takes new contexts, and so `balancerctl reload`"

_tls = options_in("TLS")
_TLS_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


def parse_ciphers(text: str) -> str:
    """OpenSSL's cipher list, for TLS 1.2: those of 1.3 are all good, and the module cannot choose among them."""
    if not text:
        return ""
    import ssl

    try:
        server_context().set_ciphers(text)
    except ssl.SSLError:
        raise ValueError(f"{text!r} selects no cipher; `openssl ciphers -v` shows what there is") from None
    return text


def parse_protocol(text: str) -> str:
    """A protocol name for ALPN: "h2", "http/1.1", "mqtt"."""
    if not re.fullmatch(r"[!-~]{1,255}", text):
        raise ValueError(f"{text!r} is no protocol name: write h2, http/1.1 or mqtt")
    return text


def parse_tls_name(text: str) -> str:
    """A host name or an IP address, or nothing."""
    if text and not (_is_address(text) or (len(text) <= MOST_NAME and _TLS_NAME.fullmatch(text))):
        raise ValueError(f"{text!r} is no host name: write backend.example.com")
    return text


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerTls:
    """What a listener says of TLS. Without a certificate it relays what comes. Times are seconds."""

    tls_cert: tuple[CertificateFile, ...] = _tls(
        "",
        "PEM file with a certificate, its chain and its key (key=FILE: in another one); makes the listener end TLS. Of "
        "several, the server name that a client asks for chooses; the first is for all others",
        parse_certificate,
        words=True,
        metavar="FILE",
        repeat=True,
        unset="TLS is not ended",
    )
    tls_min: str = _tls("1.2", "oldest version of TLS that clients may use", choices=("1.2", "1.3"))
    tls_ciphers: str = _tls(
        "", "ciphers of TLS 1.2, as OpenSSL lists them", parse_ciphers, metavar="LIST", unset="OpenSSL's"
    )
    tls_alpn: tuple[str, ...] = _tls(
        "",
        "protocols for ALPN, the first that a client offers too is chosen: h2, http/1.1; without one in common the "
        "session has none",
        parse_protocol,
        metavar="PROTOCOL",
        repeat=True,
        unset="no ALPN",
    )
    tls_client_ca: TrustFile | None = _tls(  # noqa: RUF009 - a dataclass field
        "",
        "PEM file of the authorities whose client certificates are believed; makes clients show one",
        optional(parse_trust),
        metavar="FILE",
        unset="no client certificates",
    )
    tls_client: str = _tls(
        "required",
        "with tls-client-ca: required refuses clients without a certificate, optional only those with a wrong one",
        choices=("required", "optional"),
    )
    tls_client_crl: TrustFile | None = _tls(  # noqa: RUF009 - a dataclass field
        "",
        "PEM file of revocation lists, one for each authority that issues client certificates",
        optional(parse_revoked),
        metavar="FILE",
        unset="none",
    )
    tls_handshake_timeout: float = _tls(
        "5s",
        "time for a whole TLS handshake, from the accept or the PROXY header on",
        parse_positive_duration,
    )

    def context_settings(self) -> tuple[object, ...]:
        """All that a context is made of: where two are equal, one context serves for both."""
        return tuple(
            getattr(self, each.name) for each in fields(ListenerTls) if each.name != "tls_handshake_timeout"
        )


class ContextTable:
    """The contexts of one listener by server name: the name itself, then its parent's wildcard, then the first file's.
    `made_at` is seconds of a clock that does not jump."""

    def __init__(
        self,
        settings: ListenerTls,
        make: Callable[[ListenerTls, Sequence[CertificateFile]], Any],
        made_at: float = 0.0,
    ) -> None:
        files = settings.tls_cert
        self.settings = settings
        self.files = files
        self.made_at = made_at
        self.handover = CertificateHandover(files)
        self._contexts: dict[tuple[CertificateFile, ...], Any] = {}
        chosen = {name: served_together(files, name) for name in sorted({n for f in files for n in f.names})}
        first = served_together(files, files[0].names[0]) if files[0].names else files[:1]
        for some in (first, *chosen.values()):
            if some not in self._contexts:
                self._contexts[some] = make(settings, some)
        self.default: Any = self._contexts[first]
        self._by_name = {name: self._contexts[some] for name, some in chosen.items()}
        self._places = [(tuple(map(files.index, some)), context) for some, context in self._contexts.items()]

    def choose(self, name: str) -> Any:
        """The context for a client that asks for this name, "" when it asks for none."""
        found = self._by_name.get(name)
        if found is None and name:
            found = self._by_name.get("*." + name.partition(".")[2])
        return self.default if found is None else found

    def renew(self, settings: ListenerTls) -> None:
        """In the master: have the living contexts present these certificates, here and in the workers. They are for the
        same names, with keys of the same types. Raises ssl.SSLError, and then nothing has changed."""
        files = settings.tls_cert
        for places, _ in self._places:
            make_context(settings, [files[place] for place in places])
        self._load(files)
        self.settings = settings
        self.handover.write(files)

    def take_renewed(self) -> bool:
        """In a worker: present what the master has handed over; return whether there was something. Raises OSError
        (ssl.SSLError too), and the next call tries the same again."""
        pems = self.handover.read()
        if pems is None:
            return False
        try:
            self._load(tuple(replace(file, pem=pem) for file, pem in zip(self.files, pems, strict=True)))
        except BaseException:
            self.handover.read_again()
            raise
        return True

    def _load(self, files: tuple[CertificateFile, ...]) -> None:
        for places, context in self._places:
            for place in places:
                files[place].load_into(context)
        self.files = files

    @property
    def contexts(self) -> "tuple[SSLContext, ...]":
        """Each once."""
        return tuple(self._contexts.values())


def served_together(files: Iterable[CertificateFile], name: str) -> tuple[CertificateFile, ...]:
    """The first certificate of each type of key that is for exactly this name: a client gets the one that it can read."""
    by_type: dict[str, CertificateFile] = {}
    for file in files:
        if name in file.names:
            by_type.setdefault(file.key_type, file)
    return tuple(by_type.values())


def make_context(settings: ListenerTls, files: Sequence[CertificateFile]) -> "SSLContext":
    """A context for these certificates. Raises ssl.SSLError."""
    import ssl

    context = server_context()
    context.minimum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[settings.tls_min]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = 1  # OpenSSL's two are for clients with two connections at once
    if settings.tls_ciphers:
        context.set_ciphers(settings.tls_ciphers)
    if settings.tls_alpn:
        context.set_alpn_protocols(settings.tls_alpn)
    for file in files:
        file.load_into(context)
    if settings.tls_client_ca is not None:
        settings.tls_client_ca.load_into(context)
        is_required = settings.tls_client == "required"
        context.verify_mode = ssl.CERT_REQUIRED if is_required else ssl.CERT_OPTIONAL
        if settings.tls_client_crl is not None:
            settings.tls_client_crl.load_into(context)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


class ServerContexts:
    """The contexts of all listeners, in the master. A reload that changes nothing of a listener's TLS keeps its contexts,
    so that the sessions of its clients are resumed in the new workers too. A table lives as long as a generation that it
    was made for: a plan that is refused takes nothing from the one that serves."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._living: dict[int, tuple[ContextTable, ...]] = {}  # by generation

    def tables(
        self, listeners: Iterable[tuple[str, ListenerTls]], generation: int
    ) -> dict[str, ContextTable]:
        """The table of each listener that ends TLS, by its name, for a generation. Raises ValueError with a sentence."""
        by_age = sorted(chain(*self._living.values()), key=lambda table: table.made_at)
        known = {table.settings.context_settings(): table for table in by_age}
        found, now = {}, self._clock()
        for name, settings in listeners:
            if settings.tls_cert:
                key = settings.context_settings()
                table = known.get(key)
                if table is None or now - table.made_at >= TICKETS_LAST:
                    table = known[key] = self._make(name, settings, now)
                found[name] = table
        self._living[generation] = tuple(found.values())
        return found

    def keep_only(self, tables: Iterable[ContextTable]) -> None:
        """In a forked process: close what other generations have."""
        for table in set(chain(*self._living.values())).difference(tables):
            table.handover.close()

    def retire(self, generation: int) -> None:
        """No process of this generation lives: each process forked from now on would inherit what only it had."""
        tables = set(self._living.pop(generation, ()))
        for table in tables.difference(*self._living.values()):
            table.handover.close()

    def _make(self, name: str, settings: ListenerTls, now: float) -> ContextTable:
        import ssl

        try:
            return ContextTable(settings, make_context, now)
        except ssl.SSLError as error:
            raise ValueError(f"OpenSSL refuses what listener {name} says of TLS: {error.reason}") from None


def renew(tables: Iterable[ContextTable]) -> int:
    """Read the certificates of these tables again, and have the living contexts present those that have changed; return
    how many did. Raises ValueError with a sentence, and then nothing has changed."""
    import ssl

    renewed = []
    for table in dict.fromkeys(tables):  # listeners with equal settings share one
        check_trust(table.settings)
        files = tuple(renewed_file(file) for file in table.files)
        if files != table.files:
            renewed.append((table, files))
    count = 0
    for table, files in renewed:
        count += sum(new != old for new, old in zip(files, table.files, strict=True))
        try:
            table.renew(replace(table.settings, tls_cert=files))
        except ssl.SSLError as error:
            raise ValueError(f"OpenSSL refuses the new certificates: {error.reason}") from None
    return count


def renewed_file(old: CertificateFile) -> CertificateFile:
    """The same file as it is now. Raises ValueError, also when living contexts cannot take it."""
    new = parse_certificate(str(old))
    if new.names != old.names or new.key_type != old.key_type:
        was, now = (f"{one.key_type} for {', '.join(one.names) or 'no name'}" for one in (old, new))
        raise ValueError(
            f"the certificate in {old.path} is another one ({now}, before: {was}): {TAKES_RELOAD}"
        )
    return new


def check_trust(settings: ListenerTls) -> None:
    """A change of whom to believe takes new contexts: old tickets would let their owners in. Raises ValueError."""
    for trust, read in ((settings.tls_client_ca, parse_trust), (settings.tls_client_crl, parse_revoked)):
        if trust is not None and read(trust.path) != trust:
            raise ValueError(f"{trust.path} has changed: {TAKES_RELOAD}")
