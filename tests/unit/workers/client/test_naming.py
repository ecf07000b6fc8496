"""Names of results: the original's shape, distinct for distinct sources."""

import os
from collections.abc import Iterable
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.client.naming import NAME_MAX, format_of, named_by_size, target_names


def names_of(paths: Iterable[str], width: int, height: int, format: str = "") -> dict[str, str]:
    """The targets of files whose content is what their names say, or JPEG."""
    return target_names({path: format_of(path) or "jpeg" for path in paths}, width, height, format)


def test_the_shape() -> None:
    names = names_of(["photo.jpg", "a/b/c.PNG"], 200, 100)
    assert names["photo.jpg"] == "photo-200x100.jpg"
    assert names["a/b/c.PNG"] == "a/b/c-200x100.PNG"


def test_a_format_brings_its_extension() -> None:
    assert names_of(["x.png"], 5, 0, "jpeg") == {"x.png": "x-5x0.jpg"}


@pytest.mark.parametrize(
    ("name", "content", "result"),
    [
        ("x.jpg", "jpeg", "x-5x4.jpg"),
        ("x.JPEG", "jpeg", "x-5x4.JPEG"),
        ("x.jpg", "png", "x-5x4.png"),
        ("x.png", "webp", "x-5x4.webp"),
        ("x.JFIF", "jpeg", "x-5x4.jpg"),
        ("x.jpe", "jpeg", "x-5x4.jpg"),
        ("x.mpo", "jpeg", "x-5x4.jpg"),
        ("x.apng", "png", "x-5x4.png"),
        ("x.gif", "avif", "x-5x4.avif"),
        ("photo", "jpeg", "photo-5x4.jpg"),
        ("photo.2024", "gif", "photo.2024-5x4.gif"),
        ("photo.jpg.bak", "jpeg", "photo.jpg.bak-5x4.jpg"),
        (".gif", "gif", ".gif-5x4.gif"),
    ],
)
def test_the_extension_is_that_of_the_content(name: str, content: str, result: str) -> None:
    assert target_names({name: content}, 5, 4) == {name: result}
    assert target_names({name: content}, 5, 4, "avif")[name].endswith("-5x4.avif")


def test_sources_that_lose_their_extension_stay_apart() -> None:
    names = names_of(["x.jfif", "x.jpg", "x.jpe", "x.mpo"], 5, 4)
    assert len({name.casefold() for name in names.values()}) == 4
    assert names == names_of(["x.mpo", "x.jpe", "x.jpg", "x.jfif"], 5, 4)


def test_clashes_get_numbers_in_the_order_of_their_paths() -> None:
    names = names_of(["x.jpg", "x.jpeg", "X.JPG", "a/x.jpg", "b/x.jpg"], 2, 2)
    assert names == {
        "X.JPG": "X-2x2.JPG",
        "a/x.jpg": "a/x-2x2.jpg",
        "b/x.jpg": "b/x-2x2.jpg",
        "x.jpeg": "x-2x2.jpeg",
        "x.jpg": "x~2-2x2.jpg",
    }


def test_a_number_that_is_a_source_s_own_name_is_passed_over() -> None:
    names = names_of(["A.jpg", "a.jpg", "a~2.jpg"], 2, 2)
    assert len(set(names.values())) == 3


def test_one_target_format_makes_clashes_of_different_extensions() -> None:
    names = names_of(["x.jpg", "x.png", "x.gif"], 2, 2, "png")
    assert sorted(names.values()) == ["x-2x2.png", "x~2-2x2.png", "x~3-2x2.png"]


def test_composed_and_decomposed_are_one_name_to_some_file_systems() -> None:
    names = names_of([normalize("NFC", "é.jpg"), normalize("NFD", "é.jpg")], 2, 2)
    assert len({normalize("NFC", name) for name in names.values()}) == 2


@pytest.mark.parametrize("stem", ["n" * 251, "é" * 125, "図" * 83 + "nn", "\udcff" * 250])
def test_long_names_are_cut_between_characters_and_stay_apart(stem: str) -> None:
    names = names_of([stem + ".jpg", stem[:-1] + "m.jpg"], 1920, 1080)
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
    names = names_of(sources, 20, 10, format)
    assert names.keys() == set(sources)
    assert len({normalize("NFC", name).casefold() for name in names.values()}) == len(sources)
    assert names == names_of(list(reversed(sources)), 20, 10, format)
    assert not any("/" in name for name in names.values())


@pytest.mark.parametrize(
    ("path", "asked", "found", "name"),
    [
        ("a/x.jpg", (100, 0), (100, 75), "a/x-100x75.jpg"),
        ("a/x.jpg", (0, 100), (133, 100), "a/x-133x100.jpg"),
        ("a/x.jpg", (100, 80), (100, 75), "a/x-100x80.jpg"),
        ("x-100x0.jpg", (100, 0), (100, 75), "x-100x0-100x75.jpg"),
        ("x", (7, 0), (7, 1), "x-7x1.jpg"),
    ],
)
def test_a_side_that_was_not_asked_for_is_named_as_it_is(
    path: str, asked: tuple[int, int], found: tuple[int, int], name: str
) -> None:
    planned = names_of([path], *asked)[path]
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
    planned = names_of(paths, 9, 0, "jpeg").values()
    for size in ((9, 1), (9, 16_383)):
        names = [named_by_size(each, (9, 0), size) for each in planned]
        assert len({name.casefold() for name in names}) == len(paths)
        assert max(len(os.fsencode(name)) for name in names) <= 255
