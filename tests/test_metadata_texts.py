"""Texts of pictures: where each format keeps them, in which code, and whatever else a file may be."""

import io
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sdjax
from sdjax.metadata import texts

TEXT = "猫, café\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
WANT = {"prompt": "猫, café", "negative_prompt": "dog", "steps": 20, "sampler": "euler_ancestral", "seed": 1}
PLAIN = TEXT.replace("猫, café", "a cat")
IMAGE = Image.new("RGB", (16, 8), "red")


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def with_chunk(path: Path, kind: bytes, data: bytes, behind: bool = False) -> Path:
    """A PNG with one more chunk, in front of the pixels or behind them."""
    file = io.BytesIO()
    IMAGE.save(file, "PNG")
    whole = file.getvalue()
    at = len(whole) - 12 if behind else 33
    path.write_bytes(whole[:at] + chunk(kind, data) + whole[at:])
    return path


def exif(user_comment: bytes) -> bytes:
    made = Image.Exif()
    made[0x0131] = "a program"  # PIL writes no EXIF without a tag of the first directory
    made.get_ifd(0x8769)[0x9286] = user_comment
    return made.tobytes()


def read(path: Path) -> dict:
    found = sdjax.read_settings(path)
    return {name: found[name] for name in WANT}


CODES = {
    "big": b"UNICODE\0" + TEXT.encode("utf-16-be"),
    "little": b"UNICODE\0" + TEXT.encode("utf-16-le"),
    "marked": b"UNICODE\0" + TEXT.encode("utf-16"),
    "utf-8 all the same": b"UNICODE\0" + TEXT.encode(),
    "not said": b"\0" * 8 + TEXT.encode(),
    "no code at all": TEXT.encode(),
    "ascii that is utf-8": b"ASCII\0\0\0" + TEXT.encode() + b"\0\0",
}


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("code", CODES)
def test_user_comment(tmp_path, format, code):
    IMAGE.save(tmp_path / "x", format, exif=exif(CODES[code]))
    assert read(tmp_path / "x") == WANT


def test_user_comment_in_ascii_and_jis(tmp_path):
    for data in (b"ASCII\0\0\0" + PLAIN.encode(), b"JIS\0\0\0\0\0" + TEXT.replace("é", "e").encode("iso2022_jp")):
        IMAGE.save(tmp_path / "x.jpg", exif=exif(data))
        assert sdjax.read_settings(tmp_path / "x.jpg")["seed"] == 1
    assert sdjax.read_settings(tmp_path / "x.jpg")["prompt"] == "猫, cafe"


def test_a_comment_that_is_no_settings(tmp_path):
    IMAGE.save(tmp_path / "x.jpg", exif=exif(b"ASCII\0\0\0my holiday, day one: sun, sea: salt, sand: hot"))
    with pytest.raises(ValueError, match="holds no settings, and only texts .*UserComment"):
        sdjax.read_settings(tmp_path / "x.jpg")


