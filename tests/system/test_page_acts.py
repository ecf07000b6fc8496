"""Acts on the status page: what balancerctl does, for who knows the token, and nothing for all others."""

import http.client
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode

import pytest

from scripts.lab.backends import Echo
from scripts.lab.network import Address, free_port, text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer, ini_section
from tests.system.test_console_web import raw

TOKEN, SECOND = "first-0123456789abcdef", "second-0123456789abcdef"
FORM = "application/x-www-form-urlencoded"


class Scene:
    """A balancer of two pools with a token for its page."""

    def __init__(self, stack: ExitStack, directory: Path, has_token: bool = True) -> None:
        self.token_file = directory / "token"
        self.give(TOKEN)
        self.http = ("127.0.0.1", free_port())
        echo = stack.enter_context(Echo()).address
        keys = {"metrics_admin_token": str(self.token_file)} if has_token else {}
        self.text = ini_section("balancer", workers=1, metrics=text_of(self.http), **keys)
        for name in ("web", "api"):
            upstream = [f"{text_of(echo)} name=one", f"{text_of(echo)} name=two"]
            self.text += ini_section(f"listener {name}", bind="127.0.0.1:0", pool=name)
            self.text += ini_section(f"pool {name}", upstream=upstream, check="none")
        self.lb = stack.enter_context(FileBalancer(self.text))
        self.lb.expect("all-down")

    def give(self, token: str, mode: int = 0o600) -> None:
        self.token_file.write_text(f"{token}\n")
        self.token_file.chmod(mode)

    def states(self) -> dict[str, str]:
        return {f"{one['pool']}/{one['name']}": one["state"] for one in self.lb.status()["backends"]}

    def lines(self, verb: str) -> list[str]:
        return [line for line in self.lb.log().splitlines() if f" {verb} " in line]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack, tmp_path)


def post(
    address: Address, fields: dict[str, object], method: str = "POST", path: str = "/act", **headers: str
) -> tuple[int, dict[str, str], str]:
    """(status, headers, body). `headers`: Sec_Fetch_Site is Sec-Fetch-Site."""
    conn = http.client.HTTPConnection(*address, timeout=30)
    given = {"Content-Type": FORM} | {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        conn.request(method, path, urlencode(fields, doseq=True), given)
        reply = conn.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read().decode()
    finally:
        conn.close()


DRAIN = {"act": "drain", "name": "web/one", "token": TOKEN}


def test_the_page_does_what_balancerctl_does(scene: Scene) -> None:
    lb = scene.lb
    code, _, body = post(scene.http, {**DRAIN, "reason": "new  disk"})
    assert code == 200 and scene.states()["web/one"] == "drain"
    told = json.loads(lb.ctl("drain", "web/one", "--json").stdout)
    assert told == {"schema": told["schema"]} | json.loads(body)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for fields, state in (
        ({"act": "maint", "name": ["api/*", "web/t?o"]}, {"api/one": "maint", "api/two": "maint", "web/two": "maint"}),
        ({"act": "ready", "name": "*"}, dict.fromkeys(scene.states(), "up")),
        ({"act": "weight", "name": "api/two", "weight": 0}, {"api/two": "weight-0"}),
    ):  # fmt: skip
        code, _, body = post(scene.http, fields, **bearer)
        assert code == 200 and scene.states() | state == scene.states(), body
    code, headers, _ = post(scene.http, {**DRAIN, "view": "pool/web"}, Accept="text/html")
    assert (code, headers["Location"]) == (303, "./pool/web#backends")
    page = raw(scene.http, b"GET /pool/web HTTP/1.0\r\n\r\n").decode()
    assert "1 of 2 backends up" in page, "what an act did is seen at once"
    refused = lb.ctl("drain", "web/noe")
    code, _, body = post(scene.http, {**DRAIN, "name": "web/noe"})
    assert code == 400 and json.loads(body)["error"] in refused.stderr and "web/one" in body
    lines = scene.lines("operator")
    assert re.search(
        r'info console pid=\d+ operator who=page client=127\.0\.0\.1:\d+ act=drain backend=web/one '
        r'before="ready weight 1" after="drain weight 1" reason="new disk"$',
        lines[0],
    )  # fmt: skip
    ours, theirs = lines[-1], lines[-2]
    assert ours.partition("act=")[2] == theirs.partition("act=")[2] and "who=page" in ours
    assert any("who=page" in line for line in lb.ctl("events").stdout.splitlines())
    assert TOKEN not in lb.log()


# What is wrong -> (what is sent, the code, a part of the sentence).
WRONG: dict[str, tuple[dict[str, str], dict[str, object], str, int, str]] = {
    "a wrong token": ({}, {**DRAIN, "token": f"{TOKEN}x"}, "POST", 401, "the token is wrong"),
    "no token": ({}, {"act": "drain", "name": "web/one"}, "POST", 401, "takes the token"),
    "a wrong header": ({"Authorization": f"Bearer {SECOND}"}, {**DRAIN, "token": ""}, "POST", 401, "wrong"),
    "another method": ({}, DRAIN, "GET", 405, "POST"),
    "PUT": ({}, DRAIN, "PUT", 405, "POST"),
    "another site's page": ({"Origin": "https://evil.example"}, DRAIN, "POST", 403, "evil.example"),
    "a page without a site": ({"Origin": "null"}, DRAIN, "POST", 403, "null"),
    "another site's script": ({"Sec_Fetch_Site": "cross-site"}, DRAIN, "POST", 403, "another site"),
    "a form of text": ({"Content_Type": "text/plain"}, DRAIN, "POST", 415, FORM),
    "a big form": ({}, {**DRAIN, "reason": "x" * 9000}, "POST", 413, "8192"),
    "a huge form": ({}, {**DRAIN, "reason": "x" * 200_000}, "POST", 413, "8192"),
    "a field that is none": ({}, {**DRAIN, "kill": "1"}, "POST", 400, "kill"),
    "another act": ({}, {**DRAIN, "act": "kill"}, "POST", 400, "drain, ready, maint, weight"),
    "a long reason": ({}, {**DRAIN, "reason": "x" * 501}, "POST", 400, "500 characters"),
    "a weight that is none": ({}, {**DRAIN, "act": "weight", "weight": "much"}, "POST", 400, "a weight"),
}


def test_whatever_is_wrong_nothing_is_done(scene: Scene) -> None:
    before = scene.states()
    for what, (headers, fields, method, code, part) in WRONG.items():
        for accept in ("text/html", "*/*"):
            found, answered, body = post(scene.http, fields, method, **({"Accept": accept} | headers))
            sentence = body if accept == "text/html" else json.loads(body)["error"]
            assert (found, part in sentence) == (code, True), (what, found, body)
            assert ("WWW-Authenticate" in answered, "Allow" in answered) == (code == 401, code == 405), what
    assert post(scene.http, DRAIN, path=f"/act?token={TOKEN}")[0] == 400
    head = f"POST /act HTTP/1.1\r\nHost: a\r\nContent-Type: {FORM}\r\nConnection: close\r\n".encode()
    for body, code in (
        (b"Content-Length: 99\r\n\r\nact=drain&name=web/one&tok", 408),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 411),
    ):
        with socket.create_connection(scene.http, 30) as sock:
            sock.sendall(head + body)
            assert sock.recv(1000).startswith(f"HTTP/1.1 {code} ".encode())
    assert scene.states() == before
    assert all("refused=" in line for line in scene.lines("operator"))
    assert any("the token is wrong" in line and "who=page" in line for line in scene.lines("refuse"))
    assert TOKEN not in scene.lb.log() and SECOND not in scene.lb.log()
    scene.lb.check_at_rest(seconds=10.0)


