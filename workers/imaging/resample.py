"""Lanczos3 resampling: by cykooz-resizer (SIMD) where it passes its test, by Pillow elsewhere.

RULES: pixels in, pixels out; no files, no formats. cykooz_resizer reads and writes Pillow's memory through a copy of
Pillow's struct layout. So it is used only with tested releases of both, and only after it has resampled one picture of
each mode as Pillow's LANCZOS does. Otherwise Pillow resamples, and the reason is reported.

Measured, 8 MP -> 1920x1440: Pillow 127 ms, cykooz 14 ms, same picture (54 to 58 dB).
"""

import importlib.metadata
import math
from collections.abc import Callable, Mapping

import PIL
from PIL import Image, ImageChops

from workers.imaging.geometry import Box, Size

try:
    import cykooz_resizer as _simd
except ImportError:
    _simd = None

TESTED_RELEASES = {"Pillow": ("13.",), "cykooz-resizer": ("4.0.",)}
SIMD_MODES = ("RGB", "RGBA", "L", "CMYK")  # LA and 16-bit grey are resampled by Pillow
KEPT_PIXELS = 4_000_000
MIN_PSNR = 45.0  # dB; 8-bit weights differ by one step here and there, a wrong box gives 30

Resampler = Callable[[Image.Image, Size, Box], Image.Image]


def resample(image: Image.Image, size: Size, box: Box) -> Image.Image:
    """`box` of `image` as a new picture of `size`, same mode, no metadata. The image is loaded and in one of
    SIMD_MODES, LA or I;16."""
    return _in_use(image, size, box) if image.mode in SIMD_MODES else pillow(image, size, box)


def pillow(image: Image.Image, size: Size, box: Box) -> Image.Image:
    """Pillow's LANCZOS."""
    gap = None if image.mode == "I;16" else 2.0  # Pillow cannot reduce 16 bits
    made = image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=gap)
    made.info = {}
    return made


def choose(simd: bool = True) -> str:
    """Select the resampler of this process; returns the choice in words."""
    resampler, words = select(simd, installed_releases(), simd_resampler)
    use(resampler)
    return words


def choose_at_first_use(image: Image.Image, size: Size, box: Box) -> Image.Image:
    """The resampler of a process that has not called choose(): it does so at the first picture."""
    choose()
    return _in_use(image, size, box)


_in_use: Resampler = choose_at_first_use


def use(resampler: Resampler) -> Resampler:
    """Set the resampler for SIMD_MODES; returns the one before."""
    global _in_use
    before, _in_use = _in_use, resampler
    return before


def select(
    simd: bool, releases: Mapping[str, str], make_simd: Callable[[], Resampler]
) -> tuple[Resampler, str]:
    """The SIMD resampler when it is installed, tested with these `releases` and agrees with Pillow, else Pillow's; and
    the choice in words."""
    if not simd:
        return pillow, "Pillow LANCZOS (SIMD switched off)"
    if "cykooz-resizer" not in releases:
        return pillow, "Pillow LANCZOS (cykooz-resizer is not installed)"
    for name, release in releases.items():
        if not release.startswith(TESTED_RELEASES[name]):
            return pillow, f"Pillow LANCZOS ({name} {release} is not tested with it)"
    resampler = make_simd()
    for mode in SIMD_MODES:
        agreement = _agreement(resampler, mode)
        if agreement < MIN_PSNR:
            words = f"cykooz-resizer differs in {mode}: {agreement:.1f}/{MIN_PSNR:.0f} dB"
            return pillow, f"Pillow LANCZOS ({words})"
    return resampler, f"cykooz-resizer {releases['cykooz-resizer']}"


def installed_releases() -> dict[str, str]:
    """Release by package, of Pillow and of cykooz-resizer where it can be imported."""
    releases = {"Pillow": PIL.__version__}
    if _simd is not None:
        releases["cykooz-resizer"] = importlib.metadata.version("cykooz-resizer")
    return releases


def simd_resampler() -> Resampler:
    """One cykooz resizer for the process: it keeps its buffers from picture to picture. They are as large as the picture
    where it has alpha, so big ones get a resizer of their own."""
    resizer = _simd.Resizer()
    lanczos = _simd.ResizeAlg.convolution(_simd.FilterType.lanczos3)

    def resample_simd(image: Image.Image, size: Size, box: Box) -> Image.Image:
        made = Image.new(image.mode, size, None)  # None: not cleared, as every pixel is written below
        crop = _simd.CropBox(box[0], box[1], box[2] - box[0], box[3] - box[1])
        taken = resizer if image.width * image.height <= KEPT_PIXELS else _simd.Resizer()
        taken.resize_pil(image, made, _simd.ResizeOptions(resize_alg=lanczos, crop_box=crop))
        return made

    return resample_simd


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB over all bands of two 8-bit pictures of one size; infinite when equal."""
    histogram = ImageChops.difference(one, other).histogram()
    squares = sum(count * (step % 256) ** 2 for step, count in enumerate(histogram))
    return 10 * math.log10(255**2 * sum(histogram) / squares) if squares else math.inf


def _agreement(resampler: Resampler, mode: str) -> float:
    """PSNR between `resampler` and Pillow on a small picture with edges, a gradient and a fractional box."""
    edges = Image.effect_mandelbrot((97, 61), (-2.0, -1.2, 1.0, 1.2), 40)
    slope = Image.linear_gradient("L").resize((97, 61))
    bands = (edges, slope, ImageChops.invert(edges), slope.transpose(Image.Transpose.ROTATE_180))
    picture = edges if mode == "L" else Image.merge(mode, bands[: len(Image.new(mode, (1, 1)).getbands())])
    box = (0.5, 0.25, 90.5, 60.75)
    one, other = resampler(picture, (31, 23), box), pillow(picture, (31, 23), box)
    if mode == "RGBA":  # the colour of a transparent pixel is arbitrary: compare premultiplied
        one, other = one.convert("RGBa"), other.convert("RGBa")
        one, other = (Image.merge("CMYK", [x.getchannel(i) for i in range(4)]) for x in (one, other))
    return psnr(one, other)
