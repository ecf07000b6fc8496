"""File names of the results: `<sub-directory>/<original name>-<w>x<h>.<ext>`, distinct for distinct sources.

A side that was not asked for is 0 in the name that is planned, and in the name of the file the one that the result has.

RULES: pure. Two names clash when they differ only in letter case or Unicode composition, because some file systems
treat such names as one. Of clashing names the first, in the order of the sources' paths, stays as it is and the others
get a number, so the same set of sources always gets the same names.
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterable

_LONGEST_SIDE = 5  # digits

NAME_MAX = 255  # bytes of one name, on every common Linux file system

_EXTENSIONS = {"jpeg": ".jpg", "png": ".png", "gif": ".gif", "webp": ".webp", "avif": ".avif"}


def target_names(paths: Iterable[str], width: int, height: int, format: str = "") -> dict[str, str]:
    """Relative path of the result by relative path of the source. `format`: "" keeps each source's extension."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in sorted(paths):
        folder, name = os.path.split(path)
        stem, extension = os.path.splitext(name)
        suffix = f"-{width}x{height}{_EXTENSIONS.get(format, extension)}"
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
