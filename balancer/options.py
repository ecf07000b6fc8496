"""Every option of `balancer`, declared once: flag, INI key, environment name, default, help; and the records they become.

RULES: frozen records and readers of single values. Nothing is opened, bound or resolved here, and nothing is checked
across options (see configuration.py).
"""

from dataclasses import dataclass, field
from typing import Any

from balancer.admin_socket import OFF, parse_socket_path
from balancer.checks.options import HealthOptions
from balancer.config.common import DAEMON_QUESTIONS
from balancer.config.option import (
    Option,
    SectionKind,
    SectionSettings,
    at_least,
    between,
    made_from,
    optional,
    options_in,
    options_of,
)
from balancer.config.sections import SET_OPTION
from balancer.config.units import (
    Address,
    parse_count,
    parse_duration,
    parse_positive_duration,
    parse_size,
)
from balancer.discovery.servers import NameServers, parse_resolver
from balancer.edge.access import NetworkItem, parse_networks
from balancer.edge.certificates import CertificateFile, TrustFile, parse_certificate, parse_trust
from balancer.edge.proxy_protocol import SendProxy, parse_send_proxy
from balancer.edge.route import REJECT, Route, parse_pool_name, parse_route
from balancer.edge.tls import ListenerTls, parse_tls_name
from balancer.option_values import (
    Rate,
    TokenFile,
    parse_hash_load,
    parse_mask,
    parse_one_in,
    parse_rate,
    parse_token_file,
)
from balancer.pool.backend import MAIN_POOL, MOST_SLOTS, Backend, is_source, parse_upstream
from balancer.prefork.options import DaemonOptions, addresses_of, parse_listen, parse_processes
from balancer.relay.framed.frame_format import FORM, FrameFormat, parse_frame_format
from balancer.sample_files import SAMPLES

SECTION = "balancer"
ABOUT = "spreads TCP connections over backends (layer 4), from forked workers"
EXAMPLE = (
    "balancer -p 9090 -u 10.0.0.1:9000 -u '10.0.0.2:9000 weight=2' -u '10.0.0.3:9000 backup' --maxconns 1024"
)
POLICIES = ("leastconn", "roundrobin", "random", "p2c", "source", "maglev", "first", "nq")
HASHES = ("source", "maglev")  # the client's address decides, not the load

MAIN = MAIN_POOL  # the listener's name too, in a configuration without sections

MOST_LISTENERS, MOST_POOLS = 64, 256  # blocks on the board
_NAMED_ONLY: dict[str, Any] = {"named_only": True, "inherited": False}

_clients = options_in("Clients")
_sessions = options_in("Sessions")
_backends = options_in("Backends")
_framed = options_in("Framed mode")
_access = options_in("Access")
_tls = options_in("TLS to backends")
_processes = options_in("Processes")


