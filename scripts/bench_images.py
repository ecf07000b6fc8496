"""Compares the picture function with naive Pillow and with those of pyvips, sharp, OpenCV and Go that are installed.

    python -m scripts.bench_images [--input DIRECTORY] [--rounds 3] [--pipelines ours,naive,pyvips]
    [--targets 160x160]

One process per pipeline; the pipelines resize one picture at a time in turn, round after round, so that other load on
the machine affects all of them. CPU is user + system of the resize alone, the median over the rounds. A ratio is the
geometric mean over pictures of the median ratio of the rounds, naive = 1, less is better. Loss is the PSNR in dB of
naive's final file minus that of the pipeline's, both against the picture decoded whole and resized by Pillow's LANCZOS.
Peak memory is that of a fresh process after resizing the largest picture three times.

Python peers are searched in this interpreter and in $PEERS_PYTHON, sharp in $NODE_PATH, Go's nfnt/resize in its module
cache. Without --input the sample pictures of samples.py are drawn. Writes images.md, images.json and, with matplotlib,
images.svg into bench-out/.
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
from scripts.lab.choices import add_choices, add_rounds
from scripts.pipelines import quality
from workers.imaging import geometry

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "scripts" / "pipelines"
MAX_GIF_PIXELS = 1_000_000  # above that libvips takes 20 s an animation for its palettes
DEFAULT = ("ours", "naive", "pyvips", "sharp", "opencv", "go")
VARIANTS = ("ours-gap1.5", "ours-gap1", "ours-pillow")
KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".gif": "GIF"}


@dataclass
class ImageResult:
    """One picture resized to one target by one pipeline."""

    picture: str
    kind: str
    megapixels: float
    target: str
    pipeline: str
    cpu: list[float] = field(default_factory=list)  # seconds, one a round
    size: int = 0  # bytes of the final file
    loss: float | None = None  # dB behind naive's final file
    ssim: float | None = None
    error: str = ""


class PipelineProcess:
    """A process that resizes one picture at a time and measures its CPU time."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.libraries = str(self._receive().get("ready", ""))

    def _receive(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        line = self.popen.stdout.readline()
        if not line:
            lines = self.popen.stderr.read().strip().splitlines() or ["exited without an error message"]
            raise OSError(next((line for line in lines if "Error" in line), lines[-1]))
        found: dict[str, Any] = json.loads(line)
        return found

    def resize(
        self, path: Path, size: geometry.Size, source: geometry.Size, out: str = "", **more: object
    ) -> dict[str, Any]:
        assert self.popen.stdin is not None
        job = {"path": str(path.resolve()), "width": size[0], "height": size[1], "source": source, "out": out}
        job |= more
        self.popen.stdin.write(json.dumps(job) + "\n")
        self.popen.stdin.flush()
        return self._receive()

    def peak(self) -> int:
        """Peak memory so far, in bytes."""
        for line in Path(f"/proc/{self.popen.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        return 0

    def close(self) -> None:
        """End the process."""
        self.popen.communicate()


def commands(name: str, work: Path) -> Iterable[list[str]]:
    """Commands that start a pipeline, in order of preference."""
    if name == "sharp":
        node = shutil.which("node")
        return [[node, str(PROGRAMS / "sharp.cjs")]] if node else []
    if name == "go":
        built = build_go(work)
        return [[built]] if built else []
    pythons = [sys.executable, os.environ.get("PEERS_PYTHON", "")]
    if name.startswith("ours") or name == "naive":
        pythons = pythons[:1]
    return [[python, "-m", "scripts.pipelines.python", name] for python in pythons if python]


def build_go(work: Path) -> str:
    """The path of the Go program, "" without Go or its one module."""
    go, folder, built = shutil.which("go"), work / "go", work / "go" / "nfnt"
    if not go or built.exists():
        return str(built) if built.exists() else ""
    folder.mkdir(exist_ok=True)
    shutil.copy(PROGRAMS / "nfnt.go", folder / "main.go")
    for step in (["mod", "init", "nfnt"], ["get", "github.com/nfnt/resize"], ["build", "-o", "nfnt", "."]):
        if subprocess.run([go, *step], cwd=folder, capture_output=True, timeout=300).returncode:
            return ""
    return str(built)


def start(name: str, work: Path) -> PipelineProcess | None:
    """The running pipeline; None when it cannot be started."""
    reason = "not found"
    for command in commands(name, work):
        try:
            return PipelineProcess(name, command)
        except OSError as error:
            reason = str(error)
    print(f"{name}: not measured: {reason}", file=sys.stderr)
    return None


def pictures(directory: Path) -> list[Path]:
    """The pictures below `directory`."""
    return sorted(path for path in directory.rglob("*") if path.suffix.lower() in KINDS)


def target_size(target: str, source: geometry.Size) -> geometry.Size:
    """The size of `800x600`, or of `1920`, a width that keeps the aspect ratio; computed here, so that it is the same
    for all pipelines."""
    width, _, height = target.partition("x")
    return geometry.plan_resize(source, geometry.Target(int(width), int(height or 0))).size


def measure(
    paths: Sequence[Path], targets: Sequence[str], processes: Sequence[PipelineProcess], rounds: int
) -> list[ImageResult]:
    rows = []
    for path in paths:
        with Image.open(path) as image:
            source = image.size
        for target in targets:
            size = target_size(target, source)
            if path.suffix == ".gif" and size[0] * size[1] > MAX_GIF_PIXELS:
                continue
            kind, area = KINDS[path.suffix.lower()], source[0] * source[1] / 1e6
            here = [ImageResult(path.name, kind, area, target, process.name) for process in processes]
            for _ in range(rounds):
                for process, row in zip(processes, here, strict=True):
                    if not row.error:
                        answer = process.resize(path, size, source)
                        row.error = answer.get("error", "")
                        row.cpu += [] if row.error else [answer["cpu"]]
            measure_quality(path, size, source, processes, here)
            rows += here
            print(f"{path.name} {target}: " + ", ".join(cell(row) for row in here), file=sys.stderr)
    return rows


def cell(row: ImageResult) -> str:
    return f"{row.pipeline} {row.error}" if row.error else f"{row.pipeline} {1e3 * median(row.cpu):.1f} ms"


def measure_quality(
    path: Path,
    size: geometry.Size,
    source: geometry.Size,
    processes: Sequence[PipelineProcess],
    rows: Sequence[ImageResult],
) -> None:
    """Set size, loss and SSIM of the rows, from one final file of each pipeline."""
    reference, psnr = quality.reference(path, size), {}
    with tempfile.TemporaryDirectory() as folder:
        for process, row in zip(processes, rows, strict=True):
            if not row.error:
                out = Path(folder) / process.name
                row.size = process.resize(path, size, source, str(out))["bytes"]
                psnr[process.name], row.ssim = quality.compare(out, reference)
    for row in rows:
        if row.pipeline in psnr and "naive" in psnr:
            row.loss = psnr["naive"] - psnr[row.pipeline]


def peaks(paths: Sequence[Path], processes: Sequence[PipelineProcess], work: Path) -> dict[str, int]:
    """Peak memory of a fresh process per pipeline."""
    found = {}
    source, largest = max((Image.open(path).size, path) for path in paths)
    for name in (process.name for process in processes):
        process = start(name, work)
        if process is not None:
            for _ in range(3):
                process.resize(largest, (800, 600), source)
            found[name] = process.peak()
            process.close()
    return found


def ratio(rows: Sequence[ImageResult], pipeline: str, base: str, kind: str, target: str) -> float | None:
    """CPU of `pipeline` divided by that of `base`, the geometric mean over the pictures that both resized."""
    logs = []
    by_name = {
        (row.picture, row.target, row.pipeline): row for row in rows if row.kind == kind and not row.error
    }
    for (picture, at, name), row in by_name.items():
        other = by_name.get((picture, at, base))
        if name == pipeline and other and target in ("", at):
            logs.append(math.log(median(a / b for a, b in zip(row.cpu, other.cpu, strict=True))))
    return math.exp(sum(logs) / len(logs)) if logs else None


def form(value: float | None, spec: str) -> str:
    """`value` formatted by `spec`, - without a value."""
    return "-" if value is None else format(value, spec)


def tables(
    rows: Sequence[ImageResult],
    processes: Sequence[PipelineProcess],
    memory: dict[str, int],
    targets: Sequence[str],
) -> str:
    """The ratios and then every row, in Markdown."""
    names = [process.name for process in processes]
    lines = [*(f"- **{process.name}**: {process.libraries}" for process in processes), ""]
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


def chart(rows: Sequence[ImageResult], names: Sequence[str], targets: Sequence[str], path: Path) -> None:
    """A bar chart: CPU divided by naive's, by target, for JPEG."""
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(figsize=(8, 4))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        heights = [ratio(rows, name, "naive", "JPEG", target) or 0 for target in targets]
        bars = axes.bar([spot + place * width for spot in range(len(targets))], heights, width, label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.set_xticks([spot + 0.4 - width / 2 for spot in range(len(targets))], targets)
    axes.set_ylabel("CPU per picture, naive Pillow = 1")
    axes.set_title("JPEG: less is better")
    axes.legend(fontsize=8, ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description="the picture function compared with others")
    parser.add_argument("--input", type=Path, help="directory of pictures; default: the sample pictures")
    add_rounds(parser, 3)
    add_choices(parser, "--pipelines", (*DEFAULT, *VARIANTS), DEFAULT)
    parser.add_argument(
        "--targets", default="160x160,800x600,1920", help="sizes, or widths that keep the aspect ratio"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    arguments = parser.parse_args()
    targets = arguments.targets.split(",")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if arguments.input is None:
            samples.draw(work / "samples", 14, seed=1)
        paths = pictures(arguments.input or work / "samples")
        if not paths:
            sys.exit(f"no pictures in {arguments.input}")
        processes = [process for name in arguments.pipelines if (process := start(name, work))]
        rows = measure(paths, targets, processes, arguments.rounds)
        memory = peaks(paths, processes, work)
    for process in processes:
        process.close()
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = tables(rows, processes, memory, targets)
    (arguments.out / "images.md").write_text(text)
    libraries = {process.name: process.libraries for process in processes}
    found = {"at": time.strftime("%Y-%m-%dT%H:%M:%S"), "libraries": libraries, "peak_bytes": memory}
    (arguments.out / "images.json").write_text(
        json.dumps({**found, "rows": [asdict(row) for row in rows]}, indent=1)
    )
    chart(rows, [process.name for process in processes], targets, arguments.out / "images.svg")
    print(text)


if __name__ == "__main__":
    main()
