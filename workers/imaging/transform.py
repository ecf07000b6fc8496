"""One picture, from bytes to bytes.

RULES: the order below is what makes it safe. Nothing is opened before its size in bytes, its signature and the target
are checked; nothing is decoded before its pixels, frames and scans are checked.

    job, bytes, target as asked -> signature -> header -> pixels, frames, scans -> plan -> target as computed
      still:      decode (JPEG: reduced) -> resample -> turn upright -> colours -> encode
      animation:  for each frame: decode, compose -> resample -> turn upright -> colours; encode all
"""

from PIL import Image

from workers.imaging import colour, formats, geometry, limits, modes, resample
from workers.imaging.job import DEFAULT_QUALITY, ResizedPicture, ResizeJob, check_job, parse_format
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
_SWAPS_SIDES = (5, 6, 7, 8)


def resize(data: bytes, job: ResizeJob, bounds: PictureLimits) -> ResizedPicture:
    """The picture `data` resized as `job` says. Raises PictureRefused and no other exception, whatever the input."""
    check_job(job)
    limits.check_request(job.width, job.height, bounds)
    wanted = parse_format(job.format) if job.format else ""
    limits.check_bytes(len(data), bounds)
    data = bytes(data)  # a memoryview is copied here once; bytes are not
    kind = formats.sniff(data)
    if wanted:
        formats.check_codec(wanted)
    with formats.decoder_errors(kind, bounds):
        source = open_source(data, kind, bounds)
        try:
            return _resize(source, job, kind, wanted or kind, bounds)
        finally:
            source.close()


def _resize(source: Source, job: ResizeJob, kind: str, out: str, bounds: PictureLimits) -> ResizedPicture:
    limits.check_source(*source.size, bounds)
    turn = source.orientation if job.orient else 1
    plan = geometry.plan_resize(source.size, job.width, job.height, job.fit, turn in _SWAPS_SIDES)
    limits.check_target(*plan.size, bounds)
    pixels_each = source.size[0] * source.size[1] + plan.size[0] * plan.size[1]
    limits.check_frames(source.frames, pixels_each, bounds)
    note = ""
    if source.frames > 1 and formats.holds_animation(out, kind):
        encoded = _animation(source, job, out, plan, turn)
    else:
        encoded = _still(source, job, out, plan, turn)
        if source.frames > 1:
            note = f"first of {source.frames} frames: {out} holds no animation"
    return ResizedPicture(encoded, out, *plan.size, *source.size, note)


def _still(source: Source, job: ResizeJob, out: str, plan: geometry.ResizePlan, turn: int) -> bytes:
    picture, box = source.still(plan)
    small, profile = _finished(resample.resample(picture, plan.stored, box), source, job, out, turn)
    return formats.encode(small, out, job.quality or DEFAULT_QUALITY, profile, source.is_photo)


def _animation(source: Source, job: ResizeJob, out: str, plan: geometry.ResizePlan, turn: int) -> bytes:
    """The encoded animation. Source frames are decoded one at a time; only the resized frames are kept."""
    writer = formats.AnimationWriter(out, job.quality or DEFAULT_QUALITY, source.plays)
    for picture, delay in source.shots():
        small = modes.without_needless_alpha(resample.resample(picture, plan.stored, plan.box))
        writer.add(*_finished(small, source, job, out, turn), delay)
    return writer.finish()


def _finished(
    small: Image.Image, source: Source, job: ResizeJob, out: str, turn: int
) -> tuple[Image.Image, bytes]:
    """The resampled picture upright and in a mode of the format `out`, and the profile to embed."""
    if turn in _TURNS:
        small = small.transpose(_TURNS[turn])
    written = "" if out == "gif" else modes.writable_mode(small.mode, out)
    small, profile = colour.managed(small, source.profile, job.icc, written)
    return modes.to_writable(small, out), profile