@dataclass(frozen=True, slots=True)
class Listener(ListenerTls):
    """Addresses that accept clients, the limits of their sessions, and their routes. Times are seconds, 0 is never;
    `maxconns` 0 is no limit; `index` is its block on the board."""

    name: str
    addresses: tuple[Address, ...] = addresses_of("9090", group="Clients", inherited=False)
    maxconns: int = _clients(
        "0", "sessions at once, over all workers; 0 is no limit", parse_count, metavar="N"
    )
    overflow: str = _clients(
        "drop",
        "beyond maxconns: drop accepts, logs and closes; queue leaves clients in the kernel's backlog",
        choices=("drop", "queue"),
    )
    backlog: int = _clients(
        "1024",
        "clients that may wait to be accepted, for each worker and address (the kernel's somaxconn caps it)",
        at_least(1, parse_count),
        metavar="N",
    )
    defer_connect: bool = _clients(
        "no",
        "connect to a backend on the client's first byte; leave it off for protocols whose server speaks first",
        flag=True,
    )
    idle_timeout: float = _sessions(
        "10m", "close a session after this time without a byte; 0 is never", parse_duration
    )
    half_close_timeout: float = _sessions(
        "30s", "as idle-timeout, once one side has ended its sending; 0 is never", parse_duration
    )
    keepalive: float = _sessions(
        "60s", "idle time before TCP keepalive probes, both sides; 0 is off", parse_duration
    )
    user_timeout: float = _sessions(
        "30s",
        "time sent bytes may stay unacknowledged before a peer counts as dead (TCP_USER_TIMEOUT); 0 is the kernel's own",
        parse_duration,
    )
    splice: bool = _sessions("yes", "move bulk flows inside the kernel with splice(2)", flag=True)
    proxy_protocol: bool = _access(
        "no",
        "every connection begins with a PROXY header (version 1 or 2); the address in it is the client's for routes, "
        "elections, access and log; needs proxy-trusted",
        flag=True,
    )
    proxy_trusted: tuple[NetworkItem, ...] = _access(
        "",
        "networks of the proxies whose PROXY headers are believed; connections from others are refused",
        parse_networks,
        metavar="NETWORK",
        repeat=True,
    )
    preread_timeout: float = _access(
        "5s", "time to receive a whole PROXY header or ClientHello", parse_positive_duration
    )
    preread: str = _access(
        "tls",
        "how clients begin where a route looks at a name or TLS is ended: tls with a ClientHello; postgres with "
        "PostgreSQL's SSLRequest, which is answered, or with a ClientHello",
        choices=("tls", "postgres"),
    )
    allow: tuple[NetworkItem, ...] = _access(
        "",
        "networks that are served, or @FILE with one a line; all others are denied",
        parse_networks,
        metavar="NETWORK",
        repeat=True,
        unset="all",
    )
    deny: tuple[NetworkItem, ...] = _access(
        "",
        "networks that are not served, or @FILE with one a line; counts before allow",
        parse_networks,
        metavar="NETWORK",
        repeat=True,
        unset="none",
    )
    deny_action: str = _access(
        "reset",
        "how a denied connection is closed: reset (RST), close (FIN), or drop, which sends nothing and needs "
        "CAP_NET_ADMIN",
        choices=("reset", "close", "drop"),
    )
    source_maxconn: int = _access(
        "0",
        "sessions of one client address at once, over all workers; 0 is no limit",
        parse_count,
        metavar="N",
    )
    source_rate: Rate | None = _access(  # noqa: RUF009 - a dataclass field
        "",
        "new clients of one address in a period, refused ones included: 60/1m",
        optional(parse_rate),
        metavar="N/TIME",
        unset="no limit",
    )
    source_mask: tuple[int, int] = _access(
        "32/64",
        "bits of an IPv4 and of an IPv6 address that make a source: one customer mostly has a /64",
        parse_mask,
        metavar="BITS/BITS",
    )
    dry_run: bool = _access(
        "no", "only log what allow, deny and the limits per source would refuse", flag=True
    )
    routes: tuple[Route, ...] = made_from(
        Option(
            "pool",
            "",
            "pool of every client: short for the one route -> POOL",
            parse_pool_name,
            metavar="POOL",
            group="Clients",
            unset="by route",
            **_NAMED_ONLY,
        ),
        Option(
            "route",
            "",
            "which pool a client gets, the first line that matches: from NETWORK -> POOL for clients of a network, sni "
            "NAME -> POOL for TLS clients that ask for a name (*.example.com: any below it), both joined by and, -> POOL "
            "for all; a client that no line matches, or one -> reject, is refused",
            parse_route,
            metavar="ROUTE",
            group="Clients",
            repeat=True,
            commas=False,
            unset="by pool",
            **_NAMED_ONLY,
        ),
    )
    index: int = -1

    @property
    def pool_names(self) -> list[str]:
        """Of the pools that its routes lead to."""
        return list(dict.fromkeys(route.pool for route in self.routes if route.pool != REJECT))

    @property
    def asks_names(self) -> bool:
        """Whether a route looks at the name that a TLS client asks for."""
        return any(route.name for route in self.routes)


