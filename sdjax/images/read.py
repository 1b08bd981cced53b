"""The door for pictures and masks that come from outside: whatever a user has, as one kind of thing inside.

A picture may be a PIL image, a file or an array. It may stand on its side, have a palette, sixteen bits, inks
instead of light, or be no picture at all. `read_image` and `read_mask` make each of these an upright 8-bit PIL
image of mode RGB or L, or raise one error with the remedy. From there to the model's numbers (diffusers'
`VaeImageProcessor`, image_processor.py of 0.42.1):

    (1)  a picture's own size is floored to multiples of what the VAE shrinks by
    (2)  pixels = u / 127.5 - 1, u the 8-bit values, resized by Lanczos where another size is asked

Files are data from strangers. Only the six formats of `FORMATS` are tried, so that no file reaches PIL's rarer
decoders or the programs that some of them start (Ghostscript for EPS). The size that a file's header states is
checked before a pixel is decoded, and so is that of a TIFF's tiles. What is done to a mask from here on is in `masks`.
"""

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile

from sdjax.core.files import FOLDER, irregular
from sdjax.images.pixels import from_uint8

ImageLike = Image.Image | str | os.PathLike[str] | np.ndarray  # arrays: uint8 [H, W, 3], [H, W, 4] or [H, W]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
NAMED = "PNG, JPEG, WebP, GIF, BMP and TIFF"
MAX_PIXELS = 89_478_485  # from where PIL warns: a quarter of a gigabyte as RGB
MAX_TILE = 1 << 24  # pixels of a TIFF's tile that is larger than its picture; programs write 256 x 256
MAX_SIDE = 4096  # of a picture whose own size is taken; beyond, the size has to be asked for

# Modes of 8 bits or 1 a channel, all of which PIL turns into RGB and L.
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


def read_image(value: ImageLike, name: str = "image", ground: str = "white") -> Image.Image:
    """The picture upright, mode RGB, loaded and a copy: of a file its first frame, of a PIL image the present one.

    Transparent parts become white: a model of pictures knows no transparency, what lies hidden under it is
    arbitrary (mostly black), and white is the paper on which such drawings and cut-outs are shown. ground: another
    colour for them, as PIL names colours.

    Raises ValueError, or FileNotFoundError for a missing file; `name` is the argument that the message names.
    """
    return _read(value, name, ground).convert("RGB")


def read_mask(value: ImageLike, name: str = "mask") -> Image.Image:
    """The mask upright, mode L, loaded and a copy: white is painted anew, black kept, grey mixed.

    Transparent parts become black: a paint program's layer of white strokes is transparent where nothing was
    marked. Raises as `read_image` does, and for a mask of nothing above 1, whose maker took 1 for white.
    """
    mask = _read(value, name, "black").convert("L")
    if mask.getextrema()[1] == 1:
        raise ValueError(
            f"{_label(value, name)} holds nothing above 1, which is all but black: white is 255, so multiply it by 255"
        )
    return mask


def to_pixels(image: Image.Image, height: int, width: int) -> np.ndarray:
    """An RGB picture as float32 [height, width, 3] in [-1, 1], equation (2)."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return from_uint8(np.asarray(image))


def natural_size(image: Image.Image, multiple: int, name: str = "a picture") -> tuple[int, int]:
    """(height, width) of a picture, floored to multiples of `multiple`: equation (1).

    name: what messages call it.

    Raises ValueError where nothing is left of a side, or where one is over `MAX_SIDE` pixels.
    """
    height, width = (side // multiple * multiple for side in (image.height, image.width))
    size = f"{name} of {image.width} x {image.height} pixels"
    if not height or not width:
        raise ValueError(
            f"{size} is smaller than the {multiple} that this model needs; give height= and width= to enlarge it"
        )
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"{size} is longer than {MAX_SIDE} on a side; give height= and width= to have it made smaller")
    return height, width


# From whatever was given to a decoded image of 8 bits -----------


def open_image(value: ImageLike, name: str = "image") -> Image.Image:
    """The picture upright and loaded, in whatever mode it has: for those to whom 16 bits are more than 8.

    Raises as `read_image` does.
    """
    label = _label(value, name)
    if isinstance(value, str | os.PathLike):
        path = os.fsdecode(value)
        _check_file(path, label)
        with _as_one_error(label), Image.open(path, formats=FORMATS) as image:
            return _loaded(image, label)
    with _as_one_error(label):
        if isinstance(value, Image.Image):
            return _loaded(value, label)
        if isinstance(value, np.ndarray):
            return _from_array(value, label)
    kind = type(value).__name__
    raise ValueError(
        f"{label} is of type {kind}; it must be a PIL image, a file's path or a uint8 array as NumPy has it"
    )


def open_bytes(data: bytes, name: str = "image") -> Image.Image:
    """What `open_image` gives of a file, of the file's bytes."""
    if not data:
        raise ValueError(f"{name} is an empty file; was it written to its end?")
    with _as_one_error(name), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _loaded(image, name)


def _read(value: ImageLike, name: str, under: str) -> Image.Image:
    """An upright image in a mode of `EIGHT_BITS`, its transparent parts laid over the colour `under`."""
    label, image = _label(value, name), open_image(value, name)
    with _as_one_error(label):
        return _flat(_eight_bits(image, label), under)


