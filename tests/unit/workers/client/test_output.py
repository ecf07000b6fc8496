"""A result is complete in the output directory or absent; the journal trusts only files that exist."""

import errno
import os
from pathlib import Path

import pytest

from workers.client.journal import Journal
from workers.client.output import OutputDirectory
from workers.client.scan import JOURNAL, Picture


@pytest.fixture
def output(tmp_path: Path) -> OutputDirectory:
    return OutputDirectory(str(tmp_path / "out"))


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_sub_directories_are_made(output: OutputDirectory, tmp_path: Path) -> None:
    output.save("a/b/x.jpg", b"1")
    output.save("a/b/x.jpg", memoryview(b"22"))
    assert names(tmp_path) == ["out", "out/a", "out/a/b", "out/a/b/x.jpg"]
    assert (tmp_path / "out/a/b/x.jpg").read_bytes() == b"22"


def test_fsync_changes_nothing_that_can_be_seen(tmp_path: Path) -> None:
    OutputDirectory(str(tmp_path / "out"), fsync=True).save("x.jpg", b"1")
    assert names(tmp_path) == ["out", "out/x.jpg"]


def test_a_result_gets_the_time_it_is_given_before_its_line_is_written(
    output: OutputDirectory, tmp_path: Path
) -> None:
    noted = []
    output.save("x.jpg", b"1", lambda saved: noted.append(saved.st_mtime_ns), 1_234_567_891)
    assert noted == [1_234_567_891]
    assert os.stat(tmp_path / "out/x.jpg").st_mtime_ns == 1_234_567_891


@pytest.mark.parametrize("target", ["../x.jpg", "a/../../x.jpg", "/x.jpg", "./x.jpg"])
def test_paths_that_climb_are_refused_even_if_they_were_ours(
    output: OutputDirectory, tmp_path: Path, target: str
) -> None:
    with pytest.raises(PermissionError):
        output.save(target, b"1")
    assert not (tmp_path / "x.jpg").exists()


@pytest.mark.parametrize("inside", [False, True])
def test_a_linked_sub_directory_is_refused(output: OutputDirectory, tmp_path: Path, inside: bool) -> None:
    to = tmp_path / ("out/real" if inside else "elsewhere")
    to.mkdir()
    (tmp_path / "out/sub").symlink_to(to)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        output.save("sub/x.jpg", b"1")
    assert list(to.iterdir()) == []


def test_a_linked_target_is_replaced(output: OutputDirectory, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out/x.jpg").symlink_to(tmp_path / "precious")
    assert output.stat("x.jpg") is None
    output.save("x.jpg", b"1")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "out/x.jpg").read_bytes() == b"1"


def test_a_failure_after_the_data_leaves_nothing(output: OutputDirectory, tmp_path: Path) -> None:
    def full(saved: os.stat_result) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="space"):
        output.save("x.jpg", b"1", full)
    (tmp_path / "out/y.jpg").mkdir()
    with pytest.raises(OSError, match=r"directory"):
        output.save("y.jpg", b"1")
    assert names(tmp_path) == ["out", "out/y.jpg"]


