"""The page: what it says first, and that nothing from outside becomes markup."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.console.entrance import NO_ACCEPT
from balancer.console.history import Sampler
from balancer.console.page import BalancerPage
from balancer.console.problems import assess, headline
from balancer.pool.serving import BackendState
from balancer.web.changes import Changes
from balancer.web.history import BLOCK, History
from balancer.web.page import HEADERS, headers, page
from balancer.web.view import BAD, GOOD, WARN, View, worst
from tests.unit.balancer.console.sample_status import SET, backend, event, listener, pool, status, worker


def sampler() -> Sampler:
    return Sampler(
        History(memoryview(bytearray(4 * BLOCK * 3)).cast("f")), {"": 0, "listener main": 1, "pool main": 2}
    )


def view(found: dict[str, Any], name: str = "", has_acts: bool = False) -> View:
    return BalancerPage(found, sampler(), 100.0, name, has_acts).render()


def render(found: dict[str, Any], has_acts: bool = False) -> str:
    return page(view(found, has_acts=has_acts))


class Reader(HTMLParser):
    """Tags, attribute values and text, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_big_line() -> None:
    three = status(backends=[backend(name) for name in "abc"], totals=status()["totals"] | {"sessions": 17})
    assert headline(three) == "3 of 3 backends up, 17 sessions"
    one = status(backends=[backend("a", state="down")], totals=status()["totals"] | {"sessions": 1})
    assert headline(one) == "No client can be served: every backend is down"
    some = status(backends=[backend("a"), backend("b", pool="api", state="down")])
    assert headline(some).startswith("No client of pool api can be served; 1 of 2 backends up, ")
    html = render(three)
    assert "<h1>3 of 3 backends up, 17 sessions</h1>" in html
    many = status(backends=[backend(f"b{n}") for n in range(1000)])
    assert headline(many).startswith("1,000 of 1,000 backends up") and "1,000 of 1,000 up" in render(many)
    assert "Nothing needs attention." in html and "{{" not in html


def expires(seconds: int) -> dict[str, object]:
    """A listener's TLS with one certificate."""
    return {"certificates": [{"path": "/a.pem", "expires_in_s": seconds}], "failures": {"alert": 0}}


@pytest.mark.parametrize(
    ("changed", "level", "sentence"),
    [
        ({"backends": [backend("a"), backend("b", state="down", check="refused", since_s=61.0)]}, WARN,
         "b at 10.0.0.1:80 has been down for 1m (refused)."),
        ({"backends": [backend("a", state="down")]}, BAD, "No client can be served: every backend is down."),
        ({"backends": [backend("a"), backend("b", state="maint", since_s=120.0)]}, GOOD,
         "b is in maintenance by an operator for 2m; 2 sessions left there."),
        ({"backends": [backend("a"), backend("b", state="drain", sessions=1)]}, GOOD,
         "b is drained by an operator; 1 session left there."),
        ({"backends": [backend("a"), backend("b", state="weight-0", since_s=None)]}, GOOD,
         "b has weight 0 by an operator; 2 sessions left there."),
        ({"backends": [backend("a"), backend("b", state="unresolved", address="db:80")]}, WARN,
         "b: no address of db:80 is known."),
        ({"backends": [backend("a"), backend("b", pool="api", state="down")]}, BAD,
         "No client of pool api can be served: every backend is down."),
        ({"listeners": [listener("web", tls=expires(9 * 86_400 + 5))]}, WARN, "certificate /a.pem of web expires in 9d"),
        ({"listeners": [listener("web", tls=expires(7_300))]}, WARN, "certificate /a.pem of web expires in 2h"),
        ({"listeners": [listener("web", tls=expires(-1))]}, WARN, "certificate /a.pem of web has EXPIRED"),
        ({"listeners": [listener("web", tls=expires(10**7) | {"revoked": {"path": "/l.pem", "expires_in_s": -1}})]}, WARN,
         "The revocation list /l.pem of web has EXPIRED, and its authority's certificates are refused."),
        ({"listeners": [listener("web", tls=expires(10**7) | {"revoked": {"path": "/l.pem", "expires_in_s": 1}})]}, GOOD,
         "Nothing needs attention."),
        ({"workers": [worker(0), worker(1, state="hung")]}, WARN, "Worker 1 (pid 4711) is hung"),
        ({"workers": [], "serving": False, "reason": "no worker is ready"}, BAD,
         "No client can be served: no worker is ready."),
        ({"workers": [worker(0), worker(1, accepting=False)]}, WARN,
         "Worker 1 (pid 4711) has reached a limit of this machine and accepts no client for now"),
        ({"workers": [worker(0), worker(1, accepting=False, state="draining")]}, GOOD, "Nothing needs attention."),
        ({"workers": [worker(0, accepting=False), worker(1, accepting=False), worker(2, state="hung")],
          "serving": False, "reason": NO_ACCEPT}, BAD,
         "No client can be served: every worker has reached a limit of this machine"),
        ({"workers": [worker(0, accepting=False)], "listeners": [listener(maxconns=17, overflow="queue")]}, WARN,
         "Listener main has as many sessions as maxconns allows (17): more clients wait in the kernel's queue."),
        ({"former_master": 4242}, GOOD,
         "The master before the upgrade (pid 4242) still has its sessions, which are not counted here."),
        ({"reload": {"ok": False, "text": "conf:3: unknown key", "age_s": 4.0}}, WARN,
         "The last reload failed, the old configuration stays: conf:3: unknown key"),
        ({"pools": [pool("main", [backend("a")], queued=5)]}, WARN,
         "5 sessions wait for a place in pool main, whose backends are at their maxconn."),
        ({"pools": [pool("main", [backend("a")], queued=1)]}, WARN, "1 session waits for a place"),
        ({"listeners": [listener("web", maxconns=17)]}, WARN,
         "Listener web has as many sessions as maxconns allows (17): more clients are refused."),
        ({"listeners": [listener("web", maxconns=17, overflow="queue")]}, WARN,
         "Listener web has as many sessions as maxconns allows (17): more clients wait in the kernel's queue."),
    ],
)  # fmt: skip
def test_what_is_wrong_stands_on_top(changed: dict[str, Any], level: str, sentence: str) -> None:
    problems = assess(status(**changed))
    assert worst(problems) == level
    if sentence == "Nothing needs attention.":
        assert not problems
        return
    assert any(sentence in text for _, text in problems), problems
    html = render(status(**changed))
    assert f'<main class="level-{level}"' in html
    assert sentence in "".join(Reader(html).texts)
    assert '<li class="calm">' not in html


