"""Decoding at a reduced size does not shift the picture; scans are counted as a decoder reads them."""

import io

import pytest
from PIL import Image

from workers.imaging import PictureLimits, PictureRefused, ResizeJob, jpeg, resize
from workers.imaging.resample import psnr


def reference(data, size):
    return Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling.LANCZOS)


def test_a_reduced_decode_does_not_shift_the_picture(draw, save, load):
    # 257 pixels at an eighth are 32.125 wide in a picture of 33: ignoring the fraction squeezes it by 2.7 %.
    data = save(draw((257, 193)), "JPEG", quality=95, subsampling=0)
    whole = reference(data, (16, 12))
    answer = load(resize(data, ResizeJob(16, 12, quality=95, format="png"), PictureLimits()).data)
    shifted = Image.open(io.BytesIO(data))
    shifted.draft(None, (32, 24))
    assert shifted.size == (33, 25)
    assert psnr(answer, whole) > 37
    assert psnr(shifted.resize((16, 12), Image.Resampling.LANCZOS), whole) < 33


@pytest.mark.parametrize(
    ("target", "decoded"),
    [((16, 12), (33, 25)), ((40, 30), (86, 65)), ((100, 70), (257, 193)), ((16, 90), (257, 193))],
)
def test_decodes_no_larger_than_twice_the_target_needs(draw, save, target, decoded):
    image = Image.open(io.BytesIO(save(draw((257, 193)), "JPEG")))
    jpeg.reduce_in_decoder(image, target, (0, 0, 257, 193))
    assert image.size in (decoded, tuple(-(-side // 2) for side in (257, 193)))
    assert image.size[0] >= 2 * target[0] or image.size[0] == 257
    assert image.size[1] >= 2 * target[1] or image.size[1] == 193


def test_baseline_and_progressive_are_told_apart(draw, save):
    assert not jpeg.read(save(draw(), "JPEG")).is_multi_scan
    assert jpeg.read(save(draw(), "JPEG", progressive=True)).is_multi_scan
    assert jpeg.count_scans(save(draw(), "JPEG"), 100) == 1
    assert jpeg.count_scans(save(draw(), "JPEG", progressive=True), 100) == 10


def test_a_sequential_picture_with_a_scan_for_each_component_is_multi_scan(draw, save):
    data = bytearray(save(draw(), "JPEG"))
    scan = data.index(b"\xff\xda")
    assert data[scan + 4] == 3
    data[scan + 4] = 1
    assert jpeg.read(bytes(data)).is_multi_scan


def test_scans_of_a_thumbnail_in_the_metadata_are_not_counted(draw, save):
    thumbnail = save(draw((16, 16)), "JPEG", progressive=True)
    plain = save(draw(), "JPEG", progressive=True)
    data = plain[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + plain[2:]
    assert data.count(b"\xff\xda") == 20
    assert jpeg.count_scans(data, 100) == 10


@pytest.mark.parametrize("cut", [2, 3, 4, 20, 200, 400])
def test_a_truncated_file_is_counted_up_to_its_end(draw, save, cut):
    data = save(draw(), "JPEG", progressive=True)[:cut]
    jpeg.read(data)
    assert jpeg.count_scans(data, 100) < 10


def scan_bomb(draw, save, scans=200):
    data = save(draw((64, 64), "L"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def test_a_scan_bomb_is_refused_by_count(draw, save):
    with pytest.raises(PictureRefused) as refusal:
        resize(scan_bomb(draw, save), ResizeJob(8, 8), PictureLimits())
    assert refusal.value.status == 422
    assert "32 scans" in refusal.value.sentence


def test_the_same_file_is_resized_under_a_higher_limit(draw, save):
    assert resize(scan_bomb(draw, save), ResizeJob(8, 8), PictureLimits(max_scans=1000)).width == 8


def test_results_are_baseline_420_without_metadata(draw, save, load):
    data = save(draw(), "JPEG", progressive=True, comment=b"secret", exif=b"Exif\x00\x00secret")
    answer = load(resize(data, ResizeJob(40, 30), PictureLimits()).data)
    assert "progressive" not in answer.info
    assert answer.layer[0][1:3] == (2, 2)
    assert not {"exif", "comment", "icc_profile"} & set(answer.info)


def test_two_pictures_in_one_file_are_a_jpeg(draw, save):
    data = save(draw(), "MPO", save_all=True, append_images=[draw((30, 30))])
    result = resize(data, ResizeJob(20, 0), PictureLimits())
    assert (result.format, result.width, result.height, result.source_width) == ("jpeg", 20, 13, 97)


def test_quality_changes_the_size(draw, save):
    data = save(draw((200, 150)), "JPEG", quality=95)
    sizes = [
        len(resize(data, ResizeJob(150, 0, quality=quality), PictureLimits()).data)
        for quality in (20, 75, 0, 95)
    ]
    assert sizes[0] < sizes[1] == sizes[2] < sizes[3]
