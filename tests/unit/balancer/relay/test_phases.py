"""Before the dial: the PROXY header in every piece and at every moment, who is let in, and what the backend is told."""

import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from balancer.edge.access import parse_networks
from balancer.edge.proxy_protocol import SendProxy, parse, write_v1, write_v2
from balancer.edge.route import Route
from balancer.options import Rate
from balancer.pool.board import L_ACCEPTED, L_BYTES_IN, L_DENIALS, L_SESSIONS
from balancer.relay import ends
from scripts.relay_costs import BytecodeCounter
from tests.unit.balancer.relay.simulation import (
    OWN,
    FarElector,
    Make,
    PairedSocket,
    WorkerSimulation,
    heard,
    read_all,
    reset,
)

CLAIMED = ("192.0.2.7", 4711)
HEADER = write_v2(CLAIMED, ("198.51.100.1", 443))
LOCAL_NETWORK = (parse_networks("127.0.0.0/8"),)
TRUSTED: dict[str, Any] = {"proxy_protocol": True, "proxy_trusted": LOCAL_NETWORK}


@pytest.fixture(name="make", params=["near", "far"])
def near_and_far(make: Make, request: pytest.FixtureRequest) -> Make:
    def build(**options: Any) -> WorkerSimulation:
        worker = make(**options)
        if request.param == "far":
            worker.lane.elector = FarElector(worker.board, worker.pool, OWN)
        return worker

    return build


def served(worker: WorkerSimulation, client: socket.socket, ask: str = "") -> None:
    """The backend has got `ask`; an answer goes back, and the ends are passed on."""
    backend = worker.accept()
    assert heard(backend) == f"{ask}|open"
    client.send(b"more")
    backend.send(b"answer")
    worker.settle()
    assert (heard(client), heard(backend)) == ("answer|open", "more|open")
    client.shutdown(socket.SHUT_WR)
    backend.close()
    worker.settle()
    assert worker.ends == ["--"]


@pytest.mark.parametrize("cut", range(1, len(HEADER) + 4))
def test_a_header_cut_anywhere_and_the_bytes_behind_it(make: Make, cut: int) -> None:
    worker = make(**TRUSTED)
    client = worker.connect()
    stream = HEADER + b"ask"
    client.send(stream[:cut])
    worker.settle()
    client.send(stream[cut:])
    worker.settle()
    [line] = [session.peer_name() for session in worker.sessions]
    assert line == "192.0.2.7:4711"
    served(worker, client, "ask")
    assert " client=192.0.2.7:4711 via=127.0.0.1:" in worker.lines.sessions[0]


@pytest.mark.parametrize("is_ended", [False, True])
@pytest.mark.parametrize("pieces", [1, 2])
def test_more_behind_the_header_than_one_read_takes(make: Make, pieces: int, is_ended: bool) -> None:
    """It lies in the socket already when the header is complete: no further edge comes, for the bytes or for the end."""
    worker = make(**TRUSTED)
    client = worker.connect()
    if pieces == 2:
        client.send(HEADER[:5])
        worker.settle()
        client.send(HEADER[5:] + b"x" * 50_000)
    else:
        client.send(HEADER + b"x" * 50_000)
    if is_ended:
        client.shutdown(socket.SHUT_WR)
    worker.settle()
    backend = worker.accept()
    assert heard(backend) == f"50000|{'end' if is_ended else 'open'}"
    assert worker.cell(L_BYTES_IN) + worker.sessions[0].given()[0] == 50_000


@pytest.mark.parametrize("header", [write_v2(None, None), b"PROXY UNKNOWN\r\n"])
def test_a_header_that_vouches_for_nothing(make: Make, header: bytes) -> None:
    worker = make(**TRUSTED)
    client = worker.connect()
    client.send(header + b"ask")
    worker.settle()
    own = "{}:{}".format(*client.getsockname())
    assert [session.peer_name() for session in worker.sessions] == [own]
    served(worker, client, "ask")
    assert f" client={own} backend=" in worker.lines.sessions[0]


