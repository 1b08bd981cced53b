"""The texts that a picture holds, by name, wherever its format keeps them.

    PNG          any number of named texts (tEXt, zTXt, iTXt), before the pixels or behind them
    JPEG, WebP   EXIF: `UserComment`, which says its own encoding, and tags of plain text; XMP; a comment
    PNG too      EXIF (eXIf) and XMP

What stands in EXIF and XMP gets the names of `EXIF` here. A PNG's tEXt is Latin-1 by its standard, but many programs
write UTF-8: what is valid UTF-8 is read as that. Nothing of a text is understood here; see `foreign`.

A file is a stranger's: only regular files of six formats are opened, whatever goes wrong in a decoder is one
ValueError, and pixels are decoded only where no settings were found in front of them and they are not too many.
"""

import html
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

LOADED = 89_478_485  # pixels that are decoded to find what is behind them
LONGEST = 2_000_000  # characters of a text that is kept at all; a graph of ComfyUI's has some 100,000

COMMENT, DESCRIPTION, SOFTWARE, SCHEME, XMP = "UserComment", "ImageDescription", "Software", "MakerNote", "XMP"
_PARAMETERS = "parameters"
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
# Tags that hold text; ComfyUI's WebP hold "prompt:{...}" and "workflow:{...}" in those of a camera's make and model.
_TAGS = {0x010E: DESCRIPTION, 0x0131: SOFTWARE, 0x927C: SCHEME, 0x010F: "Make", 0x0110: "Model", 0x9286: COMMENT}
_NAMED = re.compile(r"(prompt|workflow|parameters)\s*:\s*", re.IGNORECASE)
_CODES = {b"UNICODE\0": "utf-16", b"ASCII\0\0\0": "utf-8", b"JIS\0\0\0\0\0": "iso2022_jp", b"\0" * 8: "utf-8"}


@dataclass(frozen=True)
class Held:
    """A picture's `texts` by name, `where` they are, for messages, and the picture's `size`, (width, height).

    too_long: names of texts that are left out, being longer than `LONGEST`.
    """

    texts: dict[str, str]
    where: str
    size: tuple[int, int]
    too_long: tuple[str, ...] = ()


def read(source: str | os.PathLike[str] | Image.Image) -> Held:
    """The texts of a picture.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no picture.
    """
    if isinstance(source, Image.Image):
        return _held(source, "the image")
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"settings are read from a picture's path or a PIL image, not from a {type(source).__name__}")
    from sdjax.images.read import FORMATS, NAMED, _check_file

    path = os.fsdecode(source)
    _check_file(path, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return _held(image, path)
    except UnidentifiedImageError:
        raise ValueError(f"{path} cannot be read as a picture: it is none of {NAMED}, or it is damaged") from None
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


def _held(image: Image.Image, where: str) -> Held:
    found = _texts(image)
    too_long = tuple(name for name, text in found.items() if len(text) > LONGEST)
    return Held({name: text for name, text in found.items() if name not in too_long}, where, image.size, too_long)


def _texts(image: Image.Image) -> dict[str, str]:
    found = _in_front(image)
    if not found.keys() & {_PARAMETERS, "sdjax"} and _could_load(image):
        try:
            image.load()
        except Exception:  # cut short: what is in front of the pixels is all there is
            return found
        found = _in_front(image)
    return found


def _could_load(image: Image.Image) -> bool:
    """Whether there may be texts behind the pixels of an open file."""
    return getattr(image, "fp", None) is not None and image.format == "PNG" and image.width * image.height <= LOADED


def _in_front(image: Image.Image) -> dict[str, str]:
    """What PIL has read so far, and what is within."""
    info = image.info
    texts = {name: text for name, text in info.items() if isinstance(name, str) and isinstance(text, str)}
    # A name's letters count, but some programs write "Parameters".
    names = {name: _PARAMETERS if name.casefold() == _PARAMETERS else name for name in texts}
    found = {names[name]: _repaired(text) for name, text in texts.items()}
    found = {name: text for name, text in found.items() if not name.startswith(("XML:", "Raw profile"))}
    if isinstance(comment := info.get("comment"), bytes):
        found["comment"] = _decoded(comment, "utf-8")
    for name, text in {**_exif(image), **_xmp(info)}.items():
        found.setdefault(name, text)
    found = {name: text.removeprefix("\ufeff") for name, text in found.items()}  # a byte order mark is no word
    return {name: text for name, text in found.items() if text.strip()}


def _repaired(text: str) -> str:
    """UTF-8 that PIL read as Latin-1, as a tEXt must be read, is read again; all else stays."""
    try:
        return str(text).encode("latin-1").decode("utf-8")
    except UnicodeError:
        return str(text)


def _exif(image: Image.Image) -> dict[str, str]:
    if image.format != "TIFF" and "exif" not in image.info and "Raw profile type exif" not in image.info:
        return {}
    try:
        exif = image.getexif()
        tags = {**exif, **exif.get_ifd(_EXIF_IFD)}
    except Exception:  # EXIF data that cannot be parsed; viewers leave them aside as well
        return {}
    found: dict[str, str] = {}
    for tag, value in tags.items():
        if tag in _TAGS and isinstance(value, bytes | str):
            text = _user_comment(value) if tag == _USER_COMMENT else _plain(value)
            named = _NAMED.match(text)
            name = named[1].lower() if named and text[named.end() : named.end() + 1] == "{" else _TAGS[tag]
            found[name] = text[named.end() :] if named and name != _TAGS[tag] else text
    return found


def _user_comment(value: bytes | str) -> str:
    """Eight bytes that name a code, and the text in it."""
    if isinstance(value, str):
        return _plain(value)
    code, rest = _CODES.get(value[:8]), value[8:]
    if code is None:
        return _plain(value)
    return _decoded(rest, _byte_order(rest) if code == "utf-16" else code)


def _byte_order(data: bytes) -> str:
    """Of UTF-16 without a mark: where most high bytes, zeros in Latin script, are. Some write UTF-8 all the same."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    big, little = data[0::2].count(0), data[1::2].count(0)
    if not big and not little:
        return "utf-8"
    return "utf-16-be" if big >= little else "utf-16-le"


def _plain(value: bytes | str) -> str:
    return _repaired(value).strip("\0") if isinstance(value, str) else _decoded(value, "utf-8")


def _decoded(data: bytes, code: str) -> str:
    """Latin-1, which never fails, where it is not in that code."""
    try:
        return data.decode(code).strip("\0")
    except UnicodeError:
        # half a character at the end of UTF-16 is no reason to lose the rest
        return (
            data.decode(code, "ignore").strip("\0") if code.startswith("utf-16") else data.decode("latin-1").strip("\0")
        )


def _xmp(info: Mapping[Any, Any]) -> dict[str, str]:
    """exif:UserComment of XMP, as Draw Things writes it, found without a parser of XML."""
    value = info.get("xmp") or info.get("XML:com.adobe.xmp") or ""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    _, _, rest = text.partition("<exif:UserComment")
    inner, closed, _ = rest.partition("</exif:UserComment>")
    _, begun, within = inner.partition("<rdf:li")
    words = (within if begun else inner).partition(">")[2].partition("</rdf:li")[0]
    return {XMP: html.unescape(words.strip())} if closed and words.strip() else {}