@pytest.mark.parametrize("state", sorted({*get_args(BackendState)} - {"up"}))
def test_each_state_of_a_backend_but_up_has_its_own_sentence(state: str) -> None:
    [said] = [text for _, text in assess(status(backends=[backend("a"), backend("b", state=state)]))]
    words = {
        "drain": "drained by an operator",
        "maint": "maintenance by an operator",
        "weight-0": "weight 0 by an operator",
        "agent": "by its agent",
        "empty": "no backend",
        "down": "is down",
        "unresolved": "no address",
    }
    assert said.startswith("b") and [one for one, word in words.items() if word in said] == [state]


def test_no_headline_is_calm_while_clients_are_not_accepted() -> None:
    out = {"serving": False, "reason": NO_ACCEPT}
    found = status(workers=[worker(0, accepting=False)], pools=[pool("main", [backend("a")], **out)], **out)
    assert headline(found) == f"No client can be served: {NO_ACCEPT}"
    assert view(found, "pool/main").headline == f"Pool main: no client can be served: {NO_ACCEPT}"
    assert view(found, "listener/main").headline == f"Listener main: No client can be served: {NO_ACCEPT}"
    found = status(listeners=[listener(maxconns=17), listener("free")])
    assert headline(found).startswith("1 of 1 backend up") and worst(assess(found)) == WARN
    said = "Listener main: no client can be served: listener main has its 17 sessions (maxconns) and refuses more"
    assert view(found, "listener/main").headline == said
    assert view(found, "listener/free").headline.startswith("Listener free: 1 of 1 backend up")


def test_the_page_says_which_balancer_it_speaks_of() -> None:
    text = "".join(Reader(render(status(listeners=[listener(addresses=["10.0.0.9:80", "[::1]:80"])]))).texts)
    assert "lb-1: 1 of 1 backend up, 100 sessions" in text  # of the tab
    for words in (
        "1.2.3 on lb-1",
        "listener main on 10.0.0.9:80, [::1]:80, no limit of sessions",
        "configuration /etc/balancer.ini",
    ):
        assert words in text
    many = [listener(str(n), addresses=[f"10.0.0.{n}:80"]) for n in range(9)]
    text = "".join(Reader(render(status(listeners=many, config=None))).texts)
    assert "5 more listeners" in text
    assert "configuration without a file" in text


def test_events_are_shown_the_newest_first() -> None:
    events = [
        event("down", age_s=61.0),
        event("operator", serial=8, age_s=2.0, text='act=drain reason="<disk>"'),
    ]
    text = " ".join(Reader(render(status(events=events))).texts)
    assert text.index("operator") < text.index("1m ago") and 'act=drain reason="<disk>"' in text
    assert "None yet." in render(status(events=[]))


