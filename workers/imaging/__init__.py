"""Pictures made smaller or larger: `resize(bytes, ResizeJob, PictureLimits) -> ResizedPicture`, a pure function.

RULES  The only importer of Pillow. It knows nothing of frames, sockets or processes.

    pipeline  the order of it all: start reading there
    job       what is wanted, what came out        kernel    Lanczos3, SIMD or Pillow's
    limits    what a picture may be, refusals      tune      the allocator keeps its pages
    geometry  sizes and boxes, in numbers only     formats   the allow-list; opening and writing
    modes     pixel layouts: resizable, writable   jpeg png gif webp   what each format needs

`prepare()` once in a process, before its first picture; `resize` as often as you like. It keeps no state
between pictures, starts no thread, opens no file.
"""

import gc
import warnings

import PIL
from PIL import AvifImagePlugin, Image, features

from workers.imaging import malloc as tune
from workers.imaging import resample as kernel
from workers.imaging.job import FITS, FORMATS, ICC, ResizedPicture, ResizeJob, format_word
from workers.imaging.limits import PictureLimits, PictureRefused
from workers.imaging.pipeline import resize

__all__ = [
    "FITS",
    "FORMATS",
    "ICC",
    "PictureLimits",
    "PictureRefused",
    "ResizeJob",
    "ResizedPicture",
    "format_word",
    "prepare",
    "resize",
]


def prepare(simd: bool = True) -> str:
    """Readies this process for pictures; returns what it will work with, for the log.

    Bombs become errors, the allocator keeps its pages, one thread decodes (cores are shared out between
    processes), and the resize kernel proves itself. What is allocated by now is taken out of the garbage
    collector's rounds."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged metadata is the sender's, not the log's
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    Image.init()
    tuned = tune.keep_pages()
    chosen = kernel.choose(simd)
    gc.freeze()
    libraries = [
        f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}",
        f"zlib {features.version('zlib')}",
    ]
    libraries += [f"{name} {features.version(name)}" for name in ("webp", "avif") if features.check(name)]
    return (
        f"Pillow {PIL.__version__} ({', '.join(libraries)}), resize by {chosen}"
        f"{'' if tuned else ', allocator not tuned'}"
    )