KINDS = {
    b"tEXt": b"parameters\0" + PLAIN.encode(),
    b"zTXt": b"parameters\0\0" + zlib.compress(PLAIN.encode()),
    b"iTXt": b"parameters\0\0\0\0\0" + TEXT.encode(),
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_in_front_of_the_pixels_and_behind(tmp_path, kind, behind):
    want = WANT if kind == b"iTXt" else WANT | {"prompt": "a cat"}
    path = with_chunk(tmp_path / "x.png", kind, KINDS[kind], behind)
    assert read(path) == want
    with Image.open(path) as image:
        assert sdjax.read_settings(image)["prompt"] == want["prompt"]


@pytest.mark.parametrize("front", [b"Title\0x", b"Comment\0Created with GIMP", b'workflow\0{"nodes":[],"links":[]}'])
def test_other_texts_in_front_hide_none_behind(tmp_path, front):
    path = with_chunk(tmp_path / "x.png", b"tEXt", front)
    whole = path.read_bytes()
    path.write_bytes(whole[:-12] + chunk(b"iTXt", KINDS[b"iTXt"]) + whole[-12:])
    assert read(path) == WANT


def test_a_name_in_other_letters(tmp_path):
    assert read(with_chunk(tmp_path / "x.png", b"tEXt", b"Parameters\0" + TEXT.encode())) == WANT


def test_a_long_text_hides_no_other_and_is_named():
    image = Image.new("RGB", (8, 8))
    image.info |= {"comment": "x" * 150_000, "parameters": PLAIN}
    assert sdjax.read_settings(image)["seed"] == 1
    image.info = {"prompt": '{"1": "' + "x" * 3_000_000 + '"}', "Title": "x"}
    with pytest.raises(ValueError, match=r"\(Title\), and texts of over 2,000,000 characters \(prompt\)"):
        sdjax.read_settings(image)
    image.info = {"ImageDescription": "x" * 150_000, "prompt": "{" + '"1": {"class_type": "LoadImage"}}'}
    with pytest.raises(ValueError, match="ComfyUI: the graph has no sampler"):
        sdjax.read_settings(image)


@pytest.mark.parametrize("data", [b"\0\0\0\x1cftypavif" + b"\0" * 90, b"\xff\x0a" + b"\0" * 90, b"a cat\nSteps: 20"])
def test_another_kind_of_file_is_told_the_kinds(tmp_path, data):
    (tmp_path / "x.avif").write_bytes(data)
    with pytest.raises(ValueError, match="x.avif cannot be read as a picture: it is none of PNG, JPEG, WebP, GIF"):
        sdjax.read_settings(tmp_path / "x.avif")


def test_utf_8_where_latin_1_should_be(tmp_path):
    assert read(with_chunk(tmp_path / "x.png", b"tEXt", b"parameters\0" + TEXT.encode())) == WANT
    latin = TEXT.replace("猫, ", "")
    found = read(with_chunk(tmp_path / "x.png", b"tEXt", b"parameters\0" + latin.encode("latin-1")))
    assert found["prompt"] == "café"
    packed = b"parameters\0\0" + zlib.compress(TEXT.encode())
    assert read(with_chunk(tmp_path / "x.png", b"zTXt", packed)) == WANT


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    assert read(with_chunk(tmp_path / "x.png", b"tEXt", b"parameters\0\xef\xbb\xbf" + TEXT.encode())) == WANT


def test_a_picture_cut_short_keeps_what_is_in_front(tmp_path):
    path = with_chunk(tmp_path / "x.png", b"iTXt", KINDS[b"iTXt"])
    path.write_bytes(path.read_bytes()[:-30])
    assert read(path) == WANT


def test_a_jpegs_comment_and_xmp(tmp_path):
    IMAGE.save(tmp_path / "x.jpg", comment=TEXT.encode())
    assert read(tmp_path / "x.jpg") == WANT
    xmp = "<rdf:li xml:lang='x-default'>{&quot;a&quot;: 1}</rdf:li>"
    xmp = f"<x:xmpmeta><exif:UserComment><rdf:Alt>{xmp}</rdf:Alt></exif:UserComment></x:xmpmeta>"
    IMAGE.save(tmp_path / "x.jpg", xmp=xmp.encode())
    assert texts.read(tmp_path / "x.jpg").texts == {"XMP": '{"a": 1}'}


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_user_comment_among_the_first_tags(tmp_path, format):
    """Fooocus writes it there, and as plain text."""
    made = Image.Exif()
    made[0x9286], made[0x927C], made[0x0131] = PLAIN, "a1111", "Fooocus v2.5.5"
    IMAGE.save(tmp_path / "x", format, exif=made)
    assert read(tmp_path / "x") == WANT | {"prompt": "a cat"}


def test_comfyuis_webp(tmp_path):
    made = Image.Exif()
    made[0x0110], made[0x010F] = 'prompt:{"1": {}}', 'workflow:{"nodes": []}'
    IMAGE.save(tmp_path / "x.webp", exif=made)
    assert texts.read(tmp_path / "x.webp").texts == {"prompt": '{"1": {}}', "workflow": '{"nodes": []}'}


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="pipe.png is no file but a pipe"):
        sdjax.read_settings(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="is an address"):
        sdjax.read_settings("https://example.com/x.png")
    with pytest.raises(ValueError, match="a picture's path or a PIL image, not from a int"):
        sdjax.read_settings(3)
    (tmp_path / "x.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(ValueError, match="x.eps cannot be read as a picture"):
        sdjax.read_settings(tmp_path / "x.eps")


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"eXIf"]), st.binary(max_size=80), st.booleans())
def test_whatever_a_chunk_holds_is_texts_or_one_error(tmp_path_factory, kind, data, behind):
    path = with_chunk(tmp_path_factory.getbasetemp() / "any.png", kind, data, behind)
    try:
        sdjax.read_settings(path)
    except ValueError as error:
        assert str(path) in str(error)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b""]), st.binary(max_size=60))
def test_whatever_a_comment_holds_is_texts_or_one_error(tmp_path_factory, code, data):
    path = tmp_path_factory.getbasetemp() / "any.jpg"
    IMAGE.save(path, exif=exif(code + data))
    try:
        sdjax.read_settings(path)
    except ValueError as error:
        assert str(path) in str(error)
