"""A check as configured: every form is read, every slip is refused with a sentence."""

import pytest

from balancer.checks.check import KINDS, MOST_STEPS, Check, ScriptStep, check_of, parse_check_line
from balancer.config.option import ConfigError
from balancer.configuration import parse


def check(*lines: str) -> Check:
    return check_of([parse_check_line(line) for line in lines])


@pytest.mark.parametrize(
    "line, fields",
    [
        ("tcp", {"kind": "tcp"}),
        ("none", {"kind": "none"}),
        ("tcp port=8008 proxy=yes", {"proxy": True}),
        ("smtp proxy=no", {"proxy": False}),
        ("tcp port=8008", {"kind": "tcp", "port": 8008}),
        ("http GET /", {"kind": "http", "path": "/", "expect": (200, 399)}),
        ("http HEAD /a?b=c expect=200 host=x.test", {"method": "HEAD", "path": "/a?b=c", "host": "x.test"}),
        ("http GET / expect=204", {"expect": (204, 204)}),
        ("http GET /ready expect=200-299 timeout=300ms", {"expect": (200, 299), "timeout": 0.3}),
        ("redis role=primary address=10.0.0.9", {"kind": "redis", "role": "primary", "address": "10.0.0.9"}),
        ("pgsql user=check role=replica", {"user": "check", "role": "replica"}),
        ("mysql user=check", {"user": "check"}),
        ("tls", {"kind": "tls", "sni": ""}),
        ("tls sni=a-b_c.test. port=8443", {"sni": "a-b_c.test.", "port": 8443}),
        ("redis sni=db.test proxy=yes", {"kind": "redis", "sni": "db.test"}),
        ("frame address=::1 port=9001", {"kind": "frame", "address": "::1", "port": 9001}),
    ],
)  # fmt: skip
def test_every_form(line: str, fields: dict[str, object]) -> None:
    found = check(line)
    assert {key: getattr(found, key) for key in fields} == fields and str(found) == line


