"""Sections with a name ([listener web], [pool a]): their options, what is inherited, --set and the environment.

    --set 'pool a: KEY=VALUE' > environment BALANCER__POOL_A__KEY > [pool a] in the file
        > command line > environment BALANCER_KEY > [balancer] in the file > default

RULES: knows kinds of sections and options only as it is given them. Every error is a ConfigError of one sentence."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from balancer.config.ini import FileSection, did_you_mean, read_ini
from balancer.config.loader import Sources, config_path, keys_of, settle
from balancer.config.option import ConfigError, Option, SectionKind, SectionSettings, UsageError
from balancer.config.sources import (
    canonical,
    environment_of,
    given_on,
    is_service_link,
    prefix_of,
    read_file,
)

SET_OPTION = Option(
    "set",
    "",
    "set one key of a section with a name, whatever the file says",
    group="Configuration",
    metavar="'SECTION: KEY=VALUE'",
    repeat=True,
    commas=False,
    unset="none",
    command_line_only=True,
)
_ASSIGNMENT = re.compile(r"\s*\[?\s*(\w+\s+[^\s:\]]+)\s*\]?\s*:\s*([^\s=]+)\s*=\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Configuration:
    """What was read: the program's own section, and the named ones by kind, in the order of the file."""

    main: SectionSettings
    named: Mapping[str, tuple[SectionSettings, ...]]
    notes: tuple[str, ...]

    def is_flat(self) -> bool:
        """Whether there is no section with a name."""
        return not any(self.named.values())


def load_sections(
    section: str,
    options: Sequence[Option],
    kinds: Sequence[SectionKind],
    argv: Sequence[str],
    environ: Mapping[str, str],
    neighbours: Iterable[str] = (),
) -> Configuration:
    """Read every source once and parse every value. Raises ConfigError.

    `neighbours` are the sections of other programs that may stand in the same file."""
    line = canonical(argv, options)
    options = [option for option in options if not option.named_only]
    texts, notes = environment_of(section, options, environ)
    path = config_path(line, texts)
    scope = _Scope(section, options, kinds)
    kind_names = [kind.name for kind in kinds]
    found = read_ini(path, read_file(path), (section, *neighbours), kind_names, scope.complain)
    named = {title: each for title, each in found.items() if scope.kind_of(title)}
    if found and section not in found and not named:
        raise ConfigError(f"{path} has no section [{section}]")
    variables = {
        each.name: (each.environment(section), texts[each.name]) for each in options if each.name in texts
    }
    entries = found[section].entries if section in found else {}
    main = settle(options, Sources(section, line, variables=variables, path=path, entries=entries))
    settled = _settle_named(
        main, scope, named, _Overrides(scope, named, path, given_on(line, "set"), environ)
    )
    if named:
        _refuse_flat_keys(main, kinds, settled)
    return Configuration(main, settled, notes + dead_values(main, kinds, settled))


class _Scope:
    """Which section takes which key."""

    def __init__(self, section: str, options: Sequence[Option], kinds: Sequence[SectionKind]) -> None:
        self.section = section
        self.kinds = {kind.name: kind for kind in kinds}
        self._keys = {f"[{section}]": keys_of(options)}
        self._keys |= {str(kind): keys_of(kind.options) for kind in kinds}

    def kind_of(self, title: str) -> SectionKind | None:
        """The kind of a section with a name."""
        kind, blank, _ = title.partition(" ")
        return self.kinds.get(kind) if blank else None

    def complain(self, title: str, key: str) -> str:
        """Why that section does not take that key, or nothing."""
        kind = self.kind_of(title)
        if kind is None and title != self.section:
            return ""  # another program's
        keys = self._keys[str(kind) if kind is not None else f"[{title}]"]
        if key in keys:
            return ""
        takers = [taker for taker, taken in self._keys.items() if key in taken]
        if not takers:
            return f"key {key} is unknown{did_you_mean(key, keys)}"
        verb = "takes" if len(takers) == 1 else "take"
        return f"{key} is no key of [{title}]; {' and '.join(reversed(takers))} {verb} it"


def variable_of(section: str, title: str, key: str) -> str:
    """The environment name of one key: upstream of [pool a-b] is BALANCER__POOL_A_B__UPSTREAM."""
    return f"{prefix_of(section)}_{_part(title)}__{_part(key)}"


