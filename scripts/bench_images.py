"""The picture function beside naive Pillow and beside whichever of pyvips, sharp, OpenCV and Go are found.

    python -m scripts.bench_images [--input DIRECTORY] [--rounds 3] [--pipelines ours,naive,pyvips]
    [--targets 160x160]

One process per pipeline, asked one picture at a time in turn, round after round, so that what disturbs the
machine disturbs all of them. CPU is user + system of the resize alone, the median over the rounds; a ratio
is the geometric mean over pictures of the medians of each round's ratio, naive = 1, less is better. Loss is
how many dB the final file is further than naive's own final file from the same picture decoded whole and
resized by Pillow's LANCZOS. Peak memory is that of a fresh process after three times the largest picture.

Python peers are looked for in this interpreter and in $PEERS_PYTHON, sharp in $NODE_PATH, Go's nfnt/resize
in its module cache. Without --input the sample pictures of samples.py are drawn. Writes images.md,
images.json and, with matplotlib, images.svg into bench-out/.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from scripts import samples
from scripts.pipelines import quality
from workers.imaging import geometry

HERE = Path(__file__).resolve().parent
GIF_PIXELS = 1_000_000  # beyond that libvips takes 20 s an animation for its palettes
DEFAULT = ("ours", "naive", "pyvips", "sharp", "opencv", "go")
KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".gif": "GIF"}


@dataclass
class Row:
    """One picture at one target through one pipeline."""

    picture: str
    kind: str
    megapixels: float
    target: str
    pipeline: str
    cpu: list[float] = field(default_factory=list)  # seconds, one a round
    size: int = 0  # bytes of the answer
    loss: float | None = None  # dB behind naive's final file
    ssim: float | None = None
    error: str = ""


class Pipeline:
    """A process that resizes one picture at a time and says what it cost."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.made_of = str(self._hear().get("ready", ""))

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            words = self.process.stderr.read().strip().splitlines() or ["ended without a word"]
            raise OSError(next((word for word in words if "Error" in word), words[-1]))
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, path: Path, size: geometry.Size, source: geometry.Size, out: str = "") -> dict[str, Any]:
        assert self.process.stdin is not None
        job = {"path": str(path), "width": size[0], "height": size[1], "source": source, "out": out}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._hear()

    def peak(self) -> int:
        """Bytes of memory at its highest so far."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        return 0

    def close(self) -> None:
        self.process.communicate()


def commands(name: str, work: Path) -> Iterable[list[str]]:
    """Ways to start a pipeline, best first."""
    if name == "sharp":
        node = shutil.which("node")
        return [[node, str(HERE / "pipelines" / "sharp.cjs")]] if node else []
    if name == "go":
        built = build_go(work)
        return [[built]] if built else []
    pythons = [sys.executable, os.environ.get("PEERS_PYTHON", "")]
    if name.startswith("ours") or name == "naive":
        pythons = pythons[:1]
    return [[python, str(HERE / "pipelines" / "python.py"), name] for python in pythons if python]


def build_go(work: Path) -> str:
    """The Go program's path, or nothing where there is no Go or no way to its one module."""
    go, folder, built = shutil.which("go"), work / "go", work / "go" / "nfnt"
    if not go or built.exists():
        return str(built) if built.exists() else ""
    folder.mkdir(exist_ok=True)
    shutil.copy(HERE / "pipelines" / "nfnt.go", folder / "main.go")
    for step in (["mod", "init", "nfnt"], ["get", "github.com/nfnt/resize"], ["build", "-o", "nfnt", "."]):
        if subprocess.run([go, *step], cwd=folder, capture_output=True, timeout=300).returncode:
            return ""
    return str(built)


def start(name: str, work: Path) -> Pipeline | None:
    reason = "not found"
    for command in commands(name, work):
        try:
            return Pipeline(name, command)
        except OSError as error:
            reason = str(error)
    print(f"{name}: not measured: {reason}", file=sys.stderr)
    return None


def pictures(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.suffix.lower() in KINDS)


def target_size(target: str, source: geometry.Size) -> geometry.Size:
    """`800x600`, or `1920` for a width that keeps the aspect ratio: in numbers, so that all make the same
    size."""
    width, _, height = target.partition("x")
    return geometry.plan_resize(source, int(width), int(height or 0), "stretch", is_turned=False).size


def measure(
    paths: Sequence[Path], targets: Sequence[str], pipes: Sequence[Pipeline], rounds: int
) -> list[Row]:
    rows = []
    for path in paths:
        with Image.open(path) as image:
            source = image.size
        for target in targets:
            size = target_size(target, source)
            if path.suffix == ".gif" and size[0] * size[1] > GIF_PIXELS:
                continue
            kind, area = KINDS[path.suffix.lower()], source[0] * source[1] / 1e6
            here = [Row(path.name, kind, area, target, pipe.name) for pipe in pipes]
            for _ in range(rounds):
                for pipe, row in zip(pipes, here, strict=True):
                    if not row.error:
                        answer = pipe.ask(path, size, source)
                        row.error = answer.get("error", "")
                        row.cpu += [] if row.error else [answer["cpu"]]
            judge(path, size, source, pipes, here)
            rows += here
            print(f"{path.name} {target}: " + ", ".join(cell(row) for row in here), file=sys.stderr)
    return rows


def cell(row: Row) -> str:
    return f"{row.pipeline} {row.error}" if row.error else f"{row.pipeline} {1e3 * median(row.cpu):.1f} ms"