@dataclass(frozen=True, slots=True)
class Pool(HealthOptions):
    """Backends, how one is elected, and how they are checked. Times are seconds; `index` is its block on the board."""

    name: str
    backends: tuple[Backend, ...] = _backends(
        "",
        "backend: host:port, [v6]:port, unix:/path, or a set of backends that a name server knows, dns:HOST:PORT or "
        "srv:_SERVICE._tcp.NAME with slots=N; then weight=N maxconn=N backup name=X source=ADDRESS[,ADDRESS...] "
        "as wanted; source is the addresses of this machine to connect from, for more ports than one address has",
        parse_upstream,
        name="upstream",
        words=True,
        continues=is_source,
        short="u",
        metavar="BACKEND",
        repeat=True,
        unset="required",
        inherited=False,
    )
    balance: str = _backends(
        "leastconn",
        "how the backend of a session is chosen: leastconn fewest sessions for its weight; roundrobin in turn by "
        "weight; random by weight; p2c the better of two at random; source the same for the same client address; maglev "
        "as source, but evenly; first the first that is not full; nq one without a session, else the one done first",
        choices=POLICIES,
    )
    hash_load: int = _backends(
        "0",
        "with balance source or maglev: a backend takes no more than this part of the mean load, 125 to 200 (percent); "
        "what is beyond goes to the next; 0 is no limit",
        parse_hash_load,
        metavar="PERCENT",
    )
    connect_timeout: float = _backends(
        "5s", "time a backend has to accept a connection", parse_positive_duration
    )
    retries: int = _backends(
        "3",
        "further backends to try when a connect fails, while no byte of the client has gone upstream",
        at_least(0),
        metavar="N",
    )
    queue_timeout: float = _backends(
        "5s",
        "time a session waits for a place when every backend is at its maxconn; 0 does not wait",
        parse_duration,
    )
    max_queue: int = _backends(
        "1024", "sessions that may wait for a place, in each worker", at_least(0, parse_count), metavar="N"
    )
    spare_slots: int | None = _backends(
        "",
        "places for backends that `balancerctl add` puts into the pool until the next reload; 0 is none",
        optional(between(0, MOST_SLOTS, parse_count)),
        metavar="N",
        unset="8, in framed mode 0",
    )
    send_proxy: SendProxy | None = _backends(  # noqa: RUF009 - a dataclass field
        "",
        "begin every connection to a backend with a PROXY header of the client's address: v1 or v2; behind v2 as wanted "
        "crc32c, unique-id, authority, alpn and ssl (of the client's TLS, authority also of the header that came in)",
        optional(parse_send_proxy),
        metavar="VERSION",
        unset="no",
    )
    tls: bool = _tls(
        "no", "speak TLS to the backends, behind the PROXY header if there is one; checks too", flag=True
    )
    tls_ca: TrustFile | None = _tls(  # noqa: RUF009 - a dataclass field
        "",
        "PEM file of the authorities that the backends' certificates are verified by",
        optional(parse_trust),
        metavar="FILE",
        unset="the system's",
    )
    tls_verify: bool = _tls(
        "yes",
        "verify the backends' certificates; one that fails is a failed connect. Without it whoever is on the way reads "
        "along",
        flag=True,
    )
    tls_sni: str = _tls(
        "",
        "name to ask the backends for, which their certificates must have",
        parse_tls_name,
        metavar="NAME",
        unset="the host of upstream",
    )
    tls_cert: CertificateFile | None = _tls(  # noqa: RUF009 - a dataclass field
        "",
        "in a pool: PEM file with the certificate and the key to show to the backends (key=FILE: in another one)",
        optional(parse_certificate),
        name="tls-cert",
        words=True,
        metavar="FILE",
        unset="none",
        **_NAMED_ONLY,
    )
    mode: str = _framed(
        "tcp",
        "tcp gives each connection a backend; framed gives each request one: the balancer knows where a message ends, "
        "from `frame`, and keeps connections to the backends that all clients share",
        choices=("tcp", "framed"),
    )
    frame: FrameFormat | None = _framed(  # noqa: RUF009 - a dataclass field
        "",
        f"how a message begins: {FORM}; offset is where the length stands, behind the magic unless given",
        optional(parse_frame_format),
        metavar="FORMAT",
        unset="required by mode framed",
    )
    max_frame: int = _framed(
        "32m", "biggest payload of a request or a reply", between(1, 1 << 40, parse_size), metavar="SIZE"
    )
    frame_timeout: float = _framed(
        "10s",
        "time a request, or a reply, that has begun may make no progress",
        parse_positive_duration,
    )
    order: str = _framed(
        "strict",
        "order of the replies to one client: strict as it has asked; any as they come, for protocols whose messages "
        "carry an ID",
        choices=("strict", "any"),
    )
    pipeline: int = _framed("32", "requests of one client under way at once", at_least(1), metavar="N")
    frame_retries: int = _framed(
        "1",
        "further backends for a request whose backend ends the connection before its reply; 0 for requests that must "
        "not be sent twice",
        at_least(0),
        metavar="N",
    )
    retry_buffer: int = _framed(
        "1m",
        "a request up to this size, header included, is kept until its reply begins, so that it can be sent again",
        between(0, 1 << 30, parse_size),
        metavar="SIZE",
    )
    idle_backend_timeout: float = _framed(
        "60s",
        "close a kept connection to a backend after this time without a request",
        parse_positive_duration,
    )
    backend_conns: int = _framed(
        "0",
        "connections to each backend that each worker keeps without a request; 0 is as many as were in use at once",
        at_least(0, parse_count),
        metavar="N",
    )
    index: int = -1


