"""Documents that cannot drift: every option is in its full INI file and on a page, with the same default."""

import configparser
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from balancer.config import loader as config
from balancer.config.option import CommandLineAnswer, SectionSettings
from balancer.configuration import parse as parse_balancer
from workers.resizer.options import parse_resizer

ROOT = Path(__file__).resolve().parents[2]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("options_table", ROOT / "scripts" / "options_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = generator()
SECTIONS = tuple(GENERATOR.TABLES)


def read(section: str, *argv: str) -> SectionSettings:
    return config.load(section, GENERATOR.TABLES[section], argv, {}, neighbours=SECTIONS)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_full_file_holds_every_option_with_its_default(section: str) -> None:
    path = ROOT / "conf" / f"{section}.ini"
    keys = configparser.ConfigParser(
        interpolation=None, inline_comment_prefixes=(";", "#"), allow_no_value=True
    )
    keys.read(path)  # a second reader: ours cannot hide an omission of its own
    options = [o for o in GENERATOR.TABLES[section] if not o.command_line_only and o.name != "config"]
    assert list(keys[section]) == [option.name for option in options]
    full, bare = read(section, "-c", str(path)), read(section)
    shown = {name for owner, name in GENERATOR.SHOWN if owner == section}
    for option in options:
        if option.name not in shown:
            assert keys[section][option.name] == option.default, option.name
            assert full.values[option.name] == bare.values[option.name], option.name


@pytest.mark.parametrize("section", SECTIONS)
def test_the_full_file_is_the_one_generated(section: str) -> None:
    path = ROOT / "conf" / f"{section}.ini"
    assert path.read_text() == GENERATOR.full_ini(section), "run: python scripts/options_table.py --write"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_page_has_the_table(section: str) -> None:
    pages = "".join(page.read_text() for page in GENERATOR.PAGES)
    assert GENERATOR.markdown(section) in pages, "run: python scripts/options_table.py --write"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_table_has_a_row_for_every_option(section: str) -> None:
    rows = [row.split(" | ") for row in GENERATOR.markdown(section).splitlines()[3:-1]]
    options = GENERATOR.DOCUMENTED[section]
    assert len(rows) == len(options)
    for row, option in zip(rows, options, strict=True):
        assert (f"`{option.name}`" if option.named_only else f"`--{option.name}`") in row[0]
        assert row[1] == (f"`{option.default}`" if option.default else option.unset or "none")


@pytest.mark.parametrize("section", SECTIONS)
def test_the_minimal_file_is_understood_and_smaller(section: str) -> None:
    minimal = ROOT / "conf" / f"{section}-minimal.ini"
    settings = read(section, "-c", str(minimal))
    assert {source for source in settings.sources.values() if source.startswith(str(minimal))}
    assert len(minimal.read_text().splitlines()) <= 10


@pytest.mark.parametrize("name", ["balancer.ini", "balancer-minimal.ini"])
def test_the_balancers_files_would_start_one(name: str) -> None:
    assert len(parse_balancer(["-c", str(ROOT / "conf" / name)], {}).pools[0].backends) == 3


POOLS = ROOT / "conf" / "balancer-pools.ini"


def test_the_file_with_pools_shows_what_sections_can_do() -> None:
    read = parse_balancer(["-c", str(POOLS)], {})
    assert [listener.name for listener in read.listeners] == ["web", "database"]
    assert [pool.name for pool in read.pools] == ["web", "inside", "replicas"]
    assert any(route.network is not None for listener in read.listeners for route in listener.routes)
    assert read.notes == ()


def test_the_file_with_pools_is_printed_so_that_it_can_be_read_back(tmp_path: Path) -> None:
    with pytest.raises(CommandLineAnswer) as answer:
        parse_balancer(["-c", str(POOLS), "--print-config"], {})
    (tmp_path / "copy.ini").write_text(str(answer.value))
    copy, original = (parse_balancer(["-c", str(path)], {}) for path in (tmp_path / "copy.ini", POOLS))
    assert (copy.listeners, copy.pools) == (original.listeners, original.pools)


def test_the_table_says_which_sections_take_an_option() -> None:
    rows = [row.strip("| ").split(" | ") for row in GENERATOR.markdown("balancer").splitlines()[3:-1]]
    column = {row[0].rpartition("`--")[2].strip("`"): row[3] for row in rows}
    assert column["workers"] == "`balancer`"
    assert column["maxconns"] == "`listener`, `balancer`"
    assert column["check"] == "`pool`, `balancer`"
    assert column["upstream"] == "`pool`, or `balancer` alone"
    assert column["route"] == "`listener`"


@pytest.mark.parametrize("name", ["resizer.ini", "resizer-minimal.ini"])
def test_the_resizers_files_would_start_one(name: str) -> None:
    assert parse_resizer(["-c", str(ROOT / "conf" / name)], {}).name


@pytest.mark.parametrize("name", ["balancer.service", "resizer@.service"])
def test_units_leave_a_drain_its_time(name: str) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "conf" / name)
    drain = parse_resizer([], {}).drain_timeout
    assert int(unit["Service"]["TimeoutStopSec"].removesuffix("s")) > drain
    assert (unit["Service"]["Type"], unit["Service"]["KillMode"]) == ("notify", "mixed")
