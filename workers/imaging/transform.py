"""One picture, from bytes to bytes.

RULES: the order below is what makes it safe. Nothing is opened before its size in bytes, its signature and the target
are checked; nothing is decoded before its pixels, frames and scans are checked.

    job, bytes, target as asked -> signature -> header -> pixels, frames, scans -> plan -> target as computed
      still:      decode (JPEG: reduced) -> resample -> turn upright -> colours -> encode
      animation:  for each frame: decode, compose -> resample -> turn upright -> colours; encode all
"""

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile

from workers.imaging import colour, formats, geometry, limits, memory, modes, resample
from workers.imaging.embedded import Embedded, kept
from workers.imaging.geometry import ResizePlan
from workers.imaging.job import ResizedPicture, ResizeJob, check_job, parse_format
from workers.imaging.limits import PictureLimits
from workers.imaging.sources import Source, open_source

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def resize(data: bytes, job: ResizeJob, bounds: PictureLimits) -> ResizedPicture:
    """The picture `data` resized as `job` says. Raises PictureRefused and no other exception, whatever the input."""
    check_job(job)
    limits.check_request(job.width, job.height, bounds, job.is_exact)
    wanted = parse_format(job.format) if job.format else ""
    limits.check_bytes(len(data), bounds)
    data = bytes(data)  # a memoryview is copied here once; bytes are not
    kind = formats.sniff(data)
    if wanted:
        formats.check_codec(wanted)
    with formats.decoder_errors(kind, bounds), _tolerance(job.tolerant):
        source = open_source(data, kind, bounds)
        try:
            return _resize(source, job, kind, wanted or kind, bounds)
        finally:
            source.close()


@contextmanager
def _tolerance(is_tolerant: bool) -> Iterator[None]:
    """Whether decoders show a file that ends early as far as it goes."""
    ImageFile.LOAD_TRUNCATED_IMAGES = is_tolerant
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def _resize(source: Source, job: ResizeJob, kind: str, out: str, bounds: PictureLimits) -> ResizedPicture:
    limits.check_source(*source.size, bounds)
    turn = source.orientation if job.orient else 1
    target = geometry.Target(job.width, job.height, job.fit, job.gravity, job.enlarge, job.original)
    plan = geometry.plan_resize(source.size, target, turn)
    limits.check_target(*plan.size, bounds)
    left, top, right, bottom = plan.box
    limits.check_enlargement((right - left, bottom - top), plan.stored, job.max_enlarge)
    pixels_each = source.size[0] * source.size[1] + plan.size[0] * plan.size[1]
    limits.check_frames(source.frames, pixels_each, bounds)
    if out == "auto":
        out = formats.choose(kind, job.accepts, source.frames > 1, source.may_have_alpha)
    is_animation = source.frames > 1 and formats.holds_animation(out, kind)
    frames = source.frames if is_animation and out != "gif" else 0
    target_pixels = plan.size[0] * plan.size[1]
    reckoned = memory.reckon(
        kind,
        source.size[0] * source.size[1],
        out,
        target_pixels,
        source.may_have_alpha,
        source.is_multi_scan,
        frames,
    )
    limits.check_memory(reckoned, bounds)
    notes = ["gif holds no metadata"] if job.keep and out == "gif" else []
    if is_animation:
        encoded = _animation(source, job, out, plan, turn)
    else:
        encoded = _still(source, job, out, plan, turn)
        if source.frames > 1:
            notes.append(f"first of {source.frames} frames: {out} holds no animation")
    return ResizedPicture(encoded, out, *plan.size, *source.size, "; ".join(notes))


def _still(source: Source, job: ResizeJob, out: str, plan: ResizePlan, turn: int) -> bytes:
    picture, box = source.still(plan)
    small, profile = _finished(resample.resample(picture, plan.stored, box), source, job, out, turn)
    return formats.encode(small, out, _writing(source, job, out, plan, turn, profile))


def _animation(source: Source, job: ResizeJob, out: str, plan: ResizePlan, turn: int) -> bytes:
    """The encoded animation. Source frames are decoded one at a time; only the resized frames are kept."""
    writer, profile = formats.AnimationWriter(out, source.plays), b""
    for picture, delay in source.shots():
        small = modes.without_needless_alpha(resample.resample(picture, plan.stored, plan.box))
        made, profile = _finished(small, source, job, out, turn)
        writer.add(made, delay)
    return writer.finish(_writing(source, job, out, plan, turn, profile))


def _finished(
    small: Image.Image, source: Source, job: ResizeJob, out: str, turn: int
) -> tuple[Image.Image, bytes]:
    """The resampled picture upright and in a mode of the format `out`, and the profile to embed."""
    if turn in _TURNS:
        small = small.transpose(_TURNS[turn])
    written = "" if out == "gif" else modes.writable_mode(small.mode, out)
    small, profile = colour.managed(small, source.profile, job.icc, written)
    return modes.to_writable(small, out), profile


def _writing(
    source: Source, job: ResizeJob, out: str, plan: ResizePlan, turn: int, profile: bytes
) -> formats.Writing:
    """How the result is written. An AVIF never says that it is turned: libavif ends the process that writes such a
    sequence."""
    exif, xmp = b"", b""
    if job.keep:
        exif, xmp = kept(source.exif, source.xmp, job.keep, turn != 1 or out == "avif")
    return formats.writing(out, job, source, plan.size[0] * plan.size[1], Embedded(profile, exif, xmp))
