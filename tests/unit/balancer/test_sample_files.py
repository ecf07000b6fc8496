"""Samples: each is there, is what it says, and is found beside a checkout as well as in the record of an installation."""

from pathlib import Path, PurePosixPath

import pytest
import yaml

from balancer.config.option import CommandLineAnswer, UsageError
from balancer.configuration import parse
from balancer.sample_files import PLACE, ROOT, SAMPLES, NoSample, answer_sample, find, sample


def asked(*argv: str) -> str:
    with pytest.raises(CommandLineAnswer) as answer:
        answer_sample(argv)
    return str(answer.value)


@pytest.mark.parametrize("which", SAMPLES)
def test_a_sample_is_the_shipped_files(which: str) -> None:
    text = asked("--print-sample", which)
    assert text == asked(f"--print-sample={which}") == sample(which)
    for name in SAMPLES[which]:
        assert (ROOT / "conf" / name).read_text().strip() in text


def test_without_a_word_it_is_the_full_file() -> None:
    assert asked("--print-sample") == asked("--print-sample", "--debug") == sample("full")
    answer_sample(["-u", "a:1"])  # no question


@pytest.mark.parametrize("which", [which for which, names in SAMPLES.items() if names[0].endswith(".ini")])
def test_a_configuration_can_be_read_back(which: str, tmp_path: Path) -> None:
    path = tmp_path / "b.ini"
    path.write_text(sample(which))
    assert parse(["-c", str(path), "--admin=off"], {}).pools


def test_the_command_line_of_the_compose_file_is_understood() -> None:
    services = yaml.safe_load(sample("compose"))["services"]
    program, *argv = services["balancer"]["command"]
    options = parse([*argv, "--admin=off"], {})
    names = [backend.address.host for pool in options.pools for backend in pool.backends]
    assert program == "balancer" and set(names) == set(services) - {"balancer"}


def test_a_wrong_word_is_answered_with_the_right_ones() -> None:
    with pytest.raises(UsageError, match=r"'systmd' is not one of full, .*did you mean systemd\?"):
        answer_sample(["--print-sample", "systmd"])


def test_an_installation_is_found_by_its_record(tmp_path: Path) -> None:
    there = tmp_path / "data" / "balancer.ini"
    there.parent.mkdir()
    there.write_text("x")
    record = [
        (PurePosixPath("balancer/options.py"), tmp_path / "options.py"),
        (PurePosixPath(f"../../../{PLACE}/kubernetes/balancer.ini"), tmp_path / "other"),
        (PurePosixPath(f"../../../{PLACE}/balancer.ini"), there),
    ]
    assert find("balancer.ini", tmp_path, lambda: record) == there
    there.unlink()
    with pytest.raises(NoSample, match=r"there is no share/prefork-balancer/balancer\.ini"):
        find("balancer.ini", tmp_path, lambda: record)
