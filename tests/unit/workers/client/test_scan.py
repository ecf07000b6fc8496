"""Which files a scan finds and which it skips."""

import os
from pathlib import Path

import pytest

from workers.client.scan import Picture, scan
from workers.wire.messages import GIF, JPEG, PNG


def fill(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def paths(found: tuple[Picture, ...]) -> list[str]:
    return [picture.path for picture in found]


def test_pictures_of_every_kind_in_the_order_of_their_paths(tmp_path: Path) -> None:
    fill(tmp_path, "b.PNG", "a/z.jpeg", "a.gif", "c.webp", "c.txt", "jpg", "a/b/c/d.jpg")
    found = scan(str(tmp_path))
    assert paths(found.pictures) == ["a.gif", "a/b/c/d.jpg", "a/z.jpeg", "b.PNG", "c.webp"]
    assert [p.typ for p in found.pictures] == [GIF, JPEG, JPEG, PNG, JPEG]
    assert found.pictures[0].size == len("a.gif")
    assert found.pictures[0].mtime_ns == os.stat(tmp_path / "a.gif").st_mtime_ns
    assert found.problems == ()


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], ["a/x.jpg", "a/y.png", "x.jpg"]),
        (["*.jpg"], [], ["a/x.jpg", "x.jpg"]),
        (["a/*"], [], ["a/x.jpg", "a/y.png"]),
        ([], ["x.*"], ["a/y.png"]),
        (["a/*", "x.jpg"], ["*.png"], ["a/x.jpg", "x.jpg"]),
    ],
)
def test_globs_match_name_or_path(
    tmp_path: Path, include: list[str], exclude: list[str], expected: list[str]
) -> None:
    fill(tmp_path, "x.jpg", "a/x.jpg", "a/y.png")
    assert paths(scan(str(tmp_path), include, exclude).pictures) == expected


def test_the_output_below_the_input_is_left_out_by_what_it_is_not_by_its_name(tmp_path: Path) -> None:
    fill(tmp_path, "x.jpg", "out/x-2x2.jpg", "sub/out/y.jpg")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "out")
    found = scan(str(tmp_path), skip=str(tmp_path / "elsewhere"))
    assert paths(found.pictures) == ["sub/out/y.jpg", "x.jpg"]
    assert len(scan(str(tmp_path), skip=str(tmp_path / "not there")).pictures) == 3


def test_links_to_directories_are_not_followed_links_to_files_are(tmp_path: Path) -> None:
    fill(tmp_path, "sub/x.jpg")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "y.jpg").symlink_to(tmp_path / "sub" / "x.jpg")
    assert paths(scan(str(tmp_path)).pictures) == ["sub/x.jpg", "y.jpg"]


def test_what_cannot_be_read_is_told_and_pipes_are_not_pictures(tmp_path: Path) -> None:
    fill(tmp_path, "x.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    found = scan(str(tmp_path))
    assert paths(found.pictures) == ["x.jpg"]
    assert found.problems == ("dangling.jpg: No such file or directory",)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.jpg")).write_bytes(b"x")
    assert paths(scan(str(tmp_path)).pictures) == ["\udce9.jpg"]
