"""The figures for people and for programs: a Markdown table, JSON, and a chart where matplotlib is found.

RULES: a figure is the median over the rounds. A ratio is the median of the rounds' ratios, ours divided by the
peer's of the same round, so that what disturbs the machine for a while disturbs both.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from scripts.benchlib.works import WORKS, Sample

Rounds = dict[str, list[Sample]]  # peer -> one sample a round
Results = dict[str, Rounds]  # work -> that


def middle(samples: Iterable[Sample], name: str) -> float | None:
    values = [value for sample in samples if (value := getattr(sample, name)) is not None]
    return median(values) if values else None


def ratio(rounds: Rounds, peer: str, name: str = "cpu") -> float | None:
    """Ours to the peer's, of attribute `name`."""
    pairs = zip(rounds.get("ours", []), rounds.get(peer, []), strict=False)
    ratios = [getattr(a, name) / getattr(b, name) for a, b in pairs if getattr(a, name) and getattr(b, name)]
    return median(ratios) if ratios else None


def microseconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1e5:
        return f"{value / 1e3:,.0f} ms"
    return f"{value / 1e3:.2f} ms" if value >= 1000 else f"{value:.0f} us"


def number(value: float | None, form: str = ",.1f") -> str:
    return "-" if value is None else format(value, form)


def size(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:,.1f} MB" if value >= 1e6 else f"{value / 1e3:.1f} KB"


HEAD = ("work", "proxy", "requests/s", "p50", "p99", "CPU us/request", "user + system", "memory", "ours : it")


def rows_of(name: str, rounds: Rounds) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for place, (peer, samples) in enumerate(rounds.items()):
        user, system = middle(samples, "user"), middle(samples, "system")
        split = "-" if user is None else f"{number(user)} + {number(system)}"
        p99 = microseconds(middle(samples, "p99"))
        memory = size(middle(samples, "memory"))
        each = middle(samples, "memory_per_idle")
        if each is not None:
            memory += f", {size(each)} an idle one"
        alone = middle(samples, "p99_alone")
        if alone is not None:
            p99 += f" (alone {microseconds(alone)})"
        errors = sum(sample.errors for sample in samples)
        title = WORKS[name].title if place == 0 else ""
        rate = number(middle(samples, "rate"), ",.0f") + (f" ({errors} errors)" if errors else "")
        compared = "" if peer in ("ours", "direct") else number(ratio(rounds, peer), ".2f")
        p50 = microseconds(middle(samples, "p50"))
        rows.append((title, peer, rate, p50, p99, number(middle(samples, "cpu")), split, memory, compared))
    return rows


def table(results: Results) -> str:
    """The Markdown table of everything measured."""
    rows: list[Sequence[str]] = [HEAD, ("---",) * len(HEAD)]
    for name, rounds in results.items():
        rows += rows_of(name, rounds)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_json(results: Results, facts: dict[str, object]) -> str:
    works = {
        name: {
            "title": WORKS[name].title,
            "samples": {
                peer: [asdict(sample) | {"cpu": sample.cpu} for sample in samples]
                for peer, samples in rounds.items()
            },
            "cpu_ratio_to": {peer: ratio(rounds, peer) for peer in rounds if peer not in ("ours", "direct")},
        }
        for name, rounds in results.items()
    }
    return json.dumps(facts | {"works": works}, indent=2)


def draw(results: Results, path: Path) -> bool:
    """A bar chart of CPU per request relative to ours; False when there is no matplotlib."""
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError:
        return False
    peers = list(dict.fromkeys(peer for rounds in results.values() for peer in rounds if peer != "direct"))
    names = [name for name, rounds in results.items() if middle(rounds.get("ours", []), "cpu")]
    if not names:
        return False
    figure, axes = pyplot.subplots(figsize=(max(6.0, 1.3 * len(names)), 4))
    width = 0.8 / len(peers)
    for place, peer in enumerate(peers):
        heights = []
        for name in names:
            compared = 1.0 if peer == "ours" else ratio(results[name], peer)
            heights.append(1 / compared if compared else 0.0)
        at = [n + (place - (len(peers) - 1) / 2) * width for n in range(len(names))]
        axes.bar(at, heights, width, label=peer)
    axes.axhline(1, color="black", linewidth=0.6)
    axes.set_xticks(range(len(names)), names, rotation=20 if len(names) > 5 else 0)
    axes.set_ylabel("CPU per request, ours = 1 (lower is better)")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    return True
