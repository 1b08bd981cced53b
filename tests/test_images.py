"""The door for pictures: every kind that users have comes in upright and right, all else is one clear ValueError."""

import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdjax.images import read as images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(48)[:, None] * 5, np.arange(64)[None] * 3, 90), -1).astype(np.uint8)
READERS = [images.read_image, images.read_mask]


def saved(path: Path, image: Image.Image, format: str = "PNG", **options) -> Path:
    image.save(path, format, **options)
    return path


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(value, **kind) -> np.ndarray:
    image = images.read_image(value)
    assert type(image) is Image.Image and image.mode == "RGB"
    return np.asarray(image)


def refused(value, *parts: str, error: type[Exception] = ValueError, name: str = "image") -> str:
    """Both readers refuse the value, with messages that begin with the argument's name and hold all `parts`."""
    for reader in READERS:
        with warnings.catch_warnings(), pytest.raises(error) as caught:
            warnings.simplefilter("error")
            reader(value, name)
        message = str(caught.value)
        assert type(caught.value) is error and message.startswith(name)
        for part in parts:
            assert part in message, message
    return message


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG written here, for what PIL doesn't write. Colour: 0 grey, 2 RGB, 4 grey and alpha."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows)) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b"")


# What comes in -----------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_files_without_loss(tmp_path, format):
    path = saved(tmp_path / "x", Image.fromarray(PIXELS), format, **({"lossless": True} if format == "WEBP" else {}))
    for value in (path, str(path), os.fspath(path)):
        np.testing.assert_array_equal(read(value), PIXELS)


@pytest.mark.parametrize("format", ["JPEG", "GIF"])
def test_files_with_loss(tmp_path, format):
    found = read(saved(tmp_path / "x", Image.fromarray(SMOOTH), format))
    assert np.abs(found.astype(int) - SMOOTH).mean() < 12


def test_an_image_and_arrays():
    np.testing.assert_array_equal(read(Image.fromarray(PIXELS)), PIXELS)
    np.testing.assert_array_equal(read(PIXELS), PIXELS)
    np.testing.assert_array_equal(read(PIXELS[::-1, ::2]), PIXELS[::-1, ::2])
    np.testing.assert_array_equal(read(PIXELS[..., 0]), PIXELS[..., :1].repeat(3, -1))
    opaque = np.concatenate([PIXELS, np.full((6, 9, 1), 255, np.uint8)], -1)
    np.testing.assert_array_equal(read(opaque), PIXELS)


def test_the_result_is_a_copy_and_the_given_image_stays():
    given = Image.fromarray(PIXELS)
    for reader in READERS:
        found = reader(given)
        found.paste(0, (0, 0, *found.size))
    grey = Image.new("L", (3, 3), 9)
    images.read_mask(grey).paste(0, (0, 0, 3, 3))
    np.testing.assert_array_equal(given, PIXELS)
    assert grey.getextrema() == (9, 9)


