"""What the documents say of options, commands and metrics is held against the declarations.

The pages are read as a reader would: `--flag`, `option = value`, `option` (default), blocks of INI and of shell. Tables
that a script writes are left out: tests/unit/test_conf.py has those.
"""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer import ctl_options
from balancer.config.option import Option
from balancer.configuration import parse
from balancer.console.prometheus import METRICS, PREFIX
from balancer.options import EVERY_OPTION
from scripts.options_table import DOCUMENTED
from tests.documents import completed, configured, with_files

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
# An option of several programs has the meaning of each.
OPTIONS: dict[str, list[Option]] = {}
for one in itertools.chain.from_iterable(DOCUMENTED.values()):
    OPTIONS.setdefault(one.name, []).append(one)
FLAGS = set(OPTIONS) | {flag.name for flag in ctl_options.FLAGS}
# Words with a hyphen that are no option, of other programs and of scripts. Verbs, states and reasons are in the sources.
OTHER_WORDS = {
    *("resize-client", "ca-file", "crl-file", "tcp-check", "hard-stop-after", "stick-table", "inspect-delay"),
    *("agent-check", "tls-flood", "tls-new-rsa", "tls-flood-rsa", "tcp-ut"),
}
SOURCES = "".join(
    path.read_text() for path in [*(ROOT / "balancer").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]
)
# Flags alone, or behind one of our programs; those of other programs are theirs.
OURS = re.compile(r"\$?\s*(?:-|balancer\b|balancerctl\b|resizer\b|resize-client\b)")
GENERATED = re.compile(r"<!-- (options:[\w-]+|metrics) -->.*?<!-- /\w+ -->", re.DOTALL)
COUNTERPARTS = re.compile(r"^\| (?:HAProxy|nginx).*$", re.MULTILINE)  # rows that show other programs' words


def written(page: Path) -> str:
    return GENERATED.sub("", page.read_text())


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", written(page), re.DOTALL | re.MULTILINE)


def inline(page: Path) -> list[str]:
    """What stands in single backticks, outside of blocks."""
    text = re.sub(r"^```.*?^```", "", written(page), flags=re.DOTALL | re.MULTILINE)
    if page.name == "MIGRATION.md":
        text = re.sub(
            r"^\| `.*?(?=\| )", "", text, flags=re.MULTILINE
        )  # a row begins with the other program's words
    return re.findall(r"`([^`\n]+)`", COUNTERPARTS.sub("", text))


@EVERY_PAGE
def test_each_word_that_looks_like_an_option_is_one(page: Path) -> None:
    lines = [line for block in blocks(page, "(?:sh)?") for line in block.splitlines()]
    flags = {
        flag
        for code in [*inline(page), *lines]
        if OURS.match(code)
        for flag in re.findall(r"(?<![\w-])--(?:no-)?([a-z][a-z-]*)", code)
    }
    assert flags <= FLAGS, flags - FLAGS
    words = {code for code in inline(page) if re.fullmatch(r"[a-z]+(?:-[a-z]+)+", code)}
    unknown = [word for word in words - FLAGS - OTHER_WORDS if f'"{word}"' not in SOURCES]
    assert unknown == []


def assignments(page: Path) -> Iterator[tuple[str, str]]:
    """`option = value` in a sentence, with a value that is none of `...`, `N`, `TIME`, and no file."""
    for code in inline(page):
        found = re.fullmatch(r"([a-z][a-z-]*) = (.+)", code)
        if found and not re.search(r"\.\.\.|\b[A-Z]{2,}\b|\bN\b|\\\||/etc/", found[2]):
            yield found[1], found[2]


@EVERY_PAGE
def test_each_value_that_a_sentence_gives_an_option_is_taken(page: Path) -> None:
    for name, value in assignments(page):
        if name not in OTHER_KEYS:
            assert name in OPTIONS, f"{name} = {value}"
            assert any(is_taken(option, value) for option in OPTIONS[name]), f"{name} = {value}"


OTHER_KEYS = {"smtpd_upstream_proxy_protocol", "least"}


def is_taken(option: Option, value: str) -> bool:
    try:
        for item in option.split(value) if option.repeat else [value]:
            option.parse(item)
    except ValueError:
        return False
    return not option.choices or value in option.choices


DURATION = r"\d+(?: ?(?:ms|s|m|h|minutes))?"