def test_figures_and_their_shares() -> None:
    html = render(status(backends=[backend("a", sessions=3, maxconn=8), backend("b", sessions=1)]))
    bars = re.findall(r'<rect width="([0-9.]+)%">', html)
    assert bars == ["0.0", "37.5", "12.5"], "of max-queue, maxconn, one CPU; no limit, no bar"
    text = " ".join(Reader(html).texts)
    assert "3/8" in text and "4.0 KiB" in text and "12 %" in text and "up 1m" in text


def test_listeners_and_pools_are_named() -> None:
    html = render(
        status(
            listeners=[
                listener("web", maxconns=68, addresses=["0.0.0.0:80", "[::]:80"], pools=["api", "main"])
            ],
            backends=[backend("a", pool="api", state="drain"), backend("a")],
        )
    )
    text = " ".join(Reader(html).texts)
    for words in (
        "web",
        "0.0.0.0:80, [::]:80",
        "api, main",
        "17/68",
        "api/a",
        "0 of 1 up",
        "1 of 1 up",
        "out",
        "serves",
    ):
        assert words in text
    assert "api/a is drained by an operator" in text
    assert "CD 1,200, SC 4, sQ 3" in text, "sessions that did not end cleanly"


def test_the_address_in_use_of_a_name_is_shown() -> None:
    one = backend("a", address="web.test:80", address_in_use="[::1]:80", state="down", check="refused")
    text = " ".join(Reader(render(status(backends=[one]))).texts)
    assert text.count("web.test:80 at [::1]:80") == 2  # in the row, and on top


def test_the_policy_allows_this_script_and_style_and_nothing_else() -> None:
    html = render(status())
    policy = dict(HEADERS)["Content-Security-Policy"]
    for name in ("script", "style"):
        [inner] = re.findall(rf"<{name}>(.*?)</{name}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for tag, attributes in Reader(html).tags:
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes), tag
        target = attributes.get("src") or attributes.get("href") or ""
        assert "//" not in target and tag not in ("iframe", "img", "form"), tag


def test_only_a_page_with_acts_has_forms_and_may_send_them() -> None:
    found = status(backends=[backend("a"), backend("b<c", pool="api")])
    plain, acting = view(found), view(found, has_acts=True)
    policies = [dict(headers(one))["Content-Security-Policy"] for one in (plain, acting)]
    assert policies[1] == policies[0].replace("form-action 'none'", "form-action 'self'") != policies[0]
    assert dict(headers(plain))["Referrer-Policy"] == "no-referrer"
    assert dict(headers(acting))["Referrer-Policy"] == "same-origin", "else a form's Origin is null"
    tags = {tag for tag, _ in Reader(page(plain)).tags}
    assert not tags & {"form", "details", "template", "select"} and 'http-equiv="refresh"' in page(plain)
    reader = Reader(page(acting))
    names = [attributes["value"] for _, attributes in reader.tags if attributes.get("name") == "name"]
    assert names == ["main/a", "api/b<c", ""], "of each backend, and of the pattern that the script fills"
    assert 'http-equiv="refresh"' not in page(acting), "what is typed would be lost"
    forms = [attributes for tag, attributes in reader.tags if tag == "form"]
    assert {(one["method"], one["action"]) for one in forms} == {("post", "act")}
    narrow = Reader(page(view(found, "pool/api", has_acts=True)))
    assert {one["action"] for tag, one in narrow.tags if tag == "form"} == {"../act"}
    assert [one["value"] for _, one in narrow.tags if one.get("name") == "view"] == ["pool/api"] * 2


WILD = st.text() | st.text("<>/ab&;\"'= ")


@given(WILD, WILD, st.booleans())
def test_nothing_from_outside_becomes_markup(name: str, reason: str, has_acts: bool) -> None:
    plain = status(backends=[backend("a", state="down")], reload={"ok": False, "text": "b", "age_s": 1.0})
    wild = status(
        backends=[backend(name, state="down", check=reason, address=reason)],
        reload={"ok": False, "text": reason},
    )
    # An empty check or an address that equals the name has its own drawing; everything else has the same skeleton.
    skeleton = [tag for tag, _ in Reader(render(wild, has_acts)).tags]
    expected = [tag for tag, _ in Reader(render(plain, has_acts)).tags]
    assert skeleton == expected or name == reason or not reason


def test_a_name_that_looks_like_a_placeholder_or_a_tag_stays_text() -> None:
    name = """{{level}}<script>alert("1")</script>'&amp;"""
    html = render(status(backends=[backend(name)]))
    assert html.count("<script>") == 1
    assert name in Reader(html).texts


