"""Which pixel layouts can be resized, which can be written, and the way from one to the other.

RULES  Pixels only. Lanczos needs numbers that mean brightness: palette indexes (P) and single bits (1) do
not, and Pillow then silently falls back to the nearest pixel (21 dB instead of 50). Alpha is weighed in by
the kernels, so nothing is premultiplied here.

    stored          resized as         written as
    1               L                  jpeg: L, CMYK, RGB          flattened on white where there is alpha
    P, P+tRNS       RGB, RGBA          png:  everything but CMYK   16-bit grey stays 16 bits
    L, RGB +tRNS    LA, RGBA           gif:  RGB, RGBA
    I;16            I;16               webp, avif: RGB, RGBA
    L LA RGB RGBA CMYK  themselves
"""

import io

from PIL import Image, ImageCms

_RESIZABLE = ("L", "LA", "RGB", "RGBA", "CMYK", "I;16")
_WRITABLE = {
    "jpeg": ("L", "RGB", "CMYK"),
    "png": ("L", "LA", "RGB", "RGBA", "I;16"),
    "gif": ("RGB", "RGBA"),
    "webp": ("RGB", "RGBA"),
    "avif": ("RGB", "RGBA"),
}
_TO_BYTE = [step >> 8 for step in range(65536)]


def resizable(image: Image.Image) -> Image.Image:
    """The loaded picture in a mode Lanczos may be applied to; itself when it is in one already."""
    mode = image.mode
    if "transparency" in image.info and mode in ("1", "L", "P", "RGB"):
        if mode == "1":
            image = image.convert("L")
        return image.convert("LA" if image.mode == "L" else "RGBA")
    if mode in _RESIZABLE:
        return image
    if mode == "1":
        return image.convert("L")
    if mode.startswith("I"):
        return image.convert("I;16")
    if mode in ("PA", "La", "RGBa"):
        return image.convert("RGBA")
    return image.convert("RGB")


def writable(image: Image.Image, kind: str) -> Image.Image:
    """The small picture in a mode the format `kind` can hold; alpha that cannot be kept shows white behind
    it."""
    if image.mode in _WRITABLE[kind]:
        return image
    if image.mode == "I;16":
        # convert("L") would clip at 255 and leave white; only mode I takes a table of 65536.
        image = image.convert("I").point(_TO_BYTE, "L")
    if kind == "jpeg" and image.mode in ("LA", "RGBA"):
        return flattened(image)
    if image.mode == "LA":
        return image.convert("RGBA")
    return image if image.mode in _WRITABLE[kind] else image.convert("RGB")


def flattened(image: Image.Image) -> Image.Image:
    opaque = "L" if image.mode == "LA" else "RGB"
    ground = Image.new(opaque, image.size, "white")
    ground.paste(image.convert(opaque), mask=image.getchannel("A"))
    return ground


def in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The picture's colours as sRGB means them. A profile nobody can use is ignored, as browsers do."""
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    if image.mode in ("I;16", "L", "LA") or not profile:
        return image
    try:
        opaque = image.convert("RGB") if image.mode == "RGBA" else image
        made = ImageCms.profileToProfile(
            opaque, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    if made is None:
        return image
    if alpha is not None:
        made.putalpha(alpha)
    made.info = {}
    return made
