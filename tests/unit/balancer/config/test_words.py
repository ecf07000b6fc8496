"""Words and lists with quotes: what keeps together, and that a quoted word is read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.words import enclose, quote, split_list, split_words, unquote


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('unix:"/run/my app/a.sock"  weight=2', ["unix:/run/my app/a.sock", "weight=2"]),
        ("name='my web' backup", ["name=my web", "backup"]),
        ('"a b"', ["a b"]),
        (r'"say \"hi\""', ['say "hi"']),
        ("it's joe's", ["it's", "joe's"]),
        ('"open end', ['"open', "end"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a, b,c\nd", ["a", "b", "c", "d"]),
        (",a,,", ["a"]),
        ('"a, b", unix:"c,d" x', ['"a, b"', 'unix:"c,d" x']),
        ("it's, joe's", ["it's", "joe's"]),
    ],
)
def test_lists(text: str, items: list[str]) -> None:
    assert split_list(text) == items


@given(st.lists(st.text("ab ,;#\"'\\\n\t:=", max_size=8), max_size=4))
def test_quoted_words_are_read_back(words: list[str]) -> None:
    assert split_words(" ".join(map(quote, words))) == words
    assert split_list(",".join(map(enclose, words))) == [enclose(word) for word in words]
    assert [unquote(enclose(word)) for word in words] == words