@pytest.mark.parametrize("sent", [b"", b"P", HEADER[:20]])
def test_a_client_that_stops_in_its_header_is_turned_away(make: Make, sent: bytes) -> None:
    worker = make(**TRUSTED, preread_timeout=3.0)
    client = worker.connect()
    if sent:
        client.send(sent)
    worker.settle()
    worker.pass_time(2.7)
    assert heard(client) == "|open"
    worker.pass_time(0.5)
    assert heard(client) == "|reset"
    assert worker.ends == ["cR preread-timeout"]
    assert (worker.cell(L_ACCEPTED), worker.cell(L_SESSIONS)) == (1, 0)


@pytest.mark.parametrize("leave", [reset, socket.socket.close])
@pytest.mark.parametrize("sent", [b"", HEADER[:20]])
def test_a_client_that_leaves_in_its_header(
    make: Make, sent: bytes, leave: Callable[[socket.socket], object]
) -> None:
    worker = make(**TRUSTED)
    client = worker.connect()
    if sent:
        client.send(sent)
    worker.settle()
    leave(client)
    worker.settle()
    assert [end[:2] for end in worker.ends] == ["CC"]
    worker.pass_time(6.0)  # its time limit finds nobody
    assert len(worker.ends) == 1


@pytest.mark.parametrize("is_waiting", [True, False])
@pytest.mark.parametrize("sent", [HEADER[:20], HEADER + b"\x16", HEADER + b"\x16\3\1\0\x40\1\0\0"])
def test_a_client_that_leaves_with_its_last_bytes_has_its_end_at_once(
    make: Make, sent: bytes, is_waiting: bool
) -> None:
    """A FIN behind the bytes is no event of its own."""
    routes = (Route("a", name="a.example"),)
    worker = make(pools=("a",), routes=routes, **TRUSTED)
    client = worker.connect()
    if is_waiting:
        worker.settle()
    client.send(sent)
    client.shutdown(socket.SHUT_WR)
    worker.settle()
    assert [end.startswith("CC no whole ") for end in worker.ends] == [True]


def test_a_drain_in_the_middle_of_a_header(make: Make) -> None:
    worker = make(**TRUSTED)
    client = worker.connect()
    client.send(HEADER[:20])
    worker.settle()
    worker.sessions[0].close("KD")
    client.send(HEADER[20:])
    worker.pass_time(6.0)
    assert worker.ends == ["KD"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"deny": LOCAL_NETWORK}, "deny"),
        ({"allow": (parse_networks("10.0.0.0/8"),)}, "allow"),
        ({"proxy_protocol": True, "proxy_trusted": (parse_networks("10.0.0.0/8"),)}, "proxy-trusted"),
        ({**TRUSTED, "deny": (parse_networks("192.0.2.0/24"),)}, "deny"),
        ({**TRUSTED, "allow": LOCAL_NETWORK}, "allow"),
    ],
)
@pytest.mark.parametrize(("action", "left"), [("reset", "|reset"), ("close", "|end")])
def test_who_is_turned_away(make: Make, options: dict[str, Any], reason: str, action: str, left: str) -> None:
    worker = make(**options, deny_action=action)
    client = worker.connect()
    worker.settle()
    if heard(client) == "|open":
        client.send(HEADER)
        worker.settle()
        assert heard(client) == left
    assert worker.ends == [f"PR {reason}"]
    assert worker.cell(L_SESSIONS) == 0
    assert denials(worker) == {reason: 1}


def denials(worker: WorkerSimulation) -> dict[str, int]:
    counts = {rule: worker.cell(L_DENIALS + place) for place, rule in enumerate(ends.DENIALS)}
    return {rule: count for rule, count in counts.items() if count}


