"""The files that are shipped as samples: where they lie, and what --print-sample prints.

RULES: reads files of this distribution, nothing else. In a checkout they are those of conf/; of an installed wheel the
record of what was installed knows where they are, whatever the scheme (--user, --prefix, a virtual environment).
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath

from balancer.config.ini import did_you_mean
from balancer.config.option import CommandLineAnswer, UsageError

DISTRIBUTION = "prefork-balancer"
FLAG = "--print-sample"
ROOT = Path(__file__).resolve().parents[1]  # where the packages lie
PLACE = f"share/{DISTRIBUTION}"  # below the installation's data directory
SAMPLES = {
    "full": ("balancer.ini",),
    "minimal": ("balancer-minimal.ini",),
    "pools": ("balancer-pools.ini",),
    "framed": ("balancer-framed.ini",),
    "systemd": ("balancer.service", "balancer.socket"),
    "compose": ("compose/compose.yaml",),
    "kubernetes": ("kubernetes/balancer.yaml",),
}


class NoSample(UsageError):
    """The files are not there; the text says where they should be."""


def installed() -> Iterable[tuple[PurePath, Path]]:
    """What was installed with this distribution: the name in its record, and where it lies."""
    from importlib import metadata  # 1.5 MB, which every process of a daemon would keep

    try:
        files = metadata.files(DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        files = ()
    return ((PurePath(file), Path(str(file.locate()))) for file in files)


def find(
    name: str,
    root: Path = ROOT,
    record: Callable[[], Iterable[tuple[PurePath, Path]]] = installed,
) -> Path:
    """The path of a file of conf/. Raises NoSample."""
    if (root / "pyproject.toml").is_file():
        return root / "conf" / name
    for recorded, path in record():
        if recorded.match(f"{PLACE}/{name}") and path.is_file():
            return path
    raise NoSample(f"the samples are not installed: there is no {PLACE}/{name} of {DISTRIBUTION}")


def sample(which: str, find: Callable[[str], Path] = find) -> str:
    """The text of a sample, its files one behind the other. Raises UsageError."""
    if which not in SAMPLES:
        raise UsageError(
            f"{FLAG}: {which!r} is not one of {', '.join(SAMPLES)}{did_you_mean(which, SAMPLES)}"
        )
    texts = [(name, find(name).read_text().rstrip("\n")) for name in SAMPLES[which]]
    if len(texts) == 1:
        return texts[0][1]
    return "\n\n".join(f"# {name}\n\n{text}" for name, text in texts)


def answer_sample(argv: Sequence[str]) -> None:
    """Raises CommandLineAnswer where the command line asks for a sample; without a word behind it, for the full file."""
    for place, word in enumerate(argv):
        if word == FLAG:
            following = argv[place + 1] if place + 1 < len(argv) else ""
            raise CommandLineAnswer(sample("full" if following[:1] in ("", "-") else following))
        if word.startswith(f"{FLAG}="):
            raise CommandLineAnswer(sample(word.partition("=")[2]))
