"""The difference between a final file and its source decoded whole and resized by Pillow's LANCZOS, not encoded.

Compared as shown on a white page, of an animation the first frame. A PSNR above 50 dB is reported as 50, because the
difference is not visible; a lossless result would be infinite.
"""

import io
from pathlib import Path

from PIL import Image

from workers.imaging import modes
from workers.imaging.resample import psnr

MAX_PSNR = 50.0  # dB


def reference(path: Path, size: tuple[int, int]) -> Image.Image:
    """The picture at `path` resized by Pillow, to compare with."""
    whole = loaded(path)
    return on_white(whole.resize(size, Image.Resampling.LANCZOS))


def compare(path: Path, expected: Image.Image) -> tuple[float, float | None]:
    """PSNR in dB of the picture at `path`, and SSIM where numpy is installed."""
    made = on_white(loaded(path))
    return min(MAX_PSNR, psnr(made, expected)), ssim(made, expected)


def loaded(path: Path) -> Image.Image:
    """The picture at `path` in a mode that can be resampled."""
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.load()
    return modes.to_resizable(image)


def on_white(image: Image.Image) -> Image.Image:
    """The picture in RGB, transparent parts white."""
    return modes.flattened(image) if image.mode in ("RGBA", "LA") else image.convert("RGB")


def ssim(one: Image.Image, other: Image.Image) -> float | None:
    """Structural similarity of the luminance over 8x8 blocks; None without numpy."""
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
    covariance = ((a - mean_a[:, None]) * (b - mean_b[:, None])).mean(1)
    mean_constant, variance_constant = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mean_a * mean_b + mean_constant) * (2 * covariance + variance_constant)
    total = (mean_a**2 + mean_b**2 + mean_constant) * (a.var(1) + b.var(1) + variance_constant)
    return float((similar / total).mean())
