"""One picture, from bytes to bytes.

RULES: the order below is what makes it safe. Nothing is opened before its size in bytes, its signature and the target
are checked; nothing is decoded before its pixels, frames and scans are checked.

    job, bytes, target as asked -> signature -> header -> pixels, frames, scans -> plan -> target as computed
      still:      decode (JPEG: reduced) -> resizable mode -> resample -> turn upright -> colours -> encode
      animation:  for each frame: seek -> resizable mode -> resample -> palette; encode all
"""

from collections.abc import Iterator

from PIL import Image

from workers.imaging import formats, geometry, gif, jpeg, limits, modes, png, resample, webp
from workers.imaging.job import DEFAULT_QUALITY, ResizedPicture, ResizeJob, check_job, parse_format
from workers.imaging.limits import PictureLimits, PictureRefused

_ORIENTATION = 0x0112
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
_MAX_PROFILE = 4 << 20  # bytes; a larger colour profile is ignored


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
    Image.MAX_IMAGE_PIXELS = bounds.max_pixels
    with formats.decoder_errors(kind, bounds):
        if kind == "webp" and (canvas := webp.canvas(data)):
            limits.check_source(*canvas, bounds)
        with formats.open_header(data, kind) as image:
            return _resize(image, data, job, kind, wanted or kind, bounds)


def _resize(
    image: Image.Image, data: bytes, job: ResizeJob, kind: str, out: str, bounds: PictureLimits
) -> ResizedPicture:
    source = image.size
    limits.check_source(*source, bounds)
    frames = _count_frames(image, data, kind, bounds)
    if kind == "jpeg" and jpeg.is_multi_scan(data):
        limits.check_scans(jpeg.count_scans(data, bounds.max_scans + 1), bounds)
    turn = orientation(image, kind) if job.orient else 1
    plan = geometry.plan_resize(source, job.width, job.height, job.fit, turn in _SWAPS_SIDES)
    limits.check_target(*plan.size, bounds)
    limits.check_frames(frames, source[0] * source[1] + plan.size[0] * plan.size[1], bounds)
    if frames > 1 and out in formats.ANIMATED:
        encoded = _animation(image, job, out, plan, bounds)
    else:
        encoded = _still(image, data, job, kind, out, plan, turn)
    return ResizedPicture(encoded, out, *plan.size, *source)


def _count_frames(image: Image.Image, data: bytes, kind: str, bounds: PictureLimits) -> int:
    if kind == "gif":  # Pillow's n_frames decodes the whole file
        return gif.count_frames(data, bounds.max_frames + 1)
    return getattr(image, "n_frames", 1) if kind == "webp" else 1


def orientation(image: Image.Image, kind: str) -> int:
    """The EXIF orientation, 1..8; 1 when there is none or the tag is broken."""
    if kind == "gif" or (kind == "png" and "exif" not in image.info):
        return 1  # getexif() would decode the whole PNG, before its target is checked
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, KeyError, IndexError, TypeError, EOFError):
        return 1
    return found if found in _TURNS else 1


def _still(
    image: Image.Image, data: bytes, job: ResizeJob, kind: str, out: str, plan: geometry.ResizePlan, turn: int
) -> bytes:
    box = jpeg.reduce_in_decoder(image, plan.stored, plan.box) if kind == "jpeg" else plan.box
    image.load()
    photo = png.is_photo(len(data), image) if kind == "png" else kind != "gif"
    profile = _profile(image) if job.icc != "drop" else b""
    small = resample.resample(modes.to_resizable(image), plan.stored, box)
    if turn in _TURNS:
        small = small.transpose(_TURNS[turn])
    if job.icc == "srgb":
        small, profile = modes.to_srgb(small, profile), b""
    made = modes.to_writable(small, out)
    if made.mode != small.mode and "CMYK" in (made.mode, small.mode):
        profile = b""  # the profile is of the other colour space
    if out == "gif":
        made = gif.indexed(made)
    return formats.encode([made], out, job.quality or DEFAULT_QUALITY, profile, photo)


def _profile(image: Image.Image) -> bytes:
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) and len(profile) <= _MAX_PROFILE else b""


def _animation(
    image: Image.Image, job: ResizeJob, out: str, plan: geometry.ResizePlan, bounds: PictureLimits
) -> bytes:
    """The encoded animation. Source frames are decoded one at a time; only the resized frames are kept."""
    made, durations = [], []
    for small, duration in _frames(image, plan, bounds):
        frame = modes.to_writable(small, out)
        made.append(gif.indexed(frame) if out == "gif" else frame)
        durations.append(duration)
    return formats.encode(
        made, out, job.quality or DEFAULT_QUALITY, durations=durations, loop=image.info.get("loop")
    )


def _frames(
    image: Image.Image, plan: geometry.ResizePlan, bounds: PictureLimits
) -> Iterator[tuple[Image.Image, int]]:
    """Each composed frame, resized, with its duration in milliseconds."""
    index = 0
    while True:
        image.load()
        limits.check_source(*image.size, bounds)  # a frame may grow the canvas
        shown = modes.to_resizable(image)
        yield resample.resample(shown, plan.stored, plan.box), int(image.info.get("duration", 0) or 0)
        index += 1
        if index >= bounds.max_frames:
            raise PictureRefused(422, f"animation has more than the limit of {bounds.max_frames} frames")
        try:
            image.seek(index)
        except EOFError:
            return
