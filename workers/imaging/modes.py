"""Conversions between pixel layouts: from a stored one to one that can be resampled, and on to one that can be written.

RULES: pixels only. Lanczos needs values proportional to brightness. Palette indexes (P) and single bits (1) are not,
and on them Pillow silently takes the nearest pixel (21 dB instead of 50). The resamplers weight by alpha, so nothing is
premultiplied here.

    stored          resized as         written as
    1               L                  jpeg: L, CMYK, RGB          alpha is flattened on white
    P, P+tRNS       RGB, RGBA          png:  all but CMYK          16-bit grey stays 16 bits
    L, RGB +tRNS    LA, RGBA           gif:  RGB, RGBA
    I;16            I;16               webp, avif: RGB, RGBA
    L LA RGB RGBA CMYK  themselves
"""

from PIL import Image

_RESIZABLE = ("L", "LA", "RGB", "RGBA", "CMYK", "I;16")
_WRITABLE = {
    "jpeg": ("L", "RGB", "CMYK"),
    "png": ("L", "LA", "RGB", "RGBA", "I;16"),
    "gif": ("RGB", "RGBA"),
    "webp": ("RGB", "RGBA"),
    "avif": ("RGB", "RGBA"),
}
_TO_BYTE = [step >> 8 for step in range(65536)]


def to_resizable(image: Image.Image) -> Image.Image:
    """The loaded picture in a mode that can be resampled; the picture itself when it already is."""
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


def without_needless_alpha(image: Image.Image) -> Image.Image:
    """The picture in RGB when it is RGBA and opaque everywhere."""
    return (
        image.convert("RGB")
        if image.mode == "RGBA" and image.getchannel("A").getextrema()[0] == 255
        else image
    )


def writable_mode(mode: str, kind: str) -> str:
    """The mode in which a picture of `mode` is written in the format `kind`."""
    if mode in _WRITABLE[kind]:
        return mode
    if mode == "I;16":
        mode = "L"
    if kind == "jpeg" and mode in ("LA", "RGBA"):
        return "L" if mode == "LA" else "RGB"
    if mode == "LA":
        return "RGBA"
    return mode if mode in _WRITABLE[kind] else "RGB"


def to_writable(image: Image.Image, kind: str) -> Image.Image:
    """The resized picture in a mode of the format `kind`; alpha that the format cannot hold is flattened on white."""
    if image.mode in _WRITABLE[kind]:
        return image
    if image.mode == "I;16":
        # convert("L") clips at 255, which gives white; only mode I takes a table of 65,536.
        image = image.convert("I").point(_TO_BYTE, "L")
    if kind == "jpeg" and image.mode in ("LA", "RGBA"):
        return flattened(image)
    if image.mode == "LA":
        return image.convert("RGBA")
    return image if image.mode in _WRITABLE[kind] else image.convert("RGB")


def flattened(image: Image.Image) -> Image.Image:
    """An LA or RGBA picture on a white ground."""
    opaque = "L" if image.mode == "LA" else "RGB"
    ground = Image.new(opaque, image.size, "white")
    ground.paste(image.convert(opaque), mask=image.getchannel("A"))
    return ground
