"""docs/LOG.md names every verb, field and end that the sources write, and none that they do not."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from balancer.relay import ends
from balancer.shm.events import Verb

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "LOG.md").read_text()
SOURCES = [path for package in ("balancer", "workers") for path in sorted((ROOT / package).rglob("*.py"))]
LEVELS = ("info", "warning", "error", "debug")
# Sources whose f-strings are lines: from the verb on.
LINES = {
    "session_line.py": "session",
    "peers.py": "session",  # what stands behind the client
    "requests.py": "request",
    "ledger.py": "request",
    "front_connection.py": "session",
}


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """The words in backticks of each row's first cell."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def calls() -> Iterator[tuple[str, ast.Call, list[str]]]:
    """(method, call, its words) of every call that writes a line."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                words = [
                    one.value
                    for one in node.args
                    if isinstance(one, ast.Constant) and isinstance(one.value, str)
                ]
                method = ast.unparse(node.func).rpartition(".")[2]
                if method in ("tell", "_tell") or (method in LEVELS and "log" in ast.unparse(node.func)):
                    yield method, node, words


def verbs() -> set[str]:
    found = {words[0] for method, _, words in calls() if method in LEVELS and words}
    found |= {words[-1] for method, _, words in calls() if method not in LEVELS and words}
    repeated = re.compile(r'RepeatedLine\([^)]*log\.\w+, "([a-z-]+)"\)')
    found |= {verb for path in SOURCES for verb in repeated.findall(path.read_text())}
    return (found | set(LINES.values())) - set(LEVELS)  # a `_tell` of one verb gives its level alone


def fields() -> set[str]:
    found = {word.arg for _, call, _ in calls() for word in call.keywords if word.arg}
    for path in SOURCES:
        if path.name in LINES:
            parts = [
                node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr)
            ]
            found |= {name for part in parts for name in re.findall(r"\b([a-z]+)=(?=\{)", ast.unparse(part))}
    source = (ROOT / "balancer" / "console" / "peer.py").read_text()
    labels = re.findall(r"def labels.*?return {(.*?)}", source, re.DOTALL)
    return (found | {name for one in labels for name in re.findall(r'"([a-z_]+)": ', one)}) - {"then"}


def test_every_verb_is_explained() -> None:
    page, events = section("Verbs"), set(get_args(Verb))
    assert sorted(first_cells(page)) == sorted(verbs() | events | {"log"})  # the log's own lines
    assert set(re.findall(r"^\| `([a-z-]+)`\*", page, re.MULTILINE)) == events


def test_every_end_is_explained() -> None:
    assert set(first_cells(section("How sessions end"))) == set(ends.ORDER)


def test_every_field_is_named() -> None:
    named = set(re.findall(r"`([a-z_]+)`", section("Fields")))
    assert fields() <= named, fields() - named


def test_no_field_has_the_name_of_one_that_every_line_has() -> None:
    assert not fields() & {"time", "level", "process", "pid", "verb"}


@pytest.mark.parametrize("name", ["LOG.md", "METRICS.md"])
def test_what_a_page_calls_an_end_is_one(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert set(re.findall(r"`([CScsPRK][CRQD])`", text)) <= set(ends.ORDER)
