"""Colours: profiles of every space, PNG's and AVIF's own descriptions, what is embedded and what is converted."""

import io
import struct
import zlib

import pytest
from PIL import Image, ImageCms

from workers.imaging import PictureLimits, ResizeJob, avif, colour, resize

RED, GREEN, BLUE, DARK, GREY, PALE = PATCHES = [
    (200, 60, 30),
    (40, 180, 90),
    (30, 60, 200),
    (20, 20, 20),
    (128, 128, 128),
    (230, 210, 180),
]
ADOBE = ((0.3127, 0.3290), (0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
P3 = colour.described(12, 13)
ADOBE_PROFILE = colour.made_profile(ADOBE, 563 / 256)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def patches(mode="RGB"):
    image = Image.new("RGB", (len(PATCHES) * 16, 16))
    for index, patch in enumerate(PATCHES):
        image.paste(patch, (16 * index, 0, 16 * index + 16, 16))
    return image.quantize(16) if mode == "P" else image.convert(mode)


def stored(image, kind="PNG", **options):
    out = io.BytesIO()
    if kind == "JPEG":
        options |= {"quality": 98}
    if kind == "AVIF":
        options |= {"quality": 98, "subsampling": "4:4:4", "speed": 10}
    if kind == "WEBP":
        options |= {"lossless": True}
    image.save(out, kind, **options)
    return out.getvalue()


def with_chunks(data, **chunks):
    made = b""
    for kind, body in chunks.items():
        name = kind.encode()
        made += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data[:33] + made + data[33:]


def chrm(primaries):
    return struct.pack(">8I", *(round(value * 100_000) for place in primaries for value in place))


def gama(value):
    return struct.pack(">I", round(value * 100_000))


def answer(data, **job):
    job = {"width": len(PATCHES) * 16, "height": 16, "format": "png"} | job
    return Image.open(io.BytesIO(resize(data, ResizeJob(**job), PictureLimits()).data))


def shown(data, **job):
    image = answer(data, **job).convert("RGB")
    return [image.getpixel((16 * index + 8, 8)) for index in range(len(PATCHES))]


def near(found, expected, most=3):
    return all(
        max(abs(a - b) for a, b in zip(one, other, strict=True)) <= most
        for one, other in zip(found, expected, strict=True)
    )


# Red, dark and grey as Chromium 156 shows the same files.
AS_CHROMIUM = [
    ({"gAMA": gama(1.0)}, (229, 133, 96), (79, 79, 79), None),
    ({"gAMA": gama(0.55)}, (210, 76, 39), (25, 25, 25), None),
    ({"gAMA": gama(0.55), "cHRM": chrm(colour.SRGB_PRIMARIES)}, (210, 76, 39), (25, 25, 25), None),
    ({"gAMA": gama(0.45455)}, RED, DARK, GREY),
    ({"gAMA": gama(0.45455), "cHRM": chrm(colour.SRGB_PRIMARIES)}, RED, DARK, GREY),
    ({"gAMA": gama(0.45455), "cHRM": chrm(ADOBE)}, (231, 57, 21), (12, 12, 12), (129, 129, 129)),
    ({"gAMA": gama(1.0), "sRGB": b"\0"}, RED, DARK, GREY),
    ({"cICP": bytes((12, 13, 0, 1))}, (217, 42, 0), DARK, GREY),
    ({"cICP": bytes((12, 13, 0, 1)), "gAMA": gama(1.0)}, (217, 42, 0), DARK, GREY),
    ({"cICP": bytes((1, 13, 0, 1)), "gAMA": gama(1.0)}, RED, DARK, GREY),
    ({"cICP": bytes((1, 4, 0, 1))}, (201, 57, 24), (12, 12, 12), None),
    ({"cICP": bytes((1, 8, 0, 1))}, (229, 133, 96), (79, 79, 79), None),
]


@pytest.mark.parametrize(("chunks", "red", "dark", "grey"), AS_CHROMIUM)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_what_the_chunks_of_a_png_say(chunks, red, dark, grey, mode):
    found = shown(with_chunks(stored(patches(mode)), **chunks), format="webp", quality=100)
    png = shown(with_chunks(stored(patches(mode)), **chunks))
    assert near([png[0], png[3]], [red, dark])
    assert grey is None or near([png[4]], [grey])
    assert near([found[3]], [dark], 6)


@pytest.mark.parametrize(
    ("numbers", "red", "dark"),
    [
        ((1, 13), RED, DARK),
        ((2, 2), RED, DARK),
        ((1, 1), RED, DARK),
        ((12, 13), (216, 42, 0), DARK),
        ((9, 1), (246, 0, 0), DARK),
        ((6, 6), (194, 66, 27), DARK),
        ((1, 4), (200, 57, 23), (12, 12, 12)),
        ((1, 8), (229, 133, 95), (79, 79, 79)),
    ],
)
def test_what_the_nclx_box_of_an_avif_says(numbers, red, dark):
    data = bytearray(stored(patches(), "AVIF"))
    at = data.index(b"colrnclx") + 8
    data[at : at + 4] = struct.pack(">2H", *numbers)
    assert avif.colours(bytes(data)) == numbers
    found = shown(bytes(data))
    assert near([found[0], found[3]], [red, dark], 4)


@pytest.mark.parametrize("kind", ["PNG", "AVIF"])
@pytest.mark.parametrize(
    ("transfer", "as_chromium"),
    [
        (16, {60: 26, 90: 61, 120: 114, 150: 193, 180: 242, 210: 255}),
        (18, {60: 39, 90: 66, 120: 92, 150: 122, 180: 166, 210: 214, 240: 243}),
        (17, {60: 44, 90: 76, 120: 109, 150: 143, 180: 177, 210: 212, 240: 247}),
    ],
)
@pytest.mark.parametrize("primaries", [1, 9, 12])
def test_a_picture_for_brighter_screens_has_white_black_and_what_is_between(
    kind, transfer, as_chromium, primaries
):
    grey = Image.linear_gradient("L").convert("RGB").resize((16, 256))
    if kind == "PNG":
        data = with_chunks(stored(grey), cICP=bytes((primaries, transfer, 0, 1)))
    else:
        data = bytearray(stored(grey, kind, quality=100))
        at = data.index(b"colrnclx") + 8
        data[at : at + 4] = struct.pack(">2H", primaries, transfer)
    made = answer(bytes(data), width=16, height=256)
    column = [made.getpixel((8, y))[0] for y in range(256)]
    assert column == sorted(column)
    assert (column[0], column[-1]) == (0, 255)
    assert {value: column[value] for value in as_chromium} == pytest.approx(as_chromium, abs=2)


@pytest.mark.parametrize(
    ("chunks", "light"),
    [
        ({"cICP": bytes((2, 2, 0, 1)), "gAMA": gama(1.0)}, 79),
        ({"cICP": bytes((1, 99, 0, 1)), "gAMA": gama(1.0)}, 79),
        ({"cICP": bytes((1, 13, 0, 1)), "gAMA": gama(1.0)}, 20),
        ({"iCCP": b"damaged\0\0not zlib", "gAMA": gama(1.0)}, 79),
        ({"iCCP": b"short\0\0" + zlib.compress(b"no profile"), "gAMA": gama(1.0)}, 79),
        ({"iCCP": b"short\0\0" + zlib.compress(b"no profile"), "sRGB": b"\0", "gAMA": gama(1.0)}, 20),
        ({"iCCP": b"fine\0\0" + zlib.compress(SRGB), "gAMA": gama(1.0)}, 20),
    ],
)
def test_what_is_not_known_yields_to_the_next_chunk(chunks, light):
    assert shown(with_chunks(stored(patches()), **chunks))[3][0] == pytest.approx(light, abs=2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("out", ["jpeg", "png", "gif", "webp", "avif"])
def test_a_profile_is_applied_and_dropped(kind, out):
    data = stored(patches(), kind, icc_profile=P3)
    made = answer(data, format=out, quality=98)
    assert "icc_profile" not in made.info
    assert near(shown(data)[:1], [(217, 42, 0)], 8)
    assert near(shown(data, format=out, quality=98)[4:5], [GREY], 6)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_a_grey_picture_is_converted_and_stays_grey(mode):
    image = (
        patches("L").convert(mode)
        if mode != "I;16"
        else patches("L").point([257 * v for v in range(256)], "I").convert("I;16")
    )
    linear = with_chunks(stored(image), gAMA=gama(1.0))
    made, plain = answer(linear), answer(linear, icc="drop")
    assert made.mode == plain.mode == {"1": "L"}.get(mode, mode)
    if mode in ("L", "LA"):
        before, after = (x.getchannel("L").getpixel((56, 8)) for x in (plain, made))
        assert (before, after) == (20, 79)
    if mode == "I;16":
        assert abs(made.getpixel((56, 8)) - 79 * 257) < 300


def grey_profile(exponent):
    """A profile of a grey space with this exponent, as the reader of profiles in other programs takes it."""
    tags = [
        (b"wtpt", b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)),
        (b"kTRC", b"curv\0\0\0\0" + struct.pack(">IH2x", 1, round(256 * exponent))),
    ]
    body, table = b"", struct.pack(">I", len(tags))
    for name, content in tags:
        table += name + struct.pack(">2I", 132 + 12 * len(tags) + len(body), len(content))
        body += content
    head = struct.pack(
        ">I4xI4s4s4s12x4s", 132 + 24 + len(body), 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp"
    )
    return head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061).ljust(60, b"\0") + table + body


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("out", ["jpeg", "png", "webp"])
def test_a_profile_of_grey(kind, out):
    data = stored(patches("L"), kind, icc_profile=grey_profile(1.0))
    assert near(shown(data, format=out, quality=98)[3:4], [(79, 79, 79)], 6)
    kept = answer(data, format=out, quality=98, icc="keep")
    if out == "webp":  # has no grey: a profile of grey cannot be embedded
        assert "icc_profile" not in kept.info
        assert near([kept.convert("RGB").getpixel((56, 8))], [(79, 79, 79)], 6)
    else:
        assert kept.info["icc_profile"] == grey_profile(1.0)
        assert abs(kept.getpixel((56, 8)) - 20) < 4


@pytest.mark.parametrize("out", ["jpeg", "png", "gif", "webp", "avif"])
@pytest.mark.parametrize("icc", ["keep", "srgb", "drop"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("profile", [P3, grey_profile(2.2), b"\0" * 16 + b"CMYK" + b"\0" * 200, SRGB])
def test_a_profile_of_another_space_than_the_picture_is_never_embedded(mode, icc, out, profile):
    data = stored(patches(mode), "JPEG" if mode == "CMYK" else "PNG", icc_profile=profile)
    made = answer(data, format=out, icc=icc, quality=98)
    found = made.info.get("icc_profile")
    if found is not None:
        assert icc == "keep"
        assert found == profile
        spaces = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB ", "P": b"RGB ", "CMYK": b"CMYK"}
        assert found[16:20] == spaces[made.mode]
    if icc == "drop":
        assert near(shown(data, format=out, icc="drop", quality=98)[4:5], [GREY], 4) or mode == "CMYK"


def test_wide_gamut_is_kept_where_asked():
    data = stored(patches(), icc_profile=P3)
    assert answer(data, icc="keep").info["icc_profile"] == P3
    assert near(shown(data, icc="keep"), PATCHES, 1)
    described = with_chunks(stored(patches()), cICP=bytes((12, 13, 0, 1)))
    assert answer(described, icc="keep").info["icc_profile"] == P3
    assert near(shown(described, icc="keep"), PATCHES, 1)
    assert near(shown(data, icc="drop"), PATCHES, 1)


def test_srgb_is_not_converted():
    data = stored(patches(), icc_profile=SRGB)
    assert shown(data) == shown(data, icc="drop")
    assert answer(data).info == answer(data, icc="drop").info


@pytest.mark.parametrize(
    "profile",
    [
        b"x",
        b"\0" * 200,
        P3[:100],
        P3[:300],
        b"\0" * 16 + b"RGB " + b"\0" * 900,
        b"\0" * 16 + b"Lab " + b"\0" * 900,
    ],
)
def test_a_damaged_profile_is_ignored(profile):
    assert near(shown(stored(patches(), icc_profile=profile)), PATCHES, 1)
    assert shown(stored(patches("CMYK"), "JPEG", icc_profile=profile))


def test_cmyk_without_a_usable_profile_stays_cmyk_in_a_jpeg():
    data = stored(patches("CMYK"), "JPEG", icc_profile=b"\0" * 16 + b"CMYK" + b"\0" * 900)
    assert answer(data, format="jpeg").mode == "CMYK"


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
@pytest.mark.parametrize("out", ["gif", "webp"])
def test_colours_of_an_animation(kind, out):
    frames, later = patches(), patches().transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    later.paste("white", (0, 0, 4, 4))
    data = stored(frames, kind, save_all=True, append_images=[later], duration=50, icc_profile=P3)
    made = answer(data, format=out, quality=98)
    assert made.n_frames == 2
    for index in range(2):
        made.seek(index)
        assert near([made.convert("RGB").getpixel((8, 8))], [(217, 42, 0)], 8)
    kept = answer(data, format=out, quality=98, icc="keep")
    assert kept.info.get("icc_profile") == (P3 if out == "webp" else None)


@pytest.mark.parametrize("place", range(4))
def test_primaries_that_make_no_sense_are_ignored(place):
    wrong = list(ADOBE)
    wrong[place] = (0.0, 0.0)
    assert shown(with_chunks(stored(patches()), cHRM=chrm(wrong), gAMA=gama(0.45455)))
    assert shown(with_chunks(stored(patches()), cHRM=b"\xff" * 32, gAMA=gama(0.45455))) == shown(
        stored(patches())
    )