def _label(value: object, name: str) -> str:
    """How messages call the value: the argument and, for a file, its path."""
    if not isinstance(value, str | os.PathLike):
        return name
    path = os.fsdecode(value)
    return f"{name}: {path if len(path) <= 200 else path[:200] + '...'}"


def _from_array(array: np.ndarray, label: str) -> Image.Image:
    """An image of uint8 [H, W, 3], [H, W, 4] or [H, W]. Raises ValueError with what to write instead."""
    usable = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not usable:
        remedy = "give one picture, channels last, red, green, blue"
        if array.dtype == bool:
            remedy = 'x.astype("uint8") * 255 makes one of it'
        elif array.dtype == np.uint16:
            remedy = '(x // 257).astype("uint8") makes one of 16 bits'
        elif np.issubdtype(array.dtype, np.integer) and array.dtype != np.uint8:
            remedy = 'x.astype("uint8") makes one of numbers from 0 to 255'
        elif np.issubdtype(array.dtype, np.floating):
            remedy = '(x * 255).round().astype("uint8") makes one of numbers from 0 to 1'
        raise _Refused(
            f"{label} is an array of {array.dtype} {list(array.shape)}; it must be uint8 [H, W, 3], [H, W, 4] or "
            f"[H, W], 0 to 255: {remedy}"
        )
    _check_size((array.shape[1], array.shape[0]), label)
    return Image.fromarray(array)


def _check_file(path: str, label: str) -> None:
    """Raises FileNotFoundError or ValueError where `path` is no file that could be opened."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", path):
        raise ValueError(f"{label} is an address, and nothing is fetched from one; download it and give the file")
    try:
        what, size = irregular(path), os.path.getsize(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{label}: there is no such picture") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ValueError(f"{label} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if what:
        remedy = "name one picture in it" if what == FOLDER else "write the picture to a file first"
        raise ValueError(f"{label} is {what}; {remedy}")
    if not size:
        raise ValueError(f"{label} is an empty file; was it written to its end?")


def _check_size(size: tuple[int, int], label: str) -> None:
    """Raises ValueError for no pixels or too many."""
    width, height = size
    if not width or not height:
        raise _Refused(f"{label} is {width} x {height} and has no pixels")
    if width * height > MAX_PIXELS:
        raise _Refused(
            f"{label} has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are read; make it smaller first"
        )


def _check_tile(image: Image.Image, label: str) -> None:
    """Raises ValueError for a TIFF whose tiles are far larger than it: a decoder takes memory for a whole one."""
    if isinstance(image, TiffImageFile):
        width, height = (image.tag_v2.get(tag, 0) for tag in (TILEWIDTH, TILELENGTH))
        if width * height > max(2 * image.width * image.height, MAX_TILE):
            raise _Refused(
                f"{label} has tiles of {width} x {height} pixels for a picture of {image.width} x {image.height}"
            )


class _Refused(ValueError):
    """A message of our own, on its way through `_as_one_error`."""


@contextmanager
def _as_one_error(label: str) -> Iterator[None]:
    """Whatever goes wrong in a decoder becomes one ValueError.

    Decoders of damaged files raise OSError, SyntaxError, struct.error, EOFError, IndexError, AttributeError ...:
    no list of them was ever complete. PIL's warnings go: of many pixels it warns where `_check_size` refuses.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _Refused as error:
        raise ValueError(str(error)) from None
    except UnidentifiedImageError:
        raise ValueError(
            f"{label} is not recognised as a picture: only {NAMED} are read, and this is none of them, whatever its "
            "name says, or damaged or cut short"
        ) from None
    except Image.DecompressionBombError as error:
        limit = f"at most {MAX_PIXELS:,} are read, make it smaller first"
        raise ValueError(f"{label} has too many pixels ({error}); {limit}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # the system's, not the decoder's
            raise ValueError(f"{label} cannot be read: {error.strerror}") from None
        raise ValueError(f"{label} is damaged or cut short and cannot be read as a picture: {error!r}") from None


def _loaded(image: Image.Image, label: str) -> Image.Image:
    """Measured, loaded, upright; the image given stays as it is."""
    _check_size(image.size, label)
    _check_tile(image, label)
    image.load()
    return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data say: a phone stores what its sensor saw, and beside it the turn."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF data that cannot be parsed; viewers show such a picture as it is stored
        return image.copy()


def _eight_bits(image: Image.Image, label: str) -> Image.Image:
    """In a mode of `EIGHT_BITS`. Raises ValueError where it is not known which value is white."""
    if image.mode in EIGHT_BITS:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise _Refused(
                f"{label} holds whole numbers from {values.min()} to {values.max()}, and which is white is not known; "
                "save it with 8 or 16 bits"
            )
        # A 32-bit image comes from a 16-bit file or from 8-bit numbers in a wide type. With nothing above 255 it
        # is the latter: of 16 bits it would be black all over.
        wide = image.mode != "I" or values.max() > 255
        return Image.fromarray(((values + 128) // 257 if wide else values).astype(np.uint8))
    remedy = "save it as RGB with 8 bits"
    if image.mode == "F":
        remedy = f'which value is white is not known; {remedy}, as Image.fromarray((x * 255).round().astype("uint8"))'
    raise _Refused(f"{label} is an image of mode {image.mode}, which is not read: {remedy}")


def _flat(image: Image.Image, under: str) -> Image.Image:
    """Without transparency: laid over the colour `under`."""
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, under)
    image = image.convert("LA") if image.mode == "La" else image  # PIL knows no shorter way from La
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas
