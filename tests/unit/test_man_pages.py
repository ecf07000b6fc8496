"""The man pages are those that the tables of options make, and troff finds nothing to mend in them."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import completion, man_pages

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


@pytest.mark.parametrize("main", [man_pages.main, completion.main], ids=lambda main: str(main.__module__))
def test_help_explains_and_an_unknown_word_is_refused_and_neither_writes(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, code in (["--help"], 0), (["-h"], 0), (["--hepl"], 2), (["write"], 2):
        with pytest.raises(SystemExit) as ended:
            main(words, tmp_path)
        assert ended.value.code == code and not list(tmp_path.iterdir())
    said = capsys.readouterr()
    assert "rewrites conf/" in said.out and "unrecognized arguments: --hepl" in said.err
    assert main([], tmp_path) == 0 and list(tmp_path.iterdir())
