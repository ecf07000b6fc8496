"""The protocol of HTTP: every answer with its status, every slot free again, and when the connection goes on."""

import json
import os
import socket
from collections.abc import Callable, Iterator

import h11
import pytest

from tests.unit.workers.resizer.front_fixture import OPTIONS, FramePeer, FrontFixture
from workers.resizer import counters
from workers.resizer.holders import GRACE
from workers.resizer.http_protocol import EARLY_BYTES, HASTY_SECONDS
from workers.resizer.scheduler import PROMPT, STARVED_SECONDS

BIG = bytes(range(256)) * 100
LONG = EARLY_BYTES + 20_000
LONG_HEAD = f"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: {LONG}\r\n\r\n".encode()
POST_BIG = b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: 25600\r\n\r\n" + BIG


@pytest.fixture
def front() -> Iterator[FrontFixture]:
    front = FrontFixture()
    yield front
    front.close()


class HttpPeer:
    """A peer that speaks HTTP; `answers` are (status, headers, body) in the order they came."""

    def __init__(self, front: FrontFixture, over_tcp: bool = False) -> None:
        self.front = front
        self.peer: FramePeer = front.connect(over_tcp=over_tcp)
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.heads: list[str] = []  # methods asked and not answered

    def send(self, data: bytes) -> None:
        self.peer.send(data)
        self.front.settle()

    def get(self, target: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        self.heads.append(method)
        self.send(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return self.answer()

    def post(self, body: bytes, target: str = "/resize?w=9", more: str = "") -> None:
        self.heads.append("POST")
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        self.send(head.encode() + body)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer, which must be here."""
        if not self.answers:
            self._read()
        assert self.answers, "no answer"
        return self.answers.pop(0)

    def _read(self) -> None:
        data = self.peer.received()
        while data and self.heads:
            conn = h11.Connection(h11.CLIENT)
            conn.send(h11.Request(method=self.heads.pop(0), target="/", headers=[("Host", "x")]))
            conn.send(h11.EndOfMessage())
            conn.receive_data(data)
            status, headers, body = 0, {}, b""
            while not isinstance(event := conn.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    status = event.status_code
                    headers = {name.decode(): value.decode() for name, value in event.headers}
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
            self.answers.append((status, headers, body))
            data = conn.trailing_data[0]


@pytest.fixture
def client(front: FrontFixture) -> HttpPeer:
    return HttpPeer(front)


def sentence(answer: tuple[int, dict[str, str], bytes]) -> str:
    document = json.loads(answer[2])
    assert document["status"] == answer[0]
    found: str = document["error"]
    return found


# -- pictures --


def test_pictures_one_after_another_over_one_connection(front: FrontFixture, client: HttpPeer) -> None:
    for answer in (b"one", b"two"):
        client.post(BIG)
        assert front.taken() == 1
        assert front.work(answer) == BIG
        status, headers, body = client.answer()
        assert (status, body, headers["content-type"]) == (200, answer, "image/jpeg")
        assert (headers["x-picture-size"], headers["server"]) == ("9x6", "here")
        assert front.taken() == 0
    assert front.cells[counters.REQUESTS] == 2 == front.cells[counters.ANSWERS]


def test_a_body_in_chunks_and_in_pieces(front: FrontFixture, client: HttpPeer) -> None:
    client.heads.append("POST")
    whole = b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    whole += b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    for at in range(len(whole)):
        client.send(whole[at : at + 1])
    assert front.work() == b"hello world"
    assert client.answer()[0] == 200


def test_pipelined_requests_are_answered_one_by_one(front: FrontFixture, client: HttpPeer) -> None:
    request = b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n"
    client.heads += ["POST"] * 3
    client.send(request + b"a" + request + b"b" + request + b"c")
    assert front.taken() == 1
    assert [front.work(b"A"), front.work(b"B"), front.work(b"C")] == [b"a", b"b", b"c"]
    assert [client.answer()[2] for _ in range(3)] == [b"A", b"B", b"C"]


def test_a_refusal_of_the_cpu_process_is_answered_and_the_connection_goes_on(
    front: FrontFixture, client: HttpPeer
) -> None:
    client.post(BIG)
    order = front.order()
    assert order is not None
    front.finish(order, b"", 422, "damaged")
    answer = client.answer()
    assert answer[0] == 422 and sentence(answer) == "damaged" and front.taken() == 0
    client.post(BIG)
    front.work()
    assert client.answer()[0] == 200


def test_the_parameters_of_the_query_reach_the_order(front: FrontFixture, client: HttpPeer) -> None:
    client.post(BIG, "/resize?w=9&h=8&fit=cover&format=webp&quality=70&orient=no")
    order = front.order()
    assert order is not None
    assert (order.width, order.height, order.fit, order.format, order.quality, order.orient) == (
        9,
        8,
        "cover",
        "webp",
        70,
        False,
    )


# -- refusals --


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/resize?w=0", 400),
        ("/resize?w=9&fit=odd", 400),
        ("/resize?w=100000", 422),
        ("/resize?w=9&color=red", 400),
        ("/nowhere", 404),
    ],
)
def test_an_error_in_the_head_is_answered_before_the_body_which_is_thrown_away(
    front: FrontFixture, client: HttpPeer, target: str, status: int
) -> None:
    client.heads.append("POST")
    client.send(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n".encode())
    answer = client.answer()
    assert answer[0] == status and sentence(answer)
    assert front.taken() == 0
    client.send(bytes(5000))
    client.post(BIG)
    assert front.work() == BIG and client.answer()[0] == 200, "the connection goes on"


def test_a_body_over_the_limit_is_refused_by_its_length_or_at_the_limit(front: FrontFixture) -> None:
    announced, chunked = HttpPeer(front), HttpPeer(front)
    limit = OPTIONS.limits.max_bytes
    for one in (announced, chunked):
        one.heads.append("POST")
    announced.send(f"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: {limit + 1}\r\n\r\n".encode())
    chunked.send(b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(OPTIONS.slot_bytes // 50_000 + 2):
        if chunked.peer.connection.state.value != "open":
            break
        chunked.send(b"c350\r\n" + bytes(50_000) + b"\r\n")
    for one in (announced, chunked):
        assert one.answer()[0] == 413
    assert front.taken() == 0


def test_no_body_is_no_picture_and_the_connection_goes_on(front: FrontFixture, client: HttpPeer) -> None:
    client.post(b"")
    assert client.answer()[0] == 415 and front.taken() == 0
    assert client.get("/health")[0] == 200


def test_a_full_queue_is_answered_with_a_retry_after(front: FrontFixture, client: HttpPeer) -> None:
    front.fill_queue()
    before = front.taken()
    client.post(BIG)
    status, headers, _ = client.answer()
    assert (status, headers["retry-after"]) == (429, "1") and front.taken() == before
    assert front.cells[counters.ABANDONED] == 0, "it was never queued"
    for _ in range(OPTIONS.queue + 1):
        front.work()
    client.post(BIG)
    front.work()
    assert client.answer()[0] == 200, "the connection was kept"


def test_a_full_queue_is_told_at_the_head_and_the_body_is_thrown_away(
    front: FrontFixture, client: HttpPeer
) -> None:
    front.fill_queue()
    client.heads.append("POST")
    client.send(POST_BIG[: -len(BIG)])
    assert client.answer()[0] == 429
    for byte in (b"x" * 100, BIG[100:]):
        client.send(byte)
    assert client.peer.received() == b"" and client.get("/health")[0] == 200
    assert len(client.answers) == 0 and front.scheduler.is_queue_full()


def test_a_client_that_does_not_wait_before_it_asks_again_is_made_to(front: FrontFixture) -> None:
    hasty, patient, gone = HttpPeer(front), HttpPeer(front), HttpPeer(front)
    front.fill_queue()
    for client in (hasty, patient, gone):
        client.post(BIG)
        assert client.answer()[0] == 429
    for client in (hasty, gone):
        client.post(BIG)
    front.now += HASTY_SECONDS - 0.1
    front.settle()
    assert hasty.peer.received() == b""
    gone.peer.sock.close()
    front.settle()
    refused = front.cells[counters.BUSY]
    front.now += 0.2
    front.settle()
    assert hasty.answer()[0] == 429 and front.cells[counters.BUSY] == refused + 1
    front.now += 1.0
    front.settle()
    patient.post(BIG)
    assert patient.answer()[0] == 429, "at once"


def test_too_many_clients_get_health_but_no_work(front: FrontFixture) -> None:
    client = HttpPeer(front)
    client.peer.connection.is_over_limit = True
    assert client.get("/health")[0] == 200
    client.post(BIG)
    assert client.answer()[0] == 429


@pytest.mark.parametrize("noise", [b"NOT HTTP\r\n\r\n", b"GET / HTTP/1.1\r\nX: \x00\r\n\r\n"])
def test_bytes_that_are_not_http_are_answered_400_and_the_connection_ends(
    client: HttpPeer, noise: bytes
) -> None:
    client.heads.append("GET")
    client.send(noise)
    assert client.answer()[0] == 400
    client.peer.received()
    assert client.peer.is_closed


def test_an_endless_head_is_cut(client: HttpPeer) -> None:
    client.heads.append("GET")
    client.send(b"GET / HTTP/1.1\r\n")
    for _ in range(20):
        if client.peer.connection.state.value != "open":
            break
        client.send(b"X: " + b"y" * 990 + b"\r\n")
    assert client.answer()[0] == 431


# -- what needs no picture --


def test_health_and_status_and_their_heads(client: HttpPeer) -> None:
    assert json.loads(client.get("/health")[2])["status"] == "ok"
    assert json.loads(client.get("/status")[2]) == {"name": "here"}
    status, headers, body = client.get("/status", "HEAD")
    assert (status, body) == (200, b"") and int(headers["content-length"]) > 0
    assert client.get("/health", "DELETE")[0] == 405


def test_a_front_that_drains_lives_and_is_not_ready(front: FrontFixture, client: HttpPeer) -> None:
    assert client.get("/live")[0] == client.get("/ready")[0] == 200
    front.scheduler.draining = True
    assert client.get("/live")[0] == 200
    answer = client.get("/ready")
    assert answer[0] == 503 and "shutting down" in sentence(answer)


def test_the_agent_tells_the_part_of_the_queue_that_is_free(front: FrontFixture, client: HttpPeer) -> None:
    def agent() -> bytes:
        status, headers, body = client.get("/agent")
        assert status == 200 and headers["content-type"].startswith("text/plain")
        return body

    assert agent() == b"ready up 100%\n"
    crowd = front.fill_queue()
    assert agent() == b"ready up 5%\n"
    front.work()
    assert agent() == b"ready up 50%\n" and len(crowd) == 3
    for _ in range(2):
        front.work()
    front.scheduler.tick(front.now)
    os.close(front.processes.life.pop(11))
    front.settle()
    front.now += STARVED_SECONDS + 0.1
    front.settle()
    assert agent() == b"down #no CPU process is there\n"
    front.scheduler.draining = True
    assert agent() == b"drain\n"


def test_every_picture_is_in_the_histograms(front: FrontFixture, client: HttpPeer) -> None:
    client.send(POST_BIG[:-1])
    front.now += 2.0
    front.settle()
    client.heads.append("POST")
    client.send(POST_BIG[-1:])
    order = front.order()
    assert order is not None
    front.now += 0.2
    front.settle()
    front.finish(order, text="webp")
    assert client.answer()[0] == 200
    sums = {
        name: front.cells[first + len(counters.BOUNDS) + 1] for first, name in counters.HISTOGRAMS.items()
    }
    assert {name: round(value / 1e5) for name, value in sums.items()} == {"wait": 0, "work": 2, "whole": 22}
    assert front.cells[counters.PICTURES_AS["webp"]] == 1


def test_100_continue_is_sent_only_for_an_accepted_head(front: FrontFixture) -> None:
    wanted, unwanted = HttpPeer(front), HttpPeer(front)
    head = "POST {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    wanted.send(head.format("/resize?w=9").encode())
    unwanted.send(head.format("/resize?w=0").encode())
    assert wanted.peer.received().startswith(b"HTTP/1.1 100 ")
    assert unwanted.peer.received().startswith(b"HTTP/1.1 400 ")


# -- waiting and ending --


def test_without_a_slot_the_connection_is_not_read_until_there_is_one(
    front: FrontFixture, client: HttpPeer
) -> None:
    held = [front.scheduler.claim_slot(lambda: None) for _ in range(OPTIONS.slots)]
    client.post(BIG)
    assert front.order() is None and client.peer.connection.is_paused
    assert held[0] is not None
    front.scheduler.release_slot(held[0])
    front.settle()
    assert front.work() == BIG and client.answer()[0] == 200


def test_a_few_bytes_of_a_body_take_no_slot(front: FrontFixture) -> None:
    for length in (1, EARLY_BYTES - 1):
        HttpPeer(front).send(LONG_HEAD + bytes(length))
    assert front.taken() == 0
    client = HttpPeer(front)
    client.send(LONG_HEAD + bytes(EARLY_BYTES))
    assert front.taken() == 1
    client.heads.append("POST")
    client.send(bytes(LONG - EARLY_BYTES))
    assert front.work() == bytes(LONG) and client.answer()[0] == 200


def test_the_slowest_yields_its_slot_and_is_told_so(front: FrontFixture) -> None:
    crowd = [HttpPeer(front) for _ in range(OPTIONS.slots)]
    for number, slow in enumerate(crowd):
        slow.heads.append("POST")
        slow.send(LONG_HEAD + bytes(EARLY_BYTES + 10 + number))
        front.now += PROMPT + 0.01
        front.settle()
    assert front.taken() == OPTIONS.slots
    client = HttpPeer(front)
    client.post(BIG)
    assert front.work() == BIG and client.answer()[0] == 200
    assert crowd[0].answer()[0] == 429 and not any(slow.peer.received() for slow in crowd[1:])
    crowd[0].send(bytes(LONG - EARLY_BYTES - 10))
    crowd[0].post(BIG)
    assert front.work() == BIG and crowd[0].answer()[0] == 200, "its connection goes on"


def test_a_slow_reader_yields_its_slot_too(front: FrontFixture) -> None:
    near = HttpPeer(front)
    near.post(BIG)
    near.peer.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    front.work(bytes(OPTIONS.max_frame))
    held = [front.scheduler.claim_slot(lambda: None) for _ in range(OPTIONS.slots - 1)]
    assert None not in held and near.peer.connection.output.pending > 70_000
    front.now += GRACE
    front.settle()
    client = HttpPeer(front)
    client.post(BIG)
    assert front.work() == BIG and client.answer()[0] == 200 and near.peer.connection.state.value == "closed"


def test_health_says_no_when_no_picture_could_be_taken(front: FrontFixture, client: HttpPeer) -> None:
    held = [front.scheduler.claim_slot(lambda: None) for _ in range(OPTIONS.slots)]
    waiting = HttpPeer(front)
    waiting.post(BIG)
    assert client.get("/health")[0] == 200
    front.now += STARVED_SECONDS + 0.1
    front.settle()
    answer = client.get("/health")
    assert answer[0] == 503 and "place" in sentence(answer)
    assert held[0] is not None
    front.scheduler.release_slot(held[0])
    front.settle()
    front.work()
    assert client.get("/health")[0] == 200
    front.scheduler.tick(front.now)
    os.close(front.processes.life.pop(11))
    front.settle()
    assert client.get("/health")[0] == 200, "the next one is on its way"
    front.now += STARVED_SECONDS + 0.1
    front.settle()
    answer = client.get("/health")
    assert answer[0] == 503 and "CPU process" in sentence(answer)


def test_a_client_that_leaves_leaves_no_slot_in_use(front: FrontFixture) -> None:
    middle, waiting = HttpPeer(front), HttpPeer(front)
    middle.send(b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc")
    waiting.post(BIG)
    assert front.taken() == 1, "a few bytes take no slot"
    middle.peer.sock.close()
    waiting.peer.sock.close()
    front.settle()
    assert front.taken() == 1 == front.cells[counters.ABANDONED], "one is being worked on"
    front.work()
    assert front.taken() == 0


ENDINGS = {"close": socket.socket.close, "half-close": lambda sock: sock.shutdown(socket.SHUT_WR)}


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("is_read_before", [True, False], ids=["after the body", "with the body"])
def test_what_waits_is_dropped_when_its_client_ends_its_side(
    front: FrontFixture, end: Callable[[socket.socket], object], is_read_before: bool
) -> None:
    worked, waiting = HttpPeer(front, over_tcp=True), HttpPeer(front, over_tcp=True)
    for client in (worked, waiting):
        if is_read_before:
            client.post(BIG)
        else:
            client.peer.send(POST_BIG)
        end(client.peer.sock)
        front.settle()
    assert front.taken() == 1 == front.cells[counters.ABANDONED], "one is worked on"
    assert waiting.peer.connection.state.value == "closed"
    front.work()
    assert front.order() is None and front.taken() == 0


def test_a_client_that_half_closes_gets_the_answer_of_work_that_has_begun(front: FrontFixture) -> None:
    client = HttpPeer(front)
    client.post(BIG)
    client.peer.sock.shutdown(socket.SHUT_WR)
    front.settle()
    front.work(b"small")
    assert client.answer()[0::2] == (200, b"small") and front.cells[counters.ABANDONED] == 0


def test_a_client_that_leaves_while_it_waits_for_a_slot_gets_none(front: FrontFixture) -> None:
    held = [front.scheduler.claim_slot(lambda: None) for _ in range(OPTIONS.slots)]
    gone, waiting = HttpPeer(front), HttpPeer(front)
    gone.post(BIG)
    waiting.post(BIG)
    gone.peer.sock.close()
    front.settle()
    assert held[0] is not None
    front.scheduler.release_slot(held[0])
    front.settle()
    assert front.work() == BIG and waiting.answer()[0] == 200
    assert front.taken() == OPTIONS.slots - 1


def test_draining_answers_what_is_in_flight_and_then_the_connection_ends(front: FrontFixture) -> None:
    busy, idle, late = HttpPeer(front), HttpPeer(front), HttpPeer(front)
    busy.post(BIG)
    idle.get("/health")
    late.send(b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n")
    front.drain()
    idle.peer.received()
    assert idle.peer.is_closed
    late.heads.append("POST")
    late.send(b"\r\n")
    assert late.answer()[0] == 503
    front.work()
    status, headers, _ = busy.answer()
    assert (status, headers["connection"]) == (200, "close")
    busy.peer.received()
    assert busy.peer.is_closed


def test_each_request_is_timed_from_its_own_beginning(front: FrontFixture, client: HttpPeer) -> None:
    """A slow sender is cut by its own time, and a connection that has been busy for long is not a slow one."""
    timeout, for_ever = OPTIONS.frame_timeout, 1e9
    for _ in range(4):
        front.now += timeout / 3
        assert client.get("/health")[0] == 200
    client.send(b"GET /hea")
    front.now += timeout - 0.1
    client.peer.connection.check_timeouts(front.now, timeout, for_ever)
    assert client.peer.connection.state.value == "open"
    front.now += 0.2
    client.peer.connection.check_timeouts(front.now, timeout, for_ever)
    assert client.peer.connection.state.value == "closed"
