"""The page: what it says first, and that nothing from outside becomes markup."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.console.page import BAD, GOOD, HEADERS, WARN, draw, headline, judge


def backend(name: str, **changed: Any) -> dict[str, Any]:
    plain = {
        "name": name, "address": "10.0.0.1:80", "state": "up", "weight": 1, "sessions": 2, "sessions_total": 30,
        "connect_failures_total": 0, "bytes_in_total": 4096, "bytes_out_total": 5, "check": "ok", "maxconn": 0,
        "backup": False, "since_s": 1.5, "checks_total": 7, "check_failures_total": 2, "downs_total": 1,
        "check_streak": 4, "check_ms": 1.25,
    }  # fmt: skip
    return plain | changed


def worker(slot: int, **changed: Any) -> dict[str, Any]:
    plain = {
        "slot": slot, "pid": 4711, "state": "ready", "generation": 1, "sessions": 3, "accepted_total": 9,
        "cpu_percent": 12.5, "rss_bytes": 1048576, "fds": 20, "share_percent": 50.0, "drain_left_s": None,
    }  # fmt: skip
    return plain | changed


def status(**changed: Any) -> dict[str, Any]:
    totals = {
        "sessions": 17, "accepted_total": 40, "refused_total": 3, "failed_total": 4, "bytes_in_total": 2048,
        "bytes_out_total": 1, "closed_total": 23, "queued": 0,
    }  # fmt: skip
    plain = {
        "version": "1.2.3", "generation": 2, "uptime_s": 61.5, "steering": "on", "workers": [worker(0)],
        "backends": [backend("a"), backend("b"), backend("c")], "totals": totals, "reload": None,
    }  # fmt: skip
    return plain | changed


class Reader(HTMLParser):
    """Tags, attribute values and text, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_big_line() -> None:
    assert headline(status()) == "3 of 3 backends up, 17 sessions"
    one = status(backends=[backend("a", state="down")], totals=status()["totals"] | {"sessions": 1})
    assert headline(one) == "0 of 1 backend up, 1 session"
    page = draw(status())
    assert "<h1>3 of 3 backends up, 17 sessions</h1>" in page
    assert "Nothing needs attention." in page and "{{" not in page


@pytest.mark.parametrize(
    ("changed", "level", "sentence"),
    [
        ({"backends": [backend("a"), backend("b", state="down", check="refused", since_s=61.0)]}, WARN,
         "b at 10.0.0.1:80 has been down for 1m 1s (refused)."),
        ({"backends": [backend("a", state="down")]}, BAD, "No backend is up: every new session fails."),
        ({"backends": [backend("a"), backend("b", state="maint")]}, GOOD,
         "b is in maint by an operator's wish; 2 sessions left there."),
        ({"workers": [worker(0), worker(1, state="hung")]}, WARN, "Worker 1 (pid 4711) is hung"),
        ({"workers": []}, BAD, "No worker is ready: nobody is accepted."),
        ({"reload": {"ok": False, "text": "conf:3: unknown key", "age_s": 4.0}}, WARN,
         "The last reload failed, the old configuration stays: conf:3: unknown key"),
        ({"totals": status()["totals"] | {"queued": 5}}, WARN, "5 sessions waiting"),
    ],
)  # fmt: skip
def test_what_is_wrong_stands_on_top(changed: dict[str, Any], level: str, sentence: str) -> None:
    found, troubles = judge(status(**changed))
    assert found == level
    assert any(sentence in text for _, text in troubles), troubles
    page = draw(status(**changed))
    assert f'<main class="level-{level}">' in page
    assert sentence in "".join(Reader(page).texts)
    assert "Nothing needs attention" not in page


def test_figures_and_their_shares() -> None:
    page = draw(status(backends=[backend("a", sessions=3, maxconn=8), backend("b", sessions=1)]))
    assert 'width="75.0%"' in page and 'width="25.0%"' in page
    text = " ".join(Reader(page).texts)
    assert "3 / 8" in text and "4.0 KiB" in text and "12 %" in text and "up 1m 1s" in text
    keys = [attributes["data-key"] for _, attributes in Reader(page).tags if "data-key" in attributes]
    assert len(keys) == len(set(keys))
    courses = {
        attributes["data-course"] for _, attributes in Reader(page).tags if "data-course" in attributes
    }
    assert courses <= set(keys)


def test_the_policy_allows_this_script_and_style_and_nothing_else() -> None:
    page = draw(status())
    policy = dict(HEADERS)["Content-Security-Policy"]
    for name in ("script", "style"):
        [inner] = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for tag, attributes in Reader(page).tags:
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes), tag
        target = attributes.get("src") or attributes.get("href") or ""
        assert "//" not in target and tag not in ("iframe", "img", "form"), tag


WILD = st.text() | st.text("<>/ab&;\"'= ")


@given(WILD, WILD)
def test_nothing_from_outside_becomes_markup(name: str, reason: str) -> None:
    plain = status(backends=[backend("a", state="down")], reload={"ok": False, "text": "b", "age_s": 1.0})
    wild = status(
        backends=[backend(name, state="down", check=reason, address=reason)],
        reload={"ok": False, "text": reason},
    )
    # An empty check or an address that equals the name has its own drawing; everything else has the same skeleton.
    skeleton = [tag for tag, _ in Reader(draw(wild)).tags]
    expected = [tag for tag, _ in Reader(draw(plain)).tags]
    assert skeleton == expected or name == reason


def test_a_name_that_looks_like_a_placeholder_or_a_tag_stays_text() -> None:
    name = """{{level}}<script>alert("1")</script>'&amp;"""
    page = draw(status(backends=[backend(name)]))
    assert page.count("<script>") == 1
    assert name in Reader(page).texts
