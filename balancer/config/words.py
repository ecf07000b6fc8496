"""Words and lists in which quotes keep blanks and commas together: `unix:"/run/my app/a.sock" weight=2, b:80`.

RULES: text in, text out. A quote opens after no letter or digit and closes before none, so an apostrophe is no quote.
Between quotes a backslash keeps the quote or backslash behind it."""

import re

QUOTED = re.compile(r"""(?<!\w)(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')(?!\w)""")
_ESCAPED = re.compile(r"""\\(["'\\])""")
_PLAIN = re.compile(r"""[^\s,;#"'\\]+""")


def split_words(text: str) -> list[str]:
    """The words between blanks, without the quotes that kept blanks inside them."""
    return [_without_quotes(word) for word in _split(text, r"\s+")]


def split_list(text: str) -> list[str]:
    """The items between commas and line ends, quotes as they were."""
    return _split(text, r"\s*[,\n]\s*")


def unquote(text: str) -> str:
    """The text without quotes around the whole of it."""
    text = text.strip()
    return _without_quotes(text) if QUOTED.fullmatch(text) else text


def quote(text: str) -> str:
    """The text as one word that split_words gives back: unchanged where it needs no quotes."""
    return text if _PLAIN.fullmatch(text) else enclose(text)


def enclose(text: str) -> str:
    """The text between quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _split(text: str, separator: str) -> list[str]:
    """The parts that are not empty, between the separators outside quotes."""
    quoted = [match.span() for match in QUOTED.finditer(text)]
    parts, begin = [], 0
    for match in re.finditer(separator, text):
        if not any(start < match.start() < end for start, end in quoted):
            parts.append(text[begin : match.start()])
            begin = match.end()
    parts.append(text[begin:])
    return [part.strip() for part in parts if part.strip()]


def _without_quotes(text: str) -> str:
    return QUOTED.sub(lambda match: _ESCAPED.sub(r"\1", match[0][1:-1]), text)