@dataclass(frozen=True, slots=True)
class ProcessOptions(DaemonOptions):
    """What concerns the whole program. Times are seconds."""

    workers: int = _processes(
        "auto",
        "worker processes; auto is one for each CPU this process may use (affinity and cgroup quota)",
        parse_processes,
        metavar="N",
    )
    steering: bool = _processes(
        "yes",
        "give new connections to the less loaded workers; off, or refused by the kernel, the kernel's hash spreads "
        "them",
        flag=True,
    )
    drain_timeout: float = _processes(
        "30s",
        "time sessions have to end on a stop before they are cut; with drain-spread idle ones are closed from half of "
        "it on, busy ones in its last quarter",
        parse_duration,
    )
    drain_spread: bool = _processes(
        "yes",
        "close sessions spread over the end of the drain, idle ones first, so that their clients do not all come back in "
        "one moment; no lets every session have the whole time",
        flag=True,
    )
    reload_timeout: float = _processes(
        "0",
        "time sessions have to end after a reload, in the processes of the configuration before; 0 lets them go on until "
        "they end",
        parse_duration,
    )
    resolver_refresh: float = _processes(
        "10s",
        "time between two lookups of a backend's name; while it has no address that answers it is looked up after 1 s, "
        "2 s, 4 s, up to this; of a set (dns:, srv:) the most, where its TTL is longer",
        parse_positive_duration,
    )
    resolver: NameServers | None = _processes(  # noqa: RUF009 - a dataclass field
        "",
        "name server of sets, ADDRESS[:PORT], with tcp behind it for one that cuts its answers over UDP",
        parse_resolver,
        metavar="SERVER",
        unset="those of /etc/resolv.conf",
    )
    admin: str = _processes(
        "",
        "unix socket of the console, mode 0600, for balancerctl; off is none",
        parse_socket_path,
        metavar="PATH",
        unset="PORT.sock in /run/prefork-balancer, for users in $XDG_RUNTIME_DIR/prefork-balancer",
    )
    metrics: Address | None = _processes(  # noqa: RUF009 - a dataclass field
        "",
        "address of the console's HTTP server, host:port or unix:/path: status page, /status.json, /events.json, "
        "/metrics for Prometheus, /live, /ready, /health; read without password, so keep it on loopback or a private net",
        optional(parse_listen),
        metavar="ADDRESS",
        unset="off",
    )
    metrics_admin_token: TokenFile | None = _processes(  # noqa: RUF009 - a dataclass field
        "",
        "offer drain, ready, maint and weight on the status page to those who know the token in this file; others must "
        "not be able to read the file",
        optional(parse_token_file),
        metavar="FILE",
        unset="the page only reads",
    )
    record_elections: str = _processes(
        "off",
        "record the elections of one session in N, as 1/N, for balancerctl explain --session; each worker keeps its last "
        "1,022; off records only while balancerctl record asks for it",
        parse_one_in,
        metavar="1/N",
    )

    @property
    def recorded_one_in(self) -> int:
        """N of record_elections, 0: none."""
        return int(self.record_elections.removeprefix("1/")) if self.record_elections != OFF else 0

    @property
    def admin_address(self) -> Address | None:
        """Of the admin socket; None when it is off."""
        return None if self.admin == OFF else Address("unix", path=self.admin)


KINDS = (SectionKind("listener", options_of(Listener)), SectionKind("pool", options_of(Pool)))
EVERY_OPTION = (
    *options_of(Listener),
    *options_of(Pool),
    *options_of(ProcessOptions),
    SET_OPTION,
    Option(
        "print-sample",
        "",
        f"print a file to begin with, and exit: {', '.join(SAMPLES)}; without a word the full one",
        group="Configuration",
        metavar="WHICH",
        command_line_only=True,
    ),
    *DAEMON_QUESTIONS,
)
OPTIONS = tuple(option for option in EVERY_OPTION if not option.named_only)  # those with a flag


@dataclass(frozen=True)
class Options:
    """One reading of the configuration, checked. `notes` are logged as warnings at boot and at a reload."""

    process: ProcessOptions
    listeners: tuple[Listener, ...]
    pools: tuple[Pool, ...]
    notes: tuple[str, ...] = ()
    # What each section says, for `explain --option`: a line that has moved is no other configuration.
    sections: tuple[SectionSettings, ...] = field(default=(), compare=False, repr=False)
