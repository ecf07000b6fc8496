"""The file's reader: sections, entries with their lines, comments and quotes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.ini import Entry, read_ini
from balancer.config.option import ConfigError, Option
from balancer.config.usage import quoted
from balancer.config.words import unquote


def value_of(text: str) -> str:
    """What the line `key = text` gives."""
    entry = read_ini("f", f"[a]\nkey = {text}\n", ("a",), (), lambda title, key: "")["a"].entries["key"]
    return unquote(entry.items[0][1]) if entry.items else ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('send "a # b"', 'send "a # b"'),
        ('send "a ; b" ; comment', 'send "a ; b"'),
        ("send 'a # b' # comment", "send 'a # b'"),
        ('expect ^"a # b"', 'expect ^"a # b"'),
        (r'send "say \"hi # you\"" # c', r'send "say \"hi # you\""'),
        ('"a # b"', "a # b"),
        ("' a '", " a "),
        ('"a" and "b # c" # d', '"a" and "b # c"'),
        ("it's # isn't", "it's"),
        ("'tis ; it's", "'tis"),
        ('5" # and 6"', '5"'),
        ("a;b#c", "a;b#c"),
        ('"open # comment', '"open'),
        ("; all of it", ""),
    ],
)
def test_quotes_keep_what_would_begin_a_comment(text: str, value: str) -> None:
    assert value_of(text) == value


@given(st.text("a #;\"'=[\\", max_size=12))
def test_a_printed_value_is_read_back_unchanged(text: str) -> None:
    assert value_of(quoted(Option("key", "", "any text"), text)) == text


def test_each_value_has_its_line() -> None:
    text = "[a]\nkey = 1\n\n  2 ; two\n  # none\n  3\nother =\n[pool  b]\nkey = x\n"
    found = read_ini("f", text, ("a",), ("pool",), lambda title, key: "")
    assert found["a"].entries == {
        "key": Entry(2, ((2, "1"), (4, "2"), (6, "3"))),
        "other": Entry(7, ()),
    }
    assert (found["pool b"].line, found["pool b"].entries) == (8, {"key": Entry(9, ((9, "x"),))})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[a]\n[b]\n[a]\n", "f:3: section [a] began on line 1; put its keys there"),
        ("[pool x]\n[ pool  x ]\n", "f:2: section [pool x] began on line 1; put its keys there"),
        ("[c]\n", "f:1: section [c] is unknown"),
        ("[poll x]\n", "f:1: section [poll x] is unknown; did you mean [pool x]?"),
        ("[balancer x]\n", "f:1: section [balancer x] is unknown; did you mean [balancer]?"),
        (
            "[pool x y]\n",
            "f:1: [pool x y]: a name is at most 32 of a-z 0-9 . _ - and begins with a letter or digit",
        ),
        ("[pool " + "x" * 33 + "]\n", "f:1: [pool " + "x" * 33 + "]: a name is at most 32"),
        ("[a]\nodd = 1\n", "f:2: odd in a"),
    ],
)
def test_refusals(text: str, sentence: str) -> None:
    titles = ("a", "b", "balancer")
    with pytest.raises(ConfigError) as refused:
        read_ini("f", text, titles, ("pool",), lambda title, key: f"{key} in {title}" if key == "odd" else "")
    assert str(refused.value).startswith(sentence)
