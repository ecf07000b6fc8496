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
        compared = (
            "" if peer in ("ours", "direct") else number(ratio(rounds, peer, WORKS[name].compared), ".2f")
        )
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


def draw(results: Results, about: str, path: Path) -> bool:
    """Draw two bar charts: CPU per request divided by ours, and requests a second divided by those without a proxy.
    `about` is the machine, in words. Return False when there is no matplotlib or nothing to draw."""
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError:
        return False
    names = [name for name, rounds in results.items() if middle(rounds.get("ours", []), "cpu")]
    if not names:
        return False
    peers = list(dict.fromkeys(peer for rounds in results.values() for peer in rounds if peer != "direct"))
    panels = [("CPU per request, ours = 1 (lower is better)", "ours", cpu_of_ours)]
    if any("direct" in results[name] for name in names):
        panels.append(("requests a second, without a proxy = 1 (higher is better)", "direct", rate_of_direct))
    width = max(7.0, 0.45 * len(names) * len(peers))
    figure, every = pyplot.subplots(len(panels), figsize=(width, 3.6 * len(panels)), squeeze=False)
    figure.suptitle(f"TCP proxies in front of the same backend\n{about}", fontsize=10)
    for axes, (label, line, height_of) in zip(every.flat, panels, strict=True):
        for place, peer in enumerate(peers):
            drawn = {n: height for n, name in enumerate(names) if (height := height_of(results[name], peer))}
            at = [n + (place - (len(peers) - 1) / 2) * 0.8 / len(peers) for n in drawn]
            bars = axes.bar(at, list(drawn.values()), 0.8 / len(peers), label=peer)
            axes.bar_label(bars, fmt="%.2f", fontsize=7)
        axes.axhline(1, color="black", linewidth=0.6)
        axes.text(1.005, 1, line, transform=axes.get_yaxis_transform(), fontsize=8, va="center")
        axes.margins(y=0.12)
        axes.set_xticks(range(len(names)), names, rotation=20 if len(names) > 5 else 0)
        axes.set_title(label, fontsize=9, loc="left")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    # Below all panels: within one the legend would hide bars and their values.
    handles, labels = every.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(peers), loc="lower center")
    figure.tight_layout(rect=(0, 0.1 / len(panels), 1, 1))
    figure.savefig(path)
    return True


def cpu_of_ours(rounds: Rounds, peer: str) -> float | None:
    """CPU per request of a peer, divided by ours."""
    if peer == "ours":
        return 1.0
    compared = ratio(rounds, peer)
    return 1 / compared if compared else None


def rate_of_direct(rounds: Rounds, peer: str) -> float | None:
    """Requests a second of a peer, divided by those without a proxy."""
    rate, direct = middle(rounds.get(peer, []), "rate"), middle(rounds.get("direct", []), "rate")
    return rate / direct if rate and direct else None
