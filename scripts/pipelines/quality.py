"""How far a final file is from the picture decoded whole and resized by Pillow's LANCZOS, not encoded.

RULES  Judged as a person sees it: on white where it is clear, of an animation the first frame. Above 50 dB
nobody sees a difference, so nothing is told apart there: a lossless answer is 50, not infinite.
"""

import io
from pathlib import Path

from PIL import Image

from workers.imaging import modes
from workers.imaging.resample import psnr

ENOUGH = 50.0  # dB


def reference(path: Path, size: tuple[int, int]) -> Image.Image:
    whole = loaded(path)
    return shown(whole.resize(size, Image.Resampling.LANCZOS))


def judged(path: Path, whole: Image.Image) -> tuple[float, float | None]:
    """PSNR in dB, and SSIM where numpy is installed."""
    made = shown(loaded(path))
    return min(ENOUGH, psnr(made, whole)), ssim(made, whole)


def loaded(path: Path) -> Image.Image:
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.load()
    return modes.to_resizable(image)


def shown(image: Image.Image) -> Image.Image:
    return modes.flattened(image) if image.mode in ("RGBA", "LA") else image.convert("RGB")


def ssim(one: Image.Image, other: Image.Image) -> float | None:
    """Structural similarity of the brightness, over 8x8 blocks; None without numpy."""
    try:
        import numpy
    except ImportError:
        return None
    blocks = []
    for image in (one, other):
        grey = numpy.asarray(image.convert("L"), dtype=float)
        height, width = (side // 8 * 8 for side in grey.shape)
        parts = grey[:height, :width].reshape(height // 8, 8, width // 8, 8)
        blocks.append(parts.transpose(0, 2, 1, 3).reshape(-1, 64))
    a, b = blocks
    mean_a, mean_b = a.mean(1), b.mean(1)
    both = ((a - mean_a[:, None]) * (b - mean_b[:, None])).mean(1)
    steady, lively = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_a * mean_b + steady) * (2 * both + lively)
    below = (mean_a**2 + mean_b**2 + steady) * (a.var(1) + b.var(1) + lively)
    return float((above / below).mean())
