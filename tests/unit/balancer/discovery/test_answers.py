"""What is asked for a set, in which order, and what the answers make of it."""

import pytest

from balancer.discovery.answers import (
    ABSENT,
    ERRORS,
    Member,
    NameReply,
    Query,
    ServiceRecord,
    SetAnswer,
    candidates,
    look_up,
)
from balancer.discovery.servers import NameServers, ServerList, parse_resolv_conf, parse_resolver
from balancer.pool.backend import BackendSet, parse_upstream

SERVERS = NameServers((("127.0.0.1", 53),))
Zone = dict[Query, NameReply]


def asked(
    wanted: BackendSet, zone: Zone, servers: NameServers = SERVERS, known: str = ""
) -> tuple[SetAnswer, list[Query]]:
    """The answer that a zone gives, and what was asked for."""
    queries = []
    lookup = look_up(wanted, servers, known)
    query = next(lookup)
    while True:
        queries.append(query)
        try:
            query = lookup.send(zone.get(query, NameReply("NXDOMAIN", server="s")))
        except StopIteration as end:
            return end.value, queries


def a(*addresses: str, ttl: float = 5.0) -> NameReply:
    return NameReply("", addresses, ttl=ttl, server="s")


NO = NameReply("NODATA", server="s")
FOUR, SIX = Query("web.test", "A"), Query("web.test", "AAAA")
BOTH: Zone = {FOUR: a("10.0.0.1", "10.0.0.2"), SIX: a("::1", ttl=2.0)}


@pytest.mark.parametrize(
    "family, zone, hosts, kinds",
    [
        ("", BOTH, ["10.0.0.1", "10.0.0.2"], [FOUR]),
        ("", {FOUR: NO, SIX: a("::1")}, ["::1"], [FOUR, SIX]),
        ("4", {FOUR: NO, SIX: a("::1")}, [], [FOUR]),
        ("6", BOTH, ["::1"], [SIX]),
        ("prefer-6", BOTH, ["::1"], [SIX]),
        ("prefer-6", {SIX: NO, FOUR: a("10.0.0.1")}, ["10.0.0.1"], [SIX, FOUR]),
        ("both", BOTH, ["10.0.0.1", "10.0.0.2", "::1"], [FOUR, SIX]),
        ("both", {FOUR: a("10.0.0.1"), SIX: NO}, ["10.0.0.1"], [FOUR, SIX]),
    ],
)
def test_families(family: str, zone: Zone, hosts: list[str], kinds: list[Query]) -> None:
    answer, queries = asked(BackendSet("dns", "web.test", 80, family=family), zone)
    assert [member.host for member in answer.members] == hosts and queries == kinds
    assert answer.error == ("" if hosts else "NODATA")


@pytest.mark.parametrize("family", ["prefer-6", "both", "6", ""])
@pytest.mark.parametrize("error", [error for error in ERRORS if error])
@pytest.mark.parametrize("kind", ["dns", "srv"])
def test_a_server_that_knows_nothing_of_aaaa_hides_no_ipv4_address(
    family: str, error: str, kind: str
) -> None:
    """Others have failed, and say nothing about addresses: the last set stays."""
    zone = {SIX: NameReply(error), FOUR: a("10.0.0.1")}
    zone[Query("_db._tcp.test", "SRV")] = NameReply(
        "", services=(ServiceRecord(1, 1, 80, "web.test"),), ttl=5.0
    )
    wanted = BackendSet(kind, "web.test" if kind == "dns" else "_db._tcp.test", 80, family=family)
    answer, _ = asked(wanted, zone)
    is_hidden = family == "6" or (family and error not in ("NODATA", "NXDOMAIN", "NOTIMP", "FORMERR"))
    assert [each.host for each in answer.members] == ([] if is_hidden else ["10.0.0.1"])
    assert bool(answer.error) is bool(is_hidden)


def test_the_smallest_ttl_of_both_counts_and_an_address_counts_once() -> None:
    zone = {FOUR: a("10.0.0.1", "10.0.0.1", ttl=7.0), SIX: a("::1", ttl=2.0)}
    answer, _ = asked(BackendSet("dns", "web.test", 80, family="both"), zone)
    assert answer.ttl == 2.0 and len(answer.members) == 2