def test_acts_go_on_over_a_killed_console_and_a_reload_with_another_token(scene: Scene) -> None:
    lb = scene.lb
    lb.expect("reap")

    def consoles() -> set[int]:
        return {pid for pid, title in lb.titles().items() if "console [" in title}

    def answer(token: str, act: str) -> int:
        """The status, 0 while no console is there."""
        try:
            return post(scene.http, {**DRAIN, "act": act, "token": token})[0]
        except (ConnectionError, http.client.HTTPException):
            return 0

    assert answer(TOKEN, "drain") == 200
    for pid in consoles():
        os.kill(pid, signal.SIGKILL)
    assert scene.states()["web/one"] == "drain"
    wait_for(lambda: answer(TOKEN, "maint") == 200, "an act of the next console", 30)
    assert scene.states()["web/one"] == "maint"
    scene.give(SECOND)
    before = consoles()
    assert lb.ctl("reload").returncode == 0
    wait_for(lambda: (now := consoles()) and not now & before, "another console alone", 30)
    assert scene.states()["web/one"] == "maint"
    assert (answer(TOKEN, "ready"), answer(SECOND, "drain")) == (401, 200)
    assert scene.states()["web/one"] == "drain"
    scene.give(TOKEN, 0o644)
    lb.expect("reload")
    refused = lb.ctl("reload")
    assert refused.returncode == 1 and "others may read or write it" in refused.stderr
    assert answer(SECOND, "ready") == 200, "the configuration before goes on"


def test_without_a_token_the_page_only_reads(tmp_path: Path) -> None:
    with ExitStack() as stack:
        scene = Scene(stack, tmp_path, has_token=False)
        for path in ("/", "/act", "/pool/web"):
            code, headers, _ = post(scene.http, DRAIN, path=path)
            assert (code, headers["Allow"]) == (405, "GET, HEAD")
        page = raw(scene.http, b"GET / HTTP/1.0\r\n\r\n")
        assert b"form-action 'none'" in page and b"<form" not in page and b'http-equiv="refresh"' in page
        assert scene.states() == dict.fromkeys(scene.states(), "up")


def test_a_unix_socket_takes_the_token_too(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    text = ini_section(
        "balancer", workers=1, metrics=f"unix:{tmp_path}/w", metrics_admin_token=str(token), upstream="127.0.0.1:9",
        check="none",
    )  # fmt: skip
    with FileBalancer(text) as lb:
        for fields, code in (("act=drain&name=127.0.0.1:9", 401), (f"act=drain&name=*&token={TOKEN}", 200)):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(30)
                sock.connect(f"{tmp_path}/w")
                head = f"POST /act HTTP/1.0\r\nContent-Type: {FORM}\r\nContent-Length: {len(fields)}\r\n\r\n"
                sock.sendall((head + fields).encode())
                assert sock.recv(1000).startswith(f"HTTP/1.1 {code} ".encode())
        lb.expect("all-down")
        assert f"operator who=page client=unix uid={os.geteuid()} peer_pid={os.getpid()} " in lb.log()
        lb.write(text)
        token.chmod(0o604)
        lb.expect("reload")
        assert "has mode 0604" in lb.ctl("reload").stderr
