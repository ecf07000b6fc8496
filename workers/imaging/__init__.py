"""Resizing pictures: `resize(bytes, ResizeJob, PictureLimits) -> ResizedPicture`, a pure function.

RULES: the only package of the service that imports Pillow. It knows no frames, sockets or processes.

    transform  the order of all steps: start reading here
    job        what is asked for, the result          sources    an open picture of any format, its frames
    limits     what a picture may be, refusals        formats    the allow-list; writing
    memory     what a picture will take
    geometry   sizes and boxes, in numbers only       jpeg png gif webp avif   what each format needs
    modes      conversions between pixel layouts      animation  frames one over another, times
    resample   Lanczos3, in SIMD or by Pillow         exif       orientation
    malloc     glibc keeps freed pages                colour     profiles, conversion to sRGB
    deflate    PNG's compression

Call `prepare()` once in a process, before its first picture. `resize` keeps no state between pictures but
the transforms of a few colour profiles; it starts no thread and opens no file.
"""

import gc
import warnings

import PIL
from PIL import AvifImagePlugin, Image, features

from workers.imaging import deflate, malloc, resample
from workers.imaging.job import FITS, FORMATS, ICC, ResizedPicture, ResizeJob, parse_format
from workers.imaging.limits import PictureLimits, PictureRefused
from workers.imaging.malloc import trim
from workers.imaging.transform import resize

__all__ = [
    "FITS",
    "FORMATS",
    "ICC",
    "PictureLimits",
    "PictureRefused",
    "ResizeJob",
    "ResizedPicture",
    "parse_format",
    "prepare",
    "resize",
    "trim",
]


def prepare(simd: bool = True) -> str:
    """Set up this process for pictures; returns the libraries in use, for the log.

    Decompression bombs become errors, malloc keeps freed pages, AVIF is decoded by one thread (there is a process for
    each core), and the SIMD resampler is tested. gc.freeze() excludes what is allocated by now from collections."""
    warnings.filterwarnings(
        "ignore", module=r"PIL\."
    )  # damaged metadata is the sender's, not worth a log line
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    Image.init()
    keeps_pages = malloc.keep_pages()
    resampler = resample.choose(simd)
    gc.freeze()
    libraries = [
        f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}",
        f"zlib {features.version('zlib')}{' and zlib-ng' if deflate.is_here(0) else ''}",
    ]
    libraries += [f"{name} {features.version(name)}" for name in ("webp", "avif") if features.check(name)]
    return (
        f"Pillow {PIL.__version__} ({', '.join(libraries)}), resize by {resampler}"
        f"{'' if keeps_pages else ', allocator not tuned'}"
    )