@pytest.mark.parametrize("error", ["SERVFAIL", "REFUSED", "timeout"])
def test_an_error_of_one_half_is_no_answer(error: str) -> None:
    zone = {FOUR: a("10.0.0.1"), SIX: NameReply(error)}
    assert asked(BackendSet("dns", "web.test", 80, family="both"), zone)[0] == SetAnswer(error=error)


SRV = Query("_db._tcp.test", "SRV")
WANTED = BackendSet("srv", "_db._tcp.test", 0)


def services(*records: tuple[int, int, int, str], **extra: tuple[str, ...]) -> NameReply:
    along = {name.replace("_", "."): addresses for name, addresses in extra.items()}
    return NameReply(
        "", services=tuple(ServiceRecord(*one) for one in records), ttl=9.0, server="s", extra=along
    )


def test_a_service_has_ports_weights_and_backups() -> None:
    reply = services(
        (10, 20, 1, "a"), (10, 60, 2, "b"), (20, 20, 3, "a"), a=("10.0.0.1",), b=("10.0.0.2", "10.0.0.3")
    )
    answer, queries = asked(WANTED, {SRV: reply})
    assert answer.members == (
        Member("10.0.0.1", 1, 1), Member("10.0.0.2", 2, 3), Member("10.0.0.3", 2, 3), Member("10.0.0.1", 3, 1, True),
    )  # fmt: skip
    assert queries == [SRV] and answer.ttl == 9.0


def test_targets_that_did_not_come_along_are_asked_for() -> None:
    zone = {SRV: services((1, 0, 5, "a"), (1, 0, 5, "gone")), Query("a", "A"): a("10.0.0.1", ttl=3.0)}
    answer, queries = asked(WANTED, zone)
    assert answer.members == (Member("10.0.0.1", 5, 1),) and answer.ttl == 3.0
    assert queries == [SRV, Query("a", "A"), Query("gone", "A")] or queries[-1] == Query("gone", "AAAA")
    assert (
        asked(WANTED, {SRV: services((1, 0, 5, "a")), Query("a", "A"): NameReply("timeout")})[0].error
        == "timeout"
    )


def test_a_service_that_says_it_is_not_there_has_no_backend() -> None:
    assert asked(WANTED, {SRV: services((0, 0, 0, "."))})[0].error == "NODATA"


@pytest.mark.parametrize(
    "weights, scaled",
    [
        ([1, 3], [1, 3]), ([100, 300], [1, 3]), ([0, 0], [1, 1]), ([1, 65535], [1, 256]), ([0, 5], [1, 256]),
        ([100, 0], [256, 1]), ([0, 65535], [1, 256]),
    ],
)  # fmt: skip
def test_only_the_ratio_of_weights_counts(weights: list[int], scaled: list[int]) -> None:
    records = [(1, weight, 5, f"h{place}") for place, weight in enumerate(weights)]
    reply = services(*records, h0=("10.0.0.1",), h1=("10.0.0.2",))
    assert [member.weight for member in asked(WANTED, {SRV: reply})[0].members] == scaled


def test_one_of_weight_0_leaves_the_ratio_of_the_others() -> None:
    records = [(1, weight, 5, f"h{place}") for place, weight in enumerate([0, 10, 30])]
    reply = services(*records, h0=("10.0.0.1",), h1=("10.0.0.2",), h2=("10.0.0.3",))
    assert [member.weight for member in asked(WANTED, {SRV: reply})[0].members] == [1, 85, 256]


@pytest.mark.parametrize("record", [(0, 0, 0, "h0"), (0, 9, 80, "."), (0, 9, 80, "")])
def test_records_that_name_no_place_are_passed_over(record: tuple[int, int, int, str]) -> None:
    reply = services(record, (5, 2, 81, "h1"), h0=("10.0.0.1",), h1=("10.0.0.2",))
    assert asked(WANTED, {SRV: reply})[0].members == (Member("10.0.0.2", 81, 1),)