def test_a_view_of_one_pool_shows_its_backends_listeners_and_events_only() -> None:
    found = status(
        backends=[backend("a", pool="web"), backend("b", pool="api", state="down")],
        listeners=[listener("one", pools=["web"]), listener("two", pools=["api"])],
        events=[event(text="backend=web/a check=ok"), event(serial=8, text="backend=api/b check=refused")],
    )
    web, api = view(found, "pool/web"), view(found, "pool/api")
    rows = {table.name: [row.key for row in table.rows] for table in web.tables}
    assert (rows["listeners"], rows["backends"], rows["events"]) == (["one"], ["web/a"], ["7"])
    assert (web.level, api.level) == (GOOD, BAD) and "no client can be served" in api.headline
    assert web.source == "../status.json?view=pool%2Fweb&"


def test_sets_stand_on_the_page_with_their_last_answer() -> None:
    failing = {
        "name": "dns:b.test:80",
        "error": "SERVFAIL",
        "server": None,
        "age_s": None,
        "ttl_s": None,
        "ttl_left_s": None,
    }
    pools = [
        pool("main", [backend("a")]) | {"sets": [SET, SET | failing]},
        pool("api", [backend("b", pool="api")]) | {"sets": [SET | {"pool": "api", "left_out": 2}]},
    ]
    found = status(pools=pools, backends=[backend("a"), backend("b", pool="api")])
    [table] = [table for table in view(found).tables if table.name == "sets"]
    rows = [[" ".join(filter(None, (cell.text, cell.small))) for cell in row.cells] for row in table.rows]
    assert rows == [
        ["dns:web.test:80 pool main", "3/8", "10.0.0.53", "0.4", "5.0 5 s left", "none", "1", "9"],
        ["dns:b.test:80 pool main", "3/8", "none yet", "-", "-", "SERVFAIL", "1", "9"],
        [
            "dns:web.test:80 pool api",
            "3/8",
            "10.0.0.53 2 found no slot",
            "0.4",
            "5.0 5 s left",
            "none",
            "1",
            "9",
        ],
    ]
    assert len({row.key for row in table.rows}) == 3
    assert [row.place[0] < table.rows[0].place[0] for row in table.rows] == [False, True, True], (
        "trouble first"
    )
    [api] = [table for table in view(found, "pool/api").tables if table.name == "sets"]
    assert len(api.rows) == 1
    assert "sets" not in [table.name for table in view(status()).tables], "no table where there are none"
    assert "dns:b.test:80" in Reader(render(found)).texts


def test_the_page_is_not_calm_while_every_client_of_the_last_minute_is_lost() -> None:
    watch, before = sampler(), status()
    watch.sample(before, 100.0)
    assert worst(assess(before, watch)) == GOOD
    some = status(listeners=[listener(accepted_total=50, failed_total=7)])
    assert assess(some, watch) == [
        (WARN, "3 of 10 clients of listener main in the last minute were refused or failed.")
    ]
    every = status(listeners=[listener(accepted_total=50, failed_total=14)])
    assert worst(assess(every, watch)) == BAD
    full = status(listeners=[listener(maxconns=17)])
    assert "more clients are refused" in assess(full)[0][1]


@pytest.mark.parametrize(
    ("new", "alerts", "failed", "level"),
    [(0, 0, 0, GOOD), (5, 0, 0, GOOD), (5, 4, 0, GOOD), (5, 5, 0, BAD), (5, 3, 2, BAD), (5, 3, 1, WARN)],
)
def test_the_page_is_not_calm_while_no_client_accepts_the_certificate(
    new: int, alerts: int, failed: int, level: str
) -> None:
    def at(new: int, alerts: int, failed: int) -> dict[str, Any]:
        tls = {"certificates": [], "failures": {"alert": 70 + alerts, "protocol": 3}}
        return status(listeners=[listener(tls=tls, accepted_total=40 + new, failed_total=4 + failed)])

    watch = sampler()
    watch.sample(at(0, 0, 0), 100.0)
    found = assess(at(new, alerts, failed), watch)
    assert worst(found) == level
    if alerts and level == BAD:
        assert f"{alerts} clients broke off the TLS handshake" in found[0][1]


def test_changes_tell_what_differs_and_nothing_else() -> None:
    changes = Changes("e")
    changes.update(view(status(backends=[backend("a"), backend("b")])))
    first = changes.version
    changes.update(view(status(backends=[backend("a"), backend("b")])))
    assert changes.version == first and changes.since(first)["rows"] == {}
    changes.update(view(status(backends=[backend("a", weight=7)])))
    news = changes.since(first)
    assert news["rows"]["backends"] == {"main/a": {"3": ["7", "", "n", -1.0, 7]}, "main/b": None}
    assert not news["all"] and changes.since("other-1")["all"] and changes.since("e-99")["all"]


def test_of_many_backends_in_trouble_the_first_are_named() -> None:
    many = status(backends=[backend("up"), *(backend(f"b{n}", state="down") for n in range(25))])
    problems = assess(many)
    assert len(problems) == 9 and problems[-1] == (WARN, "17 more backends of the table below.")
