"""Where the value of an option comes from, and what would hold without it.

RULES: reads what the loader has settled for each section (config/loader.py), nothing else.

    {"option", "help", "default", "variable", "values": [{"section", "begins", "value", "source", "replaced": [{"value",
     "source"}]}]}

`replaced`: what weaker sources say, the strongest of them first, the default last. Where there are sections with a name,
an option of theirs has a value in each.
"""

from collections.abc import Iterable
from typing import Any

from balancer.config.ini import did_you_mean
from balancer.config.option import Option, SectionSettings
from balancer.options import EVERY_OPTION, KINDS, SECTION


class UnknownOption(Exception):
    """No option has that name; the text says which are close."""


def option_called(word: str) -> Option:
    """The option of a key, a flag or an environment name. Raises UnknownOption."""
    known = {one.name: one for one in EVERY_OPTION if not one.command_line_only}
    name = word.lstrip("-").replace("_", "-").lower().removeprefix(f"{SECTION}-")
    if name not in known:
        raise UnknownOption(f"no option is called {word!r}{did_you_mean(name, known)}")
    return known[name]


def explain_option(word: str, sections: Iterable[SectionSettings]) -> dict[str, Any]:
    """What an option is in each section that has it. Raises UnknownOption."""
    option = option_called(word)
    every = [one for one in sections if option.name in one.texts]
    is_theirs = any(option.name == one.name for kind in KINDS for one in kind.options)
    named = [one for one in every if one.begins] if is_theirs else []
    return {
        "option": option.name,
        "help": option.help,
        "default": option.default or option.unset,
        "variable": option.environment(SECTION),
        "values": [described(option, one) for one in named or every],
    }


def described(option: Option, settings: SectionSettings) -> dict[str, Any]:
    """The value in one section."""
    return {
        "section": settings.title,
        "begins": settings.begins or None,
        "value": ", ".join(settings.texts[option.name]) or option.unset,
        "source": settings.sources[option.name],
        "replaced": [
            {"value": text or option.unset, "source": source}
            for text, source in settings.replaced[option.name]
        ],
    }