def _part(text: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", text.upper())


class _Overrides:
    """What --set and the environment say of the sections with a name.

    `lines`: --name=value words by section. `variables`: the environment's name and text by section and key."""

    def __init__(
        self,
        scope: _Scope,
        named: Mapping[str, FileSection],
        path: str,
        assignments: Iterable[str],
        environ: Mapping[str, str],
    ) -> None:
        self._scope, self._named, self.path = scope, named, path
        self.lines: dict[str, list[str]] = {}
        self.variables: dict[str, dict[str, tuple[str, str]]] = {}
        for text in assignments:
            self._assign(text)
        self._refuse_shared_names()
        self._read(environ)

    def _assign(self, text: str) -> None:
        match = _ASSIGNMENT.fullmatch(text)
        if match is None:
            raise UsageError(f"--set {text!r} is not understood: write 'SECTION NAME: KEY=VALUE'")
        title, key = " ".join(match[1].split()), match[2].lower().replace("_", "-")
        if title not in self._named:
            guess = did_you_mean(f"[{title}]", [f"[{each}]" for each in self._named])
            raise UsageError(f"--set {text!r}: the file has no section [{title}]{guess}")
        if complaint := self._scope.complain(title, key):
            raise UsageError(f"--set {text!r}: {complaint}")
        self.lines.setdefault(title, []).append(f"--{key}={match[3].strip()}")

    def _refuse_shared_names(self) -> None:
        owners: dict[str, FileSection] = {}
        for section in self._named.values():
            other = owners.setdefault(_part(section.title), section)
            if other is not section:
                raise ConfigError(
                    f"{self.path}:{section.line}: [{section.title}] and [{other.title}] ({self.path}:{other.line}) share "
                    f"the environment names {variable_of(self._scope.section, section.title, '')}...; rename one"
                )

    def _read(self, environ: Mapping[str, str]) -> None:
        section = self._scope.section
        known = {
            variable_of(section, title, key): (title, key)
            for title in self._named
            for key in keys_of(self._scope.kinds[title.partition(" ")[0]].options)
        }
        for name, text in environ.items():
            if not name.startswith(prefix_of(section) + "_") or not text.strip() or is_service_link(text):
                continue
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
                guess = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(f"environment {name} names no key of a section in the file{guess}")
            title, key = known[name]
            self.variables.setdefault(title, {})[key] = (name, text.strip())


def _settle_named(
    main: SectionSettings, scope: _Scope, named: Mapping[str, FileSection], overrides: _Overrides
) -> dict[str, tuple[SectionSettings, ...]]:
    """The sections with a name, by kind."""
    settled: dict[str, list[SectionSettings]] = {kind: [] for kind in scope.kinds}
    for title, section in named.items():
        kind = scope.kinds[title.partition(" ")[0]]
        given = Sources(
            title,
            overrides.lines.get(title, ()),
            "--set",
            overrides.variables.get(title, {}),
            overrides.path,
            section.entries,
            main,
            f"{overrides.path}:{section.line}",
        )
        settled[kind.name].append(settle(kind.options, given))
    return {name: tuple(each) for name, each in settled.items()}


def _refuse_flat_keys(
    main: SectionSettings,
    kinds: Sequence[SectionKind],
    named: Mapping[str, tuple[SectionSettings, ...]],
) -> None:
    """What belongs to one listener or pool cannot be the default of several."""
    for kind in kinds:
        for option in kind.options:
            if not option.named_only and not option.inherited and main.sources[option.name] != "default":
                raise _flat_key(main, kind, option.name, named)


def _flat_key(
    main: SectionSettings, kind: SectionKind, key: str, named: Mapping[str, tuple[SectionSettings, ...]]
) -> ConfigError:
    source = main.sources[key]
    first = next(each for group in (named[kind.name], *named.values()) for each in group)
    if named[kind.name]:
        beside, target = f"there are {kind} sections (first {first.begins})", f"[{first.title}]"
    else:
        beside = f"the file has sections with a name (first [{first.title}], {first.begins})"
        target = f"a section {kind}"
    title = first.title if named[kind.name] else f"{kind.name} NAME"
    if source == "command line":
        return main.refuse(key, f"{beside}; use --set '{title}: {key}=...'")
    if source.startswith("environment "):
        return main.refuse(key, f"{beside}; use {variable_of(main.title, title, key)}")
    return ConfigError(f"{source}: {key} stands in [{main.title}], but {beside}; move it to {target}")


def dead_values(
    main: SectionSettings,
    kinds: Sequence[SectionKind],
    named: Mapping[str, tuple[SectionSettings, ...]],
) -> tuple[str, ...]:
    """A note for each value of the command line or the environment that every section sets itself."""
    notes = []
    for kind in kinds:
        for option in kind.options:
            source = "default" if option.named_only else main.sources[option.name]
            sections = named[kind.name]
            if not source.startswith(("environment ", "command line")) or not sections:
                continue
            if all(each.sources[option.name] != source for each in sections):
                setters = [f"[{each.title}] {each.sources[option.name]}" for each in sections]
                if len(setters) > 3:
                    setters[2:] = [f"{len(setters) - 2} more"]
                verb = "sets" if len(setters) == 1 else "set"
                notes.append(f"{main.where(option.name)} has no effect: {joined(setters)} {verb} it")
    return tuple(notes)


def joined(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