@EVERY_PAGE
def test_each_default_behind_an_option_is_the_declared_one(page: Path) -> None:
    """As in `preread-timeout` (5 s)."""
    for name, said in re.findall(rf"`(?:--)?([a-z-]+)` \(({DURATION}|[\d,]+|\d+[kmg])\)", written(page)):
        if name in OPTIONS:
            defaults = {option.default for option in OPTIONS[name]}
            plain = said.replace(" ", "").replace(",", "").replace("minutes", "m")
            assert plain in defaults, f"{page.name}: {name} is {defaults}, and not {said}"


@EVERY_PAGE
def test_each_metric_exists(page: Path) -> None:
    known = {PREFIX + one.name for one in METRICS}
    known |= {
        f"{PREFIX}{one.name}_{end}"
        for one in METRICS
        if one.kind == "histogram"
        for end in ("bucket", "sum", "count")
    }
    named = set(re.findall(rf"\b{PREFIX}[a-z_]+", re.sub(r"[a-z]+:balancer_[\w:]+", "", written(page))))
    assert named <= known, named - known


@EVERY_PAGE
def test_each_command_of_balancerctl_is_understood(page: Path) -> None:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("balancerctl ")]
    spoken = [code for code in inline(page) if code.startswith("balancerctl ")]
    for command in [*commands, *spoken]:
        if (
            re.search(r"\b[A-Z]+\b|\.\.\.", command)
            or command.removeprefix("balancerctl ") in ctl_options.COMMANDS
        ):
            assert command.split()[1].strip(".") in (*ctl_options.COMMANDS, "")
            continue
        ctl_options.parse(shlex.split(command, comments=True)[1:])


def headings(page: Path) -> set[str]:
    """The anchors that a host of repositories makes of headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@EVERY_PAGE
def test_each_link_into_a_page_leads_to_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", page.read_text()):
        assert anchor in headings(page.parent / target if target else page), f"{target}#{anchor}"


FRAGMENTS = [(page, number) for page in PAGES for number in range(len(blocks(page, "ini")))]


@pytest.mark.parametrize(
    ("page", "number"), FRAGMENTS, ids=lambda one: one.name if isinstance(one, Path) else str(one)
)
def test_each_piece_of_configuration_is_one(page: Path, number: int, tmp_path: Path) -> None:
    """Completed by the sections that it leaves out, with files that there are."""
    file = tmp_path / "balancer.ini"
    file.write_text(completed(blocks(page, "ini")[number], tmp_path))
    parse(["-c", str(file)], {})


def explained() -> Iterator[tuple[str, str, str, list[str]]]:
    """(option, when to change it, example, related options) of each row of docs/CONFIGURATION.md."""
    text = (
        (ROOT / "docs" / "CONFIGURATION.md")
        .read_text()
        .split("## Why and when")[1]
        .split("## Every option")[0]
    )
    for line in text.splitlines():
        if line.startswith("| `"):
            name, why, example, related = line.strip("| ").split(" | ")
            yield name.strip("`"), why, example.strip("`"), re.findall(r"`([a-z-]+)`", related)


def test_each_option_is_explained_with_an_example_and_related_ones() -> None:
    rows = list(explained())
    wanted = {one.name for one in EVERY_OPTION if not one.command_line_only} - {"config"}
    assert sorted(name for name, *_ in rows) == sorted(wanted)
    for name, why, example, related in rows:
        assert len(why) > 15 and example.startswith(f"{name} = "), name
        assert related and name not in related and set(related) <= wanted, (name, related)


def test_each_example_of_an_option_says_something_else_than_the_default() -> None:
    for name, _, example, _ in explained():
        [*defaults] = {option.default for option in OPTIONS[name]}
        assert example.partition(" = ")[2] not in defaults, name


# What an option cannot be without; the examples of these are given as well.
PARTNERS = {
    "proxy-protocol": ("proxy-trusted",),
    "mode": ("frame",),
    "frame": ("mode",),
    "tls-client-crl": ("tls-client-ca",),
}


@pytest.mark.parametrize("row", list(explained()), ids=lambda row: row[0])
def test_each_example_of_an_option_is_taken(row: tuple[str, str, str, list[str]], tmp_path: Path) -> None:
    """What a note says that it has no effect without is a related option."""
    name, _, example, related = row
    examples = {name: example for name, _, example, _ in explained()}
    assert set(PARTNERS.get(name, ())) <= set(related)
    file = tmp_path / "balancer.ini"
    lines = [example, *(examples[partner] for partner in PARTNERS.get(name, ()))]
    file.write_text(with_files(configured(lines), tmp_path))
    for note in parse(["-c", str(file)], {}).notes:
        missing = re.search(r"no effect without ([a-z-]+)", note)
        assert missing is None or missing[1] in [*related, *PARTNERS.get(name, ())], note