@pytest.mark.parametrize(
    "name, ndots, wanted",
    [
        ("web", 1, ["web.a.test", "web.b.test", "web"]),
        ("web.x", 1, ["web.x", "web.x.a.test", "web.x.b.test"]),
        ("web.x", 5, ["web.x.a.test", "web.x.b.test", "web.x"]),
        ("web.x.", 5, ["web.x"]),
        ("tasks.web", 0, ["tasks.web", "tasks.web.a.test", "tasks.web.b.test"]),
    ],
)
def test_short_names_are_completed(name: str, ndots: int, wanted: list[str]) -> None:
    servers = NameServers((), ("a.test", "b.test"), ndots)
    assert candidates(name, servers) == wanted
    zone = {Query(wanted[1], "A") if len(wanted) > 1 else Query(wanted[0], "A"): a("10.0.0.1")}
    assert asked(BackendSet("dns", name, 80), zone, servers)[0].members == (Member("10.0.0.1", 80),)


@pytest.mark.parametrize("error", [error for error in ERRORS if error])
def test_an_error_in_one_search_domain_does_not_end_the_search_in_the_others(error: str) -> None:
    servers = NameServers((), ("a.test", "b.test"), 1)
    failed = {Query("web.a.test", kind): NameReply(error, server="s") for kind in ("A", "AAAA")}
    zone: Zone = {**failed, Query("web.b.test", "A"): a("10.0.0.1")}
    answer, queries = asked(BackendSet("dns", "web", 80), zone, servers)
    assert answer.members == (Member("10.0.0.1", 80),) and not answer.error
    assert Query("web", "A") not in queries
    worst, _ = asked(BackendSet("dns", "web", 80), failed, servers)
    assert worst.error == (error if error != "no name" else "NXDOMAIN"), "the others have no such name"
    service = {Query("_a._tcp.x.a.test", "SRV"): NameReply(error, server="s")}
    service[Query("_a._tcp.x.b.test", "SRV")] = services((1, 1, 5, "h"), h=("10.0.0.1",))
    found, _ = asked(BackendSet("srv", "_a._tcp.x", 0), service, NameServers((), ("a.test", "b.test"), 3))
    assert found.members == (Member("10.0.0.1", 5, 1),)


@pytest.mark.parametrize("error", [error for error in ERRORS if error])
def test_a_failure_of_the_name_that_has_answered_keeps_the_set(error: str) -> None:
    """Another domain may have a namesake. That there are no such records any longer is an answer."""
    servers, wanted = NameServers((), ("a.test", "b.test"), 1), BackendSet("dns", "web", 80)
    zone = {Query("web.a.test", kind): NameReply(error) for kind in ("A", "AAAA")}
    zone[Query("web.b.test", "A")] = a("10.0.0.1")
    assert asked(wanted, zone, servers)[0].name == "web.b.test"
    found, queries = asked(wanted, zone, servers, "web.a.test")
    if error in ABSENT:
        assert found.members == (Member("10.0.0.1", 80),)
    else:
        assert (found.error, queries) == (error, [Query("web.a.test", "A")])
    assert asked(wanted, zone, servers, "web.b.test")[0].members == (Member("10.0.0.1", 80),)


def test_resolv_conf_is_read_as_its_manual_says() -> None:
    text = "; a\nnameserver 10.0.0.53 # b\nnameserver fe80::1%eth0\nnameserver x\ndomain old.test\n"
    found = parse_resolv_conf(text + "search a.test b.test.\noptions timeout:1 ndots:5 ndots:x\n")
    assert found == NameServers((("10.0.0.53", 53), ("fe80::1%eth0", 53)), ("a.test", "b.test"), 5)
    assert parse_resolv_conf("").servers == (("127.0.0.1", 53),)
    assert len(parse_resolv_conf("nameserver 10.0.0.1\n" * 9).servers) == 3


