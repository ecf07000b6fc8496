"""The status page in Chromium, in six states of the balancer: what it says first, on any screen, with and without script.

With BALANCER_PAGE_PICTURES=DIR a picture of each state is written there for people to look at.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from scripts.lab.backends import Echo
from scripts.lab.network import Address, free_port, text_of
from scripts.lab.waiting import wait_for
from tests.system.browser import Browser
from tests.system.harness import FileBalancer, ini_section

SCREENS = {"wide": (1280, 900, False), "narrow": (390, 844, False), "dark": (1280, 900, True)}
PICTURES = os.environ.get("BALANCER_PAGE_PICTURES")
CHECK = {"check": "tcp", "check_interval": "200ms"}
MOST_ROWS = 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


class Scene:
    """A balancer with a page, its backends and clients that stay."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.clients: list[socket.socket] = []
        self.lb: FileBalancer

    def echo(self) -> Address:
        return self.stack.enter_context(Echo()).address

    def dead(self) -> Address:
        return "127.0.0.1", free_port()

    def start(self, text: str, **keys: object) -> None:
        # The port is known before, so that a reload can name it again.
        self.port = free_port()
        self.text = ini_section("balancer", workers=2, metrics=f"127.0.0.1:{self.port}", **keys) + text
        self.lb = self.stack.enter_context(FileBalancer(self.text))
        self.lb.expect("all-down")

    def hold(self, count: int, address: Address | None = None) -> None:
        for _ in range(count):
            client = self.stack.enter_context(socket.create_connection(address or self.lb.address, 10))
            client.sendall(b"x")
            self.clients.append(client)

    def say(self) -> None:
        """Every client has its bytes back."""
        for client in self.clients:
            client.settimeout(15)
            assert client.recv(1) == b"x"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


def pool(name: str, upstreams: list[str], **keys: object) -> str:
    return ini_section(f"pool {name}", upstream=upstreams, **{**CHECK, **keys})


def listener(name: str, **keys: object) -> str:
    return ini_section(f"listener {name}", **{"bind": "127.0.0.1:0", "pool": name, **keys})


def named(name: str, address: Address) -> str:
    return f"{text_of(address)} name={name}"


def calm(scene: Scene) -> None:
    web = [named("web-1", scene.echo()), named("web-2", scene.echo())]
    scene.start(listener("web", maxconns=1000) + pool("web", web))
    scene.hold(6)
    scene.say()


def one_down(scene: Scene) -> None:
    web = [named("web-1", scene.echo()), named("web-2", scene.dead())]
    scene.start(listener("web") + pool("web", web))
    scene.lb.wait_backend("web-2", "down")


def nobody_served(scene: Scene) -> None:
    web, mail = [named("web-1", scene.echo())], [named(f"mail-{n}", scene.dead()) for n in (1, 2)]
    scene.start(listener("web") + listener("mail") + pool("web", web) + pool("mail", mail))
    for name in ("mail-1", "mail-2"):
        scene.lb.wait_backend(name, "down")


def at_its_limits(scene: Scene) -> None:
    web = [named("web-1", scene.echo()) + " maxconn=2"]
    scene.start(listener("web", maxconns=5, overflow="queue") + pool("web", web, queue_timeout="5m"))
    scene.hold(5)
    wait_for(lambda: scene.lb.status()["pools"][0]["queued"] == 3, "three clients that wait")


def full(scene: Scene) -> None:
    scene.start(listener("web", maxconns=5) + pool("web", [named("web-1", scene.echo())]))
    scene.hold(5)
    scene.say()


def by_operators(scene: Scene) -> None:
    web = [named(f"web-{n}", scene.echo()) for n in (1, 2, 3)]
    scene.start(listener("web") + pool("web", web))
    scene.hold(6)
    scene.say()
    for words in (("drain", "web-1"), ("maint", "web-2")):
        assert scene.lb.ctl(*words).returncode == 0
    scene.lb.write(scene.text + ini_section("pool other", upstream=["no address"]))
    scene.lb.expect("reload")
    assert scene.lb.ctl("reload").returncode != 0


def crowded(scene: Scene) -> None:
    _, port = scene.stack.enter_context(Echo("0.0.0.0")).address
    names = [[named(f"s{n}-{m}", (f"127.0.{n}.{m + 1}", port)) for m in range(20)] for n in range(3)]
    pools = "".join(pool(f"p{n}", some, check="none") for n, some in enumerate(names))
    gone = [named(f"gone-{n}", scene.dead()) for n in range(12)]
    scene.start(listener("p0") + pools + pool("old", gone) + listener("old"))
    for n in range(12):
        scene.lb.wait_backend(f"gone-{n}", "down")


