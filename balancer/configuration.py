"""One reading of the balancer's configuration: records out of sections, and the checks across them.

RULES: nothing is bound or resolved, so that the same reading serves the boot, --check-config and a reload; what looks at
the machine is handed in. Every refusal is a ConfigError of one sentence that names the place, and both places where two
sections disagree.

A file without [listener NAME] and [pool NAME] sections, a command line and an environment alone make one listener and one
pool, both called main, from [balancer].
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from balancer import __version__
from balancer.admin_socket import AdminPlace, directories
from balancer.combinations import notes_on_pools, notes_on_resolver, refuse_conflicts
from balancer.config import usage
from balancer.config.common import ALL_SECTIONS, check_debug
from balancer.config.ini import did_you_mean
from balancer.config.loader import answer_early, answer_late, notes_near_misses
from balancer.config.machine import reaches
from balancer.config.option import ConfigError, SectionSettings, UsageError, build, values_of
from balancer.config.sections import Configuration, load_sections
from balancer.config.units import Address
from balancer.edge.access import Network
from balancer.edge.certificates import calendar_time, expired_lists
from balancer.edge.route import REJECT, Route
from balancer.edge.tls import ListenerTls
from balancer.options import (
    ABOUT,
    EVERY_OPTION,
    EXAMPLE,
    KINDS,
    MAIN,
    MOST_LISTENERS,
    MOST_POOLS,
    OPTIONS,
    SECTION,
    Listener,
    Options,
    Pool,
    ProcessOptions,
)
from balancer.pool.backend import Backend
from balancer.prefork.options import binds
from balancer.sample_files import answer_sample


@dataclass(frozen=True, slots=True)
class ListenerSection:
    """A listener and the section it was made from."""

    record: Listener
    settings: SectionSettings

    def __str__(self) -> str:
        return f"[{self.settings.title}]"


@dataclass(frozen=True, slots=True)
class PoolSection:
    """A pool and the section it was made from."""

    record: Pool
    settings: SectionSettings
    items: tuple[int, ...] = ()  # of `upstream`, for each backend

    def __str__(self) -> str:
        return f"[{self.settings.title}]"


NO_TLS = {option.name: value for option, value in values_of(ListenerTls())}  # where nothing is said
Settle = Callable[[str, Address, bool], tuple[str, tuple[str, ...]]]
TryOut = Callable[
    [SectionSettings, ProcessOptions, Sequence[ListenerSection], Sequence[PoolSection]], tuple[str, ...]
]


def no_trial(
    main: SectionSettings,
    process: ProcessOptions,
    listeners: Sequence[ListenerSection],
    pools: Sequence[PoolSection],
) -> tuple[str, ...]:
    """Stands where nothing of the machine is looked at."""
    return ()


@notes_near_misses(SECTION, EVERY_OPTION)
def parse(
    argv: Sequence[str],
    environ: Mapping[str, str],
    settle: Settle | None = None,
    try_out: TryOut = no_trial,
) -> Options:
    """Options from a command line (without the program's name) and an environment.

    `settle` says where the admin socket lies (AdminPlace.settle). `try_out` looks at the machine for --check-config.
    Raises ConfigError with one sentence, or CommandLineAnswer when the command line asks a question."""
    answer_sample(argv)
    answer_early(argv, f"balancer {__version__}", help_text, OPTIONS)
    read = load_sections(SECTION, EVERY_OPTION, KINDS, argv, environ, ALL_SECTIONS)
    for kind, most in (("listener", MOST_LISTENERS), ("pool", MOST_POOLS)):
        for section in read.named[kind][most:]:
            raise ConfigError(f"{section.begins}: there are more than {most} [{kind} NAME] sections")
    listeners, pools = listeners_of(read), pools_of(read)
    check_addresses(listeners)
    check_backends(pools, listeners)
    check_frames(pools)
    given = [(each.record, each.settings, each.items) for each in pools]
    refuse_conflicts(given)
    notes = (
        read.notes + check_routes(listeners, pools) + check_access(listeners) + check_tls(listeners, pools)
    )
    notes += notes_on_pools(given, [each.record for each in listeners])
    check_debug(read.main)
    uid = os.geteuid()
    asked = settle or AdminPlace(directories(environ, uid), uid, os.getpid()).path_of
    process, admin_notes = with_admin(read.main, listeners, asked)
    check_console(read.main, process, listeners)
    notes += _exposed(read.main, process) + admin_notes
    notes += notes_on_resolver(process, read.main, [each.record for each in pools])
    if read.main.values["check-config"]:
        notes += try_out(read.main, process, listeners, pools)
    named = [(kind.options, each) for kind in KINDS for each in read.named[kind.name]]
    resolved = {"workers": str(process.workers), "admin": process.admin}
    answer_late("balancer", OPTIONS, read.main, resolved, named, notes)
    sections = tuple(replace(each, values={}) for each in (read.main, *(each for _, each in named)))
    return Options(
        process,
        tuple(each.record for each in listeners),
        tuple(each.record for each in pools),
        notes,
        sections,
    )


def help_text() -> str:
    """What --help prints."""
    return usage.help_text("balancer", ABOUT, EXAMPLE, SECTION, OPTIONS, KINDS)


# -- records


def listeners_of(read: Configuration) -> list[ListenerSection]:
    """The listeners, their routes not yet compared with the pools."""
    if read.is_flat():
        main = read.main
        record = build(Listener, main, name=MAIN, addresses=binds(main), routes=(Route(MAIN),))
        return [ListenerSection(record, main)]
    if not read.named["listener"]:
        raise _missing(read, "listener", "with port = PORT and pool = NAME")
    return [
        ListenerSection(
            build(Listener, each, name=each.name, addresses=binds(each), routes=routes_of(each)), each
        )
        for each in read.named["listener"]
    ]


def routes_of(settings: SectionSettings) -> tuple[Route, ...]:
    """The routes that `pool` or `route` give."""
    pool: str = settings.values["pool"]
    routes: tuple[Route, ...] = settings.values["route"]
    if pool and routes:
        raise ConfigError(
            f"{settings.sources['pool']}: [{settings.title}] has pool and route ({settings.sources['route']}); "
            f"write -> {pool} as the last route instead of pool"
        )
    if not pool and not routes:
        raise ConfigError(
            f"{settings.begins}: [{settings.title}] leads to no pool; write pool = NAME, or route lines"
        )
    return routes or (Route(pool),)


def pools_of(read: Configuration) -> list[PoolSection]:
    """The pools with their backends."""
    if read.is_flat():
        if not read.main.values["upstream"]:
            raise UsageError(
                "no upstream: name a backend with -u host:port, key upstream in [balancer], or BALANCER_UPSTREAM"
            )
        # The key tls-cert is the listener's here.
        items, backends = expanded(read.main.values["upstream"])
        record = build(Pool, read.main, name=MAIN, backends=backends, tls_cert=None)
        return [PoolSection(record, read.main, items)]
    if not read.named["pool"]:
        raise _missing(read, "pool", "with upstream = host:port")
    found = []
    for each in read.named["pool"]:
        if not each.values["upstream"]:
            raise ConfigError(f"{each.begins}: [{each.title}] has no upstream; write upstream = host:port")
        if each.name == REJECT:
            raise ConfigError(
                f"{each.begins}: the name {REJECT} is kept for routes that refuse a client; choose another"
            )
        given = [replace(backend, pool=each.name) for backend in each.values["upstream"]]
        items, backends = expanded(given)
        found.append(PoolSection(build(Pool, each, name=each.name, backends=backends), each, items))
    return found


def expanded(given: Sequence[Backend]) -> tuple[tuple[int, ...], tuple[Backend, ...]]:
    """The backends, with those of all slots, and for each the item of `upstream` that it comes from."""
    both = [(item, one) for item, backend in enumerate(given) for one in backend.expanded()]
    return tuple(item for item, _ in both), tuple(one for _, one in both)


def _missing(read: Configuration, kind: str, content: str) -> ConfigError:
    first = next(each for group in read.named.values() for each in group)
    return ConfigError(
        f"{first.begins}: there is [{first.title}], but no section [{kind} NAME]; add one {content}"
    )


def with_admin(
    main: SectionSettings, listeners: Sequence[ListenerSection], settle: Settle
) -> tuple[ProcessOptions, tuple[str, ...]]:
    """The options of the process with the place of the admin socket, and notes on it."""
    process = build(ProcessOptions, main)
    only_asked = main.values["check-config"] or main.values["print-config"]
    try:
        admin, notes = settle(process.admin, listeners[0].record.addresses[0], not only_asked)
    except ValueError as error:
        raise main.refuse("admin", str(error)) from None
    return replace(process, admin=admin), notes


# -- checks


def bound(listeners: Sequence[ListenerSection]) -> Iterator[tuple[ListenerSection, int, Address]]:
    """Each address of each listener, with its place in `bind`."""
    for each in listeners:
        for item, address in enumerate(each.record.addresses):
            yield each, item, address


def place_of(each: ListenerSection, item: int) -> str:
    """Where an address was given: file:line, flag or variable."""
    settings = each.settings
    return settings.places["bind"][item] if settings.values["bind"] else settings.sources["port"]


def check_addresses(listeners: Sequence[ListenerSection]) -> None:
    """Two listeners cannot share an address."""
    owners: dict[Address, tuple[ListenerSection, int]] = {}
    for each, item, address in bound(listeners):
        other, other_item = owners.setdefault(address, (each, item))
        if other is not each and address.is_certain:
            raise ConfigError(
                f"{place_of(each, item)}: {each} listens on {address}, as {other} does ({place_of(other, other_item)})"
            )


def check_backends(pools: Sequence[PoolSection], listeners: Sequence[ListenerSection]) -> None:
    """A backend has a name of its own, and is none of our listeners."""
    owners: dict[str, str] = {}
    for pool in pools:
        for item, backend in zip(pool.items, pool.record.backends, strict=True):
            place = pool.settings.places["upstream"][item]
            if backend.identity in owners:
                also = "" if owners[backend.identity] == place else f" ({owners[backend.identity]})"
                sentence = f"two backends are called {backend.identity}{also}; give one of them name=X"
                raise pool.settings.refuse("upstream", sentence, item)
            owners[backend.identity] = place
            for each, _, address in bound(listeners):
                if reaches(backend.address, address):
                    listener = f"{each} of this balancer" if each.settings.begins else "the balancer itself"
                    sentence = f"{backend.address} is where {listener} listens ({address})"
                    raise pool.settings.refuse("upstream", sentence, item)


def check_frames(pools: Sequence[PoolSection]) -> None:
    """Framed mode needs to know what a frame is; without it the description would be of no use."""
    for pool in pools:
        record, settings = pool.record, pool.settings
        if record.mode == "framed" and record.frame is None:
            raise settings.refuse(
                "mode", "framed needs `frame`: gowork, or magic=HEX length=u32 be and so on"
            )
        if record.mode != "framed" and record.frame is not None:
            raise settings.refuse("frame", "is given, but mode is tcp; write mode = framed")
        if record.mode == "framed" and record.send_proxy is not None:
            raise settings.refuse(
                "send-proxy", "in framed mode clients share the connections to the backends"
            )


def check_routes(listeners: Sequence[ListenerSection], pools: Sequence[PoolSection]) -> tuple[str, ...]:
    """Every route leads to a pool and can be reached; returns notes on pools without a route, and on listeners that do
    not serve every client or look at no name."""
    names = [each.record.name for each in pools]
    for each in listeners:
        if each.settings.begins:
            _check_routes_of(each, names)
    used = {route.pool for each in listeners for route in each.record.routes}
    partial = (
        each for each in listeners if (last := each.record.routes[-1]).network is not None or last.name
    )
    notes = [
        f"{each} ({each.settings.places['route'][-1]}) refuses the clients that no route matches; a last line -> POOL "
        "would serve them"
        for each in partial
    ]
    notes += [
        f"[{each.settings.title}] ({each.settings.begins}) is used by no listener"
        for each in pools
        if each.record.name not in used
    ]
    notes += [
        f"{each.settings.sources['preread']}: preread = {each.record.preread} has no effect: no route of {each} looks at "
        "a name, and it does not end TLS"
        for each in listeners
        if each.record.preread != "tls" and not each.record.asks_names and not each.record.tls_cert
    ]
    return tuple(notes)


def _check_routes_of(each: ListenerSection, pools: Sequence[str]) -> None:
    settings, routes = each.settings, each.record.routes
    key = "route" if settings.values["route"] else "pool"
    places = settings.places[key]
    for item, route in enumerate(routes):
        if route.pool not in pools and route.pool != REJECT:
            guess = did_you_mean(route.pool, pools)
            raise ConfigError(
                f"{places[item]}: {each} routes to pool {route.pool}, which no section defines{guess}"
            )
        for earlier in range(item):
            if why := _covers(routes[earlier], route, places[earlier]):
                raise ConfigError(f"{places[item]}: this route is never reached: {why}")


def _covers(earlier: Route, later: Route, place: str) -> str:
    """Why no client is left for the later route, or nothing."""
    if earlier.network is None and not earlier.name:
        return f"{place} takes everything"
    if not _holds_network(earlier.network, later.network) or not _holds_name(earlier.name, later.name):
        return ""
    taken, left = (one.condition.removeprefix("from ") for one in (earlier, later))
    return f"{place} takes {taken}, which holds {left}"


def _holds_network(earlier: Network | None, later: Network | None) -> bool:
    if earlier is None:
        return True
    return (
        later is not None and later.version == earlier.version and later.subnet_of(earlier)  # type: ignore[arg-type]
    )


def _holds_name(earlier: str, later: str) -> bool:
    if not earlier or earlier == later:
        return True
    return earlier.startswith("*") and later.lstrip("*").endswith(earlier[1:])


def check_access(listeners: Sequence[ListenerSection]) -> tuple[str, ...]:
    """Whoever may send a PROXY header may claim any address; returns notes on options without effect."""
    notes = []
    for each in listeners:
        one, settings = each.record, each.settings
        is_reachable = any(address.family != "unix" for address in one.addresses)
        if one.proxy_protocol and not one.proxy_trusted and is_reachable:
            sentence = "needs proxy-trusted: whoever may send the header may claim any address"
            raise settings.refuse("proxy-protocol", sentence)
        if one.proxy_trusted and not one.proxy_protocol:
            notes.append(f"{settings.where('proxy-trusted')} has no effect without proxy-protocol")
        if one.dry_run and not (one.allow or one.deny or one.source_maxconn or one.source_rate):
            notes.append(
                f"{settings.where('dry-run')} has no effect without allow, deny or a limit of sources"
            )
    return tuple(notes)


def check_tls(listeners: Sequence[ListenerSection], pools: Sequence[PoolSection]) -> tuple[str, ...]:
    """What a listener says of TLS makes sense together; returns notes on what has no effect."""
    notes: list[str] = []
    for each in listeners:
        one, settings = each.record, each.settings
        given = [option.name for option, value in values_of(one) if value != NO_TLS.get(option.name, value)]
        lacking = "tls-client-ca" if one.tls_cert else "tls-cert"
        if one.tls_cert:
            given = [name for name in given if name in ("tls-client", "tls-client-crl")]
        if not settings.values[lacking]:
            notes += [f"{settings.where(name)} has no effect without {lacking}" for name in given]
        for item, file in enumerate(one.tls_cert):
            if file.not_before > calendar_time():
                where = settings.where("tls-cert", item)
                notes.append(f"{where}: the certificate in {file.path} is not valid yet")
        if one.tls_cert and one.tls_client_crl is not None:
            expired = expired_lists(one.tls_client_crl, calendar_time())
            notes += [f"{settings.where('tls-client-crl')}: {sentence}" for sentence in expired]
        for pool in pools:
            if (
                one.preread == "postgres"
                and one.asks_names
                and pool.record.tls
                and pool.record.name in one.pool_names
            ):
                sentence = f"{each} passes on the TLS of PostgreSQL clients, which would be encrypted twice"
                raise pool.settings.refuse("tls", sentence)
    return tuple(notes) + tuple(note for pool in pools for note in _check_backend_tls(pool))


def _check_backend_tls(pool: PoolSection) -> Iterator[str]:
    """What a pool says of TLS makes sense together; yields notes."""
    one, settings = pool.record, pool.settings
    is_checked = one.check.speaks_tls(one.tls)
    if not one.tls:
        given = {
            "tls-ca": one.tls_ca,
            "tls-sni": one.tls_sni,
            "tls-verify": not one.tls_verify,
            "tls-cert": one.tls_cert,
        }
        unused = ("tls-sni",) if one.check.sni else () if is_checked else given
        found = (name for name in given if given[name] and name in unused)
        yield from (f"{settings.where(name)} has no effect without tls = yes" for name in found)
    elif not one.tls_verify:
        yield f"{settings.where('tls-verify')}: certificates are not verified: whoever is on the way can read along"
    lacks_name = one.tls_verify and not one.tls_sni and (one.tls or (is_checked and not one.check.sni))
    for item, backend in zip(pool.items, one.backends, strict=True):
        if backend.address.family == "unix" and lacks_name:
            name = "tls-sni = NAME" if one.tls else "sni=NAME behind the check"
            sentence = f"{backend.address} has no name to verify a certificate by; write {name}"
            raise settings.refuse("upstream", sentence, item)


def check_console(
    main: SectionSettings, process: ProcessOptions, listeners: Sequence[ListenerSection]
) -> None:
    """The console's addresses are no listener's."""
    for each, item, address in bound(listeners):
        where = f"{each} listens ({place_of(each, item)})" if each.settings.begins else "clients are served"
        if process.metrics == address and address.is_certain:
            raise main.refuse("metrics", f"{address} is where {where}")
        if address == process.admin_address:
            raise main.refuse("admin", f"{process.admin} is where {where}")


def _exposed(main: SectionSettings, process: ProcessOptions) -> tuple[str, ...]:
    metrics, token = process.metrics, process.metrics_admin_token
    if metrics is None:
        return (f"{main.where('metrics-admin-token')} has no effect without metrics",) if token else ()
    if metrics.is_private:
        return ()
    notes = [f"--metrics {metrics} has no password: everybody who can reach the address reads it"]
    if token:
        notes.append(
            f"--metrics {metrics} has no TLS: whoever is on the way reads the token of --metrics-admin-token"
        )
    return tuple(notes)


# -- what a reload reports


def summary_of(options: Options) -> tuple[tuple[str, str], ...]:
    """(name, value) of everything a reload compares and reports, section by section."""
    found = usage.summary(options.process)
    for listener in options.listeners:
        about = usage.summary(listener)
        if listener.name != MAIN:
            about.append(("bind", ", ".join(map(str, listener.addresses))))
            routes = ((one.condition.removeprefix("from ") or "all", one.pool) for one in listener.routes)
            about.append(("route", ", ".join(f"{who}: {pool}" for who, pool in routes)))
        found += _prefixed("listener", listener.name, about)
    for pool in options.pools:
        about = [(name, value) for name, value in usage.summary(pool) if name != "upstream"]
        about += [
            (f"backend {backend.name}", backend.terms()) for backend in pool.backends if not backend.is_spare
        ]
        found += _prefixed("pool", pool.name, about)
    return tuple(found)


def _prefixed(kind: str, name: str, about: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """In `main` the bare names, which are those of a configuration without sections."""
    prefix = "" if name == MAIN else f"{kind} {name} "
    return [(prefix + key, value) for key, value in about]