def judge(
    path: Path, size: geometry.Size, source: geometry.Size, pipes: Sequence[Pipeline], rows: Sequence[Row]
) -> None:
    """Sets size, loss and SSIM of the rows, from one final file of each."""
    reference, signal = quality.reference(path, size), {}
    with tempfile.TemporaryDirectory() as folder:
        for pipe, row in zip(pipes, rows, strict=True):
            if not row.error:
                out = Path(folder) / pipe.name
                row.size = pipe.ask(path, size, source, str(out))["bytes"]
                signal[pipe.name], row.ssim = quality.judged(out, reference)
    for row in rows:
        if row.pipeline in signal and "naive" in signal:
            row.loss = signal["naive"] - signal[row.pipeline]


def peaks(paths: Sequence[Path], pipes: Sequence[Pipeline], work: Path) -> dict[str, int]:
    """Peak memory of a fresh process per pipeline."""
    found = {}
    source, largest = max((Image.open(path).size, path) for path in paths)
    for name in (pipe.name for pipe in pipes):
        pipe = start(name, work)
        if pipe is not None:
            for _ in range(3):
                pipe.ask(largest, (800, 600), source)
            found[name] = pipe.peak()
            pipe.close()
    return found


def ratio(rows: Sequence[Row], pipeline: str, base: str, kind: str, target: str) -> float | None:
    """CPU of `pipeline` over that of `base`, the geometric mean over the pictures both could do."""
    logs = []
    by_name = {
        (row.picture, row.target, row.pipeline): row for row in rows if row.kind == kind and not row.error
    }
    for (picture, at, name), row in by_name.items():
        other = by_name.get((picture, at, base))
        if name == pipeline and other and target in ("", at):
            logs.append(math.log(median(a / b for a, b in zip(row.cpu, other.cpu, strict=True))))
    return math.exp(sum(logs) / len(logs)) if logs else None


def form(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def tables(
    rows: Sequence[Row], pipes: Sequence[Pipeline], memory: dict[str, int], targets: Sequence[str]
) -> str:
    """Markdown: the ratios first, then every row."""
    names = [pipe.name for pipe in pipes]
    lines = [*(f"- **{pipe.name}**: {pipe.made_of}" for pipe in pipes), ""]
    for kind in sorted({row.kind for row in rows}):
        heads = [f"{kind}: CPU, naive = 1", *targets, "all", "ours : it", "worst loss dB", "peak MB"]
        lines += [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
        for name in names:
            losses = [
                row.loss for row in rows if row.kind == kind and row.pipeline == name and row.loss is not None
            ]
            cells = [form(ratio(rows, name, "naive", kind, target), ".2f") for target in (*targets, "")]
            cells.append(form(ratio(rows, "ours", name, kind, ""), ".2f"))
            cells += [form(max(losses, default=None), ".2f"), form(memory.get(name, 0) / 1e6, ".0f")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["| picture | MP | target | pipeline | CPU ms | KB | loss dB | SSIM |", "|" + " --- |" * 8]
    for row in rows:
        spent = row.error or f"{1e3 * median(row.cpu):.1f}"
        quality = f"{form(row.loss, '.2f')} | {form(row.ssim, '.4f')}"
        head = f"| {row.picture} | {row.megapixels:.1f} | {row.target} | {row.pipeline}"
        lines.append(f"{head} | {spent} | {row.size / 1e3:.0f} | {quality} |")
    return "\n".join(lines) + "\n"


def chart(rows: Sequence[Row], names: Sequence[str], targets: Sequence[str], path: Path) -> None:
    """Bars: CPU over naive's, by target, JPEG."""
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(figsize=(8, 4))
    wide = 0.8 / len(names)
    for place, name in enumerate(names):
        heights = [ratio(rows, name, "naive", "JPEG", target) or 0 for target in targets]
        bars = axes.bar([spot + place * wide for spot in range(len(targets))], heights, wide, label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.set_xticks([spot + 0.4 - wide / 2 for spot in range(len(targets))], targets)
    axes.set_ylabel("CPU per picture, naive Pillow = 1")
    axes.set_title("JPEG: less is better")
    axes.legend(fontsize=8, ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description="the picture function beside its peers")
    parser.add_argument("--input", type=Path, help="directory of pictures; default: drawn for the occasion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--pipelines", default=",".join(DEFAULT), help="also ours-gap1.5, ours-gap1, ours-pillow"
    )
    parser.add_argument("--targets", default="160x160,800x600,1920")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    choice = parser.parse_args()
    targets = choice.targets.split(",")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if choice.input is None:
            samples.draw(work / "samples", 14, seed=1)
        paths = pictures(choice.input or work / "samples")
        if not paths:
            sys.exit(f"no pictures in {choice.input}")
        pipes = [pipe for name in choice.pipelines.split(",") if (pipe := start(name, work))]
        rows = measure(paths, targets, pipes, choice.rounds)
        memory = peaks(paths, pipes, work)
    for pipe in pipes:
        pipe.close()
    choice.out.mkdir(parents=True, exist_ok=True)
    text = tables(rows, pipes, memory, targets)
    (choice.out / "images.md").write_text(text)
    made_of = {pipe.name: pipe.made_of for pipe in pipes}
    found = {"at": time.strftime("%Y-%m-%dT%H:%M:%S"), "made_of": made_of, "peak_bytes": memory}
    (choice.out / "images.json").write_text(
        json.dumps({**found, "rows": [asdict(row) for row in rows]}, indent=1)
    )
    chart(rows, [pipe.name for pipe in pipes], targets, choice.out / "images.svg")
    print(text)


if __name__ == "__main__":
    main()