# State -> how it comes about, the level of the page, the headline, and what the first sentence says.
STATES: dict[str, tuple[Callable[[Scene], None], str, str, str]] = {
    "calm": (calm, "good", "2 of 2 backends up, 6 sessions", "Nothing needs attention."),
    "one-down": (one_down, "warn", "1 of 2 backends up", "web-2 at "),
    "nobody-served": (
        nobody_served,
        "bad",
        "No client of pool mail can be served; 1 of 3 backends up",
        "No client of pool mail can be served: ",
    ),
    "at-its-limits": (
        at_its_limits,
        "warn",
        "1 of 1 backend up, 5 sessions",
        "3 sessions wait for a place in pool web",
    ),
    "full": (
        full,
        "bad",
        "No client can be served: listener web has its 5 sessions (maxconns) and refuses more",
        "No client can be served: listener web has its 5 sessions",
    ),
    "by-operators": (by_operators, "warn", "1 of 3 backends up, 6 sessions", "The last reload failed"),
    "crowded": (
        crowded,
        "bad",
        "No client of pool old can be served; 60 of 72 ",
        "No client of pool old can be served: ",
    ),
}
HEADINGS = "[...document.querySelectorAll('h1, h2, h3')].map(one => Number(one.tagName[1]))"
UNSCOPED = "[...document.querySelectorAll('th')].filter(one => !one.scope).length"
UNLABELLED = (
    "[...document.querySelectorAll('input:not([type=hidden]), select, summary, button, [role=region], nav')]"
    ".filter(one => !(one.labels?.length || "
    "one.textContent.trim() || one.ariaLabel || one.getAttribute('aria-labelledby'))).length"
)
BEYOND = "document.documentElement.scrollWidth - innerWidth"


@pytest.mark.parametrize("state", STATES)
def test_the_page_in_a_browser(browser: Browser, state: str) -> None:
    make, level, headline, sentence = STATES[state]
    with ExitStack() as stack:
        scene = Scene(stack)
        make(scene)
        for screen, (width, height, dark) in SCREENS.items():
            for script in (True, False)[: 2 - dark]:
                browser.open(scene.url, width, height, dark, script)
                if PICTURES and script:
                    browser.picture(Path(PICTURES) / f"{state}-{screen}.png")
                assert browser.run("document.querySelector('main').className") == f"level-{level}"
                assert headline in browser.run("document.querySelector('h1').textContent")
                assert sentence in browser.run("document.querySelector('.problems li').textContent")
                assert browser.run(BEYOND) <= 0, f"{screen}: the page scrolls sideways"
                assert browser.faults == []
        check_access(browser)
        if state == "crowded":
            check_folds(browser, scene.url)
        if state == "one-down":
            check_news(browser, scene)
        browser.open("about:blank")  # it asks the balancer no more


def check_access(browser: Browser) -> None:
    """For who does not see the page: headings in their order, heads that say of what, troubles that are told."""
    levels = browser.run(HEADINGS)
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert browser.run(UNSCOPED) == 0 and browser.run(UNLABELLED) == 0
    assert browser.run("document.querySelector('.problems').ariaLive") == "polite"
    assert browser.run("document.documentElement.lang") == "en"


def shown_rows(browser: Browser) -> int:
    rows = "[...document.querySelectorAll('#backends tbody tr')]"
    count: int = browser.run(f"{rows}.filter(one => one.getBoundingClientRect().height > 0).length")
    return count


def check_folds(browser: Browser, url: str) -> None:
    """Trouble first and the rest folded, without script too; sorted and filtered by the keyboard with it."""
    unfold = "document.querySelector('#backends .fold input').click()"
    for script in (False, True):
        browser.open(url, script=script)
        assert shown_rows(browser) == MOST_ROWS
        first = (
            "[...document.querySelectorAll('#backends tbody th')].slice(0, 12).map(one => one.textContent)"
        )
        assert all("gone-" in name for name in browser.run(first))
        browser.run(unfold)
        assert shown_rows(browser) == 72
    browser.run("document.querySelector('#backends .filter').focus()")
    browser.ask("Input.insertText", text="s2-1")
    assert shown_rows(browser) == 11
    browser.run("document.querySelector('#backends th button').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelector('#backends th').ariaSort") == "ascending"
    browser.press("Tab")
    assert browser.run("document.activeElement.closest('#backends th') !== null")


def check_news(browser: Browser, scene: Scene) -> None:
    """What changes is shown without a reload of the page, and that no answer comes is said."""
    browser.open(scene.url)
    headline = "document.querySelector('h1').textContent"
    scene.hold(1)
    wait_for(lambda: "1 session" in browser.read(headline), "the news", 30)
    stale = "document.getElementById('stale')"
    assert browser.run(f"{stale}.hidden")
    scene.lb.expect("stop")
    scene.stack.pop_all().close()
    wait_for(lambda: not browser.read(f"{stale}.hidden"), "that it is old", 30)
    assert browser.run(f"{stale}.textContent").startswith("No answer for ")
    assert browser.run("document.title").startswith("no answer: ")


