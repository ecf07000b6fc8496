"""Which files a scan finds, as what, and which it leaves out and why."""

import os
import socket
from pathlib import Path

import pytest

from workers.client import scan as scanning
from workers.client.scan import JOURNAL, Picture, scan

HEADS = {
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x09\0\0\0\x08",
    "gif": b"GIF89a\x09\0\x08\0",
    "webp": b"RIFF\x40\0\0\0WEBPVP8 \0\0\0\0" + bytes(12),
    "avif": b"\0\0\0\x1cftypavif",
}


def fill(root: Path, *paths: str, content: bytes | None = None) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode() if content is None else content)


def paths(found: list[Picture]) -> list[str]:
    return [picture.path for picture in found]


def test_pictures_of_every_name_in_the_order_of_their_paths(tmp_path: Path) -> None:
    fill(tmp_path, "b.PNG", "a/z.jpeg", "a.gif", "c.webp", "c.txt", "jpg", "a/b/c/d.jpg", "e.avif")
    found = scan(str(tmp_path))
    assert paths(found.pictures) == ["a.gif", "a/b/c/d.jpg", "a/z.jpeg", "b.PNG", "c.webp", "e.avif"]
    assert [p.format for p in found.pictures] == ["gif", "jpeg", "jpeg", "png", "webp", "avif"]
    assert found.pictures[0].size == len("a.gif")
    assert found.pictures[0].mtime_ns == os.stat(tmp_path / "a.gif").st_mtime_ns
    assert found.problems == []
    assert found.left_out == {scanning.NOT_A_PICTURE: ["c.txt", "jpg"]}


@pytest.mark.parametrize("name", ["x", "x.txt", "x.jpg", "x.PNG", "x.tar.gz", "x.jfif", ".hidden"])
@pytest.mark.parametrize("format", HEADS)
def test_the_content_decides_whatever_the_name_says(tmp_path: Path, name: str, format: str) -> None:
    fill(tmp_path, name, content=HEADS[format])
    assert [(p.path, p.format) for p in scan(str(tmp_path)).pictures] == [(name, format)]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("x.jfif", "jpeg"),
        ("x.JPE", "jpeg"),
        ("x.Mpo", "jpeg"),
        ("x.APNG", "png"),
        ("x.JPG", "jpeg"),
        ("x.WebP", "webp"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"II*\0 a TIFF", b"\0" * 100])
def test_a_broken_picture_is_one_by_its_name(tmp_path: Path, name: str, format: str, content: bytes) -> None:
    fill(tmp_path, name, content=content)
    assert [p.format for p in scan(str(tmp_path)).pictures] == [format]


@pytest.mark.parametrize("name", ["scan.tiff", "notes.txt", "film.mp4", "Thumbs.db", "empty", "x.jpg.part"])
def test_what_is_no_picture_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "x.jpg", f"sub/{name}")
    found = scan(str(tmp_path))
    assert paths(found.pictures) == ["x.jpg"]
    assert found.left_out == {scanning.NOT_A_PICTURE: [f"sub/{name}"]}


def test_resource_forks_of_macos_are_left_out_whatever_they_hold(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "._a.jpg", "sub/._b", content=HEADS["jpeg"])
    found = scan(str(tmp_path))
    assert paths(found.pictures) == ["a.jpg"]
    assert found.left_out == {scanning.RESOURCE_FORK: ["._a.jpg", "sub/._b"]}


def test_directories_with_results_of_other_runs_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "small/a-2x2.jpg", "small/sub/b.jpg", "x/y/large/c.jpg", "x/d.jpg")
    fill(tmp_path, f"small/{JOURNAL}", f"x/y/large/{JOURNAL}", content=b"")
    found = scan(str(tmp_path))
    assert paths(found.pictures) == ["a.jpg", "x/d.jpg"]
    assert found.left_out == {scanning.RESULTS: ["small/", "x/y/large/"]}
    assert paths(scan(str(tmp_path / "small")).pictures) == ["a-2x2.jpg", "sub/b.jpg"], "asked for by name"


def test_files_of_this_program_are_not_even_mentioned(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "a.jpg",
        JOURNAL,
        ".resize-client-7-1.part",
        ".resize-client-report-7.part",
        content=HEADS["gif"],
    )
    found = scan(str(tmp_path))
    assert paths(found.pictures) == ["a.jpg"]
    assert found.left_out == {}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], ["a/x.jpg", "a/y.png", "x.jpg"]),
        (["*.jpg"], [], ["a/x.jpg", "x.jpg"]),
        (["a/*"], [], ["a/x.jpg", "a/y.png"]),
        ([], ["x.*"], ["a/y.png"]),
        (["a/*", "x.jpg"], ["*.png"], ["a/x.jpg", "x.jpg"]),
        (["*.JPG"], [], ["a/x.jpg", "x.jpg"]),
        (["A/*.[A-Q]NG"], [], ["a/y.png"]),
        ([], ["*.Jpg"], ["a/y.png"]),
    ],
)
def test_globs_match_name_or_path(
    tmp_path: Path, include: list[str], exclude: list[str], expected: list[str]
) -> None:
    fill(tmp_path, "x.jpg", "a/x.jpg", "a/y.png")
    found = scan(str(tmp_path), include, exclude)
    assert paths(found.pictures) == expected
    left_out = found.left_out.get(scanning.NOT_WANTED, [])
    assert sorted([*expected, *left_out]) == ["a/x.jpg", "a/y.png", "x.jpg"]


def test_globs_find_the_names_of_cameras(tmp_path: Path) -> None:
    fill(tmp_path, "CAM.JPG", "cam.png")
    assert paths(scan(str(tmp_path), ["*.jpg"]).pictures) == ["CAM.JPG"]
    assert paths(scan(str(tmp_path), [], ["cam*"]).pictures) == []


def test_the_output_below_the_input_is_left_out_by_what_it_is_not_by_its_name(tmp_path: Path) -> None:
    fill(tmp_path, "x.jpg", "out/x-2x2.jpg", "sub/out/y.jpg")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "out")
    found = scan(str(tmp_path), skip=str(tmp_path / "elsewhere"))
    assert paths(found.pictures) == ["sub/out/y.jpg", "x.jpg"]
    assert found.left_out[scanning.RESULTS] == ["out/"]
    assert found.left_out[scanning.LINKED_DIRECTORY] == ["elsewhere"]
    assert len(scan(str(tmp_path), skip=str(tmp_path / "not there")).pictures) == 3


def test_links_to_directories_are_not_followed_links_to_files_are(tmp_path: Path) -> None:
    fill(tmp_path, "sub/x.jpg")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "y.jpg").symlink_to(tmp_path / "sub" / "x.jpg")
    assert paths(scan(str(tmp_path)).pictures) == ["sub/x.jpg", "y.jpg"]


def test_what_cannot_be_read_is_told_and_pipes_are_not_pictures(tmp_path: Path) -> None:
    fill(tmp_path, "x.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        found = scan(str(tmp_path))
    assert paths(found.pictures) == ["x.jpg"]
    assert found.problems == ["dangling.jpg: No such file or directory"]
    assert found.left_out == {
        scanning.SPECIAL: ["pipe.jpg", "socket"],
        scanning.NOT_A_PICTURE: ["dangling"],
    }


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.jpg")).write_bytes(b"x")
    assert paths(scan(str(tmp_path)).pictures) == ["\udce9.jpg"]
