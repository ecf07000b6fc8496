"""The command line of balancerctl: options in any order, and sentences about what does not go together."""

import itertools
import shlex

import pytest

from balancer import ctl_options
from balancer.config.option import CommandLineAnswer, UsageError
from balancer.console.commands import ACTS, USAGES
from balancer.ctl_options import COMMANDS, FLAGS, help_text, parse


@pytest.mark.parametrize("order", list(itertools.permutations(["status", "--json", "-p 7000"])))
def test_options_in_any_order(order: tuple[str, ...]) -> None:
    line = parse(shlex.split(" ".join(order)))
    assert (line.words, line.port, "json" in line.options) == (("status",), 7000, True)


@pytest.mark.parametrize(
    "argv",
    [
        "drain web-2 --reason 'new disk'",
        "--reason 'new disk' drain web-2",
        "drain --reason='new disk' web-2",
        "drain --reason 'new disk' -- web-2",
    ],
)
def test_a_reason_anywhere(argv: str) -> None:
    line = parse(shlex.split(argv))
    assert (line.words, line.options) == (("drain", "web-2"), {"reason": "new disk"})


@pytest.mark.parametrize("argv", ["-p 9090", "-p9090", "-p=9090", "--port 9090", "--port=9090", "-port 9090"])
def test_spellings_of_an_option(argv: str) -> None:
    assert parse([*argv.split(), "status"]).port == 9090


def test_a_name_may_begin_with_a_dash_and_a_number_be_negative() -> None:
    assert parse(["drain", "--", "--odd"]).words == ("drain", "--odd")
    assert parse(["weight", "a", "-1"]).words == ("weight", "a", "-1")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("", "no command; there are: status, top, events, sources, sessions"),
        ("stauts", "unknown command 'stauts'; did you mean status?"),
        ("xyz", "unknown command 'xyz'; there are: status, top, events"),
        ("drain", "usage: balancerctl drain NAME..."),
        ("info a", "usage: balancerctl info"),
        ("workers 1 2", "usage: balancerctl workers [N]"),
        ("kill", "kill needs the ID of a session, or --client"),
        ("sessions --older x", "--older: 'x' is not a duration"),
        ("drain a --timeout 5s", "--timeout goes with --wait"),
        ("sessions --sni x", "--sni goes with explain, not with sessions"),
        ("weight a", "usage: balancerctl weight NAME N"),
        ("explain --option a --sni b", "--option asks for something of its own: give it alone"),
        ("wait up", "'up' is no condition here: wait ready | idle, or wait NAME... up | down | drained"),
        ("wait a ready", "'ready' is no condition here"),
        ("wait", "usage: balancerctl wait [NAME...] CONDITION"),
        ("status --jsn", "option --jsn is unknown; did you mean --json?"),
        ("status --follow", "--follow goes with events, not with status"),
        (
            "events --reason x",
            "--reason goes with kill, drain, ready, maint, weight, maxconn, add, remove, workers, record, reload, not "
            "with events",
        ),
        ("status --admin", "--admin needs a value (PATH)"),
        ("status --json=1", "--json takes no value"),
        ("status -p x", "--port: 'x' is no port from 1 to 65535"),
        ("status -p 0", "no port"),
        ("status -p 65536", "no port"),
        ("status -p 1 --admin a", "give one of them"),
    ],
)
def test_what_is_wrong_is_a_sentence(argv: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(shlex.split(argv))
    assert sentence in str(refused.value)


def test_a_name_with_a_line_end_is_refused() -> None:
    with pytest.raises(UsageError, match="line end"):
        parse(["drain", "a\nready b"])


@pytest.mark.parametrize("argv", [["-h"], ["--help"], ["status", "-h"], ["--help", "nonsense"]])
def test_help_wins_over_what_is_wrong(argv: list[str]) -> None:
    with pytest.raises(CommandLineAnswer) as text:
        parse(argv)
    assert str(text.value).startswith("balancerctl: ")


def test_the_help_names_every_command_and_option() -> None:
    text = help_text()
    for name in COMMANDS:
        assert f"\n  {name} " in text
    for flag in FLAGS:
        assert flag.spelling in text


def test_a_reload_may_name_the_certificates() -> None:
    assert parse(["reload", "certificates"]).words == ("reload", "certificates")
    with pytest.raises(UsageError) as refused:
        parse(["reload", "certificates", "x"])
    assert str(refused.value) == "usage: balancerctl reload [certificates]"


def test_the_console_knows_the_same_commands() -> None:
    """Parts of the status are asked for as the status, `wait` and `top` look at it, `errors` needs both."""
    assert set(COMMANDS) - set(ctl_options.VIEWS) - {"wait", "top"} | {"workers", "errors"} == set(USAGES)
    assert set(ctl_options.ACTS) == set(ACTS)