@pytest.mark.parametrize(
    "line, part",
    [
        ("", "begins with one of tcp"),
        ("htpp GET /", "did you mean http?"),
        ("http", "write http GET /path"),
        ("http GET", "write http GET /path"),
        ("http POST /", "write http GET /path"),
        ("http GET x", "write http GET /path"),
        ("http GET /a\x7f", "write http GET /path"),
        ("http GET / expect=99", "no range of statuses"),
        ("http GET / expect=399-200", "no range of statuses"),
        ("http GET / expect=200 expect=201", "expect is given twice"),
        ("http GET / host=a\\r", "host=a\\r is not a host name"),
        ("http GET / role=primary", "http takes expect=, host=, port=, address=, sni=, proxy=, timeout="),
        ("redis role=master", "neither primary nor replica"),
        ("redis user=x", "redis takes role="),
        ("mysql user=a;b", "user=a;b is not a name"),
        ("none port=1", "none takes no words"),
        ("tcp port=0", "port 0 cannot be dialled"),
        ("tcp port=x", "is not a port"),
        ("tcp proxy=v2", "neither yes nor no"),
        ("tcp port", "'port' is not understood"),
        ("tcp sni=a.test", "tcp takes no sni=: write tls"),
        ("pgsql sni=a.test", "pgsql takes no sni=: TLS begins within its protocol"),
        ("mysql user=x sni=a.test", "mysql takes no sni=: TLS begins within its protocol"),
        ("none sni=a.test", "none takes no words"),
        ("tls sni=", "sni= is not a host name"),
        ("tls sni=a..test", "sni=a..test is not a host name"),
        (f"tls sni={'a' * 64}.test", "is not a host name"),
        (f"tls sni={'a.' * 127}test", "is not a host name"),
        ("tls sni=a.test sni=b.test", "sni is given twice"),
        ("tcp address=web.test", "no numeric address"),
        ("tcp timeout=0", "no time at all"),
        ("send PING", "is not understood"),
        ('send ^"a"', "is not understood"),
        ('send "a\\q"', "unknown escape"),
        ('send "\u20ac"', "unknown escape"),
        ('expect ""', "no text between"),
        ('expect ~"("', "no regular expression"),
    ],
)
def test_every_slip_is_refused_with_a_sentence(line: str, part: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_check_line(line)
    assert part in str(refused.value)


@pytest.mark.parametrize(
    "text, step",
    [
        ('send "PING\\r\\n"', ScriptStep("send", b"PING\r\n")),
        ('send "\\x00\\xFF\\t\\0\\\\\\""', ScriptStep("send", b'\0\xff\t\0\\"')),
        ('expect "a # b"', ScriptStep("contained", b"a # b")),
        ('expect ^"220 "', ScriptStep("prefix", b"220 ")),
        ('expect ~"role:(a|b)\\d \\""', ScriptStep("pattern", b'role:(a|b)\\d "')),
    ],
)
def test_the_lines_of_a_script(text: str, step: ScriptStep) -> None:
    assert parse_check_line(text) == step


@pytest.mark.parametrize(
    "lines, part",
    [
        ([], "one check is wanted"),
        (["tcp", "redis"], "one check is wanted"),
        (["script port=1"], "has no line"),
        (["tcp", 'expect "a"'], "only a line `script"),
        (['expect "a"', "script port=1"], "only a line `script"),
        (['send "a"'], "cannot fail"),
        (['expect "a"'] * (MOST_STEPS + 1), "at most 16 lines"),
    ],
)
def test_lines_that_make_no_check(lines: list[str], part: str) -> None:
    with pytest.raises(ValueError) as refused:
        check(*lines)
    assert part in str(refused.value)


def test_a_script_may_begin_with_its_words() -> None:
    found = check("script port=6380 timeout=1s", 'send "a"', 'expect "b"')
    assert (found.kind, found.port, found.timeout, len(found.steps)) == ("script", 6380, 1.0, 2)
    assert str(found) == "script port=6380 timeout=1s; send b'a'; contained b'b'"


@pytest.mark.parametrize("where", ["", " port=8443", " address=10.0.0.9"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("none", "script")])
def test_a_check_speaks_tls_where_it_says_so_and_where_sessions_do(kind: str, where: str) -> None:
    line = f"{kind}{' GET /' if kind == 'http' else ''}{where}"
    assert check(line).speaks_tls(False) == (kind == "tls")
    assert check(line).speaks_tls(True) == (kind == "tls" or not where)
    if kind not in ("tcp", "pgsql", "mysql"):
        assert check(f"{line} sni=a.test").speaks_tls(False)


def test_a_script_may_speak_tls() -> None:
    assert check("script sni=a.test", 'expect "a"').speaks_tls(False)
    assert not check('expect "a"').speaks_tls(False)


def read(tmp_path: object, text: str) -> Check:
    path = f"{tmp_path}/a.ini"
    with open(path, "w") as file:
        file.write(f"[balancer]\nport = 9090\nupstream = 10.0.0.1:80\n{text}")
    return parse(["-c", path], {}).pools[0].check


def test_a_file_keeps_what_stands_between_quotes(tmp_path: object) -> None:
    text = 'check =\n    send "a # b, c; d"  ; a comment\n    expect ^"ok"   # another\n'
    assert read(tmp_path, text).steps == (ScriptStep("send", b"a # b, c; d"), ScriptStep("prefix", b"ok"))
    assert read(tmp_path, "").kind == "tcp"


def test_a_mistake_is_refused_at_its_line(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match=r"a\.ini:6: check: 'expet"):
        read(tmp_path, 'check =\n    send "a"\n    expet "b"\n'.replace("send", "send"))
    with pytest.raises(ConfigError, match=r"a\.ini:4: check: a script without expect"):
        read(tmp_path, 'check =\n    send "a"\n')
