"""The options of resize-client: typed values, agreement with imaging, the checks across options."""

import ast
from pathlib import Path

import pytest

from balancer.config.option import CommandLineAnswer, ConfigError
from workers.client.options import OPTIONS, parse_client
from workers.imaging.job import (
    FITS,
    FORMATS,
    GRAVITIES,
    ICC,
    KEPT,
    PARAMETERS,
    SUBSAMPLINGS,
    parse_parameters,
)

ROOT = Path(__file__).resolve().parents[4]
NEEDED = ["--input", "/", "-w", "1"]


def test_the_choices_are_those_of_imaging() -> None:
    choices = {option.name: option.choices for option in OPTIONS}
    assert choices["fit"] == FITS
    assert choices["format"] == FORMATS
    assert choices["gravity"] == GRAVITIES
    assert choices["icc"] == ICC
    assert choices["subsampling"] == SUBSAMPLINGS
    assert choices["keep"] == KEPT


def test_values(tmp_path: Path) -> None:
    words = f"-proxy [::1]:9090 -minconns=2 -input {tmp_path} -w 160 -h=120 --include *.jpg --include *.png -dry-run"
    read = parse_client([*words.split(), "--report", "x.csv"], {})
    assert (str(read.proxy), read.minconns, read.maxconns) == ("[::1]:9090", 2, 2)
    assert (read.width, read.height, read.dry_run) == (160, 120, True)
    assert read.include == ("*.jpg", "*.png")


def test_an_empty_format_keeps_each_source_s_own() -> None:
    assert parse_client([*NEEDED, "--format", ""], {}).format == ""
    assert parse_client(NEEDED, {"RESIZE_CLIENT_FORMAT": ""}).format == ""


def test_h_is_the_height_and_help_is_spelt_out(tmp_path: Path) -> None:
    assert parse_client(["--input", str(tmp_path), "-h", "7"], {}).height == 7
    for argv in (["--help"], ["-help"]):
        with pytest.raises(CommandLineAnswer, match="-h, --height PIXELS"):
            parse_client(argv, {})


@pytest.mark.parametrize("option", ["log", "report", "output"])
def test_what_cannot_be_written_is_said_before_the_work(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = f"{tmp_path}/file/x.json"
    check = ["--check-config"] if option == "output" else []
    with pytest.raises(ConfigError) as refused:
        parse_client([*NEEDED, "--proxy=127.0.0.1:1", f"--{option}", path, *check], {})
    assert str(refused.value).startswith(f"--{option}: ") and f"{tmp_path}/file is no directory" in str(
        refused.value
    )
    assert parse_client([*NEEDED, f"--{option}", f"{tmp_path}/new.json"], {})
    with pytest.raises(CommandLineAnswer, match="configuration OK"):
        parse_client([*NEEDED, "--proxy=127.0.0.1:1", "--output", f"{tmp_path}/a/b/c", "--check-config"], {})


def test_a_check_looks_the_proxy_up() -> None:
    with pytest.raises(CommandLineAnswer) as answer:
        parse_client([*NEEDED, "--proxy", "127.0.0.1:1", "--check-config"], {})
    assert str(answer.value) == "resize-client: configuration OK"
    with pytest.raises(CommandLineAnswer, match=r"note: --proxy: nowhere\.invalid:1 has no address: "):
        parse_client([*NEEDED, "--proxy", "nowhere.invalid:1", "--check-config"], {})


def imported_by(path: Path) -> set[str]:
    """Modules of this tree that a file imports, directly or through others."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += (
            [f"{names[0]}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        )
        for name in names:
            target = ROOT / (name.replace(".", "/") + ".py")
            if name not in found and target.exists():
                found |= {name} | imported_by(target)
    return found


def test_the_options_need_neither_imaging_nor_the_machinery_of_a_daemon() -> None:
    found = imported_by(ROOT / "workers/client/options.py")
    assert "balancer.config.units" in found
    assert not [
        name for name in found if name.startswith(("workers.imaging", "balancer.prefork", "balancer.shm"))
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no input: name the directory of the pictures with --input DIR"),
        (["--input", "/absent", "-w", "1"], "--input: /absent is not a directory"),
        (["--input", "/"], "no size: give the width with -w, the height with -h, or both"),
        ([*NEEDED, "--minconns", "3", "--maxconns", "2"], "--maxconns: 2 is below minconns, 3"),
        ([*NEEDED, "--minconns", "0"], "--minconns: '0' is below 1, the lowest that makes sense"),
        ([*NEEDED, "--report", "r.txt"], "--report: r.txt ends neither in .json nor in .csv"),
        ([*NEEDED, "--format", "tiff"], "--format: 'tiff' is not one of jpeg, png, gif, webp, avif"),
        ([*NEEDED, "--quality", "101"], "--quality: '101' is above 100, the highest that makes sense"),
        ([*NEEDED, "--proxy", "localhost"], "--proxy: 'localhost' has no port"),
        (["-h"], "--height needs a value (PIXELS)"),
        (["-w160x120"], "--width: '160x120' is not a whole number"),
    ],
)
def test_refusals(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_client(argv, {})
    assert str(refused.value).startswith(words)


def test_parameters_are_sent_only_when_they_are_asked_for(tmp_path: Path) -> None:
    def parameters(*arguments: str) -> str:
        return parse_client(["--input", str(tmp_path), "-w", "9", *arguments], {}).parameters

    assert parameters() == ""
    asked = "--gravity north --no-enlarge --icc keep --subsampling 444 --keep exif --keep xmp --tolerant"
    text = "gravity=north&enlarge=no&icc=keep&subsampling=444&keep=exif,xmp&tolerant=yes"
    assert parameters(*asked.split()) == text
    assert set(parse_parameters(text)) == set(PARAMETERS)


@pytest.mark.parametrize(
    "words",
    [
        "--proxy localhost:9092 --input={} --output=./resized -w 200 -h 200 --times=100 --minconns=100 --loglevel=0 "
        "--dry-run",
        "--proxy proxy-server:9090 --maxconns=15 --minconns=8 --times=5 -w 160 -h 160 --loglevel=1 --input={} "
        "--output=/imgresized",
    ],
)
def test_command_lines_of_the_original_s_documents_are_understood(words: str, tmp_path: Path) -> None:
    options = parse_client(words.format(tmp_path).split(), {})
    assert options.minconns in (8, 100)
    assert options.maxconns == (15 if options.minconns == 8 else 100)
