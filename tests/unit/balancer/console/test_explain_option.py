"""Where a value comes from: every level of precedence, flat and with sections, and names as people write them."""

from pathlib import Path

import pytest

from balancer.configuration import parse
from balancer.console.explain_option import UnknownOption, explain_option, option_called
from balancer.console.views import explain_text
from balancer.options import EVERY_OPTION, Options


def flat(directory: Path, argv: str = "", **environ: str) -> Options:
    path = directory / "b.ini"
    path.write_text("[balancer]\nport = 7000\nupstream = 127.0.0.1:9001\nretries = 1\n")
    return parse(
        ["-c", str(path), "--admin=off", *argv.split()], {f"BALANCER_{k}": v for k, v in environ.items()}
    )


def chain(options: Options, name: str, place: int = 0) -> list[tuple[str, str]]:
    """(value, source): what is in force, then what it replaces."""
    one = explain_option(name, options.sections)["values"][place]
    return [(one["value"], one["source"])] + [(old["value"], old["source"]) for old in one["replaced"]]


def test_each_level_replaces_those_below(tmp_path: Path) -> None:
    default, in_file = ("3", "default"), ("1", f"{tmp_path}/b.ini:4")
    variable, line = ("5", "environment BALANCER_RETRIES"), ("7", "command line")
    assert chain(flat(tmp_path), "retries") == [in_file, default]
    assert chain(flat(tmp_path, RETRIES="5"), "retries") == [variable, in_file, default]
    assert chain(flat(tmp_path, "--retries=7", RETRIES="5"), "retries") == [line, variable, in_file, default]
    assert chain(flat(tmp_path, "--idle-timeout=9m"), "idle-timeout")[0] == ("9m", "command line")
    assert chain(flat(tmp_path), "workers") == [("auto", "default")]


def test_a_value_of_the_own_section_replaces_what_it_would_inherit(tmp_path: Path) -> None:
    path = tmp_path / "s.ini"
    path.write_text(
        "[balancer]\nretries = 1\n[listener web]\nport = 7000\npool = a\n"
        "[pool a]\nupstream = 127.0.0.1:9001\nretries = 4\n[pool b]\nupstream =\n  127.0.0.1:9002\n  127.0.0.1:9003\n"
    )
    words = ["-c", str(path), "--admin=off", "--set", "pool a: retries=6"]
    options = parse(words, {"BALANCER__POOL_A__RETRIES": "5"})
    below = [("1", f"{path}:2"), ("3", "default")]
    above = [("6", "--set"), ("5", "environment BALANCER__POOL_A__RETRIES"), ("4", f"{path}:8")]
    assert chain(options, "retries") == above + below
    assert chain(options, "retries", 1) == below, "inherited"
    found = explain_option("retries", options.sections)
    assert [(one["section"], one["begins"]) for one in found["values"]] == [
        ("pool a", f"{path}:6"),
        ("pool b", f"{path}:9"),
    ]
    assert chain(options, "upstream", 1)[0] == ("127.0.0.1:9002, 127.0.0.1:9003", f"{path}:10")
    assert [one["section"] for one in explain_option("workers", options.sections)["values"]] == ["balancer"]
    text = explain_text(found)
    assert (
        f"[pool a] ({path}:6)\n  6    --set\n  replaces 5    environment BALANCER__POOL_A__RETRIES\n" in text
    )


@pytest.mark.parametrize("word", ["idle-timeout", "--idle-timeout", "idle_timeout", "BALANCER_IDLE_TIMEOUT"])
def test_a_name_may_be_written_as_anywhere(word: str) -> None:
    assert option_called(word).name == "idle-timeout"


def test_every_option_that_has_a_key_is_explained(tmp_path: Path) -> None:
    options = flat(tmp_path)
    for one in EVERY_OPTION:
        if not one.command_line_only and not one.named_only:
            assert explain_option(one.name, options.sections)["values"], one.name


def test_an_unknown_name_gets_a_guess() -> None:
    with pytest.raises(UnknownOption, match="did you mean idle-timeout"):
        option_called("idle-timout")


def test_a_line_that_has_moved_is_no_other_configuration(tmp_path: Path) -> None:
    before = flat(tmp_path)
    path = tmp_path / "b.ini"
    path.write_text("# a comment\n" + path.read_text())
    assert parse(["-c", str(path), "--admin=off"], {}) == before
