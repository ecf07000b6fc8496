"""The speaker of HTTP: every answer with its status, every slot back, and when the connection goes on."""

import json
from collections.abc import Iterator

import h11
import pytest

from tests.unit.workers.resizer.room import SETTINGS, Guest, Room
from workers.resizer import tally

BIG = bytes(range(256)) * 100


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    room = Room(monkeypatch)
    yield room
    room.close()


class Browser:
    """A guest that speaks HTTP; `answers` are (status, headers, body) in the order they came."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.guest: Guest = room.welcome()
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.heads: list[str] = []  # methods asked and not answered

    def send(self, data: bytes) -> None:
        self.guest.say(data)
        self.room.settle()

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
        data = self.guest.heard()
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
def browser(room: Room) -> Browser:
    return Browser(room)


def sentence(answer: tuple[int, dict[str, str], bytes]) -> str:
    document = json.loads(answer[2])
    assert document["status"] == answer[0]
    found: str = document["error"]
    return found


# -- pictures --


def test_pictures_one_after_another_over_one_connection(room: Room, browser: Browser) -> None:
    for answer in (b"one", b"two"):
        browser.post(BIG)
        assert room.taken() == 1
        assert room.work(answer) == BIG
        status, headers, body = browser.answer()
        assert (status, body, headers["content-type"]) == (200, answer, "image/jpeg")
        assert (headers["x-picture-size"], headers["server"]) == ("9x6", "here")
        assert room.taken() == 0
    assert room.cells[tally.REQUESTS] == 2 == room.cells[tally.ANSWERS]


def test_a_body_in_chunks_and_in_pieces(room: Room, browser: Browser) -> None:
    browser.heads.append("POST")
    whole = b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    whole += b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    for at in range(len(whole)):
        browser.send(whole[at : at + 1])
    assert room.work() == b"hello world"
    assert browser.answer()[0] == 200


def test_pipelined_requests_are_answered_one_by_one(room: Room, browser: Browser) -> None:
    request = b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n"
    browser.heads += ["POST"] * 3
    browser.send(request + b"a" + request + b"b" + request + b"c")
    assert room.taken() == 1
    assert [room.work(b"A"), room.work(b"B"), room.work(b"C")] == [b"a", b"b", b"c"]
    assert [browser.answer()[2] for _ in range(3)] == [b"A", b"B", b"C"]


def test_what_the_cpu_process_refuses_is_told_and_the_connection_goes_on(
    room: Room, browser: Browser
) -> None:
    browser.post(BIG)
    order = room.order()
    assert order is not None
    room.finish(order, b"", 422, "damaged")
    answer = browser.answer()
    assert answer[0] == 422 and sentence(answer) == "damaged" and room.taken() == 0
    browser.post(BIG)
    room.work()
    assert browser.answer()[0] == 200


def test_the_words_of_the_query_reach_the_order(room: Room, browser: Browser) -> None:
    browser.post(BIG, "/resize?w=9&h=8&fit=cover&format=webp&quality=70&orient=no")
    order = room.order()
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
def test_an_error_of_the_head_is_answered_before_the_body_and_ends(
    room: Room, browser: Browser, target: str, status: int
) -> None:
    browser.heads.append("POST")
    browser.send(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n".encode())
    answer = browser.answer()
    assert answer[0] == status and sentence(answer)
    assert answer[1]["connection"] == "close" and browser.guest.heard() == b"" and browser.guest.is_over
    assert room.taken() == 0


def test_a_body_over_the_limit_is_refused_by_its_length_or_when_it_gets_there(room: Room) -> None:
    told, chunked = Browser(room), Browser(room)
    limit = SETTINGS.limits.max_bytes
    for one in (told, chunked):
        one.heads.append("POST")
    told.send(f"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: {limit + 1}\r\n\r\n".encode())
    chunked.send(b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(SETTINGS.slot_bytes // 50_000 + 2):
        if chunked.guest.client.life.value != "open":
            break
        chunked.send(b"c350\r\n" + bytes(50_000) + b"\r\n")
    for one in (told, chunked):
        assert one.answer()[0] == 413
    assert room.taken() == 0


def test_no_body_is_no_picture_and_the_connection_goes_on(room: Room, browser: Browser) -> None:
    browser.post(b"")
    assert browser.answer()[0] == 415 and room.taken() == 0
    assert browser.get("/health")[0] == 200


def test_a_full_queue_is_told_with_a_time_to_come_again(room: Room, browser: Browser) -> None:
    room.fill_queue()
    before = room.taken()
    browser.post(BIG)
    status, headers, _ = browser.answer()
    assert (status, headers["retry-after"]) == (429, "1") and room.taken() == before
    for _ in range(SETTINGS.queue + 1):
        room.work()
    browser.post(BIG)
    room.work()
    assert browser.answer()[0] == 200, "the connection was kept"


def test_too_many_clients_get_health_but_no_work(room: Room) -> None:
    browser = Browser(room)
    browser.guest.client.is_late = True
    assert browser.get("/health")[0] == 200
    browser.post(BIG)
    assert browser.answer()[0] == 429


@pytest.mark.parametrize("noise", [b"NOT HTTP\r\n\r\n", b"GET / HTTP/1.1\r\nX: \x00\r\n\r\n"])
def test_what_is_not_http_is_told_so_and_closed(browser: Browser, noise: bytes) -> None:
    browser.heads.append("GET")
    browser.send(noise)
    assert browser.answer()[0] == 400
    browser.guest.heard()
    assert browser.guest.is_over


def test_an_endless_head_is_cut(browser: Browser) -> None:
    browser.heads.append("GET")
    browser.send(b"GET / HTTP/1.1\r\n")
    for _ in range(20):
        if browser.guest.client.life.value != "open":
            break
        browser.send(b"X: " + b"y" * 990 + b"\r\n")
    assert browser.answer()[0] == 431


# -- what needs no picture --


def test_health_and_status_and_their_heads(browser: Browser) -> None:
    assert json.loads(browser.get("/health")[2])["status"] == "ok"
    assert json.loads(browser.get("/status")[2]) == {"name": "here"}
    status, headers, body = browser.get("/status", "HEAD")
    assert (status, body) == (200, b"") and int(headers["content-length"]) > 0
    assert browser.get("/health", "DELETE")[0] == 405


def test_the_body_is_asked_for_only_when_it_is_wanted(room: Room) -> None:
    wanted, unwanted = Browser(room), Browser(room)
    head = "POST {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    wanted.send(head.format("/resize?w=9").encode())
    unwanted.send(head.format("/resize?w=0").encode())
    assert wanted.guest.heard().startswith(b"HTTP/1.1 100 ")
    assert unwanted.guest.heard().startswith(b"HTTP/1.1 400 ")


# -- waiting and ending --


def test_without_a_slot_it_is_not_read_from_and_goes_on_when_there_is_one(
    room: Room, browser: Browser
) -> None:
    held = [room.desk.claim(lambda: None) for _ in range(SETTINGS.slots)]
    browser.post(BIG)
    assert room.order() is None and browser.guest.client.blocked is not None
    assert held[0] is not None
    room.desk.release(held[0])
    room.settle()
    assert room.work() == BIG and browser.answer()[0] == 200


def test_a_client_that_leaves_leaves_no_slot_behind(room: Room) -> None:
    middle, waiting = Browser(room), Browser(room)
    middle.send(b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc")
    waiting.post(BIG)
    assert room.taken() == 2
    middle.guest.sock.close()
    waiting.guest.sock.close()
    room.settle()
    assert room.taken() == 1 == room.cells[tally.ABANDONED], "one is being worked on"
    room.work()
    assert room.taken() == 0


def test_on_the_way_down_work_is_answered_and_then_the_connection_ends(room: Room) -> None:
    busy, idle, late = Browser(room), Browser(room), Browser(room)
    busy.post(BIG)
    idle.get("/health")
    late.send(b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n")
    room.drain()
    idle.guest.heard()
    assert idle.guest.is_over
    late.heads.append("POST")
    late.send(b"\r\n")
    assert late.answer()[0] == 503
    room.work()
    status, headers, _ = busy.answer()
    assert (status, headers["connection"]) == (200, "close")
    busy.guest.heard()
    assert busy.guest.is_over


def test_each_request_is_timed_from_its_own_beginning(room: Room, browser: Browser) -> None:
    """A slow sender is cut by its own time, and a connection that has been busy for long is not a slow one."""
    timeout, for_ever = SETTINGS.frame_timeout, 1e9
    for _ in range(4):
        room.now += timeout / 3
        assert browser.get("/health")[0] == 200
    browser.send(b"GET /hea")
    room.now += timeout - 0.1
    browser.guest.client.check(room.now, timeout, for_ever)
    assert browser.guest.client.life.value == "open"
    room.now += 0.2
    browser.guest.client.check(room.now, timeout, for_ever)
    assert browser.guest.client.life.value == "closed"
