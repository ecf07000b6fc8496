"""Names of results: the original's shape, distinct for distinct sources."""

import os
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.client.naming import NAME_MAX, named_by_size, target_names


def test_the_shape() -> None:
    names = target_names(["photo.jpg", "a/b/c.PNG", "no-stem/.gif"], 200, 100)
    assert names["photo.jpg"] == "photo-200x100.jpg"
    assert names["a/b/c.PNG"] == "a/b/c-200x100.PNG"


def test_a_format_brings_its_extension() -> None:
    assert target_names(["x.png"], 5, 0, "jpeg") == {"x.png": "x-5x0.jpg"}


def test_clashes_get_numbers_in_the_order_of_their_paths() -> None:
    names = target_names(["x.jpg", "x.jpeg", "X.JPG", "a/x.jpg", "b/x.jpg"], 2, 2)
    assert names == {
        "X.JPG": "X-2x2.JPG",
        "a/x.jpg": "a/x-2x2.jpg",
        "b/x.jpg": "b/x-2x2.jpg",
        "x.jpeg": "x-2x2.jpeg",
        "x.jpg": "x~2-2x2.jpg",
    }


def test_a_number_that_is_a_source_s_own_name_is_passed_over() -> None:
    names = target_names(["A.jpg", "a.jpg", "a~2.jpg"], 2, 2)
    assert len(set(names.values())) == 3


def test_one_target_format_makes_clashes_of_different_extensions() -> None:
    names = target_names(["x.jpg", "x.png", "x.gif"], 2, 2, "png")
    assert sorted(names.values()) == ["x-2x2.png", "x~2-2x2.png", "x~3-2x2.png"]


def test_composed_and_decomposed_are_one_name_to_some_file_systems() -> None:
    names = target_names([normalize("NFC", "é.jpg"), normalize("NFD", "é.jpg")], 2, 2)
    assert len({normalize("NFC", name) for name in names.values()}) == 2


@pytest.mark.parametrize("stem", ["n" * 251, "é" * 125, "図" * 83 + "nn", "\udcff" * 250])
def test_long_names_are_cut_between_characters_and_stay_apart(stem: str) -> None:
    names = target_names([stem + ".jpg", stem[:-1] + "m.jpg"], 1920, 1080)
    assert all(len(os.fsencode(name)) <= NAME_MAX for name in names.values())
    assert len(set(names.values())) == 2
    if "\udcff" not in stem:
        for name in names.values():
            os.fsencode(name).decode("utf-8")


paths = st.lists(
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12
    ).filter(lambda name: name not in (".", "..")),
    unique=True,
    max_size=12,
)


@given(paths, st.sampled_from(["", "jpeg", "png"]))
def test_any_set_of_names_gets_distinct_ones_independent_of_its_order(
    sources: list[str], format: str
) -> None:
    names = target_names(sources, 20, 10, format)
    assert names.keys() == set(sources)
    assert len({normalize("NFC", name).casefold() for name in names.values()}) == len(sources)
    assert names == target_names(list(reversed(sources)), 20, 10, format)
    assert not any("/" in name for name in names.values())


@pytest.mark.parametrize(
    ("path", "asked", "found", "name"),
    [
        ("a/x.jpg", (100, 0), (100, 75), "a/x-100x75.jpg"),
        ("a/x.jpg", (0, 100), (133, 100), "a/x-133x100.jpg"),
        ("a/x.jpg", (100, 80), (100, 75), "a/x-100x80.jpg"),
        ("x-100x0.jpg", (100, 0), (100, 75), "x-100x0-100x75.jpg"),
        ("x", (7, 0), (7, 1), "x-7x1"),
    ],
)
def test_a_side_that_was_not_asked_for_is_named_as_it_is(
    path: str, asked: tuple[int, int], found: tuple[int, int], name: str
) -> None:
    planned = target_names([path], *asked)[path]
    assert named_by_size(planned, asked, found) == name


def test_names_by_size_are_distinct_and_fit() -> None:
    paths = [
        "a.png",
        "a.jpg",
        "A.jpg",
        "a-9x0.jpg",
        "a~2.jpg",
        "b" * 255,
        "b" * 254 + "c",
        "b" * 250 + ".jpg",
    ]
    planned = target_names(paths, 9, 0, "jpeg").values()
    for size in ((9, 1), (9, 16_383)):
        names = [named_by_size(each, (9, 0), size) for each in planned]
        assert len({name.casefold() for name in names}) == len(paths)
        assert max(len(os.fsencode(name)) for name in names) <= 255
