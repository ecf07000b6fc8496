"""TLS to the backends of a pool: one context, made in the master, and the sessions to resume.

RULES: a certificate is verified unless the pool says otherwise, with the name that the backend is asked for. A session is
kept for each backend, in each process: it resumes without another look at the certificate, so it is never used under
another name or trust (a changed configuration has an object of its own).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from balancer.edge.certificates import CertificateFile, TrustFile

if TYPE_CHECKING:
    from ssl import SSLContext, SSLSession


@dataclass(slots=True, eq=False)
class BackendTls:
    """What a handshake with a backend begins with. `name` is tls-sni; `sessions` are by the backend's index."""

    context: "SSLContext"
    name: str = ""
    sessions: "dict[int, SSLSession]" = field(default_factory=dict)

    def name_for(self, host: str) -> str | None:
        """The name to ask a backend for that was configured with this host; None for a unix socket. A dot at its end is
        for name servers."""
        return (self.name or host).removesuffix(".") or None


def make_backend_tls(
    verify: bool,
    authorities: TrustFile | None = None,
    certificate: CertificateFile | None = None,
    name: str = "",
    load_system: Callable[["SSLContext"], object] = lambda context: context.load_default_certs(),
) -> BackendTls:
    """Without `authorities` those of the system are believed. Raises ssl.SSLError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authorities is not None:
        authorities.load_into(context)
    else:
        load_system(context)
    if certificate is not None:
        certificate.load_into(context)
    return BackendTls(context, name)