TOKEN = "0123456789abcdef0123"
SECOND = "[...document.querySelectorAll('#backends details')].find(one => one.closest('tr').dataset.key === 'web/web-2')"
FILL = f"""(form => {{ form.act.value = ACT; form.token.value = TOKEN; form.weight.value = 7; form.token.focus() }})
    ({SECOND}.querySelector('form').elements)"""
ANSWER = f"{SECOND}.querySelector('output').textContent"


def fill(browser: Browser, act: str, token: str = TOKEN) -> None:
    """Fill in the form of the second backend, and send it by the keyboard."""
    browser.run(f"{SECOND}.open = true")
    browser.run(FILL.replace("ACT", f"'{act}'").replace("= TOKEN", f"= '{token}'"))
    browser.press("Enter")


@pytest.mark.parametrize("script", [True, False])
def test_acts_by_the_keyboard_with_and_without_script(browser: Browser, tmp_path: Path, script: bool) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with ExitStack() as stack:
        scene = Scene(stack)
        web = [named(f"web-{n}", scene.echo()) for n in range(14)]
        scene.start(listener("web") + pool("web", web, check="none"), metrics_admin_token=token)
        for screen, (width, height, dark) in SCREENS.items():
            browser.open(f"{scene.url}pool/web", width, height, dark, script)
            browser.run(f"{SECOND}.querySelector('summary').focus()")
            browser.press("Enter")
            assert browser.run(f"{SECOND}.open") and browser.run(BEYOND) <= 0
            if PICTURES and script:
                browser.picture(Path(PICTURES) / f"acts-{screen}.png")
        check_access(browser)
        assert browser.faults == []
        fill(browser, "")
        assert browser.run("document.querySelectorAll(':invalid').length") > 0, "Enter alone sends nothing"
        fill(browser, "weight")
        wait_for(lambda: scene.lb.backend("web-2")["weight"] == 7, "the weight", 30)
        if script:
            wait_for(lambda: "web/web-2 has weight 7" in browser.read(ANSWER), "the answer", 30)
            check_form_stays(browser, scene)
            fill(browser, "drain", "wrong-wrong-wrong-wrong")
            wait_for(lambda: "Not done: the token is wrong" in browser.read(ANSWER), "the refusal", 30)
        else:
            back = f"{scene.url}pool/web#backends"
            wait_for(
                lambda: browser.read("location.href") == back and browser.read(f"!!{SECOND}"), "the page", 30
            )
            assert "7" in browser.run(f"{SECOND}.closest('tr').textContent")
            fill(browser, "drain", "wrong-wrong-wrong-wrong")
            wait_for(
                lambda: "the token is wrong" in browser.read("document.body.textContent"), "the refusal", 30
            )
        assert scene.lb.backend("web-2")["state"] == "up"
        browser.open("about:blank")
        assert TOKEN not in scene.lb.log() and "wrong-wrong" not in scene.lb.log()


def consoles(scene: Scene) -> set[int]:
    return {pid for pid, title in scene.lb.titles().items() if "console [" in title}


def check_form_stays(browser: Browser, scene: Scene) -> None:
    """News move rows and fill cells, not what is being typed; a filter does not look into forms."""
    browser.run(f"{SECOND}.querySelector('[name=reason]').focus()")
    browser.ask("Input.insertText", text="new ")
    assert scene.lb.ctl("drain", "web-2").returncode == 0
    drained = f"{SECOND}.closest('tr').querySelector('.pill').textContent.startsWith('drain')"
    wait_for(lambda: browser.read(drained), "the news", 30)
    scene.lb.write(scene.text.replace("[balancer]\n", "[balancer]\nidle-timeout = 601s\n"))
    before = consoles(scene)
    assert scene.lb.ctl("reload").returncode == 0  # every cell comes anew from another console
    wait_for(lambda: len(consoles(scene)) == 1 and not consoles(scene) & before, "another console alone", 60)
    scene.lb.ctl("drain", "web-3")
    other = "document.querySelector('[data-key=\"web/web-3\"] .pill').textContent"
    wait_for(lambda: browser.read(other).startswith("drain"), "its news", 60)
    scene.lb.ctl("ready", "web-3")
    wait_for(lambda: not browser.read(other).startswith("drain"), "its news", 60)
    browser.ask("Input.insertText", text="disk")
    assert browser.run(f"{SECOND}.querySelector('[name=reason]').value") == "new disk"
    browser.run("document.querySelector('#backends .filter').focus()")
    browser.ask("Input.insertText", text="drain")
    assert shown_rows(browser) == 1
    assert scene.lb.ctl("ready", "web-2").returncode == 0
    browser.run("const filter = document.querySelector('#backends .filter'); filter.value = '';"
                "filter.dispatchEvent(new Event('input'))")  # fmt: skip
