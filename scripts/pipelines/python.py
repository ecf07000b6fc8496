"""One resize pipeline in a process of its own, one job at a time: `python -m scripts.pipelines.python NAME`.

Reads a job {"path", "width", "height", "source", "out"} per line and writes {"cpu", "bytes"} per line, after a first
line {"ready"} with its libraries. CPU is user + system of the whole process, all threads, for the resize alone: the file
is read before and written after. A pipeline whose library is missing ends with a sentence on standard error.
"""

import io
import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ResizeFunction = Callable[
    [bytes, int, int, Sequence[int]], bytes
]  # picture, width, height, size of the source
QUALITY = 75


def ours(gap: float | None = None, simd: bool = True) -> tuple[str, ResizeFunction]:
    """The picture function of the resizer."""
    from workers import imaging
    from workers.imaging import jpeg

    jpeg.REDUCING_GAP = gap or jpeg.REDUCING_GAP
    limits = imaging.PictureLimits(max_bytes=1 << 30, max_pixels=200_000_000)

    def resize(data: bytes, width: int, height: int, _: Sequence[int]) -> bytes:
        return imaging.resize(data, imaging.ResizeJob(width, height, quality=QUALITY), limits).data

    return imaging.prepare(simd), resize


def naive() -> tuple[str, ResizeFunction]:
    """The obvious way with Pillow: open, resize, save."""
    import PIL
    from PIL import Image

    def resize(data: bytes, width: int, height: int, _: Sequence[int]) -> bytes:
        image, out = Image.open(io.BytesIO(data)), io.BytesIO()
        lanczos = Image.Resampling.LANCZOS
        if image.format == "GIF":
            frames, durations = [], []
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                frame = image.convert("RGBA" if image.has_transparency_data else "RGB")
                frames.append(frame.resize((width, height), lanczos))
                durations.append(image.info.get("duration", 0))
            frames[0].save(
                out, "GIF", save_all=True, append_images=frames[1:], duration=durations, disposal=2
            )
            return out.getvalue()
        shown = (
            image.convert("RGBA" if "transparency" in image.info else "RGB") if image.mode == "P" else image
        )
        kind = "PNG" if shown.format == "PNG" or shown.mode == "RGBA" else "JPEG"
        made = shown.resize((width, height), lanczos)
        made.save(out, kind, **({"quality": QUALITY} if kind == "JPEG" else {}))
        return out.getvalue()

    return f"Pillow {PIL.__version__}", resize


def vips() -> tuple[str, ResizeFunction]:
    """libvips through pyvips, one thread, no cache."""
    os.environ["VIPS_CONCURRENCY"] = "1"
    import pyvips

    pyvips.cache_set_max(0)
    version = ".".join(str(pyvips.version(part)) for part in range(3))

    def resize(data: bytes, width: int, height: int, _: Sequence[int]) -> bytes:
        pages = "[n=-1]" if data[:3] == b"GIF" else ""
        made = pyvips.Image.thumbnail_buffer(
            data, width, height=height, size="force", option_string=pages, no_rotate=True
        )
        if data[:3] == b"GIF":
            return bytes(made.write_to_buffer(".gif"))
        return bytes(made.write_to_buffer(".png" if data[:4] == b"\x89PNG" else f".jpg[Q={QUALITY},strip]"))

    return f"pyvips {pyvips.__version__}, libvips {version}", resize


def opencv() -> tuple[str, ResizeFunction]:
    """OpenCV, one thread, decoding at a reduced size where the target allows."""
    import cv2
    import numpy

    cv2.setNumThreads(1)
    reductions = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}

    def resize(data: bytes, width: int, height: int, source: Sequence[int]) -> bytes:
        raw = numpy.frombuffer(data, numpy.uint8)
        if data[:4] == b"\x89PNG":
            image = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
        else:
            ratio = min(source[0] // (2 * width), source[1] // (2 * height))
            fitting = [flag for factor, flag in reductions.items() if ratio >= factor]
            image = cv2.imdecode(raw, fitting[0] if fitting else cv2.IMREAD_COLOR)
        if image is None or data[:3] == b"GIF":
            raise ValueError("cannot be read")
        grows = width > image.shape[1]
        made = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC if grows else cv2.INTER_AREA)
        kind = ".png" if data[:4] == b"\x89PNG" else ".jpg"
        return bytes(
            cv2.imencode(kind, made, [cv2.IMWRITE_JPEG_QUALITY, QUALITY] if kind == ".jpg" else [])[1]
        )

    return f"OpenCV {cv2.__version__}", resize


PIPELINES: dict[str, Callable[[], tuple[str, ResizeFunction]]] = {
    "ours": ours,
    "ours-gap1.5": lambda: ours(gap=1.5),
    "ours-gap1": lambda: ours(gap=1.0),
    "ours-pillow": lambda: ours(simd=False),
    "naive": naive,
    "pyvips": vips,
    "opencv": opencv,
}


def cpu() -> float:
    """Seconds of user and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def serve(name: str) -> None:
    """Answer jobs until the end of the input."""
    libraries, resize = PIPELINES[name]()
    send({"ready": libraries})
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        data = Path(job["path"]).read_bytes()
        started = cpu()
        try:
            answer = resize(data, job["width"], job["height"], job["source"])
        except Exception as error:  # a peer may not support a kind of picture: the table shows that
            send({"error": " ".join(str(error).split())[:120] or type(error).__name__})
            continue
        spent = cpu() - started
        if job.get("out"):
            Path(job["out"]).write_bytes(answer)
        send({"cpu": spent, "bytes": len(answer)})


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        serve(sys.argv[1])
    except ImportError as missing:
        sys.exit(f"{missing.name} is not installed")
