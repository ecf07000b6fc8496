"""The options of the resizer and of the client: typed values, agreement with the rooms they configure, checks across."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from balancer.config.loader import Answer, ConfigError
from workers import option_tables, options
from workers.imaging.job import FITS, FORMATS, ICC
from workers.imaging.limits import PictureLimits
from workers.options import ClientOptions, ResizerOptions, parse_client, parse_resizer

ASKED = {"check_config", "print_config", "version", "help"}


def test_every_option_has_its_field_and_every_field_its_option() -> None:
    for table, shape in ((option_tables.RESIZER, ResizerOptions), (option_tables.CLIENT, ClientOptions)):
        assert {option.field for option in table} - ASKED == {
            field.name for field in dataclasses.fields(shape)
        } - {"notes"}


def test_limits_begin_where_the_imaging_room_does() -> None:
    read, limits = parse_resizer([], {}), PictureLimits()
    assert (read.max_frame, read.max_pixels, read.max_side) == (
        limits.max_bytes,
        limits.max_pixels,
        limits.max_side,
    )
    assert read.max_target_pixels == limits.max_target_pixels
    assert (read.max_frames, read.max_scans) == (limits.max_frames, limits.max_scans)
    client = {option.name: option.choices for option in option_tables.CLIENT}
    assert client["fit"] == FITS
    assert client["format"] == ("", *FORMATS)
    assert {option.name: option.choices for option in option_tables.RESIZER}["icc"] == ICC


def test_resizer_values() -> None:
    read = parse_resizer(
        [
            "-port=9001",
            "--name",
            "backend-1",
            "--cpus",
            "4",
            "--max-frame",
            "8m",
            "--no-http",
            "--job-timeout=1.5s",
        ],
        {},
    )
    assert (read.port, read.name, read.cpus, read.max_frame) == (9001, "backend-1", 4, 8 << 20)
    assert (read.http, read.job_timeout, [str(a) for a in read.bind]) == (False, 1.5, ["0.0.0.0:9001"])
    assert parse_resizer([], {"RESIZER_CPUS": "3", "RESIZER_PORT": "tcp://10.0.0.1:9000"}).cpus == 3


def test_a_resizer_has_a_name_without_being_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options.socket, "gethostname", lambda: "web1.example.org")
    assert parse_resizer([], {}).name == "web1-9000"


def test_client_values(tmp_path: Path) -> None:
    words = f"-proxy [::1]:9090 -minconns=2 -input {tmp_path} -w 160 -h=120 --include *.jpg --include *.png -dry-run"
    read = parse_client([*words.split(), "--report", "x.csv"], {})
    assert (str(read.proxy), read.minconns, read.maxconns) == ("[::1]:9090", 2, 2)
    assert (read.width, read.height, read.dry_run) == (160, 120, True)
    assert read.include == ("*.jpg", "*.png")


def test_h_is_the_height_and_help_is_spelt_out(tmp_path: Path) -> None:
    assert parse_client(["--input", str(tmp_path), "-h", "7"], {}).height == 7
    for argv in (["--help"], ["-help"]):
        with pytest.raises(Answer, match="-h, --height PIXELS"):
            parse_client(argv, {})
    with pytest.raises(Answer, match="--max-pixels"):
        parse_resizer(["--help"], {})


CLIENT_NEEDS = ["--input", "/", "-w", "1"]


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
def test_resizer_refusals(argv: list[str], words: str) -> None:
    refuses(parse_resizer, argv, words)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no input: name the directory of the pictures with --input DIR"),
        (["--input", "/absent", "-w", "1"], "--input: /absent is not a directory"),
        (["--input", "/"], "no size: give the width with -w, the height with -h, or both"),
        ([*CLIENT_NEEDS, "--minconns", "3", "--maxconns", "2"], "--maxconns: 2 is below minconns, 3"),
        ([*CLIENT_NEEDS, "--minconns", "0"], "--minconns: '0' is below 1, the lowest that makes sense"),
        ([*CLIENT_NEEDS, "--report", "r.txt"], "--report: r.txt ends neither in .json nor in .csv"),
        ([*CLIENT_NEEDS, "--format", "tiff"], "--format: 'tiff' is not one of jpeg, png, gif, webp, avif"),
        ([*CLIENT_NEEDS, "--quality", "101"], "--quality: '101' is above 100, the highest that makes sense"),
        ([*CLIENT_NEEDS, "--proxy", "localhost"], "--proxy: 'localhost' has no port"),
        (["-h"], "--height needs a value (PIXELS)"),
        (["-w160x120"], "--width: '160x120' is not a whole number"),
    ],
)
def test_client_refusals(argv: list[str], words: str) -> None:
    refuses(parse_client, argv, words)


def refuses(parse: object, argv: Sequence[str], words: str) -> None:
    assert callable(parse)
    with pytest.raises(ConfigError) as refused:
        parse(argv, {})
    assert str(refused.value).startswith(words)
