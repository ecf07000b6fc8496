"""The options engine: who wins, where a value came from, and one sentence that names the culprit for everything else."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from balancer.config import loader as config
from balancer.config.common import DAEMON_QUESTIONS, QUESTIONS
from balancer.config.option import (
    CommandLineAnswer,
    ConfigError,
    Option,
    SectionSettings,
    at_least,
    between,
    parse_flag,
)
from balancer.config.units import parse_duration, parse_port

OPTIONS = (
    Option("port", "9090", "port to listen on", parse_port, short="p"),
    Option("upstream", "", "backend", repeat=True, short="u", unset="required"),
    Option("include", "", "glob", repeat=True, commas=False),
    Option("idle-timeout", "10m", "time without a byte", parse_duration),
    Option("debug", "no", "profile", flag=True),
    Option("debug-dir", ".", "directory of the profiles"),
    Option("balance", "leastconn", "policy", choices=("leastconn", "roundrobin")),
    Option("log", "", "log file", unset="stderr"),
    Option("config", "", "INI file to read", short="c"),
    *QUESTIONS,
)


def load(argv: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> SectionSettings:
    return config.load("balancer", OPTIONS, argv, environ or {}, neighbours=("resizer",))


@pytest.fixture
def ini(tmp_path: Path) -> Any:
    def write(text: str, section: str = "[balancer]\n") -> list[str]:
        path = tmp_path / "b.ini"
        path.write_text(section + text)
        return ["-c", str(path)]

    return write


def refusal(argv: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        load(argv, environ)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


# ---- precedence, for each kind of option --------------------------------------------------------------

KINDS = [
    ("port", "1", "2", "3", 9090),
    ("idle-timeout", "1s", "2s", "3s", 600.0),
    ("balance", "roundrobin", "leastconn", "roundrobin", "leastconn"),
    ("log", "/a", "/b", "/c", ""),
    ("debug", "yes", "no", "yes", False),
    ("debug", "false", "true", "off", False),
    ("upstream", "a:1", "b:2", "c:3", ()),
]
PARSED = {
    "1s": 1.0,
    "2s": 2.0,
    "3s": 3.0,
    "yes": True,
    "no": False,
    "true": True,
    "false": False,
    "off": False,
}


def parsed(name: str, text: str) -> object:
    if name == "upstream":
        return (text,)
    return int(text) if name == "port" else PARSED.get(text, text)


@pytest.mark.parametrize(("name", "on_line", "in_env", "in_file", "default"), KINDS)
def test_command_line_over_environment_over_file_over_default(
    ini: Any, name: str, on_line: str, in_env: str, in_file: str, default: object
) -> None:
    argv, variable = [f"--{name}={on_line}"], "BALANCER_" + name.upper().replace("-", "_")
    environ, file = {variable: in_env}, ini(f"{name} = {in_file}\n")
    for arguments, variables, value, source in (
        (argv + file, environ, parsed(name, on_line), "command line"),
        (file + argv, {}, parsed(name, on_line), "command line"),
        (file, environ, parsed(name, in_env), f"environment {variable}"),
        (file, {}, parsed(name, in_file), f"{file[1]}:2"),
        ([], {}, default, "default"),
    ):
        settings = load(arguments, variables)
        assert (settings.values[name], settings.sources[name]) == (value, source)


def test_a_higher_list_replaces_a_lower_one(ini: Any) -> None:
    file = ini("upstream =\n  a:1\n  b:2\n")
    assert load(file).values["upstream"] == ("a:1", "b:2")
    assert load(file, {"BALANCER_UPSTREAM": "c:3"}).values["upstream"] == ("c:3",)
    assert load([*file, "-u", "d:4", "-u", "e:5"], {"BALANCER_UPSTREAM": "c:3"}).values["upstream"] == (
        "d:4",
        "e:5",
    )


def test_the_file_itself_may_come_from_the_environment(ini: Any) -> None:
    path = ini("port = 7\n")[1]
    assert load([], {"BALANCER_CONFIG": path}).values["port"] == 7
    assert load(["-c", path], {"BALANCER_CONFIG": "/absent"}).values["port"] == 7


# ---- command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["-p", "5"],
        ["-p5"],
        ["-p=5"],
        ["--port", "5"],
        ["--port=5"],
        ["-port", "5"],
        ["-port=5"],
        ["-p", "4", "-port=5"],
    ],
)
def test_spellings_of_a_value(argv: list[str]) -> None:
    assert load(argv, {"BALANCER_PORT": "6"}).values["port"] == 5


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--debug"], True),
        (["-debug"], True),
        (["--debug=false"], False),
        (["-debug=true"], True),
        (["--debug", "no"], False),
        (["--debug", "Off"], False),
        (["-debug", "yes"], True),
        (["--debug", "-p", "1"], True),
        (["--no-debug"], False),
        (["-no-debug"], False),
        (["--debug", "--no-debug"], False),
    ],
)
def test_spellings_of_a_flag(argv: list[str], value: bool) -> None:
    assert load(argv, {"BALANCER_DEBUG": "no" if value else "yes"}).values["debug"] is value


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--prot", "1"], "option --prot is unknown; did you mean --port?"),
        (["-idle-timeuot=1s"], "option -idle-timeuot is unknown; did you mean --idle-timeout?"),
        (["-x"], "option -x is unknown"),
        (["--bogus"], "option --bogus is unknown"),
        (["-idle=1s"], "option -idle is unknown; did you mean --idle-timeout?"),
        (["--no-port"], "option --no-port is unknown; did you mean --port?"),
        (["9090"], "'9090' was not expected; every value follows an option"),
        (["--"], "'--' was not expected; every value follows an option"),
        (["--port"], "--port needs a value (PORT)"),
        (["--log", "--debug"], "--log needs a value (LOG)"),
        (["--port", "http"], "--port: 'http' is not a port: write a number from 0 to 65535"),
        (["--port="], "--port: '' is not a port: write a number from 0 to 65535"),
        (["--idle-timeout", "5x"], "--idle-timeout: '5x' is not a duration: write 250ms, 5s, 10m or 1h"),
        (["--debug=maybe"], "--debug: 'maybe' is neither yes nor no"),
        (
            ["--balance", "leastcon"],
            "--balance: 'leastcon' is not one of leastconn, roundrobin; did you mean leastconn?",
        ),
        (["-c", "/absent.ini"], "cannot read configuration file /absent.ini: No such file or directory"),
        (["-c", "/"], "cannot read configuration file /: Is a directory"),
    ],
)
def test_slips_on_the_command_line(argv: list[str], sentence: str) -> None:
    assert refusal(argv) == sentence


def test_abbreviations_are_not_guessed() -> None:
    assert refusal(["--idle", "1s"]).startswith("option --idle is unknown")


# ---- environment ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " ", "\n"])
@pytest.mark.parametrize("name", ["PORT", "UPSTREAM", "DEBUG", "IDLE_TIMEOUT", "CONFIG"])
def test_an_empty_variable_is_not_set(name: str, text: str) -> None:
    assert load([], {f"BALANCER_{name}": text}) == load()


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a:1 weight=2, b:2", ("a:1 weight=2", "b:2")),
        ("a:1\nb:2\n", ("a:1", "b:2")),
        ("[::1]:80", ("[::1]:80",)),
        ("[::1]", ("[::1]",)),
        ("[::1]:80,[::2]:80", ("[::1]:80", "[::2]:80")),
        (",a:1,,", ("a:1",)),
    ],
)
def test_lists_in_the_environment(text: str, items: tuple[str, ...]) -> None:
    assert load([], {"BALANCER_UPSTREAM": text}).values["upstream"] == items
    assert load([f"--upstream={text}"]).values["upstream"] == items


def test_a_glob_may_hold_a_comma() -> None:
    assert load([], {"BALANCER_INCLUDE": "a,b*.jpg\n*.png"}).values["include"] == ("a,b*.jpg", "*.png")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("PORT", "x", "'x' is not a port: write a number from 0 to 65535"),
        ("DEBUG", "2", "'2' is neither yes nor no"),
        ("BALANCE", "best", "'best' is not one of leastconn, roundrobin"),
    ],
)
def test_a_bad_variable_is_named(name: str, text: str, why: str) -> None:
    assert refusal([], {f"BALANCER_{name}": text}) == f"environment BALANCER_{name}: {why}"


def test_service_links_of_a_container_platform_are_not_ours() -> None:
    linked = {
        "BALANCER_PORT": "tcp://10.0.0.7:9090",
        "BALANCER_PORT_9090_TCP": "x",
        "BALANCER_SERVICE_HOST": "x",
    }
    settings = load([], linked)
    assert (settings.values["port"], settings.notes) == (9090, ())


def test_a_mistyped_variable_is_noted() -> None:
    note = "environment BALANCER_UPSTREAMS is not an option and is ignored; did you mean BALANCER_UPSTREAM?"
    assert load([], {"BALANCER_UPSTREAMS": "a:1", "BALANCERS": "3"}).notes == (note,)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("balancer_port", "BALANCER_PORT"),
        ("Balancer_Port", "BALANCER_PORT"),
        ("BALANCERPORT", "BALANCER_PORT"),
        ("BALANCER-PORT", "BALANCER_PORT"),
        ("balancer.port", "BALANCER_PORT"),
        ("BALANCER_PROT", "BALANCER_PORT"),
        ("BALANCE_PORT", "BALANCER_PORT"),
        ("BALANCR_UPSTREAM", "BALANCER_UPSTREAM"),
        ("BALANCER_IDLETIMEOUT", "BALANCER_IDLE_TIMEOUT"),
        ("BALANCER_IDLE_TIMOUT", "BALANCER_IDLE_TIMEOUT"),
        ("MY_BALANCER_PORT", ""),
        ("RESIZER_PORT", ""),
        ("BALANCE_REPORT", ""),
        ("BALANCER_HOME", ""),
        ("BALANCER_PORT_80_TCP_ADDR", ""),
        ("PORT", ""),
    ],
)
def test_near_misses_of_variables(name: str, meant: str) -> None:
    notes = load([], {name: "3"}).notes
    sentence = f"environment {name} is not an option and is ignored; did you mean {meant}?"
    assert notes == ((sentence,) if meant else ())
    assert load([], {name: " "}).notes == load([], {name: "tcp://10.0.0.7:80"}).notes == ()


# ---- file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("port = 80 ; web", "port", 80),
        ("port: 80\t# web", "port", 80),
        ("PORT=80", "port", 80),
        ("idle_timeout = 3s", "idle-timeout", 3.0),
        ("log = /a;b#c", "log", "/a;b#c"),
        ('log = "/a ; b" ; comment', "log", "/a ; b"),
        ("log = ' /a '", "log", " /a "),
        ("log = %(asctime)s 100%", "log", "%(asctime)s 100%"),
        ("log = ${HOME}", "log", "${HOME}"),
        ("log = [a, b]", "log", "[a, b]"),
        ("log = a = b", "log", "a = b"),
        ("log = --debug", "log", "--debug"),
        ("log =", "log", ""),
        ("upstream = [::1]:80", "upstream", ("[::1]:80",)),
        ("upstream = [::1]", "upstream", ("[::1]",)),
        ("upstream = a:1, b:2", "upstream", ("a:1", "b:2")),
        (
            "upstream:\n  a:1 weight=2 ; first\n\n  # none\n  [::1]:80\n",
            "upstream",
            ("a:1 weight=2", "[::1]:80"),
        ),
        ("upstream = a:1\n  b:2", "upstream", ("a:1", "b:2")),
        ("  port = 80\n  log = /x\n", "log", "/x"),
        ("debug = TRUE", "debug", True),
        ("debug = off", "debug", False),
        ("port = 80\n[resizer]\nport = 1\nanything = 2\n  more", "port", 80),
        ("# only comments\n; here\n", "port", 9090),
    ],
)
def test_files_mean_what_they_look_like(ini: Any, text: str, name: str, value: object) -> None:
    assert load(ini(text)).values[name] == value


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "w.ini"
    path.write_bytes(b"\xef\xbb\xbf[balancer]\r\nport = 80\r\nlog = /x\r\n")
    settings = load(["-c", str(path)])
    assert (settings.values["port"], settings.values["log"]) == (80, "/x")


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("prot = 80", 2, "key prot is unknown; did you mean port?"),
        ("check-config = yes", 2, "key check-config is unknown"),
        ("config = other.ini", 2, "key config is unknown"),
        ("\n[balacner]\nport = 1", 3, "section [balacner] is unknown; did you mean [balancer]?"),
        (
            "port = 1\nlog = x\nport = 2",
            4,
            "port was already set on line 2; several values go one per line, indented",
        ),
        ("port = 1\n  2\n", 2, "port takes one value, 2 are given"),
        ("port", 2, "'port' is neither key = value nor [section]"),
        ("= 3", 2, "'= 3' is neither key = value nor [section]"),
        ("\n\nport = x", 4, "port: 'x' is not a port: write a number from 0 to 65535"),
        ("debug = perhaps", 2, "debug: 'perhaps' is neither yes nor no"),
        ("idle-timeout = 5 s", 2, "idle-timeout: '5 s' is not a duration: write 250ms, 5s, 10m or 1h"),
    ],
)
def test_slips_in_a_file_are_named_by_file_line_and_key(ini: Any, text: str, line: int, why: str) -> None:
    argv = ini(text)
    assert refusal(argv).startswith(f"{argv[1]}:{line}: {why}")


def test_a_file_for_somebody_else(ini: Any) -> None:
    argv = ini("port = 1\n", section="[resizer]\n")
    assert refusal(argv) == f"{argv[1]} has no section [balancer]"


def test_keys_before_any_section(ini: Any) -> None:
    argv = ini("port = 1\n[balancer]\n", section="")
    assert refusal(argv) == f"{argv[1]}:1: port stands before [balancer]"


def test_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "b.ini"
    path.write_bytes(b"[balancer]\nlog = \xff\xfe\n")
    assert refusal(["-c", str(path)]) == f"cannot read configuration file {path}: it is not UTF-8 text"


def test_a_file_without_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "flood.ini"
    path.write_text("[toy]\n" + "# much ado\n" * 100_000)
    assert refusal(["-c", str(path)]) == f"cannot read configuration file {path}: it has more than 1m"


def test_a_pipe_without_writer_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert refusal(["-c", str(path)]) == f"cannot read configuration file {path}: it is not a regular file"


# ---- questions and texts ----------------------------------------------------------------------------------


def test_help_and_version_come_before_any_check() -> None:
    for word, text in (
        ("--help", "the help"),
        ("-help", "the help"),
        ("--version", "b 1"),
        ("-version", "b 1"),
    ):
        with pytest.raises(CommandLineAnswer, match=text):
            config.answer_early(["--prot", word], "b 1", lambda: "the help")
    config.answer_early(["-h", "100"], "b 1", lambda: "the help", QUESTIONS)
    with pytest.raises(CommandLineAnswer, match="the help"):
        config.answer_early(["-h", "100"], "b 1", lambda: "the help", DAEMON_QUESTIONS)


def test_print_config_reads_back_and_tells_sources(ini: Any, tmp_path: Path) -> None:
    argv = [*ini("log = '/a ; b'\nidle-timeout = 90\n"), "-u", "a:1", "-u", "[::1]:2"]
    settings = load([*argv, "--print-config"], {"BALANCER_DEBUG": "1"})
    with pytest.raises(CommandLineAnswer) as answer:
        config.answer_late("balancer", OPTIONS, settings, {"debug-dir": "/tmp"})
    text = str(answer.value)
    rows = [row.split(" ; ")[0].strip() + " | " + row.rpartition(" ; ")[2] for row in text.splitlines()[1:]]
    assert "idle-timeout = 90s | " + settings.sources["idle-timeout"] in rows
    assert "upstream = | command line" in rows and "    a:1\n    [::1]:2\n" in text
    assert "debug = 1 | environment BALANCER_DEBUG" in rows
    assert "debug-dir = . | default, which is /tmp" in rows
    copy = tmp_path / "copy.ini"
    copy.write_text(text)
    again = load(["-c", str(copy)]).values
    asked = ("config", "print-config")
    assert {name: value for name, value in again.items() if name not in asked} == {
        name: value for name, value in settings.values.items() if name not in asked
    }


def test_check_config_says_ok() -> None:
    with pytest.raises(CommandLineAnswer, match="balancer: configuration OK"):
        config.answer_late("balancer", OPTIONS, load(["--check-config"]), {})
    config.answer_late("balancer", OPTIONS, load(), {})


def test_entry_points_exit_2_with_the_sentence_and_0_with_an_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        config.ask("balancer", lambda: load(["--prot=1"]))
    assert capsys.readouterr().err == (
        "balancer: option --prot is unknown; did you mean --port? (see balancer --help)\n"
    )

    def answer() -> None:
        raise CommandLineAnswer("fine")

    with pytest.raises(SystemExit, match="0"):
        config.ask("balancer", answer)
    assert capsys.readouterr().out == "fine\n"


def test_ranges_of_numbers() -> None:
    assert (at_least(1)("7"), between(-5, 5)("-3")) == (7, -3)
    for parse, text in (
        (at_least(1), "0"),
        (between(0, 3), "4"),
        (at_least(0), "1.5"),
        (at_least(0), ""),
        (at_least(0), "٣"),
    ):
        with pytest.raises(ValueError, match=text or "whole"):
            parse(text)


@pytest.mark.parametrize("text", ["", "y", "2", "truee"])
def test_what_is_no_flag(text: str) -> None:
    with pytest.raises(ValueError, match="neither yes nor no"):
        parse_flag(text)
