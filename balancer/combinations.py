"""Options of a pool that cannot work together, and those that have no effect beside others.

RULES: records in, sentences out; configuration.py calls it once all sections are read. A combination that can serve no
session or tell nothing is refused. One without effect is noted; a value that several pools inherit, only when it has no
effect in any of them.
"""

from collections.abc import Iterator, Sequence

from balancer.config.option import SectionSettings, values_of
from balancer.options import HASHES, Listener, Pool, ProcessOptions
from balancer.pool.backend import Backend

DEFAULTS = {option.name: value for option, value in values_of(Pool("", ()))}
FRAMED_ONLY = (
    "max-frame", "frame-timeout", "order", "pipeline", "frame-retries", "retry-buffer", "idle-backend-timeout",
    "backend-conns",
)  # fmt: skip

Given = tuple[
    Pool, SectionSettings, tuple[int, ...]
]  # the numbers are the items of `upstream`, one for each backend


def refuse_conflicts(pools: Sequence[Given]) -> None:
    """Raises ConfigError where a question to a backend cannot be answered."""
    for pool, settings, _ in pools:
        for backend in pool.backends:
            if pool.has_agent and (sentence := _agent_conflict(pool, backend)):
                raise settings.refuse("agent-port" if pool.agent_port else "agent-path", sentence)
            if backend.address.family == "unix" and pool.check.address and not pool.check.port:
                sentence = f"address={pool.check.address} needs port=N: {backend.address} has no port"
                raise settings.refuse("check", sentence)


def _agent_conflict(pool: Pool, backend: Backend) -> str:
    """Why the agent of a backend cannot answer where it is asked, or nothing: its question is plain text."""
    if not _is_own_port(backend, pool.agent_port):
        return ""
    where = f"the agent would be asked at {backend.set or backend.address}, where the service"
    then = "write agent-port = PORT of the agent alone"
    if pool.tls:
        return f"{where} speaks TLS (tls = yes) and an agent plain text; {then}"
    if pool.send_proxy is not None:
        return f"{where} expects a PROXY header (send-proxy), which an agent is not sent; {then}"
    if not pool.agent_path:
        return f"{where} serves its clients; {then}, or agent-path = /agent for one that answers over HTTP"
    return ""


def _is_own_port(backend: Backend, port: int) -> bool:
    """Whether a question to `port` of a backend, 0 is its own, goes to where it serves."""
    return not port or (backend.address.family != "unix" and backend.address.port == port)


def notes_on_pools(pools: Sequence[Given], listeners: Sequence[Listener]) -> tuple[str, ...]:
    """A sentence on each value that has no effect."""
    found: dict[str, list[str]] = {}
    notes: list[str] = []
    for pool, settings, items in pools:
        given = {option.name for option, value in values_of(pool) if value != DEFAULTS[option.name]}
        idle = dict(_without_effect(pool, listeners))
        for name in sorted(given - {"upstream"}):
            found.setdefault(settings.where(name), []).append(idle.get(name, ""))
        notes += _notes_on_backends(pool, settings, items)
    return (*(f"{where} has no effect {whys[0]}" for where, whys in found.items() if all(whys)), *notes)


def _without_effect(pool: Pool, listeners: Sequence[Listener]) -> Iterator[tuple[str, str]]:
    """Options that have no effect in the pool whatever they are, and why."""
    is_hash, has_limit = pool.balance in HASHES, any(backend.maxconn for backend in pool.backends)
    leading = [one for one in listeners if pool.name in one.pool_names]
    if not is_hash:
        yield "hash-load", f"with balance = {pool.balance}: it bounds source and maglev"
    elif leading and not any(map(_knows_clients, leading)):
        yield "balance", "where all clients come over unix sockets: without an address all get one backend"
    if (is_hash or pool.balance == "first") and not has_limit:
        yield "slow-start", f"with balance = {pool.balance}, which keeps its weights, and without maxconn"
    if pool.check.kind == "none":
        yield "check-rise", "with check = none"
    if not pool.has_agent:
        yield "agent-interval", "without agent-port or agent-path"
    if not pool.queue_timeout:
        yield "max-queue", "with queue-timeout = 0: no session waits"
    if pool.mode == "framed":
        yield "on-down", "with mode = framed: it is about sessions"
    else:
        yield from ((name, "without mode = framed") for name in FRAMED_ONLY)


def _knows_clients(listener: Listener) -> bool:
    return listener.proxy_protocol or any(address.family != "unix" for address in listener.addresses)


def _notes_on_backends(pool: Pool, settings: SectionSettings, items: Sequence[int]) -> Iterator[str]:
    first_of = dict(zip(items, pool.backends, strict=True))  # one of each item
    for item, backend in sorted(first_of.items()):
        if pool.balance == "first" and backend.weight != 1:
            yield f"{settings.where('upstream', item)}: weight has no effect with balance = first"
    check, speaks = pool.check, []
    if pool.tls and not check.speaks_tls(True):
        speaks.append("TLS")
    if pool.send_proxy is not None and check.proxy is None:
        speaks.append("a PROXY header")
    is_own = any(_is_own_port(backend, check.port) for backend in first_of.values())
    if check.port and not check.address and is_own and speaks:
        yield (
            f"{settings.where('check')}: port={check.port} is where the backends serve, and a check with port= speaks "
            f"without {' and '.join(speaks)} there; leave port= out"
        )


def notes_on_resolver(
    process: ProcessOptions, settings: SectionSettings, pools: Sequence[Pool]
) -> tuple[str, ...]:
    """A sentence on a name server that is never asked."""
    if process.resolver is None or any(backend.set for pool in pools for backend in pool.backends):
        return ()
    return (f"{settings.where('resolver')} has no effect: no upstream is a set (dns:, srv:)",)
