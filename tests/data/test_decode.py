"""A picture file of any kind becomes the grey levels that a person sees."""

import io

import numpy as np
import pytest
from PIL import Image

from mezzotint.data.decode import CROPS, FILTERS, Damaged, Framing, decode, frame, is_grey, load


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "PPM", "TGA"])
def test_lossless_grey_formats_give_back_their_levels(format):
    levels = noise(9, 9)
    assert (decode(encode(Image.fromarray(levels), format), Framing(9, 1))[0] == levels).all()


def test_colour_channels_come_first():
    levels = noise(9, 9, 3)
    assert (decode(encode(Image.fromarray(levels)), Framing(9, 3)) == levels.transpose(2, 0, 1)).all()


def test_the_format_is_read_from_the_bytes_not_from_the_name(tmp_path):
    levels = noise(9, 9)
    (tmp_path / "png.jpg").write_bytes(encode(Image.fromarray(levels)))
    assert (decode(tmp_path / "png.jpg", Framing(9, 1))[0] == levels).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :4] = 255  # the bright quarter is above on the left
    upright[:4, 4:] = 90  # and the grey one above on the right, so that a mirror image differs too
    # what a camera stores for each value of the tag, from the definition of the tag: (0th row, 0th column) in the scene
    stored = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.transpose(1, 0, 2),  # left, top
        6: upright.transpose(1, 0, 2)[::-1],  # right, top: shown after a quarter turn clockwise
        7: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
        8: upright.transpose(1, 0, 2)[:, ::-1],  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = load(encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif))
    assert (np.asarray(shown) == upright).all()


@pytest.mark.parametrize("opacity", [0, 51, 255])
def test_transparent_pixels_lie_on_white(opacity):
    image = Image.new("RGBA", (4, 4), (10, 200, 60, opacity))
    expected = [255 + (c - 255) * opacity / 255 for c in (10, 200, 60)]
    assert np.abs(decode(encode(image), Framing(4, 3))[:, 0, 0] - expected).max() <= 1
    grey = Image.new("LA", (4, 4), (100, opacity))
    assert abs(int(decode(encode(grey), Framing(4, 1))[0, 0, 0]) - (255 - 155 * opacity / 255)) <= 1


def test_transparency_by_palette_or_colour_key_lies_on_white():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    assert (decode(encode(palette), Framing(4, 3))[:, 0, 0] == (200, 0, 0)).all()
    assert (decode(encode(palette, transparency=1), Framing(4, 3)) == 255).all()
    assert (decode(encode(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)), Framing(4, 3)) == 255).all()
    assert (decode(encode(Image.new("L", (4, 4), 7), transparency=7), Framing(4, 1)) == 255).all()


def test_two_tones_are_black_and_white():
    assert (decode(encode(Image.fromarray(np.eye(4) > 0)), Framing(4, 1))[0] == np.eye(4) * 255).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format):
    deep = np.array([[0, 257, 128 * 257], [300, 65535, 65534], [1000, 40000, 129]], np.uint16)
    levels = decode(encode(Image.fromarray(deep), format), Framing(3, 1))[0]
    assert (levels == np.rint(deep / 257)).all()


def test_cmyk_is_shown_as_colours():
    ink = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    for format in ("JPEG", "TIFF"):
        red, green, blue = decode(encode(ink, format), Framing(4, 3))[:, 0, 0]
        assert red < 5
        assert min(green, blue) > 250


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_shows_its_first_frame(format):
    frames = [Image.new("RGB", (4, 4), color) for color in ("blue", "red", "lime")]
    options = {"lossless": True} if format == "WEBP" else {}
    file = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert (decode(file, Framing(4, 3))[:, 0, 0] == (0, 0, 255)).all()


@pytest.mark.parametrize("filter", sorted(set(FILTERS) - {"nearest"}))
def test_a_fine_checkerboard_becomes_even_grey(filter, truth):
    board = Image.fromarray((np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8))
    small = frame(board, Framing(16, 1, filter=filter)).astype(float)
    inside = small[0, 1:-1, 1:-1]  # at the border a filter sees half of its neighbourhood
    truth("data", f"checkerboard 128 to 16, {filter}", "its mean, 127.5", np.abs(inside - 127.5).max(), 1.5)


def test_nearest_invents_no_levels():
    board = Image.fromarray((np.indices((60, 60)).sum(0) % 2 * 255).astype(np.uint8))
    assert set(np.unique(frame(board, Framing(16, 1, filter="nearest")))) <= {0, 255}


def test_box_is_the_mean_of_each_block(truth):
    levels = noise(32, 32)
    means = levels.reshape(8, 4, 8, 4).mean((1, 3))
    error = np.abs(frame(Image.fromarray(levels), Framing(8, 1, filter="box"))[0] - means).max()
    truth("data", "box filter 32 to 8", "block means, in levels (rows and columns are rounded in turn)", error, 1.0)


def test_center_takes_the_largest_centred_square():
    wide = noise(6, 10)
    assert (frame(Image.fromarray(wide), Framing(6, 1))[0] == wide[:, 2:8]).all()
    assert (frame(Image.fromarray(wide.T.copy()), Framing(6, 1))[0] == wide.T[2:8]).all()


def test_squash_keeps_the_whole_picture():
    halves = np.zeros((8, 32), np.uint8)
    halves[:, 16:] = 200
    squashed = frame(Image.fromarray(halves), Framing(8, 1, crop="squash", filter="box"))[0]
    assert (squashed[:, :4] == 0).all()
    assert (squashed[:, 4:] == 200).all()


def test_pad_keeps_the_whole_picture_on_white():
    padded = frame(Image.fromarray(np.zeros((8, 16), np.uint8)), Framing(8, 1, crop="pad"))[0]
    assert (padded[2:6] == 0).all()
    assert (padded[[0, 1, 6, 7]] == 255).all()


@pytest.mark.parametrize("shape", [(1, 200), (200, 1)])
def test_pad_lets_no_picture_vanish_however_long_it_is(shape):
    padded = frame(Image.fromarray(np.zeros(shape, np.uint8)), Framing(8, 1, crop="pad"))[0]
    assert (padded == 0).sum() == 8
    assert (padded == 255).sum() == 56


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_shape_fits_any_frame(crop, size, channels):
    assert frame(Image.new("RGB", size), Framing(16, channels, crop)).shape == (channels, 16, 16)


def test_grey_is_recognised_in_colour_files():
    levels = noise(5, 5)
    assert is_grey(load(encode(Image.fromarray(levels).convert("RGB"))))
    levels = np.repeat(levels[..., None], 3, 2)
    levels[2, 3, 1] ^= 1
    assert not is_grey(load(encode(Image.fromarray(levels))))


def test_floating_point_pixels_are_refused_since_their_white_is_unknown():
    with pytest.raises(Damaged, match="white"):
        load(encode(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"))
