"""Bytes of results beside sharp's at equal PSNR: `python -m scripts.bench_sizes --input DIRECTORY [--formats webp,avif]`.

Ours is written at its default quality. sharp writes the same picture at several qualities; between the two whose PSNR are
next to ours the logarithm of its bytes is interpolated. PSNR is against the picture decoded whole and resized by Pillow's
LANCZOS. CPU is user + system of all threads, of sharp at the third quality. Targets larger than the picture are left out.
sharp is searched in $NODE_PATH.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import geometric_mean

from PIL import Image

from scripts.bench_images import PipelineProcess, pictures, start, target_size
from scripts.lab.choices import add_choices
from scripts.pipelines import quality
from workers import imaging

QUALITIES = {
    "jpeg": (60, 68, 75, 82, 90),
    "webp": (55, 66, 75, 86, 93),
    "avif": (35, 46, 56, 66, 76),
}
LIMITS = imaging.PictureLimits(max_bytes=1 << 30, max_pixels=200_000_000)


def at_psnr(points: Sequence[tuple[float, float]], psnr: float) -> float | None:
    """Bytes at `psnr` on the curve through `points`, (PSNR, bytes); None outside of it."""
    ordered = sorted(points)
    for (low, few), (high, many) in pairwise(ordered):
        if low <= psnr <= high and low < high:
            share = (psnr - low) / (high - low)
            return math.exp(math.log(few) * (1 - share) + math.log(many) * share)
    return None


def row(path: Path, target: str, kind: str, sharp: PipelineProcess, out: Path) -> list[float] | None:
    """(ratio of bytes, PSNR, ms of ours, ms of sharp), printed; None where there is nothing to compare."""
    with Image.open(path) as image:
        source = image.size
    size = target_size(target, source)
    if size[0] > source[0]:
        return None
    expected, points, spent = quality.reference(path, size), [], []
    for each in QUALITIES[kind]:
        answer = sharp.resize(path, size, source, str(out), format=kind, quality=each)
        points.append((quality.compare(out, expected)[0], answer["bytes"]))
        spent.append(1e3 * answer["cpu"])
    data, times = path.read_bytes(), []
    for _ in range(3):
        began = time.process_time()
        made = imaging.resize(data, imaging.ResizeJob(*size, format=kind), LIMITS).data
        times.append(1e3 * (time.process_time() - began))
    out.write_bytes(made)
    psnr, _ = quality.compare(out, expected)
    theirs = at_psnr(points, psnr)
    cells = [f"{path.name} | {kind} | {size[0]}x{size[1]} | {len(made)} | {psnr:.1f}"]
    cells += [f"{theirs:.0f} | {len(made) / theirs:.3f}" if theirs else "- | -"]
    print(f"| {' | '.join(cells)} | {min(times):.1f} | {spent[2]:.1f} |", flush=True)
    return [len(made) / theirs, min(times) / spent[2]] if theirs else None


def main() -> None:
    parser = argparse.ArgumentParser(description="bytes beside sharp's at equal PSNR")
    parser.add_argument("--input", type=Path, required=True, help="directory of pictures")
    add_choices(parser, "--formats", ("jpeg", "webp", "avif"))
    parser.add_argument("--targets", default="160,400,800,1600", help="widths in pixels")
    arguments = parser.parse_args()
    imaging.prepare()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        sharp = start("sharp", Path(folder))
        if sharp is None:
            sys.exit("sharp is not there: npm install sharp, and its directory in NODE_PATH")
        print("| picture | format | target | bytes | PSNR dB | sharp's bytes | ratio | CPU ms | sharp's |")
        print("|" + " --- |" * 9)
        for kind in arguments.formats:
            rows = [
                made
                for path in pictures(arguments.input)
                for target in arguments.targets.split(",")
                if (made := row(path, target, kind, sharp, Path(folder, "result")))
            ]
            if rows:
                bytes_, cpu = (geometric_mean(column) for column in zip(*rows, strict=True))
                found.append(f"{kind}: {bytes_:.3f} of sharp's bytes, {cpu:.2f} of its CPU, {len(rows)} rows")
        sharp.close()
    print("\n".join(found))


if __name__ == "__main__":
    main()