def test_a_planted_partial_file_is_not_written_through(output: OutputDirectory, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out" / f".resize-client-{os.getpid()}-1.part").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        output.save("x.jpg", b"1")
    output.save("x.jpg", b"1")
    assert (tmp_path / "precious").read_text() == "precious"


def test_sweeping_takes_partial_files_of_these_folders_only(output: OutputDirectory, tmp_path: Path) -> None:
    for path in ("out/.resize-client-12-3.part", "out/my.part", "out/.resize-client-x-3.part"):
        (tmp_path / path).write_bytes(b"")
    (tmp_path / "out/other").mkdir()
    (tmp_path / "out/other/.resize-client-1-1.part").write_bytes(b"")
    assert output.sweep({"", "not there"}) == 1
    assert not (tmp_path / "out/.resize-client-12-3.part").exists()
    assert (tmp_path / "out/other/.resize-client-1-1.part").exists()


PICTURE = Picture("a/x.jpg", 100, 5_000, "jpeg")


def record(
    output: OutputDirectory, journal: Journal, picture: Picture, target: str, data: bytes = b"123"
) -> None:
    output.save(target, data, lambda saved: journal.note(picture, target, saved))


def test_what_was_saved_is_done_for_the_same_source_job_and_target(output: OutputDirectory) -> None:
    journal = Journal(output, "2x2")
    record(output, journal, PICTURE, "a/x-2x2.jpg")
    again = Journal(output, "2x2")
    assert again.is_done(PICTURE, "a/x-2x2.jpg")
    assert not again.is_done(PICTURE, "a/x~2-2x2.jpg")
    assert not again.is_done(Picture("a/x.jpg", 101, 5_000, "jpeg"), "a/x-2x2.jpg")
    assert not again.is_done(Picture("a/x.jpg", 100, 5_001, "jpeg"), "a/x-2x2.jpg")
    assert not Journal(output, "3x3").is_done(PICTURE, "a/x-2x2.jpg")


def test_a_line_without_its_result_proves_nothing(output: OutputDirectory, tmp_path: Path) -> None:
    """Killed between the line and the rename, over the result of an earlier run."""
    journal = Journal(output, "2x2")
    output.save("x-2x2.jpg", b"old")
    os.utime(tmp_path / "out/x-2x2.jpg", ns=(1, 1))
    (tmp_path / "out/part").write_bytes(b"new")
    journal.note(PICTURE, "x-2x2.jpg", os.stat(tmp_path / "out/part"))
    assert not Journal(output, "2x2").is_done(PICTURE, "x-2x2.jpg")
    os.rename(tmp_path / "out/part", tmp_path / "out/x-2x2.jpg")
    assert Journal(output, "2x2").is_done(PICTURE, "x-2x2.jpg")


@pytest.mark.parametrize(
    "noise", [b"{", b"[]\n", b"null\n", b"\xff\xfe\n", b'{"job": "2x2"}\n', b'{"source": "a/x']
)
def test_a_broken_line_is_as_good_as_absent(output: OutputDirectory, tmp_path: Path, noise: bytes) -> None:
    record(output, Journal(output, "2x2"), PICTURE, "x-2x2.jpg")
    with (tmp_path / "out" / JOURNAL).open("ab") as file:
        file.write(noise)
    other = Picture("\udce9.jpg", 1, 2, "jpeg")
    journal = Journal(output, "2x2")
    record(output, journal, other, "\udce9-2x2.jpg")
    again = Journal(output, "2x2")
    assert again.is_done(PICTURE, "x-2x2.jpg")
    assert again.is_done(other, "\udce9-2x2.jpg")


def test_a_second_client_knows_that_it_is_not_alone(output: OutputDirectory) -> None:
    first = Journal(output, "2x2")
    assert first.is_alone
    assert not Journal(output, "3x3").is_alone
    first.share()
    assert not Journal(output, "3x3").is_alone
    first.close()
    assert Journal(output, "3x3").is_alone


def test_a_linked_journal_is_refused(output: OutputDirectory, tmp_path: Path) -> None:
    (tmp_path / "out" / JOURNAL).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"symbolic|Too many levels"):
        Journal(output, "2x2")
    assert not (tmp_path / "precious").exists()


def test_a_result_is_found_again_under_the_name_it_got(tmp_path: Path) -> None:
    output = OutputDirectory(str(tmp_path / "out"))
    journal = Journal(output, "2x0")
    output.save("x-2x1.jpg", b"made", lambda saved: journal.note(PICTURE, "x-2x0.jpg", saved, "x-2x1.jpg"))
    assert Journal(output, "2x0").is_done(PICTURE, "x-2x0.jpg")
    os.unlink(tmp_path / "out" / "x-2x1.jpg")
    assert not Journal(output, "2x0").is_done(PICTURE, "x-2x0.jpg")
