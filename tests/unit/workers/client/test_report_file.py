"""The file of --report: told at the start when it cannot be written, complete or absent at the end."""

import json
import os
from pathlib import Path

import pytest

from workers.client.report_file import ReportFile


@pytest.mark.parametrize("path", ["absent/r.json", "file/r.csv", "folder.json"])
def test_a_path_that_cannot_be_written_is_told_at_the_start(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    before = sorted(tmp_path.iterdir())
    report = ReportFile(str(tmp_path / path))
    with pytest.raises(OSError) as refused:
        report.open()
    assert refused.value.filename == str(tmp_path / path)
    report.close()
    assert sorted(tmp_path.iterdir()) == before


def test_the_report_of_an_earlier_run_stays_until_there_is_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    for is_done in (False, True):
        report = ReportFile(str(path))
        report.open()
        assert path.read_text() == "old"
        if is_done:
            report.write([{"picture": "x"}])
        report.close()
        assert os.listdir(tmp_path) == ["r.json"]
    assert json.loads(path.read_text()) == [{"picture": "x"}]


def test_a_report_that_fails_at_the_end_leaves_nothing(tmp_path: Path) -> None:
    report = ReportFile(str(tmp_path / "r.json"))
    report.open()
    (tmp_path / "r.json").mkdir()
    with pytest.raises(OSError):
        report.write([])
    report.close()
    assert os.listdir(tmp_path) == ["r.json"]


def test_no_report_is_asked_for(tmp_path: Path) -> None:
    report = ReportFile("")
    report.open()
    report.write([{"picture": "x"}])
    report.close()
