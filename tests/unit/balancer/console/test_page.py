"""The page: what it says first, and that nothing from outside becomes markup."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.console.page import BAD, GOOD, HEADERS, WARN, assess, headline, render
from tests.unit.balancer.console.sample_status import backend, listener, status, worker


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
    three = status(backends=[backend(name) for name in "abc"], totals=status()["totals"] | {"sessions": 17})
    assert headline(three) == "3 of 3 backends up, 17 sessions"
    one = status(backends=[backend("a", state="down")], totals=status()["totals"] | {"sessions": 1})
    assert headline(one) == "0 of 1 backend up, 1 session"
    page = render(three)
    assert "<h1>3 of 3 backends up, 17 sessions</h1>" in page
    assert "Nothing needs attention." in page and "{{" not in page


@pytest.mark.parametrize(
    ("changed", "level", "sentence"),
    [
        ({"backends": [backend("a"), backend("b", state="down", check="refused", since_s=61.0)]}, WARN,
         "b at 10.0.0.1:80 has been down for 1m 1s (refused)."),
        ({"backends": [backend("a", state="down")]}, BAD, "No backend is up: every new session fails."),
        ({"backends": [backend("a"), backend("b", state="maint")]}, GOOD,
         "b is in maint by an operator's command; 2 sessions left there."),
        ({"workers": [worker(0), worker(1, state="hung")]}, WARN, "Worker 1 (pid 4711) is hung"),
        ({"workers": []}, BAD, "No worker is ready: no client is accepted."),
        ({"reload": {"ok": False, "text": "conf:3: unknown key", "age_s": 4.0}}, WARN,
         "The last reload failed, the old configuration stays: conf:3: unknown key"),
        ({"totals": status()["totals"] | {"queued": 5}}, WARN, "5 sessions waiting"),
    ],
)  # fmt: skip
def test_what_is_wrong_stands_on_top(changed: dict[str, Any], level: str, sentence: str) -> None:
    found, problems = assess(status(**changed))
    assert found == level
    assert any(sentence in text for _, text in problems), problems
    page = render(status(**changed))
    assert f'<main class="level-{level}">' in page
    assert sentence in "".join(Reader(page).texts)
    assert "Nothing needs attention" not in page


def test_figures_and_their_shares() -> None:
    page = render(status(backends=[backend("a", sessions=3, maxconn=8), backend("b", sessions=1)]))
    assert 'width="37.5%"' in page and 'width="25.0%"' in page  # of its maxconn, of all sessions
    text = " ".join(Reader(page).texts)
    assert "3/8" in text and "4.0 KiB" in text and "12 %" in text and "up 1m 1s" in text
    keys = [attributes["data-key"] for _, attributes in Reader(page).tags if "data-key" in attributes]
    assert len(keys) == len(set(keys))
    histories = {
        attributes["data-history"] for _, attributes in Reader(page).tags if "data-history" in attributes
    }
    assert histories <= set(keys)


def test_listeners_and_pools_are_named() -> None:
    page = render(
        status(
            listeners=[
                listener("web", maxconns=68, addresses=["0.0.0.0:80", "[::]:80"], pools=["api", "main"])
            ],
            backends=[backend("a", pool="api", state="drain"), backend("a")],
        )
    )
    text = " ".join(Reader(page).texts)
    for words in ("web", "0.0.0.0:80, [::]:80", "api, main", "17/68", "api/a", "0 of 1 up", "1 of 1 up"):
        assert words in text
    assert "api/a is in drain" in text


def test_the_policy_allows_this_script_and_style_and_nothing_else() -> None:
    page = render(status())
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
    skeleton = [tag for tag, _ in Reader(render(wild)).tags]
    expected = [tag for tag, _ in Reader(render(plain)).tags]
    assert skeleton == expected or name == reason


def test_a_name_that_looks_like_a_placeholder_or_a_tag_stays_text() -> None:
    name = """{{level}}<script>alert("1")</script>'&amp;"""
    page = render(status(backends=[backend(name)]))
    assert page.count("<script>") == 1
    assert name in Reader(page).texts
