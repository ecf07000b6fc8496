"""One reading of the configuration: flat, with sections, and the sentence for each thing that is wrong."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from balancer import __version__, configuration
from balancer.config.cpus import available_cores
from balancer.config.option import CommandLineAnswer, ConfigError
from balancer.config.units import Address, parse_address
from balancer.config.words import quote
from balancer.configuration import parse, summary_of
from balancer.edge.route import Route
from balancer.options import (
    EVERY_OPTION,
    EXAMPLE,
    MOST_LISTENERS,
    OPTIONS,
    Listener,
    Options,
    Pool,
    ProcessOptions,
)
from balancer.pool.backend import parse_upstream
from tests.authority import DAY, Authority

NEEDED = ["-u", "127.0.0.1:9000"]


def refusal(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        parse(argv, environ or {})
    return str(refused.value)


def read_flat(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[Listener, Pool]:
    read = parse(argv, environ or {})
    [listener], [pool] = read.listeners, read.pools
    assert (listener.name, pool.name, listener.routes) == ("main", "main", (Route("main"),))
    return listener, pool


def test_defaults_are_those_of_the_records() -> None:
    read = parse(NEEDED, {})
    assert read == Options(
        ProcessOptions(workers=available_cores(), admin=read.process.admin),
        (Listener("main", (parse_address("0.0.0.0:9090"),), routes=(Route("main"),)),),
        (Pool("main", (parse_upstream("127.0.0.1:9000"),)),),
    )


def test_the_original_programs_command_line() -> None:
    words = "-port 8080 -u 10.0.0.1:9000 -u 10.0.0.2:9000 -maxconns=5 -loglevel=1 -debug=false"
    listener, pool = read_flat(words.split())
    assert ([str(a) for a in listener.addresses], listener.maxconns) == (["0.0.0.0:8080"], 5)
    assert [backend.name for backend in pool.backends] == ["10.0.0.1:9000", "10.0.0.2:9000"]
    process = parse(words.split(), {}).process
    assert (process.loglevel, process.debug) == (1, False)


def test_upstreams_are_backends() -> None:
    environ = {"BALANCER_UPSTREAM": "[::1]:80 weight=2 maxconn=8 name=a, unix:/run/b backup"}
    (one, two) = read_flat([], environ)[1].backends
    assert (one.name, one.weight, one.maxconn, one.backup) == ("a", 2, 8, False)
    assert (two.name, two.address.family, two.backup) == ("unix:/run/b", "unix", True)


def test_binds_take_the_port_they_lack() -> None:
    argv = "-p 80 --bind 10.0.0.9 --bind [::1] --bind *:81 --bind=unix:/run/x"
    addresses = [str(address) for address in read_flat([*NEEDED, *argv.split()])[0].addresses]
    assert addresses == ["10.0.0.9:80", "[::1]:80", "0.0.0.0:81", "unix:/run/x"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            [],
            "no upstream: name a backend with -u host:port, key upstream in [balancer], or BALANCER_UPSTREAM",
        ),
        (["-u", "a:1", "-u", "a:1"], "--upstream: two backends are called a:1; give one of them name=X"),
        (
            ["-u", "a:1 name=x", "-u", "b:2 name=x"],
            "--upstream: two backends are called x; give one of them name=X",
        ),
        (["-u", "a:1 wieght=2"], "--upstream: upstream 'a:1 wieght=2': 'wieght=2' is not understood"),
        (["-u", "a"], "--upstream: upstream 'a': 'a' has no port"),
        (
            ["-u", "localhost:9090"],
            "--upstream: localhost:9090 is where the balancer itself listens (0.0.0.0:9090)",
        ),
        (
            ["-u", "10.0.0.1:9", "--bind", "10.0.0.1:9"],
            "--upstream: 10.0.0.1:9 is where the balancer itself listens",
        ),
        ([*NEEDED, "--check-rise", "0"], "--check-rise: '0' is below 1, the lowest that makes sense"),
        ([*NEEDED, "--check-fall", "0"], "--check-fall: '0' is below 1, the lowest that makes sense"),
        ([*NEEDED, "-p", "65536"], "--port: '65536' is not a port"),
        ([*NEEDED, "--workers", "0"], "--workers: '0' is neither auto nor a number from 1 to 128"),
        ([*NEEDED, "--workers", "257"], "--workers: '257' is neither"),  # the table of slots has 256 rows
        ([*NEEDED, "--connect-timeout", "0"], "--connect-timeout: '0' would mean no time at all"),
        ([*NEEDED, "--check-interval", "0s"], "--check-interval: '0s' would mean no time at all"),
        ([*NEEDED, "--retries", "-1"], "--retries: '-1' is below 0, the lowest that makes sense"),
        (
            [*NEEDED, "--balance", "leastconns"],
            "--balance: 'leastconns' is not one of leastconn, roundrobin, random",
        ),
        ([*NEEDED, "--loglevel", "3"], "--loglevel: '3' is not one of 0, 1, 2"),
        ([*NEEDED, "--bind", "[::1"], "--bind: '[::1' is not an address"),
        ([*NEEDED, "--bind", "::1", "--bind", "[::1]:9090"], "--bind: [::1]:9090 is given twice"),
        (
            [*NEEDED, "--user", "nobody-of-that-name"],
            "--user: user 'nobody-of-that-name' does not exist here",
        ),
        (
            [*NEEDED, "--group", "nobody-of-that-name"],
            "--group: group 'nobody-of-that-name' does not exist here",
        ),
        (
            [*NEEDED, "--debug", "--debug-dir", "/absent"],
            "--debug-dir: /absent is missing",
        ),
    ],
)
def test_refusals_name_the_culprit(argv: list[str], words: str) -> None:
    assert refusal(argv).startswith(words)


def test_refusals_name_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "b.ini"
    path.write_text("[balancer]\n\nupstream =\n  a:1\n  b:2 name=a:1\n")
    sentence = f"{path}:5: upstream: two backends are called a:1 ({path}:4); give one of them name=X"
    assert refusal(["-c", str(path)]) == sentence


def test_a_balancer_may_serve_one_on_the_same_port_elsewhere() -> None:
    assert parse(["-u", "192.0.2.7:9090", "-p", "9090"], {}).pools
    assert parse(["-u", "127.0.0.1:9090", "-p", "9090", "--bind", "10.0.0.1"], {}).pools


@pytest.mark.parametrize("upstream", ["0.0.0.0", "*", "127.0.0.2", "localhost", "[::ffff:127.0.0.1]"])
def test_itself_by_another_address_is_refused(upstream: str) -> None:
    sentence = refusal(["-u", f"{upstream}:9090"])
    assert sentence.endswith("is where the balancer itself listens (0.0.0.0:9090)")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--proxy-protocol"],
            "--proxy-protocol: needs proxy-trusted: whoever may send the header may claim any address",
        ),
        (
            ["--send-proxy", "v3"],
            "--send-proxy: 'v3' names no version of the PROXY protocol: write v1 or v2",
        ),
        (
            ["--send-proxy", "v1 crc32c"],
            "--send-proxy: a header of version 1 carries no crc32c: write v2 crc32c",
        ),
        (
            ["--allow", "10.0.0.1/8"],
            "--allow: '10.0.0.1/8' names an address within its network; did you mean",
        ),
        (["--deny", "@/nowhere"], "--deny: cannot read /nowhere: No such file or directory"),
    ],
)
def test_who_may_come_in_and_who_it_is(words: list[str], sentence: str) -> None:
    assert refusal([*NEEDED, *words]).startswith(sentence)


def test_a_proxy_header_on_a_unix_socket_needs_no_network() -> None:
    """Whoever may connect to it is trusted: the mode of the file decides."""
    listener, _ = read_flat([*NEEDED, "--bind", "unix:/run/web.sock", "--proxy-protocol"])
    assert listener.proxy_protocol and not listener.proxy_trusted


def test_what_has_no_effect_is_said() -> None:
    notes = parse([*NEEDED, "--proxy-trusted", "10.0.0.0/8", "--dry-run"], {}).notes
    assert notes == (
        "--proxy-trusted has no effect without proxy-protocol",
        "--dry-run has no effect without allow, deny or a limit of sources",
    )


def test_questions() -> None:
    for argv, text in (
        (["--version"], f"balancer {__version__}"),
        (["--help"], "--idle-timeout TIME"),
        ([*NEEDED, "--check-config"], "configuration OK"),
        ([*NEEDED, "--print-config"], "upstream = 127.0.0.1:9000 "),
    ):
        with pytest.raises(CommandLineAnswer) as answer:
            parse(argv, {})
        assert text in str(answer.value)
    assert refusal(["--check-config"]).startswith("no upstream")


def test_help_tells_unit_default_and_variable_of_each_option() -> None:
    text = " ".join(configuration.help_text().replace("\\\n", "").split())
    for option in OPTIONS:
        assert f"--{option.name}" in text or f"--[no-]{option.name}" in text
        if not option.command_line_only:
            assert f"{option.environment('balancer')}]" in text
            assert (
                not option.default or f"default {option.default}; {option.environment('balancer')}]" in text
            )
    assert EXAMPLE.split() == text[text.index("balancer -p") :].split()[: len(EXAMPLE.split())]


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([], "9090.sock"),
        (["-p", "80"], "80.sock"),
        (["-p", "80", "--bind", "10.0.0.1", "--bind", "10.0.0.2"], "10.0.0.1:80.sock"),
        (["--bind", "[::1]:81"], "[::1]:81.sock"),
        (["--bind", "unix:/run/my app/web"], "unix_run_my_app_web.sock"),
        (["-p", "0"], "PID.pid.sock"),
    ],
)
def test_the_admin_socket_is_named_after_what_is_listened_on(argv: list[str], name: str) -> None:
    admin = parse([*NEEDED, *argv], {}).process.admin
    assert os.path.basename(admin) == name.replace("PID", str(os.getpid()))
    assert "prefork-balancer" in os.path.basename(os.path.dirname(admin))
    assert parse([*NEEDED, *argv, "--admin", "/x"], {}).process.admin == "/x"


def test_whoever_settles_the_admin_socket_is_asked_once_and_told_whether_to_make_it() -> None:
    asked: list[tuple[str, str, bool]] = []

    def settle(wanted: str, listening: Address, may_make: bool) -> tuple[str, tuple[str, ...]]:
        asked.append((wanted, str(listening), may_make))
        return "/settled", ("a note",)

    read = parse([*NEEDED, "--admin", "/x"], {}, settle)
    assert (read.process.admin, read.notes) == ("/settled", ("a note",))
    with pytest.raises(CommandLineAnswer, match="balancer: note: a note\n"):
        parse([*NEEDED, "--check-config"], {}, settle)
    assert asked == [("/x", "0.0.0.0:9090", True), ("", "0.0.0.0:9090", False)]


def test_an_admin_socket_that_cannot_be_made_is_refused_where_it_was_asked_for() -> None:
    def settle(wanted: str, listening: Address, may_make: bool) -> tuple[str, tuple[str, ...]]:
        raise ValueError("/x cannot be made: / is read-only")

    with pytest.raises(ConfigError) as refused:
        parse([*NEEDED, "--admin", "/x"], {}, settle)
    assert str(refused.value) == "--admin: /x cannot be made: / is read-only"


@pytest.mark.parametrize(
    ("argv", "environ"),
    [(["--admin", "off"], {}), (["--admin=off"], {"BALANCER_ADMIN": "/x"}), ([], {"BALANCER_ADMIN": "off"})],
)
def test_the_admin_socket_can_be_turned_off(argv: list[str], environ: dict[str, str]) -> None:
    read = parse([*NEEDED, *argv], environ)
    assert read.process.admin_address is None
    assert ("admin", "off") in summary_of(read)


@pytest.mark.parametrize("path", ["/run/my app/b.sock", "/run/a,b", '/run/"b"', "/run/#b", "/run/it's"])
def test_unix_paths_with_blanks_and_the_like_are_read_and_printed_with_quotes(
    ini: Callable[[str], list[str]], tmp_path: Path, path: str
) -> None:
    """In each place where an address may stand, from each source, and again from what --print-config prints."""
    listen, upstream, metrics = (f"unix:{quote(path + end)}" for end in "lum")
    admin = quote(f"{path}a")
    argv = ["--bind", listen, "-u", f"{upstream} weight=2", "--metrics", metrics, "--admin", admin]
    environ = {"BALANCER_BIND": listen, "BALANCER_UPSTREAM": f"{upstream} weight=2"}
    environ |= {"BALANCER_METRICS": metrics, "BALANCER_ADMIN": admin}
    rows = (f"{name.removeprefix('BALANCER_').lower()} = {text}\n" for name, text in environ.items())
    first = parse(argv, {})
    with pytest.raises(CommandLineAnswer) as answer:
        parse([*argv, "--print-config"], {})
    copy = tmp_path / "copy.ini"
    copy.write_text(str(answer.value))
    file = ini("[balancer]\n" + "".join(rows))
    for again in (parse([], environ), parse(file, {}), parse(["-c", str(copy)], {})):
        assert replace(again, process=replace(again.process, config="")) == first
    addresses = (first.listeners[0].addresses[0], first.pools[0].backends[0].address, first.process.metrics)
    assert [one and one.path for one in addresses] == [path + end for end in "lum"]
    assert (first.process.admin, first.pools[0].backends[0].weight) == (f"{path}a", 2)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9091", "127.0.0.1:9091"),
        ("localhost:0", "127.0.0.1:0"),
        ("[::1]:1", "[::1]:1"),
        ("unix:/run/m", "unix:/run/m"),
    ],
)
def test_a_metrics_window_that_only_this_machine_sees(text: str, address: str) -> None:
    read = parse([*NEEDED, "--metrics", text], {})
    assert (str(read.process.metrics), read.notes) == (address, ())


@pytest.mark.parametrize("text", ["0.0.0.0:9091", "*:9091", "[::]:9091", "10.0.0.1:9091"])
def test_a_metrics_window_that_others_see_is_warned_of(text: str) -> None:
    [note] = parse([*NEEDED, "--metrics", text], {}).notes
    assert "password" in note and "9091" in note


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1", "has no port"),
        ("metrics.example:9091", "is a name"),
        ("0.0.0.0:9090", "where clients are served"),
    ],
)
def test_a_metrics_address_that_cannot_be(text: str, reason: str) -> None:
    sentence = refusal([*NEEDED, "--metrics", text])
    assert sentence.startswith("--metrics") and reason in sentence


def test_listening_on_a_name() -> None:
    assert [str(a) for a in read_flat([*NEEDED, "--bind", "localhost"])[0].addresses] == ["127.0.0.1:9090"]
    assert "is a name: write the numeric address" in refusal([*NEEDED, "--bind", "example.org:80"])


# -- sections

SECTIONS = """
[balancer]
balance = source
maxconns = 9
[listener web]
bind = 10.0.0.1:80, [::1]:80
route =
    from 10.0.0.0/8 -> inside
    -> web
