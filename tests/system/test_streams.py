"""What programs print survives any stream: a closed pipe, /dev/full, closed descriptors, an ASCII terminal."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.lab.process import ROOT, clean_environment

PROGRAMS = {
    "balancer": ["balancer", "-u", "a:1", "--admin=/tmp/ä/\udcff"],
    "resizer": ["workers.resizer", "--name=ä"],
    "resize-client": ["workers.client", "-w", "1", "--log=/ä"],
    "balancerctl": ["balancer.ctl", "--admin=/tmp/ä"],
}
QUESTIONS = [
    *((program, question) for program in PROGRAMS for question in ("--help", "--version", "--nonsense")),
    *((program, "--print-config") for program in PROGRAMS if program != "balancerctl"),
    *((program, "-h") for program in ("balancer", "resizer", "balancerctl")),
    ("balancerctl", "status"),
    ("balancer", "--check-config"),
]
Streams = Callable[[list[str]], "subprocess.CompletedProcess[bytes]"]


def run(
    command: list[str], redirection: str = "", **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    """Run by a shell, whose redirections can close a descriptor."""
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {redirection}', "bash", *command],
        cwd=ROOT,
        capture_output=True,
        timeout=30,
        env=clean_environment(environment),
    )


def to_no_reader(command: list[str]) -> "subprocess.CompletedProcess[bytes]":
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as out:
        return subprocess.run(
            command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, timeout=30, env=clean_environment()
        )


STREAMS: dict[str, Streams] = {
    "a closed pipe": to_no_reader,
    "/dev/full": lambda command: run(command, ">/dev/full"),
    "/dev/full for errors": lambda command: run(command, "2>/dev/full"),
    "no standard output": lambda command: run(command, ">&-"),
    "no standard error": lambda command: run(command, "2>&-"),
    "nothing at all": lambda command: run(command, "<&- >&- 2>&-"),
    "an ASCII terminal": lambda command: run(command, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C"),
}


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize(("program", "question"), QUESTIONS)
def test_no_stream_makes_a_traceback(program: str, question: str, streams: str) -> None:
    done = STREAMS[streams]([sys.executable, "-m", *PROGRAMS[program], question])
    text = (done.stderr or b"") + (done.stdout or b"")
    assert b"Traceback" not in text and b"Exception ignored" not in text, text.decode(errors="replace")
    is_wrong = question == "--nonsense"
    assert done.returncode in ((2,) if is_wrong else (0, 1, 2)), (done.returncode, text)
    if streams == "/dev/full" and not is_wrong and done.returncode == 1:
        assert text.startswith(program.encode() + b": ") and text.count(b"\n") == 1
    if streams == "a closed pipe" and question in ("--help", "-h", "--version"):
        assert (done.returncode, text) == (0, b"")


MISSES = {
    "balancer": (["balancer"], "balancer_upstream", "BALANCER_UPSTREAM", "no upstream"),
    "resize-client": (
        ["workers.client", "-w", "1"],
        "RESIZE_CLIENT_IMPUT",
        "RESIZE_CLIENT_INPUT",
        "no input",
    ),
    "resizer": (["workers.resizer", "-p", "x"], "RESIZERPORT", "RESIZER_PORT", "--port: 'x'"),
}


@pytest.mark.parametrize("question", [[], ["--check-config"]])
@pytest.mark.parametrize("program", MISSES)
def test_a_refusal_names_the_variable_that_was_nearly_right(program: str, question: list[str]) -> None:
    """What it says is missing may be in there."""
    words, given, meant, sentence = MISSES[program]
    done = run([sys.executable, "-m", *words, *question], **{given: "/value"})
    note, error = done.stderr.decode().splitlines()
    why = f"environment {given} is not an option and is ignored; did you mean {meant}?"
    assert (done.returncode, done.stdout, note) == (2, b"", f"{program}: note: {why}")
    assert error.startswith(f"{program}: {sentence}")


def test_what_a_terminal_cannot_show_is_an_escape() -> None:
    command = [sys.executable, "-m", *PROGRAMS["resizer"], "--print-config"]
    done = run(command, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert done.returncode == 0 and b"\\xe4" in done.stdout, (done.returncode, done.stderr)


def test_the_number_of_a_closed_descriptor_is_given_to_no_file(tmp_path: Path) -> None:
    """Every line for the stream would go into that file, or to that client."""
    code = "import os, sys; from balancer.config.streams import open_streams; open_streams()\n"
    code += "os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), b'%d' % os.open('/dev/null', 0))"
    for redirection in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        found = tmp_path / "number"
        assert run([sys.executable, "-c", code, str(found)], redirection).returncode == 0
        assert int(found.read_text()) > 2, redirection
        found.unlink()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_usage_error_names_the_program_and_where_help_is(program: str, tmp_path: Path) -> None:
    done = run([sys.executable, "-m", *PROGRAMS[program], "--nonsense"])
    [line] = done.stderr.decode().splitlines()
    assert done.returncode == 2 and done.stdout == b""
    assert line.startswith(f"{program}: option --nonsense is unknown") and line.endswith(
        f"(see {program} --help)"
    )