@pytest.mark.parametrize(
    ("rules", "clients", "counted"),
    [
        ({"deny": LOCAL_NETWORK}, 2, {"deny": 2}),
        ({"allow": (parse_networks("10.0.0.0/8"),)}, 2, {"allow": 2}),
        ({"source_maxconn": 1}, 3, {"source-maxconn": 2}),
        ({"source_rate": Rate(1, 10.0)}, 3, {"source-rate": 2}),
        ({"deny": LOCAL_NETWORK, "source_maxconn": 1}, 3, {"deny": 3, "source-maxconn": 2}),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_dry", [True, False])
def test_each_rule_has_a_count_and_a_dry_run_serves(
    make: Make, is_dry: bool, rules: dict[str, Any], clients: int, counted: dict[str, int]
) -> None:
    worker = make(**rules, dry_run=is_dry)
    crowd = [worker.connect() for _ in range(clients)]
    worker.settle()
    if is_dry:
        assert [heard(client) for client in crowd] == ["|open"] * clients
        assert denials(worker) == counted
        crowd[0].send(b"ask")
        worker.settle()
        assert heard(worker.accept()) == "ask|open"
    else:
        first = next(iter(counted))
        assert denials(worker) == {first: counted[first]}
        assert [heard(client) for client in crowd].count("|reset") == counted[first]


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", b"PROXY ", b""]
)
def test_wrong_and_late_first_bytes_have_a_count(make: Make, said: bytes) -> None:
    worker = make(**TRUSTED)
    client = worker.connect()
    client.send(said)
    worker.settle()
    worker.pass_time(6.0)
    assert heard(client) == "|reset" and denials(worker) == {"first-bytes": 1}


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("asks", [False, True])
def test_a_header_before_the_wait_for_a_first_byte(make: Make, deferred: bool, asks: bool) -> None:
    worker = make(**TRUSTED, defer_connect=deferred)
    client = worker.connect()
    client.send(HEADER[:3])
    worker.settle()
    client.send(HEADER[3:] + (b"ask" if asks else b""))
    worker.settle()
    if deferred and not asks:
        with pytest.raises(BlockingIOError):
            worker.accept()
        client.send(b"ask")
        worker.settle()
        asks = True
    served(worker, client, "ask" if asks else "")


@pytest.mark.parametrize(
    ("mask", "sources", "admitted"),
    [
        ((32, 64), ["127.0.0.1"] * 4 + ["127.0.0.2"], [1, 1, 0, 0, 1]),
        ((24, 64), ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.1.3"], [1, 1, 0, 1]),
        ((32, 64), ["2001:db8::1", "2001:db8::2", "2001:db8::ffff", "2001:db8:0:1::1"], [1, 1, 0, 1]),
        ((32, 128), ["2001:db8::1", "2001:db8::2", "2001:db8::3"], [1, 1, 1]),
        ((32, 64), ["10.0.0.1", "::ffff:10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"], [1, 1, 0, 1]),
    ],
)
def test_sessions_of_a_source(
    make: Make, mask: tuple[int, int], sources: list[str], admitted: list[int]
) -> None:
    """By the claimed address. What ends makes room."""
    worker = make(**TRUSTED, source_maxconn=2, source_mask=mask)
    clients = []
    for source in sources:
        clients.append(worker.connect())
        clients[-1].send(write_v2((source, 1), ("::1" if ":" in source else "127.0.0.1", 2)))
        worker.settle()
    assert [int(heard(client) == "|open") for client in clients] == admitted
    assert worker.ends == ["PR source-maxconn=2/2"] * admitted.count(0)
    clients[0].close()
    worker.accept().close()
    worker.settle()
    late = worker.connect()
    late.send(write_v2((sources[0], 1), ("::1" if ":" in sources[0] else "127.0.0.1", 2)))
    worker.settle()
    assert heard(late) == "|open"


def test_new_clients_of_a_source(make: Make) -> None:
    """Three in ten seconds; who keeps coming is kept out."""
    worker = make(source_rate=Rate(3, 10.0))
    worker.pass_time(10.0 - worker.time % 10.0, 1.0)  # to the beginning of a period

    def admitted(tries: int, source: str = "127.0.0.1") -> int:
        clients = [worker.connect(source) for _ in range(tries)]
        worker.settle()
        return sum(heard(client) == "|open" for client in clients)

    assert (admitted(5), admitted(3, "127.0.0.2")) == (3, 3)
    worker.pass_time(5.0, 1.0)
    assert admitted(1) == 0
    worker.pass_time(10.0, 1.0)  # half of the six before still counts
    assert admitted(1) == 0
    worker.pass_time(4.0, 1.0)  # a tenth of them
    assert admitted(1) == 1
    worker.pass_time(20.0, 1.0)
    assert admitted(4) == 3
    assert {end.split("=")[0] for end in worker.ends} == {"PR source-rate"}


def test_a_client_cannot_write_fields_into_the_log(make: Make) -> None:
    worker = make(**TRUSTED)
    worker.connect().send(b'PROXY TCP4 1" end=-- x="1 1.2.3.4 1 2\r\n')
    worker.connect().send(b'PROXY TCP4"end=-- 1.2.3.4 1.2.3.4 1 2\r\n')
    worker.settle()
    for line in worker.lines.sessions:
        reason = line.partition(' reason="')[2]
        assert '"' not in reason.removesuffix('"').replace("\\\\", "").replace('\\"', ""), line


# -- the name that a TLS client asks for


def hello(name: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sent = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


def named(make: Make, **options: Any) -> WorkerSimulation:
    routes = (Route("a", name="a.example"), Route("b", name="*.b.example"))
    return make(backends=2, pools=("a", "b"), routes=routes, **options)


@pytest.mark.parametrize("cut", [0, 1, 5, 60, 200])
@pytest.mark.parametrize(("name", "server"), [("a.example", 0), ("x.b.example", 1), ("c.example", None)])
def test_a_name_leads_to_its_pool_and_the_hello_is_whole(
    make: Make, name: str, server: int | None, cut: int
) -> None:
    worker = named(make)
    client = worker.connect()
    data = hello(name)
    if cut:
        client.send(data[:cut])
        worker.settle()
    client.send(data[cut:] + b"behind")
    worker.settle()
    if server is None:
        assert worker.ends == ["PR no-route"] and denials(worker) == {"no-route": 1}
        return
    backend = worker.accept(server)
    assert read_all(backend) == data + b"behind"
    client.send(b"more")
    client.shutdown(socket.SHUT_WR)
    worker.settle()
    assert heard(backend) == "more|end"


def test_a_hello_that_comes_record_by_record_is_looked_at_no_more_than_so_often(make: Make) -> None:
    worker = named(make)
    client = worker.connect()
    for byte in hello("a.example")[5:]:
        client.send(b"\x16\3\1\0\1" + bytes((byte,)))
        worker.turn()
        if worker.ends:
            break
    assert worker.ends == ["PR a hello in more than 64 pieces"]


def test_a_hello_in_single_bytes_is_looked_at_when_its_record_is_there(make: Make) -> None:
    worker = named(make)
    client = worker.connect()
    data = hello("a.example")
    for at in range(len(data)):
        client.send(data[at : at + 1])
        worker.turn()
    worker.settle()
    assert read_all(worker.accept()) == data


# -- what the backend is told


@pytest.mark.parametrize(
    "send", [SendProxy(1), SendProxy(2), SendProxy(2, frozenset(("crc32c", "unique-id")))]
)
@pytest.mark.parametrize("first", [b"ask", b""])
def test_a_backend_is_told_first_and_the_header_is_no_payload(
    make: Make, send: SendProxy, first: bytes
) -> None:
    worker = make(send_proxy=send)
    client = worker.connect()
    if first:
        client.send(first)
    worker.settle()
    backend = worker.accept()
    data = read_all(backend)
    claim = parse(data)
    assert claim and (claim.source, claim.destination) == (client.getsockname(), client.getpeername())
    assert data[claim.size :] == first
    assert worker.sessions[0].given() == (len(first), 0)
    client.send(b"more")
    client.shutdown(socket.SHUT_WR)
    backend.send(b"answer")
    worker.settle()
    assert (heard(client), heard(backend)) == ("answer|open", "more|end")
    backend.close()
    worker.settle()
    assert worker.ends == ["--"] and worker.cell(L_BYTES_IN) == len(first) + 4


def test_a_claim_is_handed_on(make: Make) -> None:
    worker = make(**TRUSTED, send_proxy=SendProxy(1))
    client = worker.connect()
    client.send(HEADER + b"ask")
    worker.settle()
    assert heard(worker.accept()) == write_v1(CLAIMED, ("198.51.100.1", 443)).decode() + "ask|open"


@pytest.mark.parametrize("first", [b"ask", b""])
def test_the_next_backend_is_told_as_well(make: Make, first: bytes) -> None:
    """One refuses, the next resets before a byte of the client has gone up: the third gets one whole header."""
    worker = make(backends=2, send_proxy=SendProxy(1), retries=3)
    worker.servers[0].close()
    client = worker.connect()
    worker.settle()
    backend = worker.accept(1)
    wanted = f"PROXY TCP4 127.0.0.1 127.0.0.1 {client.getsockname()[1]} {client.getpeername()[1]}\r\n"
    assert heard(backend) == f"{wanted}|open"
    if first:
        client.send(first)
        worker.settle()
        assert heard(backend) == f"{first.decode()}|open"


def test_a_backend_that_breaks_at_the_header_leaves_no_negative_count(make: Make) -> None:
    worker = make(backends=1, send_proxy=SendProxy(1), retries=0)
    worker.connect()
    worker.settle()
    reset(worker.accept())
    worker.settle()
    assert worker.cell(L_BYTES_IN) == 0
    assert [end[:2] for end in worker.ends] == ["SD"]


def test_a_session_goes_on_after_the_time_for_its_header(make: Make) -> None:
    worker = make(**TRUSTED, preread_timeout=3.0)
    client = worker.connect()
    client.send(HEADER[:5])
    worker.settle()
    client.send(HEADER[5:] + b"ask")
    worker.pass_time(6.0)
    served(worker, client, "ask")


class Packets(PairedSocket):
    """A backend's socket on which each write is a packet of its own."""

    kind = socket.SOCK_SEQPACKET


def test_the_header_and_what_the_client_has_said_go_in_one_segment(make: Make) -> None:
    made: list[Packets] = []

    def new_socket(*_: int) -> Packets:
        made.append(Packets.make())
        return made[-1]

    worker = make(send_proxy=SendProxy(1), new_socket=new_socket)
    client = worker.connect()
    client.send(b"ask")
    worker.settle()
    first = made[0].other.recv(1000)
    assert first.startswith(b"PROXY TCP4 ") and first.endswith(b"\r\nask")


def test_a_backend_that_is_gone_before_the_header_leaves_no_negative_count(make: Make) -> None:
    def new_socket(*_: int) -> PairedSocket:
        sock = PairedSocket.make()
        sock.other.close()
        return sock

    worker = make(send_proxy=SendProxy(1), new_socket=new_socket, retries=0)
    client = worker.connect()
    client.send(b"ask")
    worker.settle()
    client.close()
    worker.settle()
    assert worker.ends and worker.cell(L_BYTES_IN) == 0


def test_after_a_backend_that_never_answers_the_next_is_told_once(make: Make) -> None:
    worker = make(backends=2, send_proxy=SendProxy(1), connect_timeout=1.0)
    worker.clog(worker.servers[0])
    for _ in range(2):  # one of them is tried there first
        worker.connect().send(b"ask")
    worker.settle()
    assert len(worker.lane.dialling) == 1
    worker.pass_time(1.5)
    for _ in range(2):
        there = heard(worker.accept(1))
        assert there.count("PROXY") == 1 and there.endswith("\r\nask|open")


# -- what it costs


@pytest.mark.parametrize(
    "options",
    [
        TRUSTED,
        {"allow": LOCAL_NETWORK},
        {"source_maxconn": 5},
        {"send_proxy": SendProxy(2)},
        {"routes": (Route("main", name="a.example"),)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_message_costs_the_same_whatever_came_before_the_session(
    make: Make, options: dict[str, Any]
) -> None:
    """In bytecode instructions: who asks for a phase pays for it once, and the relay knows nothing of it."""
    first = {"proxy_protocol": HEADER, "routes": hello("a.example")}.get(next(iter(options)), b"")
    assert cost_of_messages(make(**options), first) == cost_of_messages(make(), b"") > 0


def cost_of_messages(worker: WorkerSimulation, first: bytes) -> int:
    """Bytecode instructions of requests and their answers on a connection that is kept."""
    client = worker.connect()
    client.send(first + b"ask")
    worker.settle()
    backend = worker.accept()
    read_all(backend)
    counter = BytecodeCounter()
    for number in range(40):
        if number == 20:
            counter.total = 0  # the first ones may differ
        client.send(b"question")
        counter(worker.turn)
        assert read_all(backend) == b"question"
        backend.send(b"answer")
        counter(worker.turn)
        assert read_all(client) == b"answer"
    return counter.total
