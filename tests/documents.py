"""What pages of docs/ show, made whole: pieces of configuration with the sections and files that they leave out."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from balancer.options import KINDS
from tests.authority import Authority

ROOT = Path(__file__).resolve().parents[1]
OWNERS = {option.name: kind.name for kind in KINDS for option in kind.options if option.name != "tls-cert"}


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
    """The text with files that exist in place of the certificates, lists of networks and tokens in /etc."""
    authority = Authority()
    for name, content in (
        ("all.pem", authority.issue("api.internal")),
        ("revoked.crl", authority.revocations()),
        ("networks", b"10.0.0.0/8\n"),
        ("token", b"0123456789abcdef"),
    ):
        (directory / name).write_bytes(content)
    (directory / "token").chmod(0o600)
    text = re.sub(r"(?<=@)/etc/\S+", str(directory / "networks"), text)
    text = re.sub(r"/etc/\S+\.token", str(directory / "token"), text)
    text = re.sub(r"/etc/\S+\.crl", str(directory / "revoked.crl"), text)
    return re.sub(r"(?<![@\w])/etc/\S+\.pem", str(directory / "all.pem"), text)


def configured(items: list[str]) -> str:
    """A whole configuration with these lines, each in its section."""
    sections: dict[str, list[str]] = {"balancer": [], "listener main": [], "pool web": []}
    places = {"listener": "listener main", "pool": "pool web"}
    for item in items:
        name = item.partition(" = ")[0]
        owner = "listener" if name == "tls-cert" else OWNERS.get(name, "")
        sections[places.get(owner, "balancer")].append(item)
    present = {item.partition(" = ")[0] for item in items}
    if not present & {"bind", "port"}:
        sections["listener main"].append("port = 9090")
    if not present & {"pool", "route"}:
        sections["listener main"].append("pool = web")
    if "upstream" not in present:
        sections["pool web"].append("upstream = 10.0.0.1:80")
    return "".join(
        f"[{title}]\n" + "".join(f"{line}\n" for line in lines) for title, lines in sections.items()
    )


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
