"""The man pages are those that the tables of options make, and troff finds nothing to mend in them."""

import shutil
import subprocess

import pytest

from scripts import man_pages

PAGES = man_pages.pages()


@pytest.mark.parametrize("name", list(PAGES))
def test_a_page_is_the_one_generated(name: str) -> None:
    text = (man_pages.DIRECTORY / name).read_text()
    assert text == PAGES[name], "run: python scripts/options_table.py --write"


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
@pytest.mark.parametrize("name", list(PAGES))
def test_troff_has_nothing_to_say(name: str) -> None:
    words = ["groff", "-man", "-ww", "-z", "-Tutf8", man_pages.DIRECTORY / name]
    run = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