[listener db]
port = 5432
pool = web
maxconns = 5
[pool web]
upstream =
    a:1 weight=2
    b:1
[pool inside]
upstream = c:1
balance = p2c
"""


@pytest.fixture
def ini(tmp_path: Path) -> Callable[[str], list[str]]:
    def write(text: str) -> list[str]:
        path = tmp_path / "c.ini"
        path.write_text(text)
        return ["-c", str(path)]

    return write


def test_sections_become_records(ini: Callable[[str], list[str]]) -> None:
    read = parse(ini(SECTIONS), {})
    web, db = read.listeners
    assert (web.name, [str(a) for a in web.addresses]) == ("web", ["10.0.0.1:80", "[::1]:80"])
    assert (web.routes, web.maxconns) == ((Route("inside", ip_network("10.0.0.0/8")), Route("web")), 9)
    assert (db.name, [str(a) for a in db.addresses]) == ("db", ["0.0.0.0:5432"])
    assert (db.routes, db.maxconns) == ((Route("web"),), 5)
    one, two = read.pools
    assert (one.name, one.balance, [b.identity for b in one.backends]) == (
        "web",
        "source",
        ["web/a:1", "web/b:1"],
    )
    assert (two.name, two.balance, [b.pool for b in two.backends]) == ("inside", "p2c", ["inside"])
    assert read.process.admin.endswith("/10.0.0.1:80.sock")


def test_sections_called_main_are_what_a_flat_file_makes(ini: Callable[[str], list[str]]) -> None:
    flat = parse(["-u", "a:1", "-p", "80", "--balance", "p2c"], {})
    text = "[listener main]\nport = 80\npool = main\n[pool main]\nupstream = a:1\nbalance = p2c\n"
    named = parse(ini(text), {})
    assert (named.listeners, named.pools) == (flat.listeners, flat.pools)
    assert named.pools[0].backends[0].identity == "a:1"


def test_the_command_line_sets_what_a_section_leaves_open(ini: Callable[[str], list[str]]) -> None:
    read = parse([*ini(SECTIONS), "--maxconns", "7", "--check", "none"], {"BALANCER_BALANCE": "random"})
    assert [listener.maxconns for listener in read.listeners] == [7, 5]
    assert [(pool.balance, pool.check.kind) for pool in read.pools] == [("random", "none"), ("p2c", "none")]


def test_set_wins_over_the_environment_and_that_over_the_section(ini: Callable[[str], list[str]]) -> None:
    environ = {"BALANCER__POOL_INSIDE__UPSTREAM": "x:1, y:1", "BALANCER__POOL_INSIDE__RETRIES": "1"}
    argv = [*ini(SECTIONS), "--set", "pool inside: retries=2", "--set", "listener db: bind=:1", "--retries=7"]
    read = parse([*argv, "--set", "listener db: bind=:2"], environ)
    assert [backend.name for backend in read.pools[1].backends] == ["x:1", "y:1"]
    assert [pool.retries for pool in read.pools] == [7, 2]
    assert [str(address) for address in read.listeners[1].addresses] == ["0.0.0.0:1", "0.0.0.0:2"]


REST = "[pool a]\nupstream = a:1\n[pool b]\nupstream = b:1\n"
WEB = "[listener web]\nport = 80\n"
ROUTED = WEB + "route =\n    "
WRONG = [
    ("[listner web]\n", "1: section [listner web] is unknown; did you mean [listener web]?"),
    ("[pool]\n", "1: section [pool] needs a name: write [pool NAME]"),
    (
        "[pool My Web]\n",
        "1: [pool My Web]: a name is at most 32 of a-z 0-9 . _ - and begins with a letter or digit; did you mean [pool "
        "my-web]?",
    ),
    (REST + "[pool a]\nretries = 1\n", "5: section [pool a] began on line 1; put its keys there"),
    (
        REST + ROUTED + "-> aa\n",
        "8: [listener web] routes to pool aa, which no section defines; did you mean a?",
    ),
    (REST + WEB + "pool = c\n", "7: [listener web] routes to pool c, which no section defines"),
    (
        REST + ROUTED + "-> a\n    from 10.0.0.0/8 -> b\n",
        "9: this route is never reached: {path}:8 takes everything",
    ),
    (
        REST + ROUTED + "from 10.0.0.0/8 -> a\n    from 10.1.0.0/16 -> b\n    -> a\n",
        "9: this route is never reached: {path}:8 takes 10.0.0.0/8, which holds 10.1.0.0/16",
    ),
    (
        REST + ROUTED + "host x.org -> a\n",
        "8: route: 'host x.org -> a' has 'host' where a condition should be: write from NETWORK -> POOL, sni NAME -> "
        "POOL, or -> POOL",
    ),
    (
        REST + ROUTED + "sni *.x.org -> a\n    sni b.x.org -> b\n    -> a\n",
        "9: this route is never reached: {path}:8 takes sni *.x.org, which holds sni b.x.org",
    ),
    (
        REST + ROUTED + "sni x.org -> a\n    sni x.org and from 10.0.0.0/8 -> b\n    -> a\n",
        "9: this route is never reached: {path}:8 takes sni x.org, which holds sni x.org and from 10.0.0.0/8",
    ),
    (
        REST + WEB + "pool = a\nroute = -> b\n",
        "7: [listener web] has pool and route ({path}:8); write -> a as the last route instead of pool",
    ),
    (REST + WEB, "5: [listener web] leads to no pool; write pool = NAME, or route lines"),
    (
        REST + WEB + "pool = a\n[listener mail]\nbind = *:80\npool = a\n",
        "9: [listener mail] listens on 0.0.0.0:80, as [listener web] does ({path}:6)",
    ),
    (REST + "[listener web]\npool = a\n", "5: [listener web] has neither bind nor port; write port = PORT"),
    (
        REST + "[listener web]\nbind =\n  *:1\n  10.0.0.1\npool = a\n",
        "8: bind: '10.0.0.1' has no port: write host:port, [v6]:port or unix:/path",
    ),
    (
        "[pool a]\nretries = 1\n" + WEB + "pool = a\n",
        "1: [pool a] has no upstream; write upstream = host:port",
    ),
    (
        "[balancer]\nupstream = c:1\n" + REST,
        "2: upstream stands in [balancer], but there are [pool NAME] sections (first {path}:3); move it to [pool a]",
    ),
    (
        "[balancer]\nport = 80\n" + REST + WEB + "pool = a\n",
        "2: port stands in [balancer], but there are [listener NAME] sections (first {path}:7); move it to [listener "
        "web]",
    ),
    (
        "[balancer]\nbind = :80\n" + REST,
        "2: bind stands in [balancer], but the file has sections with a name (first [pool a], {path}:3); move it to a "
        "section [listener NAME]",
    ),
    (REST, "1: there is [pool a], but no section [listener NAME]; add one with port = PORT and pool = NAME"),
    (
        WEB + "pool = a\n",
        "1: there is [listener web], but no section [pool NAME]; add one with upstream = host:port",
    ),
    (WEB + "balance = p2c\n", "3: balance is no key of [listener web]; [pool NAME] and [balancer] take it"),
    (REST + "workers = 2\n", "5: workers is no key of [pool b]; [balancer] takes it"),
    ("[balancer]\nroute = -> a\n", "2: route is no key of [balancer]; [listener NAME] takes it"),
    (REST + "balence = p2c\n", "5: key balence is unknown; did you mean balance?"),
    (
        "[pool a.b]\nupstream = a:1\n[pool a-b]\n",
        "3: [pool a-b] and [pool a.b] ({path}:1) share the environment names BALANCER__POOL_A_B__...; rename one",
    ),
    (
        "[pool a]\nupstream =\n  a:1\n  b:1 name=a:1\n" + WEB + "pool = a\n",
        "4: upstream: two backends are called a/a:1 ({path}:3); give one of them name=X",
    ),
    (
        "[pool main]\nupstream = c:1 name=a/x\n[pool a]\nupstream = c:1 name=x\n" + WEB + "pool = a\n",
        "4: upstream: two backends are called a/x ({path}:2); give one of them name=X",
    ),
    (
        "[pool a]\nupstream =\n  a:1\n  127.0.0.1:80\n[listener two]\nport = 81\npool = a\n"
        + WEB
        + "pool = a\n",
        "4: upstream: 127.0.0.1:80 is where [listener web] of this balancer listens (0.0.0.0:80)",
    ),
    (
        "[pool reject]\nupstream = a:1\n" + WEB + "pool = reject\n",
        "1: the name reject is kept for routes that refuse a client; choose another",
    ),
    (
        "[balancer]\nmetrics = 127.0.0.1:1\n[listener web]\nbind = 127.0.0.1:1\npool = a\n" + REST,
        "2: metrics: 127.0.0.1:1 is where [listener web] listens ({path}:4)",
    ),
    (
        "[balancer]\nadmin = /run/x\n[listener web]\nbind = unix:/run/x\npool = a\n" + REST,
        "2: admin: /run/x is where [listener web] listens ({path}:4)",
    ),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_file_is_refused_with_its_line_and_a_way_out(
    ini: Callable[[str], list[str]], text: str, sentence: str
) -> None:
    argv = ini(text)
    assert refusal(argv) == f"{argv[1]}:{sentence.format(path=argv[1])}"


@pytest.mark.parametrize(
    ("argv", "environ", "sentence"),
    [
        (
            ["-p", "80"],
            {},
            "--port: there are [listener NAME] sections (first {path}:5); use --set 'listener web: port=...'",
        ),
        (
            [],
            {"BALANCER_UPSTREAM": "z:1"},
            "environment BALANCER_UPSTREAM: there are [pool NAME] sections (first {path}:14); use "
            "BALANCER__POOL_WEB__UPSTREAM",
        ),
        (["--set", "pool web"], {}, "--set 'pool web' is not understood: write 'SECTION NAME: KEY=VALUE'"),
        (
            ["--set", "pool wep: check=none"],
            {},
            "--set 'pool wep: check=none': the file has no section [pool wep]; did you mean [pool web]?",
        ),
        (
            ["--set", "listener web: check=none"],
            {},
            "--set 'listener web: check=none': check is no key of [listener web]; [pool NAME] and [balancer] take it",
        ),
        (
            ["--set", "pool web: check=non"],
            {},
            "--set 'pool web: check': 'non' is no check: it begins with one of "
            "tcp, none, tls, http, redis, smtp, imap, pgsql, mysql, mqtt, frame, script; did you mean none?",
        ),
        (
            ["--set", "pool web: upstream="],
            {},
            "{path}:14: [pool web] has no upstream; write upstream = host:port",
        ),
        (
            [],
            {"BALANCER__POOL_WEP__CHECK": "none"},
            "environment BALANCER__POOL_WEP__CHECK names no key of a section in the file; did you mean "
            "BALANCER__POOL_WEB__CHECK?",
        ),
        (
            [],
            {"BALANCER__POOL_WEB__RETRIES": "x"},
            "environment BALANCER__POOL_WEB__RETRIES: 'x' is not a whole number",
        ),
        (
            ["--route", "-> a"],
            {},
            "--route is no option: only a section with a name takes route; use --set 'SECTION: route=...'",
        ),
    ],
)
def test_a_wrong_override_is_refused(
    ini: Callable[[str], list[str]], argv: list[str], environ: dict[str, str], sentence: str
) -> None:
    file = ini(SECTIONS)
    assert refusal([*file, *argv], environ) == sentence.format(path=file[1])


def test_the_board_has_room_for_so_many(ini: Callable[[str], list[str]]) -> None:
    many = [
        f"[listener l{number}]\nport = {1000 + number}\npool = a\n" for number in range(MOST_LISTENERS + 1)
    ]
    assert len(parse(ini(REST + "".join(many[:-1])), {}).listeners) == MOST_LISTENERS
    file = ini(REST + "".join(many))
    assert refusal(file) == f"{file[1]}:197: there are more than 64 [listener NAME] sections"


def test_a_flat_configuration_has_no_section_to_set() -> None:
    assert refusal([*NEEDED, "--set", "pool main: check=none"]).endswith(
        "the file has no section [pool main]"
    )


def test_a_value_that_every_section_sets_itself_is_noted(ini: Callable[[str], list[str]]) -> None:
    file = ini(SECTIONS.replace("[pool web]\n", "[pool web]\nbalance = p2c\n"))
    [note] = parse([*file, "--balance", "random"], {}).notes
    place = file[1]
    assert note == f"--balance has no effect: [pool web] {place}:15 and [pool inside] {place}:21 set it"
    [note] = parse(file, {"BALANCER_BALANCE": "random"}).notes
    assert note.startswith("environment BALANCER_BALANCE has no effect: [pool web]")
    assert parse([*file, "--maxconns", "3"], {}).notes == ()


def test_a_pool_without_a_listener_is_noted_and_shown_by_the_check(ini: Callable[[str], list[str]]) -> None:
    file = ini(SECTIONS + "[pool old]\nupstream = z:1\n")
    sentence = f"[pool old] ({file[1]}:21) is used by no listener"
    assert parse(file, {}).notes == (sentence,)
    with pytest.raises(CommandLineAnswer) as answer:
        parse([*file, "--check-config"], {})
    assert str(answer.value) == f"balancer: note: {sentence}\nbalancer: configuration OK"


def test_a_listener_that_does_not_serve_every_client_is_noted(ini: Callable[[str], list[str]]) -> None:
    file = ini(SECTIONS.replace("    -> web\n", ""))
    sentence = "refuses the clients that no route matches; a last line -> POOL would serve them"
    assert parse(file, {}).notes == (f"[listener web] ({file[1]}:8) {sentence}",)


def test_a_preread_that_has_no_effect_is_noted(ini: Callable[[str], list[str]]) -> None:
    file = ini(SECTIONS.replace("[listener db]\n", "[listener db]\npreread = postgres\n"))
    [note] = parse(file, {}).notes
    assert note.endswith(
        ": preread = postgres has no effect: no route of [listener db] looks at a name, and it does not end TLS"
    )


def test_print_config_tells_each_sections_sources_and_reads_back(
    ini: Callable[[str], list[str]], tmp_path: Path
) -> None:
    file = ini(SECTIONS)
    argv = [*file, "--retries=7", "--set", "pool inside: check-rise=5"]
    environ = {"BALANCER__POOL_WEB__UPSTREAM": "a:1 weight=2\nunix:/run/b"}
    with pytest.raises(CommandLineAnswer) as answer:
        parse([*argv, "--print-config"], environ)
    text = str(answer.value)
    rows = [" ".join(row.split()) for row in text.splitlines()]
    titles = ["[balancer]", "[listener web]", "[listener db]", "[pool web]", "[pool inside]"]
    assert [row for row in text.splitlines() if row.startswith("[")] == titles
    for row in (
        f"maxconns = 9 ; {file[1]}:4",
        f"maxconns = 5 ; {file[1]}:13",
        "retries = 7 ; command line",
        "check-rise = 5 ; --set",
        "upstream = ; environment BALANCER__POOL_WEB__UPSTREAM",
        "from 10.0.0.0/8 -> inside",
    ):
        assert row in rows
    unused = ("port = 9090 ; default", "pool = ; default", "route = ; default")
    assert not [row for row in rows if row in unused]
    copy = tmp_path / "copy.ini"
    copy.write_text(text)
    again, first = parse(["-c", str(copy)], {}), parse(argv, environ)
    assert (again.listeners, again.pools) == (first.listeners, first.pools)


def test_a_reload_reports_options_by_section(ini: Callable[[str], list[str]]) -> None:
    named = dict(summary_of(parse(ini(SECTIONS), {})))
    assert named["listener db maxconns"] == "5"
    assert named["listener web route"] == "10.0.0.0/8: inside, all: web"
    assert named["pool web backend a:1"] == "a:1 weight=2 maxconn=0"
    assert named["pool inside balance"] == "p2c"
    flat = dict(summary_of(parse([*NEEDED, "--connect-timeout", "1500ms"], {})))
    assert flat["backend 127.0.0.1:9000"] == "127.0.0.1:9000 weight=1 maxconn=0"
    assert (flat["balance"], flat["connect-timeout"], flat["splice"]) == ("leastconn", "1.5s", "yes")


def test_every_option_but_the_file_itself_is_in_the_summary(ini: Callable[[str], list[str]]) -> None:
    names = {name.rpartition(" ")[2] for name, _ in summary_of(parse(ini(SECTIONS), {}))}
    missing = {option.name for option in EVERY_OPTION if not option.command_line_only} - names
    assert missing == {"config", "port", "pool", "upstream"}  # bind, route and the backends stand for these


def test_framed_mode_needs_a_frame_and_a_frame_needs_framed_mode() -> None:
    assert refusal([*NEEDED, "--mode=framed"]).startswith("--mode: framed needs `frame`")
    assert refusal([*NEEDED, "--frame=gowork"]) == "--frame: is given, but mode is tcp; write mode = framed"
    assert "no length=" in refusal([*NEEDED, "--mode=framed", "--frame=magic=aa"])
    shared = refusal([*NEEDED, "--mode=framed", "--frame=gowork", "--send-proxy=v2"])
    assert shared == "--send-proxy: in framed mode clients share the connections to the backends"
    _, pool = read_flat([*NEEDED, "--mode=framed", "--frame=length=u32 be", "--order=any"])
    assert (pool.mode, str(pool.frame), pool.order, pool.pipeline) == ("framed", "length=u32 be", "any", 32)


# -- TLS


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    path = tmp_path / "a.pem"
    path.write_bytes(Authority().issue("a.example"))
    return path


def test_a_listener_that_ends_tls(ini: Callable[[str], list[str]], pem: Path) -> None:
    text = "[listener web]\nbind = :443\npool = a\ntls-cert = {0}\ntls-alpn = h2, http/1.1\ntls-client-ca = {0}\n"
    [web] = parse(ini(text.format(pem) + "[pool a]\nupstream = 10.0.0.1:80\n"), {}).listeners
    assert web.tls_cert[0].names == ("a.example",) and web.tls_alpn == ("h2", "http/1.1")
    assert (web.tls_client, web.tls_min, web.tls_handshake_timeout) == ("required", "1.2", 5.0)


def test_a_flat_configuration_ends_tls_too_and_is_printed_as_it_is_read(pem: Path, tmp_path: Path) -> None:
    argv = [*NEEDED, "--tls-cert", f'"{pem}" key={pem}']
    first = parse(argv, {})
    with pytest.raises(CommandLineAnswer) as answer:
        parse([*argv, "--print-config"], {})
    copy = tmp_path / "copy.ini"
    copy.write_text(str(answer.value))
    assert parse(["-c", str(copy)], {}).listeners == first.listeners and first.listeners[0].tls_cert


def test_a_changed_certificate_is_a_changed_configuration(pem: Path) -> None:
    argv = [*NEEDED, "--tls-cert", str(pem)]
    first = parse(argv, {})
    assert parse(argv, {}) == first
    pem.write_bytes(Authority().issue("a.example"))
    assert parse(argv, {}) != first


def test_refusals_and_notes_on_tls(ini: Callable[[str], list[str]], pem: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(Authority().issue("a", with_key=False) + pem.read_bytes())
    pool = "[pool a]\nupstream = 10.0.0.1:80\n"
    file = ini(f"[listener web]\nbind = :443\npool = a\ntls-cert =\n    {pem}\n    {wrong}\n{pool}")
    place = file[-1]
    sentence = "the key does not belong to the certificate"
    assert refusal(file) == f"{place}:6: tls-cert: {wrong}: {sentence}"
    framed = "mode = framed\nframe = gowork\ntls = yes\n"
    read = parse(ini(f"[listener web]\nbind = :443\npool = a\ntls-cert = {pem}\n{pool}{framed}"), {})
    assert (read.pools[0].mode, read.pools[0].tls) == ("framed", True)
    argv = [*NEEDED, "--tls-min", "1.3", "--tls-client", "optional"]
    assert [note for note in parse(argv, {}).notes if "tls" in note] == [
        "--tls-min has no effect without tls-cert",
        "--tls-client has no effect without tls-cert",
    ]
    argv += ["--tls-cert", str(pem)]
    assert [note for note in parse(argv, {}).notes if "tls" in note] == [
        "--tls-client has no effect without tls-client-ca"
    ]


def test_a_certificate_of_tomorrow_is_worth_a_note(tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    path.write_bytes(Authority().issue("a.example", begins=DAY))
    [note] = parse([*NEEDED, "--tls-cert", str(path)], {}).notes
    assert note == f"--tls-cert: the certificate in {path} is not valid yet"


def test_each_revocation_list_that_has_expired_is_worth_a_note(pem: Path, tmp_path: Path) -> None:
    """OpenSSL turns every client of that authority away, which else is seen in the log of a running balancer only."""
    old, new = Authority("Old"), Authority("New")
    path = tmp_path / "crl.pem"
    argv = [*NEEDED, "--tls-cert", str(pem), "--tls-client-ca", str(pem), "--tls-client-crl", str(path)]
    for lists, expired in (
        ([old.revocations(-DAY), new.revocations()], ["Old"]),
        ([new.revocations(), b"a comment\n", old.revocations(-DAY)], ["Old"]),
        ([old.revocations(-DAY), new.revocations(-DAY / 1440)], ["Old", "New"]),
        ([new.revocations(), old.revocations()], []),
    ):
        path.write_bytes(b"".join(lists))
        found = parse(argv, {})
        lists_of = found.listeners[0].tls_client_crl
        assert lists_of is not None and (lists_of.not_after < time.time()) == bool(expired)
        notes = found.notes
        assert len(notes) == len(expired), notes
        for name, note in zip(expired, notes, strict=True):
            assert note.startswith(
                f"--tls-client-crl: the revocation list of CN={name} in {path} has expired on 20"
            )


def test_tls_to_backends(ini: Callable[[str], list[str]], pem: Path, tmp_path: Path) -> None:
    listener = "[listener web]\nbind = :80\npool = a\n"
    text = f"[pool a]\nupstream = 10.0.0.1:443\ntls = yes\ntls-sni = b.example\ntls-cert = {pem}\ntls-ca = {pem}\n"
    read = parse(ini(listener + text), {})
    [pool] = read.pools
    assert (pool.tls, pool.tls_verify, pool.tls_sni) == (True, True, "b.example")
    assert pool.tls_cert is not None and pool.tls_cert.names == ("a.example",) and pool.tls_ca is not None
    assert not read.listeners[0].tls_cert and not read.notes
    # In a flat configuration tls-cert is the listener's.
    flat = parse([*NEEDED, "--tls", "--tls-cert", str(pem)], {})
    assert flat.pools[0].tls_cert is None and flat.listeners[0].tls_cert


def test_refusals_and_notes_on_tls_to_backends(ini: Callable[[str], list[str]]) -> None:
    assert refusal(["-u", "unix:/run/x", "--tls"]) == (
        "--upstream: unix:/run/x has no name to verify a certificate by; write tls-sni = NAME"
    )
    assert parse(["-u", "unix:/run/x", "--tls", "--tls-sni", "x.example"], {}).pools[0].tls
    [note] = parse([*NEEDED, "--tls", "--no-tls-verify"], {}).notes
    assert note == "--tls-verify: certificates are not verified: whoever is on the way can read along"
    notes = parse([*NEEDED, "--tls-sni", "x.example", "--no-tls-verify"], {}).notes
    assert list(notes) == [
        "--tls-sni has no effect without tls = yes",
        "--tls-verify has no effect without tls = yes",
    ]
    assert "is no host name" in refusal([*NEEDED, "--tls-sni", "a b"])


def test_a_check_by_tls_uses_what_the_pool_says_of_it() -> None:
    unix, named = ["-u", "unix:/run/x"], ["--check", "tls sni=x.example"]
    assert refusal([*unix, "--check", "tls"]) == (
        "--upstream: unix:/run/x has no name to verify a certificate by; write sni=NAME behind the check"
    )
    assert "write tls-sni = NAME" in refusal([*unix, "--tls", *named])
    assert not parse([*unix, *named], {}).notes
    for more in (["--tls-sni", "x.example"], ["--no-tls-verify"]):
        assert not parse([*unix, "--check", "tls", *more], {}).notes
    unused = parse([*NEEDED, "--tls-sni", "x.example", "--no-tls-verify", *named], {}).notes
    assert unused == ("--tls-sni has no effect without tls = yes",)


def test_what_stands_behind_a_set_is_named_as_it_was_written() -> None:
    argv = ["-u", "dns:web.test:443 slots=3", "-u", "unix:/run/web", "--tls=yes"]
    with pytest.raises(ConfigError, match="unix:/run/web has no name to verify a certificate by"):
        parse(argv, {})
