"""File names of the results: `<sub-directory>/<original name>-<w>x<h>.<ext>`, distinct for distinct sources.

The extension is that of the result's format: the source's own where it says that format, in its letter case, else the
usual one. What follows the last dot of a name is an extension only where it is one of pictures.

A side that was not asked for is 0 in the name that is planned, and in the name of the file the one that the result has.

RULES: pure. Two names clash when they differ only in letter case or Unicode composition, because some file systems
treat such names as one. Of clashing names the first, in the order of the sources' paths, stays as it is and the others
get a number, so the same set of sources always gets the same names.
"""

import hashlib
import os
import unicodedata
from collections.abc import Mapping

_LONGEST_SIDE = 5  # digits

NAME_MAX = 255  # bytes of one name, on every common Linux file system

_EXTENSIONS = {"jpeg": ".jpg", "png": ".png", "gif": ".gif", "webp": ".webp", "avif": ".avif"}
_FORMATS = {extension: format for format, extension in _EXTENSIONS.items()} | {".jpeg": "jpeg"}
_UNUSUAL = {".jpe": "jpeg", ".jfif": "jpeg", ".mpo": "jpeg", ".apng": "png"}  # read, not written


def format_of(path: str) -> str:
    """The format that the file's name says, "" where it says none."""
    extension = os.path.splitext(path)[1].lower()
    return _FORMATS.get(extension) or _UNUSUAL.get(extension, "")


def target_names(formats: Mapping[str, str], width: int, height: int, format: str = "") -> dict[str, str]:
    """Relative path of the result by relative path of the source. `formats`: the format of each source by its path.
    `format`: that of every result, "" for each source's own."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in sorted(formats):
        folder, name = os.path.split(path)
        stem, extension = _split(name, format, formats[path])
        suffix = f"-{width}x{height}{extension}"
        room = 0 if width and height else _LONGEST_SIDE
        number = 1
        while True:
            mark = f"~{number}" if number > 1 else ""
            target = os.path.join(folder, _fitted(stem, mark + suffix, room))
            if _folded(target) not in taken:
                break
            number += 1
        taken.add(_folded(target))
        names[path] = target
    return names


def named_by_size(target: str, asked: tuple[int, int], found: tuple[int, int]) -> str:
    """The planned name `target` with the size of the result in place of a 0. Distinct names stay distinct: what stands
    before and behind the size is the same."""
    if all(asked):
        return target
    stem, extension = target.rsplit(f"-{asked[0]}x{asked[1]}", 1)
    return f"{stem}-{found[0]}x{found[1]}{extension}"


def _split(name: str, format: str, source: str) -> tuple[str, str]:
    """The stem of `name` and the extension of its result."""
    stem, extension = os.path.splitext(name) if format_of(name) else (name, "")
    if not format and _FORMATS.get(extension.lower()) == source:
        return stem, extension
    return stem, _EXTENSIONS[format or source]


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _fitted(stem: str, suffix: str, room: int) -> str:
    """stem + suffix in NAME_MAX bytes less `room`; a stem that is too long is cut and a digest of the whole stem
    appended."""
    raw = os.fsencode(stem)
    room = NAME_MAX - room - len(os.fsencode(suffix))
    if len(raw) <= room:
        return stem + suffix
    digest = "~" + hashlib.blake2b(raw, digest_size=4).hexdigest()
    cut = raw[: room - len(digest)]
    while cut and (raw[len(cut)] & 0xC0) == 0x80:  # a UTF-8 continuation byte: not inside a character
        cut = cut[:-1]
    return os.fsdecode(cut) + digest + suffix