def test_the_file_is_read_again_when_it_has_changed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "resolv.conf"
    servers = ServerList(None, str(path))
    assert servers().servers == (("127.0.0.1", 53),)
    path.write_text("nameserver 10.0.0.1\nsearch a.test\n")
    assert servers().servers == (("10.0.0.1", 53),)
    path.unlink()
    assert servers().servers == (("10.0.0.1", 53),)
    path.write_text("search a.test\n")
    configured = ServerList(parse_resolver("10.0.0.9:8600 tcp"), str(path))()
    assert configured == NameServers((("10.0.0.9", 8600),), ("a.test",), 1, True)


@pytest.mark.parametrize(
    "text, servers",
    [
        ("10.0.0.53", NameServers((("10.0.0.53", 53),))),
        ("::1", NameServers((("::1", 53),))),
        ("[::1]:5353 tcp", NameServers((("::1", 5353),), over_tcp=True)),
        ("", None),
    ],
)
def test_the_option_resolver(text: str, servers: NameServers | None) -> None:
    assert parse_resolver(text) == servers
    if servers is not None:
        assert parse_resolver(str(servers)) == servers


@pytest.mark.parametrize(
    "text", ["web.test", "10.0.0.1:0", "10.0.0.1:99999", "10.0.0.1 udp", "10.0.0.1:", "300.0.0.1"]
)
def test_what_is_no_resolver_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no name server"):
        parse_resolver(text)


def test_a_set_in_a_configuration() -> None:
    found = parse_upstream("dns:web.internal:443 slots=4 weight=2 maxconn=8 name=web family=both obsolete=3")
    assert found.set == BackendSet("dns", "web.internal", 443, 4, "both", 3)
    assert [one.name for one in found.expanded()] == ["web-1", "web-2", "web-3", "web-4"]
    assert (found.weight, found.maxconn, len({one.identity for one in found.expanded()})) == (2, 8, 4)
    plain = parse_upstream("srv:_http._tcp.web.internal")
    assert (
        plain.set == BackendSet("srv", "_http._tcp.web.internal", 0)
        and plain.name == "srv:_http._tcp.web.internal"
    )
    assert parse_upstream("10.0.0.1:80").expanded() == (parse_upstream("10.0.0.1:80"),)


@pytest.mark.parametrize(
    "text, part",
    [
        ("dns:10.0.0.1:80", "is no name"),
        ("dns:web:0", "port 0"),
        ("dns:web", "web"),
        ("srv:web.test", "no name of a service"),
        ("dns:web:80 slots=0", "slots is a number from 1"),
        ("dns:web:80 slots=9999", "slots is a number from 1"),
        ("dns:web:80 family=5", "family=5 is not one of"),
        ("dns:web:80 slot=3", "did you mean slots?"),
        ("web:80 slots=3", "'slots=3' is not understood"),
    ],
)
def test_a_slip_in_a_set_is_refused(text: str, part: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_upstream(text)
    assert part in str(refused.value)


def test_a_search_domain_that_makes_no_name_is_passed_over() -> None:
    servers = NameServers((("127.0.0.1", 53),), search=("a..b",))
    zone = {Query("web.a..b", "A"): NameReply("no name"), Query("web", "A"): a("10.0.0.1")}
    answer, _ = asked(BackendSet("dns", "web", 80), zone, servers)
    assert [member.host for member in answer.members] == ["10.0.0.1"]


def test_a_record_given_twice_counts_by_its_first_priority_in_any_order() -> None:
    records = (ServiceRecord(2, 1, 80, "h"), ServiceRecord(1, 3, 80, "h"), ServiceRecord(1, 1, 80, "i"))
    found = set()
    for turned in (records, records[::-1]):
        reply = NameReply("", services=turned, extra={"h": ("10.0.0.1",), "i": ("10.0.0.2",)}, ttl=5.0)
        answer, _ = asked(BackendSet("srv", "_x._tcp.web", 0), {Query("_x._tcp.web", "SRV"): reply})
        found.add(frozenset(answer.members))
    assert found == {frozenset({Member("10.0.0.1", 80, 3), Member("10.0.0.2", 80, 1)})}
