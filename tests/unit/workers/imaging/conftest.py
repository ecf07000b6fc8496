"""Tiny pictures, drawn here: smooth enough to compare by PSNR, with an edge and no symmetry to hide a mirror
behind."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageDraw

Draw = Callable[..., Image.Image]
Save = Callable[..., bytes]
Load = Callable[[bytes], Image.Image]


def _draw(size: tuple[int, int] = (97, 61), mode: str = "RGB") -> Image.Image:
    slope = Image.linear_gradient("L").resize(size)
    across = Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90).resize(size)
    disc = Image.new("L", size, 40)
    ImageDraw.Draw(disc).ellipse((size[0] * 0.1, size[1] * 0.1, size[0] * 0.5, size[1] * 0.6), fill=220)
    alpha = Image.new("L", size, 255)
    ImageDraw.Draw(alpha).rectangle((size[0] // 2, 0, size[0], size[1] // 3), fill=0)
    colour = Image.merge("RGB", (slope, across, disc))
    if mode == "1":
        return disc.point([0] * 128 + [255] * 128, "1")
    if mode == "L":
        return slope
    if mode == "LA":
        return Image.merge("LA", (slope, alpha))
    if mode == "I;16":
        return slope.point([step * 257 for step in range(256)], "I").convert("I;16")
    if mode == "RGBA":
        return Image.merge("RGBA", (*colour.split(), alpha))
    if mode == "P":
        return colour.quantize(64, Image.Quantize.MEDIANCUT)
    if mode == "CMYK":
        return Image.merge("CMYK", (*colour.split(), ImageChops.darker(slope, disc)))
    return colour.convert(mode)


@pytest.fixture
def draw() -> Draw:
    """draw(size, mode) -> picture."""
    return _draw


@pytest.fixture
def save() -> Save:
    """save(picture, format, **options) -> bytes."""

    def save_to_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    return save_to_bytes


@pytest.fixture
def load() -> Load:
    """load(bytes) -> picture, decoded."""

    def load_bytes(data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    return load_bytes
