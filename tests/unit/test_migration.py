"""docs/MIGRATION.md: what stands on our side of each row is a configuration.

tests/system/test_migration.py has the other side."""

import re
from pathlib import Path

import pytest

from balancer.configuration import parse
from balancer.options import KINDS
from tests.documents import ROOT, chapters, table_rows, with_files

CHAPTERS = chapters(ROOT / "docs" / "MIGRATION.md")
TABLES = [
    title for title in CHAPTERS if re.match(r"(HAProxy|nginx): ", title) and title != "HAProxy: the socket"
]
OWNERS = {option.name: kind.name for kind in KINDS for option in kind.options if option.name != "tls-cert"}
# Notes about what the other rows of the page have: a route for all others, the certificate; and what a row is about.
EXPECTED = r"without tls-cert|are not verified|no route matches"


def configured(items: list[str]) -> str:
    """A whole configuration with these lines, each in its section."""
    sections: dict[str, list[str]] = {"balancer": [], "listener main": [], "pool web": []}
    places = {"listener": "listener main", "pool": "pool web"}
    for item in items:
        name = item.partition(" = ")[0]
        owner = "listener" if name == "tls-cert" else OWNERS.get(name, "")
        sections[places.get(owner, "balancer")].append(item)
    present = {item.partition(" = ")[0] for item in items}
    if not present & {"bind", "port"}:
        sections["listener main"].append("port = 9090")
    if not present & {"pool", "route"}:
        sections["listener main"].append("pool = web")
    if "upstream" not in present:
        sections["pool web"].append("upstream = 10.0.0.1:80")
    return "".join(
        f"[{title}]\n" + "".join(f"{line}\n" for line in lines) for title, lines in sections.items()
    )


@pytest.mark.parametrize("title", TABLES)
def test_each_counterpart_is_a_configuration(title: str, tmp_path: Path) -> None:
    rows = list(table_rows(CHAPTERS[title]))
    assert len(rows) > 5
    for theirs, ours in rows:
        items = [code for code in ours if " = " in code]
        file = tmp_path / "balancer.ini"
        file.write_text(with_files(configured(items), tmp_path))
        read = parse(["-c", str(file)], {})
        assert [note for note in read.notes if not re.search(EXPECTED, note)] == [], theirs


@pytest.mark.parametrize("title", TABLES)
def test_each_row_says_what_to_do(title: str) -> None:
    for line in CHAPTERS[title].splitlines():
        if line.startswith("| `"):
            theirs, ours, difference = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)][1:-1]
            assert theirs and ours and (ours != "has none" or difference), line
