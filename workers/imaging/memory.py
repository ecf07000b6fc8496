"""What a picture will take of memory: reckoned from its header, the result's size and both formats, before it is decoded.

RULES: pure. The numbers are peaks of address space above that of an idle process, rounded up, measured with pictures of 4
to 24 MP in both directions (November 2026). They add up, since the source stays open until the result is written.
"""

# Bytes a pixel. JPEG: of the pixels that the decoder is asked for; one of several scans keeps all coefficients besides.
DECODING = {"jpeg": 5, "png": 5, "gif": 17, "webp": 17, "avif": 11}
SCANS = 6
ALPHA = 4  # the resampler multiplies a copy
ENCODING = {"jpeg": 6, "png": 7, "gif": 13, "webp": 11, "avif": 33}
ENCODING_ALPHA = {"jpeg": 15, "png": 7, "gif": 19, "webp": 22, "avif": 37}
# PNG's rows, which are held once more, filtered: bytes a pixel and at most.
STORED, MOST_STORED = 7, 40 << 20
PACKED, MOST_PACKED = 8, 64 << 20
FRAME = 4  # a resized frame that waits until all are written
LEAST = 6 << 20  # bytes, whatever the picture
REDUCED = 16  # pixels that a JPEG decoder gives for each pixel of the result, at most


def reckon(
    kind: str,
    pixels: int,
    out: str,
    target_pixels: int,
    has_alpha: bool = False,
    is_multi_scan: bool = False,
    kept_frames: int = 0,
) -> int:
    """Bytes for a picture of the format `kind` with `pixels` pixels, written as `out` with `target_pixels`; of an
    animation `kept_frames` resized frames."""
    decoded = min(pixels, target_pixels * REDUCED) if kind == "jpeg" else pixels
    decoding = decoded * (DECODING[kind] + ALPHA * has_alpha) + pixels * SCANS * is_multi_scan
    encoding = (ENCODING_ALPHA if has_alpha else ENCODING)[out] + FRAME * kept_frames
    rows = min(pixels * STORED, MOST_STORED) if kind == "png" else 0
    rows += min(target_pixels * PACKED, MOST_PACKED) if out == "png" else 0
    return LEAST + decoding + target_pixels * encoding + rows
