"""The man pages, made out of the tables of options.

    python -m scripts.man_pages            rewrites conf/man/

balancer(8), resizer(8), resize-client(1), balancerctl(1), and balancer.ini(5) for the file.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from balancer import options as balancer_options
from balancer.config import usage
from balancer.config.option import Option
from balancer.ctl_options import COMMANDS, FLAGS
from balancer.ctl_options import EXAMPLES as CTL_EXAMPLES
from workers.client import options as client_options
from workers.resizer import options as resizer_options

DIRECTORY = Path(__file__).resolve().parents[1] / "conf" / "man"
ENVIRONMENT = (
    "Each option has a name in the environment ({prefix}_ and the option in capitals with underscores) and a key in the "
    "INI file that --config names. The command line wins over the environment, that over the file."
)
SECTIONS = (
    "Sections: [balancer] has what concerns the process and the defaults of the others; [listener NAME] where clients "
    "connect; [pool NAME] backends, policy, checks and queue. A comment begins with # or ; at the start of a line or "
    "after white space; several values go one per line, indented, or with commas between them."
)
EXITS = (
    ("0", "done; a drain in which every session ended by itself"),
    ("1", "something failed while running"),
    ("2", "usage or configuration; the message names the option, the file and line, or the variable"),
    ("3", "cannot bind"),
    ("4", "no process ever got ready"),
    ("5", "stopped with sessions that had to be cut"),
)


def escaped(text: str) -> str:
    """Text as troff takes it."""
    safe = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + safe if safe[:1] in (".", "'") else safe


def tagged(tag: str, text: str) -> str:
    return f".TP\n\\fB{escaped(tag)}\\fR\n{escaped(text)}"


def page(
    name: str, section: int, about: str, synopsis: Iterable[str], parts: Sequence[tuple[str, str]]
) -> str:
    """A whole page; `parts` are (heading, body in troff)."""
    lines = [
        f'.TH {name.upper()} {section} "" "prefork-balancer"',
        ".SH NAME", f"{escaped(name)} \\- {escaped(about)}",
        ".SH SYNOPSIS", *(f"\\fB{escaped(line)}\\fR\n.br" for line in synopsis),
    ]  # fmt: skip
    for heading, body in parts:
        lines += [f'.SH "{heading.upper()}"', body]
    return "\n".join(lines) + "\n"


def option_text(option: Option) -> str:
    choices = f" ({', '.join(option.choices)})" if option.choices else ""
    default = f" Default: {option.default}." if option.default else f" Default: {option.unset or 'none'}."
    return f"{option.help}{choices}.{default}"


def options_body(table: Sequence[Option], spell: str = "--") -> str:
    """The options by group, each with its help and default."""
    parts = []
    for group, members in usage.groups(table).items():
        parts.append(f'.SS "{group}"')
        for option in members:
            value = f" {option.metavar}" if option.metavar and not option.flag else ""
            short = f"-{option.short}, " if option.short and spell else ""
            parts.append(tagged(f"{short}{spell}{option.name}{value}", option_text(option)))
    return "\n".join(parts)


def program(name: str, section: int, options: Any) -> str:
    """The page of a program whose module of options is given."""
    body = [
        ("options", options_body(options.OPTIONS)),
        ("environment", escaped(ENVIRONMENT.format(prefix=name.upper().replace("-", "_")))),
        ("exit status", "\n".join(tagged(*row) for row in EXITS)),
        ("example", f".nf\n{escaped(options.EXAMPLE)}\n.fi"),
        ("see also", "\\fBbalancerctl\\fR(1), \\fBbalancer.ini\\fR(5)"),
    ]
    return page(name, section, options.ABOUT, [f"{name} [OPTION ...]"], body)


def pages() -> dict[str, str]:
    """File name -> text."""
    commands = [(" ".join((name, *one.arguments)), one.help) for name, one in COMMANDS.items()]
    ctl = page(
        "balancerctl", 1, "looks into a running balancer and steers it", ["balancerctl COMMAND [OPTION ...]"],
        [
            ("commands", "\n".join(tagged(*row) for row in commands)),
            ("options", "\n".join(tagged(flag.spelling, flag.help) for flag in FLAGS)),
            ("examples", ".nf\n" + "\n".join(escaped(example) for example in CTL_EXAMPLES) + "\n.fi"),
            ("see also", "\\fBbalancer\\fR(8)"),
        ],
    )  # fmt: skip
    keys = [option for option in balancer_options.EVERY_OPTION if not option.command_line_only]
    ini = page(
        "balancer.ini", 5, "configuration of balancer", ["balancer -c FILE"],
        [
            ("description", escaped(SECTIONS)),
            ("keys", options_body(keys, "")),
            ("see also", "\\fBbalancer\\fR(8)"),
        ],
    )  # fmt: skip
    daemons = {
        "balancer.8": program("balancer", 8, balancer_options),
        "resizer.8": program("resizer", 8, resizer_options),
        "resize-client.1": program("resize-client", 1, client_options),
    }
    return {**daemons, "balancerctl.1": ctl, "balancer.ini.5": ini}


def explain(about: str | None, argv: Sequence[str] | None) -> None:
    """For a script without options: --help prints what it is about, another word is refused; both end the process."""
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=about, formatter_class=form).parse_args(argv)


def main(argv: Sequence[str] | None = None, directory: Path = DIRECTORY) -> int:
    explain(__doc__, argv)
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
