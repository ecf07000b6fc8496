"""The INI file, read strictly: every line is understood or refused by file and line.

    [balancer]
    maxconns = 1024        ; a comment, because white space precedes it
    upstream =
        10.0.0.1:9000 weight=2
        [::1]:9000         # neither a list nor a problem

RULES: text in, values out; knows sections and keys only as names it is given. The standard configparser (and
so ConfigArgParse's own INI classes) expands `%`, keeps inline comments as part of the value, ignores a
section whose name is mistyped and evaluates `[...]` as a Python list; each of these turns a slip into a wrong
setting, so none of it happens here. A value may be quoted to keep a ` #`, a ` ;` or a blank at its ends."""

import difflib
import re
from collections.abc import Iterable
from typing import TextIO

import configargparse

from balancer.config.option import ConfigError

_SECTION = re.compile(r"\[\s*([^\[\]]*?)\s*\]")
_KEY = re.compile(r"([^\s=:\[][^=:]*?)\s*[=:]\s*(.*)")
_COMMENT = re.compile(r"(^|\s+)[;#].*$")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?", or nothing when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _clean(text: str) -> str:
    """A value without its inline comment and without the quotes around it."""
    text = text.strip()
    if (
        text[:1] in ("'", '"')
        and (end := text.find(text[0], 1)) > 0
        and not _COMMENT.sub("", text[end + 1 :]).strip()
    ):
        return text[1:end]
    return _COMMENT.sub("", text).strip()


class IniFile(configargparse.ConfigFileParser):  # type: ignore[misc]
    """ConfigArgParse's file parser for one section. After parse(), `lines` tells on which line each key
    stood."""

    def __init__(
        self, path: str, section: str, keys: Iterable[str], repeatable: Iterable[str], sections: Iterable[str]
    ):
        super().__init__()
        self.path = path
        self.section = section
        self.keys = frozenset(keys)
        self.repeatable = frozenset(repeatable)
        self.sections = frozenset(sections) | {section}  # others that may share the file
        self.lines: dict[str, int] = {}
        self._seen: dict[tuple[str, str], int] = {}

    def get_syntax_description(self) -> str:
        return f"An INI file with a section [{self.section}]."

    def parse(self, stream: TextIO) -> dict[str, str | list[str]]:
        """Values by key: a list for a repeatable key, text for any other; empty ones are left out. Raises
        ConfigError."""
        found: dict[str, list[str]] = {}
        section = key = ""
        key_depth = 0  # a continuation is indented deeper than its key
        present: set[str] = set()
        for number, line in enumerate(stream, 1):
            text = line.strip()
            if not text or text[0] in "#;":
                continue
            depth = len(line) - len(line.lstrip())
            if key and depth > key_depth:
                if section == self.section:
                    found[key].append(_clean(text))
            elif heading := _SECTION.fullmatch(_COMMENT.sub("", text).strip()):
                section, key = self._enter(heading[1], number), ""
                present.add(section)
            else:
                key, value = self._read_key(section, text, number)
                key_depth = depth
                if section == self.section:
                    found[key] = [value]
        if present and self.section not in present:
            raise ConfigError(f"{self.path} has no section [{self.section}]")
        return self._values(found)

    def _enter(self, name: str, number: int) -> str:
        if name not in self.sections:
            guess = did_you_mean(name, self.sections)
            raise ConfigError(f"{self.path}:{number}: section [{name}] is unknown{guess}")
        return name

    def _read_key(self, section: str, text: str, number: int) -> tuple[str, str]:
        match = _KEY.fullmatch(text)
        if match is None:
            raise ConfigError(f"{self.path}:{number}: {text!r} is neither key = value nor [section]")
        key = match[1].lower().replace("_", "-")
        if not section:
            raise ConfigError(f"{self.path}:{number}: {key} stands before [{self.section}]")
        first = self._seen.setdefault((section, key), number)
        if first != number:
            raise ConfigError(
                f"{self.path}:{number}: {key} was already set on line {first}; "
                "several values go one per line, indented"
            )
        if section == self.section:
            if key not in self.keys:
                raise ConfigError(f"{self.path}:{number}: key {key} is unknown{did_you_mean(key, self.keys)}")
            self.lines[key] = number
        return key, _clean(match[2])

    def _values(self, found: dict[str, list[str]]) -> dict[str, str | list[str]]:
        values: dict[str, str | list[str]] = {}
        for key, parts in found.items():
            items = [part for part in parts if part]
            if key in self.repeatable:
                if items:
                    values[key] = items
            elif len(items) > 1:
                raise ConfigError(
                    f"{self.path}:{self.lines[key]}: {key} takes one value, {len(items)} are given"
                )
            elif items:
                values[key] = items[0]
        return values

    def serialize(self, items: dict[str, object]) -> str:
        """Part of ConfigArgParse's interface; --print-config is what writes our files."""
        return f"[{self.section}]\n" + "".join(f"{key} = {value}\n" for key, value in items.items())
