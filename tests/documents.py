"""What pages of docs/ show, made whole: pieces of configuration with the sections and files that they leave out."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from tests.authority import Authority

ROOT = Path(__file__).resolve().parents[1]


def completed(fragment: str, directory: Path) -> str:
    """A whole configuration: an address and a pool for each listener, an upstream for each pool, files that exist."""
    text = with_files(fragment if re.match(r"\s*[\[#]", fragment) else f"[pool main]\n{fragment}", directory)
    sections = re.split(r"^(?=\[)", text, flags=re.MULTILINE)
    port = itertools.count(20_000)
    for place, piece in enumerate(sections):
        if piece.startswith("[listener") and not re.search(r"^(bind|port) *=", piece, re.MULTILINE):
            piece += f"bind = 127.0.0.1:{next(port)}\n"
        if piece.startswith("[listener") and not re.search(r"^(pool|route) *=", piece, re.MULTILINE):
            piece += "pool = main\n"
        if piece.startswith("[pool") and not re.search(r"^upstream *=", piece, re.MULTILINE):
            piece += "upstream = 10.0.0.1:80\n"
        sections[place] = piece
    text = "".join(sections)
    pools = re.findall(r"^\[pool (\S+)\]", text, re.MULTILINE)
    led_to = re.findall(r"^pool *= *(\S+)", text, re.MULTILINE)
    led_to += re.findall(r"^[^#\n]*-> (\S+)$", re.sub(r"\s+;.*", "", text), re.MULTILINE)
    missing = [name for name in dict.fromkeys(led_to) if name not in (*pools, "reject")]
    unused = [name for name in pools if name not in led_to]
    return (
        text
        + "".join(f"\n[pool {name}]\nupstream = 10.0.0.1:80\n" for name in missing)
        + "".join(
            f"\n[listener test-{name}]\nbind = 127.0.0.1:{next(port)}\npool = {name}\n" for name in unused
        )
    )


def with_files(text: str, directory: Path) -> str:
    pem = directory / "all.pem"
    authority = Authority()
    pem.write_bytes(authority.issue("api.internal"))
    networks = directory / "networks"
    networks.write_text("10.0.0.0/8\n")
    return re.sub(r"(?<=@)/etc/\S+", str(networks), re.sub(r"(?<![@\w])/etc/\S+\.pem", str(pem), text))


def table_rows(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """(what is in backticks in the first cell, and in the second) of each row."""
    for line in text.splitlines():
        cells = line.split(" | ")
        if line.startswith("| `") and len(cells) > 1:
            yield re.findall(r"`([^`]+)`", cells[0]), re.findall(r"`([^`]+)`", cells[1])


def chapters(page: Path) -> dict[str, str]:
    """The text under each heading of the third level, by its title."""
    pieces = re.split(r"^#{2,3} (.+)$", page.read_text(), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))
