"""What each result is called: `<sub-directory>/<original name>-<w>x<h>.<ext>`, distinct for distinct sources.

RULES: pure. Two names clash when some file system we may save to takes them for one: letter case and Unicode
composition do not tell files apart everywhere. The first of a clash, in the order of the sources' paths, has the
plain name, the others a number; so the same set of sources always gets the same names.
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterable

NAME_MAX = 255  # bytes of one name, on every file system we know

_EXTENSIONS = {"jpeg": ".jpg", "png": ".png", "gif": ".gif", "webp": ".webp", "avif": ".avif"}


def target_names(paths: Iterable[str], width: int, height: int, format: str = "") -> dict[str, str]:
    """Relative path of the result by relative path of the source. `format`: "" keeps each source's extension."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in sorted(paths):
        folder, name = os.path.split(path)
        stem, extension = os.path.splitext(name)
        suffix = f"-{width}x{height}{_EXTENSIONS.get(format, extension)}"
        number = 1
        while True:
            mark = f"~{number}" if number > 1 else ""
            target = os.path.join(folder, _fitted(stem, mark + suffix))
            if _folded(target) not in taken:
                break
            number += 1
        taken.add(_folded(target))
        names[path] = target
    return names


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _fitted(stem: str, suffix: str) -> str:
    """stem + suffix in NAME_MAX bytes; a stem too long is cut and told apart by a digest of the whole."""
    raw = os.fsencode(stem)
    room = NAME_MAX - len(os.fsencode(suffix))
    if len(raw) <= room:
        return stem + suffix
    digest = "~" + hashlib.blake2b(raw, digest_size=4).hexdigest()
    cut = raw[: room - len(digest)]
    while cut and (raw[len(cut)] & 0xC0) == 0x80:  # not inside a character
        cut = cut[:-1]
    return os.fsdecode(cut) + digest + suffix
