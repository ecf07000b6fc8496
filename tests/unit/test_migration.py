"""docs/MIGRATION.md: what stands on our side of each row is a configuration.

tests/system/test_migration.py has the other side."""

import re
from pathlib import Path

import pytest

from balancer.configuration import parse
from tests.documents import ROOT, chapters, configured, table_rows, with_files

CHAPTERS = chapters(ROOT / "docs" / "MIGRATION.md")
TABLES = [
    title for title in CHAPTERS if re.match(r"(HAProxy|nginx): ", title) and title != "HAProxy: the socket"
]
# Notes about what the other rows of the page have: a route for all others, the certificate; and what a row is about.
EXPECTED = r"without tls-cert|are not verified|no route matches"


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
