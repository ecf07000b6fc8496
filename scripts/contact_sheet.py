"""A contact sheet: every original beside its resized copy, with sizes, in one picture.

python -m scripts.contact_sheet ORIGINALS RESIZED SHEET.jpg [--columns 3] [--most 24]
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

CELL = (320, 200)
MARGIN = 14
CAPTION = 34
PAPER, INK, FAINT = (250, 249, 246), (40, 40, 44), (130, 130, 136)

Pair = tuple[Path, Path]


def pairs(originals: Path, resized: Path) -> Iterator[Pair]:
    """(original, copy): the copy is in the same sub-directory and its name begins with the original's."""
    for original in sorted(path for path in originals.rglob("*") if path.is_file()):
        folder = resized / original.parent.relative_to(originals)
        found = sorted(folder.glob(f"{original.stem}-*x*"))
        if found:
            yield original, found[0]


def thinned(found: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most` of the pairs, evenly spaced."""
    if len(found) <= most:
        return list(found)
    return [found[n * len(found) // most] for n in range(most)]


def human(size: int) -> str:
    """`size` in bytes as text."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} KB"


def paste(sheet: Image.Image, path: Path, left: int, top: int) -> tuple[int, int]:
    """Paste the picture at `path` into the middle of a cell; returns its original size."""
    with Image.open(path) as picture:
        size = picture.size
        picture.draft("RGB", (CELL[0] * 2, CELL[1] * 2))
        small = ImageOps.contain(picture.convert("RGBA"), CELL)
    sheet.paste(small, (left + (CELL[0] - small.width) // 2, top + (CELL[1] - small.height) // 2), small)
    return size


def draw(found: Sequence[Pair], columns: int) -> Image.Image:
    """The sheet of these pairs."""
    rows = -(-len(found) // columns)
    pair_width = 2 * CELL[0] + MARGIN // 2
    width = columns * (pair_width + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, rows * (CELL[1] + CAPTION + MARGIN) + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for place, (before, after) in enumerate(found):
        left = MARGIN + place % columns * (pair_width + MARGIN)
        top = MARGIN + place // columns * (CELL[1] + CAPTION + MARGIN)
        right = left + CELL[0] + MARGIN // 2
        for path, x in ((before, left), (after, right)):
            size = paste(sheet, path, x, top)
            caption = f"{size[0]} x {size[1]}, {human(path.stat().st_size)}"
            pen.text((x, top + CELL[1] + 3), caption, INK, font)
            small_font = ImageFont.load_default(11)
            pen.text((x, top + CELL[1] + 20), path.name, FAINT, small_font)
    return sheet


def make(originals: Path, resized: Path, target: Path, columns: int = 3, most: int = 24) -> int:
    """Write the sheet; returns how many pairs it shows. Raises ValueError when there is none."""
    found = thinned(list(pairs(originals, resized)), most)
    if not found:
        raise ValueError(f"no picture of {originals} has a copy in {resized}")
    draw(found, columns).save(target, quality=88)
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="every original beside its resized copy, in one picture")
    parser.add_argument("originals", type=Path)
    parser.add_argument("resized", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--most", type=int, default=24, help="pairs to show (24)")
    arguments = parser.parse_args()
    shown = make(arguments.originals, arguments.resized, arguments.target, arguments.columns, arguments.most)
    print(f"{shown} pairs: {arguments.target}")


if __name__ == "__main__":
    main()
