"""What `make versus` writes: a document from one whole run, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.versus import main
from scripts.versuslib.peers import PEERS, PeerKind
from scripts.versuslib.rows import ROWS, Figures, Row, Size

KINDS = {name: replace(kind, version=lambda: "9.9") for name, kind in PEERS.items()}
FOUR = [Row(number, f"row {number}", ROWS[0].run) for number in (1, 2, 3, 4)]
OLD = "the document of the last whole run"


def measured(row: Row, kind: PeerKind, size: Size) -> tuple[Figures, str]:
    return {"n": row.number}, f"{row.number} by {kind.name}"


@pytest.fixture
def versus(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """(exit code, the document after it, the figures after it) of a run; nothing is started."""
    out, figures = tmp_path / "versus.md", tmp_path / "versus.json"

    def run(
        *words: str, rows: list[Row] = FOUR, lacking: tuple[str, ...] = (), old: str = OLD
    ) -> tuple[int, str, str]:
        out.write_text(old)
        figures.write_text(OLD)
        everything = [*words, f"--out={out}", f"--json={figures}"]
        code = main(everything, rows, KINDS, measured, lambda name: name in lacking)
        return code, out.read_text(), figures.read_text()

    return run


def test_sections_of_the_document_that_others_write_stay(versus: Callable[..., tuple[int, str, str]]) -> None:
    code, text, _ = versus(old=f"{OLD}\n\n## Pictures\n\nA table.\n")
    assert code == 0 and OLD not in text
    assert text.endswith("\n\n## Pictures\n\nA table.\n") and text.count("## ") == 1


def test_a_whole_run_is_written(versus: Callable[..., tuple[int, str, str]]) -> None:
    code, text, figures = versus()
    assert code == 0
    assert (
        "| | ours | HAProxy | nginx |" in text and "| row 4 | 4 by ours | 4 by HAProxy | 4 by nginx |" in text
    )
    assert "HAProxy 9.9" in text and '"n": 4' in figures


@pytest.mark.parametrize(
    ("words", "options", "without"),
    [
        (["--rows=1,2,3"], {}, "row 4"),
        (["--rows=4"], {}, "row 1; row 2; row 3"),
        (["--peers=haproxy"], {}, "nginx"),
        (["--peers="], {}, "haproxy; nginx"),
        (["--rows=2", "--peers=nginx"], {}, "row 1; row 3; row 4; haproxy"),
        ([], {"lacking": ("nginx",)}, "nginx"),
        (["--long", "--rows=1,2,3"], {}, "row 4"),
        ([], {"rows": [*FOUR[:3], replace(FOUR[3], lacks=lambda: "root")]}, "row 4"),
    ],
    ids=[
        "three rows",
        "one row",
        "one peer",
        "ours alone",
        "a row and a peer",
        "not installed",
        "long",
        "not measurable",
    ],
)
def test_a_run_without_a_row_or_a_peer_is_printed_only_and_says_so(
    versus: Callable[..., tuple[int, str, str]],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    options: dict[str, object],
    without: str,
) -> None:
    assert versus(*words, **options) == (0, OLD, OLD)
    printed = capsys.readouterr().out
    assert "by ours |" in printed
    assert printed.rstrip().endswith(f"this run is without {without}.") and "Not written to " in printed


@pytest.mark.parametrize("words", [["--rows=9"], ["--rows=1,x"], ["--peers=envoy"]], ids=str)
def test_what_is_not_known_is_a_mistake(
    versus: Callable[..., tuple[int, str, str]], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """An unknown number once gave an empty table, and replaced the document by it."""
    assert versus(*words) == (2, OLD, OLD)
    assert "; there are: " in capsys.readouterr().err


def test_numbers_and_names_are_taken_once() -> None:
    assert len({row.number for row in ROWS}) == len({row.name for row in ROWS}) == len(ROWS)
