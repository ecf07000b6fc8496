"""What a picture will cost a CPU process: an estimate by the pixels and the formats of source and result.

RULES: pure, and takes microseconds: the front asks before it queues a picture. Reads the header and decodes nothing. What
the header does not tell is taken for expensive: a wrong guess that way costs one picture its place in front of big ones.
"""

from workers.imaging.geometry import Target, plan_resize
from workers.imaging.job import ResizeJob
from workers.picture_header import read_header

# Nanoseconds a pixel, from photographs of 2 MP and results of 2 MP, the slower of quality 75 and 95 (November 2026).
DECODING = {"jpeg": 8, "png": 26, "gif": 18, "webp": 20, "avif": 20}
ENCODING = {"jpeg": 10, "png": 65, "gif": 28, "webp": 110, "avif": 120}
LEAST_AVIF = 35e6  # nanoseconds: a small AVIF is written with more effort
SMALL_NS = 50e6  # up to so many nanoseconds a picture is small; the usual one takes 1 to 20 ms
_FRAMES = {"gif": b"\0,", "webp": b"ANMF", "png": b"fcTL"}  # before each frame of an animation


def is_light(picture: memoryview, job: ResizeJob) -> bool:
    """True when `job` for this picture, of at most a few hundred KB, takes at most SMALL_NS of CPU time."""
    header = read_header(picture)
    if header is None:
        return (
            bytes(picture[4:8]) != b"ftyp"
        )  # no picture: it is refused at once. The brands of an AVIF may be anywhere
    if not header.width or not header.height:
        return False
    size = header.width, header.height
    target = Target(job.width, job.height, job.fit, job.gravity, job.enlarge, job.original)
    width, height = plan_resize(size, target).size
    frames = _most_frames(header.format, picture)
    if not frames:
        return False
    decoding = size[0] * size[1] * frames * DECODING[header.format]
    encoding = max(_encoding(out, width * height * frames) for out in _formats(job, header.format))
    return decoding + encoding <= SMALL_NS


def _formats(job: ResizeJob, source: str) -> tuple[str, ...]:
    """The formats that the result may have."""
    return (source, *job.accepts) if job.format == "auto" else (job.format or source,)


def _encoding(out: str, pixels: int) -> float:
    nanoseconds = pixels * ENCODING[out]
    return max(nanoseconds, LEAST_AVIF) if out == "avif" else nanoseconds


def _most_frames(kind: str, picture: memoryview) -> int:
    """At least as many as the picture has; 0 when they are not marked."""
    if kind == "avif":
        return int(bytes(picture[8:12]) != b"avis")
    mark = _FRAMES.get(kind)
    return max(1, bytes(picture).count(mark)) if mark else 1
