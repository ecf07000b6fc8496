"""Draws sample pictures into a directory: landscapes, clouds, fractals, bokeh, posters, a few animations.

    python -m scripts.samples DIRECTORY [--count 36] [--seed 1]

JPEG and PNG of 0.3 to 12 megapixels and some GIFs, in sub-directories. They have grain, texture, soft and hard edges
like photographs, because flat colours compress too well to compare codecs. The same seed draws the same pictures.
Nothing is downloaded, and only Pillow is needed.
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

Size = tuple[int, int]
Colour = tuple[int, int, int]
Painter = Callable[[random.Random, Size], Image.Image]

# sky at the top, sky at the horizon, far ridge, near ridge, sun
MOODS: tuple[tuple[Colour, Colour, Colour, Colour, Colour], ...] = (
    ((24, 32, 84), (250, 150, 92), (128, 88, 130), (26, 20, 44), (255, 226, 160)),
    ((46, 112, 190), (206, 228, 242), (134, 166, 190), (28, 62, 46), (255, 252, 230)),
    ((14, 14, 40), (70, 92, 150), (48, 62, 104), (8, 10, 24), (230, 236, 255)),
    ((120, 60, 96), (255, 206, 150), (190, 116, 116), (70, 30, 50), (255, 244, 210)),
    ((52, 120, 130), (224, 236, 206), (122, 158, 140), (34, 66, 40), (255, 250, 220)),
)
# colours of a ramp, from dark to light
RAMPS: tuple[tuple[Colour, ...], ...] = (
    ((8, 10, 40), (30, 60, 140), (60, 150, 190), (220, 230, 200), (255, 250, 240)),
    ((20, 6, 20), (110, 20, 60), (220, 80, 40), (250, 190, 70), (255, 250, 220)),
    ((6, 24, 20), (20, 80, 60), (90, 150, 70), (210, 210, 120), (250, 248, 230)),
    ((30, 20, 50), (90, 60, 150), (200, 110, 180), (250, 180, 170), (255, 240, 230)),
)


def grey_noise(rng: random.Random, size: Size) -> Image.Image:
    """Random grey values."""
    return Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))


def clouds(rng: random.Random, size: Size, first: int = 3, octaves: int = 6) -> Image.Image:
    """Fractal noise: each octave twice as fine and half as strong as the one before."""
    work = (max(16, size[0] // 2), max(16, size[1] // 2))  # half size: the finest octave is blurred anyway
    total: Image.Image | None = None
    for octave in range(octaves):
        cells = first << octave
        grid = grey_noise(rng, (cells + 1, max(2, cells * size[1] // size[0] + 1)))
        layer = grid.resize(work, Image.Resampling.BICUBIC)
        total = layer if total is None else Image.blend(total, layer, 1 / (2 + octave))
    assert total is not None
    return ImageOps.autocontrast(total).resize(size, Image.Resampling.BILINEAR)


def coloured(image: Image.Image, stops: tuple[Colour, ...]) -> Image.Image:
    """A grey picture coloured by a ramp."""
    bands = []
    for band in range(3):
        curve = []
        for step in range(256):
            position = step / 255 * (len(stops) - 1)
            index = min(len(stops) - 2, int(position))
            one, other = stops[index][band], stops[index + 1][band]
            curve.append(round(one + (other - one) * (position - index)))
        bands.append(image.point(curve))
    return Image.merge("RGB", bands)


def grained(rng: random.Random, image: Image.Image, strength: float = 0.05) -> Image.Image:
    """The picture with sensor noise, made of one tile repeated over it."""
    tile = grey_noise(rng, (512, 512)).filter(ImageFilter.GaussianBlur(0.6))
    grain = Image.new("L", image.size)
    for left in range(0, image.width, 512):
        for top in range(0, image.height, 512):
            grain.paste(tile.transpose(Image.Transpose(rng.randrange(5))), (left, top))
    return ImageChops.soft_light(
        image, Image.blend(Image.new("L", image.size, 128), grain, strength * 6).convert("RGB")
    )


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with `share` of `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def ridge(rng: random.Random, points: int, roughness: float) -> list[float]:
    """The outline of a ridge in -1..1, by midpoint displacement."""
    line = [rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)]
    reach = 1.0
    while len(line) < points:
        between = [(a + b) / 2 + rng.uniform(-reach, reach) / 2 for a, b in itertools.pairwise(line)]
        line = [value for pair in zip(line, between, strict=False) for value in pair] + [line[-1]]
        reach *= roughness
    return line


def landscape(rng: random.Random, size: Size) -> Image.Image:
    """A sky with clouds and a sun, five ridges in haze, in half of the pictures a lake with their reflection."""
    width, height = size
    top, horizon, far, near, sun = rng.choice(MOODS)
    picture = coloured(
        Image.linear_gradient("L").resize(size), (top, mixed(top, horizon, 0.6), horizon, horizon)
    )
    haze = clouds(rng, size).point([max(0, (step - 96)) * 255 // 159 * 5 // 8 for step in range(256)])
    picture.paste(mixed(horizon, (255, 255, 255), 0.5), mask=haze)
    add_sun(picture, sun, (rng.uniform(0.15, 0.85) * width, rng.uniform(0.15, 0.4) * height), height)
    texture = clouds(rng, size, first=16, octaves=5)
    ridges = 5
    for index in range(ridges):
        share = index / (ridges - 1)
        base, swing = height * (0.46 + 0.4 * share), height * (0.17 - 0.08 * share)
        line = ridge(rng, 1024, 0.56)
        step = width / (len(line) - 1)
        shape = Image.new("L", size)
        outline = [(at * step, base - value * swing) for at, value in enumerate(line)]
        ImageDraw.Draw(shape).polygon([(0, height), *outline, (width, height)], fill=255)
        dark, light = mixed(far, near, share), mixed(mixed(far, near, share), horizon, 0.25)
        picture.paste(coloured(texture, (dark, dark, light)), mask=shape)
    if rng.random() < 0.5:
        add_lake(rng, picture, near)
    return grained(rng, picture)


def add_sun(picture: Image.Image, colour: Colour, centre: tuple[float, float], height: int) -> None:
    """Draw a sun with its glow."""
    for reach, strength in ((0.6, 0.6), (0.2, 0.8), (0.05, 1.0)):
        side = max(8, int(height * reach * 2))
        # The gradient is 0 in the middle and 181 at the middle of a side. The glow ends there, else a square shows.
        near = [max(0.0, 1 - step / 180) for step in range(256)]
        curve = [min(1.0, share * 12) if strength == 1.0 else share**2 * strength for share in near]
        gradient = Image.radial_gradient("L").resize((side, side), Image.Resampling.BILINEAR)
        glow = gradient.point([round(255 * share) for share in curve])
        picture.paste(colour, (int(centre[0] - side / 2), int(centre[1] - side / 2)), mask=glow)


def add_lake(rng: random.Random, picture: Image.Image, near: Colour) -> None:
    """Replace the lower part by a rippled reflection of what is above."""
    width, height = picture.size
    shore = int(height * 0.74)
    depth = height - shore
    mirror = picture.crop((0, shore - depth, width, shore)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    ripples = grey_noise(rng, (max(2, width // 90), max(2, depth // 3))).resize(
        mirror.size, Image.Resampling.BICUBIC
    )
    mirror = ImageChops.soft_light(
        mirror.filter(ImageFilter.BoxBlur(max(1, width // 600))), ripples.convert("RGB")
    )
    picture.paste(Image.blend(mirror, Image.new("RGB", mirror.size, near), 0.25), (0, shore))


def sky(rng: random.Random, size: Size) -> Image.Image:
    """Clouds in colour."""
    return grained(rng, coloured(clouds(rng, size, octaves=8), rng.choice(RAMPS)), 0.03)


def fractal(rng: random.Random, size: Size) -> Image.Image:
    """A part of the Mandelbrot set with grain: very sharp edges."""
    centre_x, centre_y, reach = rng.choice(
        (
            (-0.745, 0.113, 0.02),
            (-0.16, 1.035, 0.06),
            (-1.25, 0.02, 0.08),
            (-0.5, 0.0, 1.5),
            (0.275, 0.006, 0.03),
        )
    )
    tall = reach * size[1] / size[0]
    extent = (centre_x - reach, centre_y - tall, centre_x + reach, centre_y + tall)
    drawn = Image.effect_mandelbrot((size[0] // 2, size[1] // 2), extent, 120).resize(
        size, Image.Resampling.BICUBIC
    )
    return grained(rng, coloured(ImageOps.autocontrast(drawn), rng.choice(RAMPS)), 0.03)


def bokeh(rng: random.Random, size: Size) -> Image.Image:
    """Lights before a dark background, most of them out of focus."""
    ramp = rng.choice(RAMPS)
    picture = coloured(clouds(rng, size, octaves=4), (ramp[0], ramp[0], ramp[1]))
    lights = Image.new("RGB", size)
    for blur, count in ((0.012, 26), (0.004, 30), (0.0, 40)):
        layer = Image.new("RGB", (size[0] // 2, size[1] // 2))
        draw = ImageDraw.Draw(layer)
        for _ in range(count):
            radius = rng.uniform(0.008, 0.05 if blur else 0.006) * layer.width
            x, y = rng.uniform(0, layer.width), rng.uniform(0, layer.height)
            colour = mixed((0, 0, 0), rng.choice(ramp[2:]), rng.uniform(0.3, 0.9))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        soft = layer.filter(ImageFilter.GaussianBlur(blur * layer.width)) if blur else layer
        lights = ImageChops.screen(lights, soft.resize(size, Image.Resampling.BICUBIC))
    return grained(rng, ImageChops.screen(picture, lights))


def poster(rng: random.Random, size: Size) -> Image.Image:
    """Shapes on a transparent background."""
    ramp = rng.choice(RAMPS)
    picture = Image.new("RGBA", size, (255, 255, 255, 0))
    draw = ImageDraw.Draw(picture)
    for _ in range(28):
        reach = rng.uniform(0.05, 0.3) * min(size)
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        fill = (*rng.choice(ramp), rng.randint(90, 255))
        corners = rng.choice((3, 4, 5, 6, 48))
        spin = rng.uniform(0, math.tau)
        spots = [
            (
                x + reach * math.cos(spin + math.tau * k / corners),
                y + reach * math.sin(spin + math.tau * k / corners),
            )
            for k in range(corners)
        ]
        draw.polygon(spots, fill=fill, outline=(*ramp[0], 255))
    draw.text((size[0] * 0.06, size[1] * 0.84), "prefork", fill=(*ramp[0], 255), font_size=min(size) // 8)
    return picture


def animation(rng: random.Random, size: Size, frames: int = 12) -> list[Image.Image]:
    """Clouds that drift and change colour; the last frame leads to the first."""
    ground, over = clouds(rng, size), clouds(rng, size)
    ramp = rng.choice(RAMPS)
    made = []
    for index in range(frames):
        moved = ImageChops.offset(over, index * size[0] // frames, 0)
        made.append(coloured(Image.blend(ground, moved, 0.5), ramp).quantize(256, Image.Quantize.FASTOCTREE))
    return made


PAINTERS: tuple[tuple[str, Painter], ...] = (
    ("landscape", landscape),
    ("landscape", landscape),
    ("sky", sky),
    ("fractal", fractal),
    ("landscape", landscape),
    ("bokeh", bokeh),
)
MEGAPIXELS = (0.3, 2.0, 1.0, 0.5, 12.0, 0.8, 3.0, 1.5, 0.3, 5.0, 1.0, 0.6, 8.0, 0.4, 2.0, 1.2)
SHAPES = ((4, 3), (3, 2), (3, 4), (16, 9), (1, 1), (2, 3))
FOLDERS = ("", "mountains", "mountains/2026", "studio", "Été")


def dimensions(megapixels: float, shape: Size) -> Size:
    """Width and height of that area in the aspect ratio `shape`."""
    unit = math.sqrt(megapixels * 1e6 / (shape[0] * shape[1]))
    return round(shape[0] * unit), round(shape[1] * unit)


def draw_one(directory: Path, index: int, seed: int) -> Path:
    """Draw picture number `index`. Every sixth is a PNG (a photograph and a poster in turn), every twelfth a GIF, the
    others are JPEGs of varied quality, some progressive."""
    rng = random.Random(f"{seed}/{index}")
    megapixels, shape = MEGAPIXELS[index % len(MEGAPIXELS)], SHAPES[index * 5 % len(SHAPES)]
    folder = directory / FOLDERS[index % len(FOLDERS)]
    folder.mkdir(parents=True, exist_ok=True)
    if index % 12 == 9:
        path = folder / f"{index:03d}-drift.gif"
        frames = animation(rng, dimensions(0.08, shape))
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0, optimize=False)
        return path
    name, painter = PAINTERS[index % len(PAINTERS)]
    if index % 6 == 5:
        if index % 12 == 5:
            name, painter = "poster", poster
        path = folder / f"{index:03d}-{name}.png"
        painter(rng, dimensions(min(megapixels, 2.0), shape)).save(path, compress_level=1)
        return path
    path = folder / f"{index:03d}-{name}.jpg"
    picture = painter(rng, dimensions(megapixels, shape))
    picture.save(path, quality=rng.choice((85, 88, 92)), progressive=index % 8 == 6)
    return path


def draw(directory: Path, count: int, seed: int) -> list[Path]:
    """Draw `count` pictures; returns their paths."""
    return [draw_one(directory, index, seed) for index in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description="draw sample pictures into a directory")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=36, help="pictures to draw (36)")
    parser.add_argument("--seed", type=int, default=1, help="another seed draws other pictures (1)")
    arguments = parser.parse_args()
    started = time.monotonic()
    paths = draw(arguments.directory, arguments.count, arguments.seed)
    size = sum(path.stat().st_size for path in paths)
    print(
        f"{len(paths)} pictures, {size / 1e6:.1f} MB, {time.monotonic() - started:.1f} s: {arguments.directory}"
    )


if __name__ == "__main__":
    main()
