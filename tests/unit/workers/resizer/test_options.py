"""The options of the resizer: typed values, agreement with the imaging they configure, the checks across options."""

import dataclasses
from pathlib import Path

import pytest

from balancer.config.option import CommandLineAnswer, ConfigError
from workers.imaging.job import ICC
from workers.imaging.limits import PictureLimits
from workers.resizer.options import OPTIONS, ResizerOptions, default_name, parse_resizer


def test_the_limits_of_the_options_are_those_of_imaging() -> None:
    assert parse_resizer([], {}).limits == PictureLimits()
    assert {option.name: option.choices for option in OPTIONS}["icc"] == ICC


def test_every_limit_of_a_picture_follows_its_option() -> None:
    names = [field.name for field in dataclasses.fields(PictureLimits)]
    names.remove("max_memory")  # what memory-limit leaves is known in a CPU process
    argv = [f"--{'max-frame' if name == 'max_bytes' else name.replace('_', '-')}=2048" for name in names]
    limits = dataclasses.asdict(parse_resizer(argv, {"RESIZER_EXPRESS_BYTES": "1"}).limits)
    assert limits == {**dict.fromkeys(names, 2048), "max_memory": 0}


def test_values() -> None:
    words = (
        "-port=9001 --name backend-1 --cpus 4 --max-frame 8m --no-http --job-timeout=1.5s --idle-timeout 0"
    )
    read = parse_resizer(words.split(), {})
    assert (read.name, read.cpus, read.max_frame) == ("backend-1", 4, 8 << 20)
    assert (read.http, read.job_timeout, read.idle_timeout) == (False, 1.5, float("inf"))
    assert [str(address) for address in read.addresses] == ["0.0.0.0:9001"]
    assert parse_resizer([], {"RESIZER_CPUS": "3", "RESIZER_PORT": "tcp://10.0.0.1:9000"}).cpus == 3


def test_a_record_without_arguments_has_the_defaults() -> None:
    read = parse_resizer(["--cpus", "1"], {})
    given = {"addresses": read.addresses, "name": read.name, "fills_machine": read.fills_machine}
    assert ResizerOptions(cpus=1, **given) == read  # type: ignore[arg-type]


def test_a_resizer_has_a_name_without_being_given_one() -> None:
    name = parse_resizer(["-p", "9007"], {}).name
    assert name == default_name(9007) and name.endswith("-9007")


def test_a_memory_limit_leaves_room_for_pictures() -> None:
    for words, needed in (
        (["1"], "321m"),
        (["1k"], "321m"),
        (["320m"], "321m"),
        (["400m", "--max-frame=128m"], "513m"),
    ):
        with pytest.raises(ConfigError) as refused:
            parse_resizer(["--memory-limit", *words], {})
        sentence = f"leaves no room for pictures: write {needed} or more, or 0"
        assert sentence in str(refused.value) and "--memory-limit" in str(refused.value)
    for text, size in (("321m", 321 << 20), ("0", 0)):
        assert parse_resizer(["--memory-limit", text], {}).memory_limit == size


def test_a_check_tries_files_and_addresses(tmp_path: Path) -> None:
    absent = f"{tmp_path}/absent/file"
    for option in ("log", "pidfile", "bind=unix:"):
        name, _, prefix = option.partition("=")
        with pytest.raises(ConfigError) as refused:
            parse_resizer([f"--{name}={prefix}{absent}", "--check-config"], {})
        assert str(refused.value) == f"--{name}: {absent} cannot be made: {tmp_path}/absent is missing"
    with pytest.raises(CommandLineAnswer) as answer:
        parse_resizer(["--bind=192.0.2.7", "--check-config"], {})
    note = "resizer: note: --bind: 192.0.2.7:9000 is no address of this machine"
    assert str(answer.value) == f"{note}\nresizer: configuration OK"


def test_help_names_every_option() -> None:
    with pytest.raises(CommandLineAnswer) as answer:
        parse_resizer(["--help"], {})
    for option in OPTIONS:
        assert f"--{option.name}" in str(answer.value) or f"--[no-]{option.name}" in str(answer.value)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--fronts", "3", "--cpus", "2"], "--fronts: 3 fronts need as many CPU processes, cpus is 2"),
        (["--express-bytes", "33m"], "--express-bytes: is above max-frame, so every request would be small"),
        (["--max-frame", "1"], "--max-frame: '1' is below 1024, the lowest that makes sense"),
        (["--max-frame", "2g"], "--max-frame: '2g' is above 1073741824, the highest that makes sense"),
        (["--max-side", "70000"], "--max-side: '70000' is above 65535, the highest that makes sense"),
        (["--name", "a b"], "--name: 'a b' is not a name: at most 64 printable characters and no blanks"),
        (["--orient", "maybe"], "--orient: 'maybe' is not one of auto, yes, no"),
        (["--job-timeout", "0"], "--job-timeout: '0' would mean no time at all"),
        (["--nice", "-5"], "--nice: '-5' is below 0, the lowest that makes sense"),
        (["--max-pixel", "5"], "option --max-pixel is unknown; did you mean --max-pixels?"),
    ],
)
def test_refusals(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_resizer(argv, {})
    assert str(refused.value).startswith(words)
