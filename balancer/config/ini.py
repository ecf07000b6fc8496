"""The INI file, read strictly: every line is understood or refused by file and line.

    [balancer]
    maxconns = 1024        ; a comment, because white space precedes it
    [pool web]
    upstream =
        10.0.0.1:9000 weight=2
        [::1]:9000         # an IPv6 address, not a section

RULES: text in, entries out; knows sections and keys only as names it is given. The standard configparser and
ConfigArgParse's own INI classes expand `%`, keep inline comments as part of the value, ignore a section whose name is
mistyped and evaluate `[...]` as a Python list. Each of these turns a slip into a wrong setting; this reader does none of
them. Quotes keep a ` #` or a ` ;` anywhere in a value; they are still part of the values that this reader returns."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from balancer.config.option import ConfigError
from balancer.config.words import QUOTED, unquote

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_SECTION = re.compile(r"\[\s*([^\[\]]*?)\s*\]")
_KEY = re.compile(r"([^\s=:\[][^=:]*?)\s*[=:]\s*(.*)")
_COMMENT = re.compile(r"(^|\s+)[;#].*$")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a key was given: the line of the key, and each value that is not empty with its own line."""

    line: int
    items: tuple[tuple[int, str], ...]


@dataclass(slots=True)
class FileSection:
    """One section; `title` is what stands between the brackets, e.g. "pool web"."""

    title: str
    line: int
    entries: dict[str, Entry] = field(default_factory=dict)


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """ "; did you mean X?" with the prefix before X, or nothing when nothing is near."""
    words = list(known)
    near = [each for each in words if len(word) >= 3 and each.startswith(word)]
    near += difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def refuse_name(kind: str, name: str) -> str:
    """Why a section cannot have this name, or nothing."""
    if NAME.fullmatch(name):
        return ""
    near = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:32]
    guess = f"; did you mean [{kind} {near}]?" if NAME.fullmatch(near) else ""
    return f"[{kind} {name}]: a name is at most 32 of a-z 0-9 . _ - and begins with a letter or digit{guess}"


def read_ini(
    path: str, text: str, titles: Sequence[str], kinds: Sequence[str], complain: Callable[[str, str], str]
) -> dict[str, FileSection]:
    """The sections by title. Raises ConfigError.

    `titles` are the sections that may be there, the reader's own first; `kinds` are the first words of sections with a
    name. `complain(title, key)` says why that section does not take that key, or nothing."""
    return _Reader(path, titles, kinds, complain).read(text)


class _Reader:
    def __init__(
        self, path: str, titles: Sequence[str], kinds: Sequence[str], complain: Callable[[str, str], str]
    ) -> None:
        self._path, self._titles, self._kinds, self._complain = path, titles, kinds, complain
        self._found: dict[str, FileSection] = {}

    def read(self, text: str) -> dict[str, FileSection]:
        section: FileSection | None = None
        key, key_depth = "", 0  # a continuation is indented deeper than its key
        for number, line in enumerate(text.split("\n"), 1):
            content = line.strip()
            if not content or content[0] in "#;":
                continue
            depth = len(line) - len(line.lstrip())
            if section is not None and key and depth > key_depth:
                entry = section.entries[key]
                section.entries[key] = Entry(entry.line, entry.items + _item(number, content))
            elif heading := _SECTION.fullmatch(_COMMENT.sub("", content).strip()):
                section, key = self._enter(" ".join(heading[1].split()), number), ""
            else:
                key, entry = self._read_key(section, content, number)
                key_depth = depth
                assert section is not None
                section.entries[key] = entry
        return self._found

    def _enter(self, title: str, number: int) -> FileSection:
        if refusal := self._refuse_title(title):
            raise ConfigError(f"{self._path}:{number}: {refusal}")
        if title in self._found:
            first = self._found[title].line
            raise ConfigError(
                f"{self._path}:{number}: section [{title}] began on line {first}; put its keys there"
            )
        return self._found.setdefault(title, FileSection(title, number))

    def _refuse_title(self, title: str) -> str:
        if title in self._titles:
            return ""
        kind, _, name = title.partition(" ")
        if kind in self._kinds:
            return refuse_name(kind, name) if name else f"section [{kind}] needs a name: write [{kind} NAME]"
        known = [*self._titles, *(f"{kind} {name}" for kind in self._kinds if name)]
        near = difflib.get_close_matches(title, known, n=1, cutoff=0.6)
        return f"section [{title}] is unknown" + (f"; did you mean [{near[0]}]?" if near else "")

    def _read_key(self, section: FileSection | None, content: str, number: int) -> tuple[str, Entry]:
        match = _KEY.fullmatch(content)
        if match is None:
            raise ConfigError(f"{self._path}:{number}: {content!r} is neither key = value nor [section]")
        key = match[1].lower().replace("_", "-")
        if section is None:
            raise ConfigError(f"{self._path}:{number}: {key} stands before [{self._titles[0]}]")
        if key in section.entries:
            raise ConfigError(
                f"{self._path}:{number}: {key} was already set on line {section.entries[key].line}; "
                "several values go one per line, indented"
            )
        if complaint := self._complain(section.title, key):
            raise ConfigError(f"{self._path}:{number}: {complaint}")
        return key, Entry(number, _item(number, match[2]))


def _item(number: int, text: str) -> tuple[tuple[int, str], ...]:
    value = _uncommented(text)
    return ((number, value),) if unquote(value) else ()


def _uncommented(text: str) -> str:
    """A value without its inline comment."""
    quoted = [match.span() for match in QUOTED.finditer(text)]
    for comment in re.finditer(r"(?:^|(?<=\s))[;#]", text):
        if not any(start < comment.start() < end for start, end in quoted):
            return text[: comment.start()].strip()
    return text.strip()