def test_one_pixel(tmp_path):
    assert read(saved(tmp_path / "x", Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]
    assert images.read_mask(np.full((1, 1), 255, np.uint8)).getpixel((0, 0)) == 255


def test_one_bit_and_grey_and_inks(tmp_path):
    bits = np.array([[0, 255, 0], [255, 255, 0]], np.uint8)
    for mode in ("1", "L"):
        path = saved(tmp_path / mode, Image.fromarray(bits).convert(mode))
        np.testing.assert_array_equal(read(path)[..., 1], bits)
        np.testing.assert_array_equal(images.read_mask(path), bits)
    for mode in ("YCbCr", "HSV"):
        found = read(Image.fromarray(SMOOTH).convert(mode))
        assert np.abs(found.astype(int) - SMOOTH).max() <= 8
    # Inks: cyan takes red away. Photoshop's JPEGs store them inverted, and say so in an Adobe marker.
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_array_equal(read(saved(tmp_path / "inks", inks, "TIFF"))[0, 0], (255, 0, 0))
    jpeg = encoded(inks, "JPEG", quality=95)
    assert b"Adobe" in jpeg
    (tmp_path / "x.jpg").write_bytes(jpeg)
    np.testing.assert_allclose(read(tmp_path / "x.jpg")[0, 0], (255, 0, 0), atol=4)


def test_palettes(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    expected = [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert read(saved(tmp_path / "x", image)).tolist() == expected
    assert read(saved(tmp_path / "x", image, transparency=1)).tolist() == [[expected[0][0], [255] * 3, expected[0][2]]]
    some = read(saved(tmp_path / "x", image, transparency=bytes([255, 128, 0])))[0]
    assert some[0].tolist() == [255, 0, 0] and some[2].tolist() == [255] * 3
    np.testing.assert_allclose(some[1], [127, 255, 127], atol=1)


def test_transparent_parts_are_white_in_pictures_and_black_in_masks(tmp_path):
    """In a picture's file the transparent parts hide black; of a layer of white strokes they are what is kept."""
    alpha = np.array([[0, 255, 128]], np.uint8)
    colour = np.concatenate([np.full((1, 3, 3), (200, 100, 0), np.uint8), alpha[..., None]], -1)
    found = read(saved(tmp_path / "x", Image.fromarray(colour)))[0]
    assert found[0].tolist() == [255] * 3 and found[1].tolist() == [200, 100, 0]
    np.testing.assert_allclose(found[2], (228, 177, 127), atol=1)
    for mode in ("LA", "RGBA"):
        layer = Image.new("L", (3, 1), 255)
        layer.putalpha(Image.fromarray(alpha))
        layer = layer.convert(mode)
        np.testing.assert_allclose(images.read_mask(saved(tmp_path / mode, layer)), alpha, atol=1)
        assert read(layer).min() == 255
    for mode in ("La", "RGBa", "PA"):
        assert read(Image.new(mode, (2, 2))).min() == 255


def test_a_colour_that_stands_for_transparent(tmp_path):
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    found = read(saved(tmp_path / "x", image, transparency=(1, 2, 3)))
    assert found.tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 257, 257 * 100, 40000, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        np.testing.assert_array_equal(read(image)[..., 0], expected)
        np.testing.assert_array_equal(images.read_mask(image), expected)
    for format in ("PNG", "TIFF"):
        path = saved(tmp_path / format, Image.fromarray(values), format)
        np.testing.assert_array_equal(read(path)[..., 2], expected)
    rows = b"\0" + np.array([[0, 0x8000, 0xFFFF]], ">u2").tobytes()
    (tmp_path / "deep.png").write_bytes(png(1, 1, 16, 2, rows))
    assert read(tmp_path / "deep.png").tolist() == [[[0, 128, 255]]]
    big = Image.frombytes("I;16B", (7, 1), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(read(big)[..., 0], expected)


def test_eight_bits_in_a_wide_type():
    values = np.array([[0, 7, 255]], np.int32)
    np.testing.assert_array_equal(read(Image.fromarray(values))[..., 0], values)


TURNED = {  # what a viewer does with the stored pixels, by the EXIF tag 0x0112
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_a_picture_on_its_side(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "x", Image.fromarray(PIXELS), exif=exif)
    np.testing.assert_array_equal(read(path), TURNED[orientation](PIXELS))
    with Image.open(path) as image:
        np.testing.assert_array_equal(read(image), TURNED[orientation](PIXELS))
    grey = saved(tmp_path / "grey", Image.fromarray(PIXELS[..., 0]), exif=exif)
    np.testing.assert_array_equal(images.read_mask(grey), TURNED[orientation](PIXELS[..., 0]))


def test_exif_that_cannot_be_parsed(tmp_path):
    path = saved(tmp_path / "x", Image.fromarray(PIXELS), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12broken")
    np.testing.assert_array_equal(read(path), PIXELS)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame(tmp_path, format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if format == "WEBP" else {}
    path = saved(tmp_path / "x", frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert read(path)[0, 0].tolist() == [255, 0, 0]
    with Image.open(path) as image:
        image.seek(1)
        assert read(image)[0, 0].tolist() == [0, 0, 255]
        assert image.tell() == 1


def tiled(width: int, height: int, tile: int, compression: int, data: bytes = bytes(16)) -> bytes:
    """A grey TIFF of one tile that is `tile` pixels wide and high. Compression: 8 deflate, 7 JPEG."""
    longs = {256: width, 257: height, 322: tile, 323: tile, 324: 134, 325: len(data)}
    shorts = {258: 8, 259: compression, 262: 1, 277: 1}
    entries = [(tag, struct.pack("<HHII", tag, 4, 1, value)) for tag, value in longs.items()]
    entries += [(tag, struct.pack("<HHIHH", tag, 3, 1, value, 0)) for tag, value in shorts.items()]
    body = b"".join(entry for _, entry in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)
    assert len(head) == 134
    return head + data


@pytest.mark.parametrize("compression", [7, 8])
@pytest.mark.parametrize("size", [(64, 64), (46336, 16)])
def test_a_tile_far_larger_than_its_picture(tmp_path, size, compression):
    """CASES.md B 24: 2 GB were taken for it before it was refused."""
    (tmp_path / "x.tif").write_bytes(tiled(*size, 46336, compression))
    refused(tmp_path / "x.tif", "x.tif has tiles of 46336 x 46336 pixels for a picture of")


def test_tiles_as_programs_write_them(tmp_path):
    rows = zlib.compress(bytes(range(256)) * 256)
    (tmp_path / "x.tif").write_bytes(tiled(20, 10, 256, 8, rows))
    assert read(tmp_path / "x.tif")[0, :, 0].tolist() == list(range(20))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(images.EIGHT_BITS), st.integers(0, 2**32 - 1))
def test_every_mode_gives_rgb_and_l_of_its_size(height, width, mode, seed):
    grey = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    grey[0, 0] = 255
    bands = len(Image.new(mode, (1, 1)).getbands())
    image = Image.fromarray(grey) if bands == 1 else Image.merge(mode, [Image.fromarray(grey)] * bands)
    image = image.convert("1") if mode == "1" else image
    found, mask = images.read_image(image), images.read_mask(image)
    assert (found.mode, mask.mode) == ("RGB", "L") and found.size == mask.size == (width, height)


# What does not -----------------------------------------------


def test_floats_and_shapes(tmp_path):
    remedy = '(x * 255).round().astype("uint8")'
    refused(PIXELS / 255, "float64 [6, 9, 3]", "uint8 [H, W, 3], [H, W, 4] or [H, W]", remedy)
    refused(np.full((4, 4), np.nan, np.float32), "float32 [4, 4]", remedy)
    refused(PIXELS.astype(np.int64), "int64", 'x.astype("uint8") makes')
    refused(PIXELS.astype(np.uint16), "uint16", '(x // 257).astype("uint8") makes')
    refused(PIXELS[..., 0] > 9, "bool", 'x.astype("uint8") * 255')
    for shape in [(3, 6, 9), (1, 6, 9, 3), (6, 9, 2), (6, 9, 1), (6,), ()]:
        refused(np.zeros(shape, np.uint8), f"uint8 {list(shape)}", "channels last")
    refused(np.array([PIXELS, None], object), "object")
    for shape in [(0, 9, 3), (6, 0), (0, 0, 4)]:
        refused(np.zeros(shape, np.uint8), f"{shape[1]} x {shape[0]}", "no pixels")
    refused(Image.new("RGB", (0, 4)), "0 x 4", "no pixels")


def test_other_things():
    for value in (None, 3, [PIXELS], b"x.png", io.BytesIO(b"")):
        refused(value, type(value).__name__, "a PIL image, a file's path or a uint8 array")


def test_modes_whose_white_is_not_known(tmp_path):
    path = saved(tmp_path / "x", Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    refused(path, str(path), "mode F", "(x * 255).round()")
    refused(Image.new("LAB", (4, 4)), "mode LAB", "save it as RGB")
    refused(Image.fromarray(np.array([[0, 70000]], np.int32)), "0 to 70000", "8 or 16 bits")
    refused(Image.fromarray(np.array([[-1, 5]], np.int32)), "-1 to 5")


def test_a_mask_of_zeros_and_ones(tmp_path):
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    for value in (labels, saved(tmp_path / "x", Image.fromarray(labels))):
        with pytest.raises(ValueError, match="^mask.*multiply it by 255"):
            images.read_mask(value)
    assert read(labels).max() == 1
    assert images.read_mask(labels * 0).getextrema() == (0, 0)  # which check_mask refuses in its own words


def test_paths(tmp_path):
    refused(tmp_path / "nothing.png", "nothing.png: there is no such picture", error=FileNotFoundError)
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "x.png", "there is no such picture", error=FileNotFoundError)
    refused(tmp_path, str(tmp_path), "is a folder")
    refused("", "there is no such picture", error=FileNotFoundError)
    refused("a\0b.png", "null")
    refused("x" * 5000, "too long")
    assert len(refused("data:image/png;base64," + "A" * 9999, "nothing is fetched")) < 400
    for url in ("https://example.org/cat.png", "HTTP://example.org/x", "s3://bucket/x.png", "file:///tmp/x.png"):
        refused(url, url, "nothing is fetched", "download it", name="mask")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no file but a pipe")
    refused("/dev/zero", "no file but a pipe, a socket or a device")


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.png", Image.fromarray(PIXELS))
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything

        def denied(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(images.Image, "open", denied)
    refused(path, "x.png cannot be read: Permission denied")


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x"])
def test_no_pictures(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    refused(path, str(path), "empty")
    for content in (b"<html>404 Not Found</html>", b"\x89PNG\r\n\x1a\n", b"\0" * 5000, b"GIF89a", b"II*\0", b"BM"):
        path.write_bytes(content)
        refused(path, str(path))


@pytest.mark.parametrize("format", ["EPS", "PDF", "PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000"])
def test_other_formats_reach_no_decoder(tmp_path, format, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    path = saved(tmp_path / "x.png", Image.new("RGB", (16, 16)), format)
    refused(path, "only PNG, JPEG, WebP, GIF, BMP and TIFF are read")


def lossless(format: str) -> bytes:
    options = {"lossless": True} if format == "WEBP" else {"progressive": True} if format == "JPEG" else {}
    return encoded(Image.fromarray(SMOOTH), format, **options)


@pytest.mark.parametrize("format", images.FORMATS)
def test_files_cut_short(tmp_path, format):
    """At every length: an error, or all of the picture where only a trailer is missing."""
    data, path = lossless(format), tmp_path / "x"
    path.write_bytes(data)
    whole, errors = read(path), 0
    for length in range(0, len(data), max(1, len(data) // 150)):
        path.write_bytes(data[:length])
        try:
            np.testing.assert_array_equal(read(path), whole)
        except ValueError as error:
            assert str(error).startswith(f"image: {path} is ")
            errors += 1
    assert errors > 50
    path.write_bytes(data[: len(data) // 2])
    refused(path, "cut short")
    with open(path, "rb") as file:  # PIL's own object of a broken file, as far as it opens
        try:
            image = Image.open(file, formats=images.FORMATS)
        except OSError:
            return
        refused(image, "damaged or cut short")


@pytest.mark.parametrize("format", images.FORMATS)
def test_damaged_files_give_a_picture_or_one_error(tmp_path, format):
    data, path, rng = lossless(format), tmp_path / "x", np.random.default_rng(7)
    for _ in range(150):
        broken = np.frombuffer(data, np.uint8).copy()
        where = rng.integers(0, min(len(data), rng.choice([40, len(data)])), rng.integers(1, 4))
        broken[where] = rng.integers(0, 256, where.size)
        path.write_bytes(broken.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read(path)
            except ValueError as error:
                assert str(error).startswith("image") and type(error) is ValueError


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
@pytest.mark.parametrize("size", [(10_000, 9_000), (13_000, 13_000), (60_000, 60_000)])
def test_decompression_bombs(tmp_path, size, limit, monkeypatch):
    """Files of a header alone: whoever decoded a pixel would find them cut short."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    path = tmp_path / "x.png"
    path.write_bytes(png(*size, 8, 2, b"", chunk(b"IDAT", b"")))
    message = refused(path, str(path), "89,478,485")
    width, height = size
    assert f"{width} x {height}" in message or str(width * height) in message
    path.write_bytes(
        b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + bytes(9)
    )
    refused(path, "89,478,485")


def test_bombs_in_memory():
    refused(Image.new("1", (10_000, 9_000)), "10000 x 9000", "89,478,485", "make it smaller")
    refused(np.broadcast_to(np.uint8(0), (9_000, 10_000, 3)), "10000 x 9000")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_transparency_that_makes_no_sense(mode):
    image = Image.new(mode, (3, 2))
    image.info["transparency"] = "none"
    refused(image, "damaged")


def test_an_image_whose_file_was_closed(tmp_path):
    with Image.open(saved(tmp_path / "x", Image.fromarray(PIXELS))) as image:
        pass
    refused(image, "image")


# Towards the model -------------------------------------------


def test_pixels():
    every = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    pixels = images.to_pixels(every, 16, 16)
    assert pixels.dtype == np.float32 and pixels.shape == (16, 16, 3)
    np.testing.assert_allclose(pixels[..., 0].ravel(), np.linspace(-1, 1, 256), atol=1e-7)
    assert images.to_pixels(Image.new("RGB", (1, 1), (255, 0, 0)), 8, 24).shape == (8, 24, 3)
    np.testing.assert_array_equal(images.to_pixels(Image.new("RGB", (1, 1), (255, 0, 0)), 8, 24)[3, 7], (1, -1, -1))


def test_natural_size():
    assert images.natural_size(Image.new("RGB", (71, 130)), 8) == (128, 64)
    for size in ((7, 64), (64, 1)):
        with pytest.raises(ValueError, match=re.escape(f"{size[0]} x {size[1]}") + ".*height= and width="):
            images.natural_size(Image.new("RGB", size), 8)
    assert images.natural_size(Image.new("L", (4103, 8)), 8) == (8, 4096)
    with pytest.raises(ValueError, match="4104 x 8 .*4096.*height= and width="):
        images.natural_size(Image.new("L", (4104, 8)), 8)
