"""Pictures that carry their settings, and the way back from a picture to `generate`'s arguments.

A PNG holds any number of named texts. Ours hold two:

    parameters   the form that AUTOMATIC1111's web UI began and that galleries and other tools read; see `infotext`
    sdjax        JSON, {"model": name, "settings": {...}}: exactly the keyword arguments of `generate`

The first is ambiguous (a prompt may itself hold a line "Negative prompt: ...") and knows no `first_image`, so
`find_settings` prefers the second. Other programs keep theirs elsewhere: `picture_texts` finds a picture's texts,
`foreign` and `infotext` understand them. All are data from strangers: they are measured, parsed as JSON or by a
pattern, and checked by type and range (`request.stored_settings`); nothing of them is ever run.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from sdjax.core.files import made, unwritable
from sdjax.images.pixels import encoded
from sdjax.metadata import foreign, infotext
from sdjax.metadata import texts as picture_texts
from sdjax.metadata.foreign.fields import Found

TEXTS = ("parameters", "sdjax")
LONGEST = 100_000  # characters of a text worth parsing; the longest honest ones have a few thousand


class Picture(Image.Image):
    """A PIL image whose plain `save` writes the settings in its `info` into a PNG; other formats as ever."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """PIL's `save`; a `pnginfo` of the caller's own takes the place of ours."""
        texts = PngImagePlugin.PngInfo()
        for name in TEXTS:
            if name in self.info:
                texts.add_text(name, self.info[name])
        # Writers of other formats leave out options that they don't know.
        super().save(fp, format, **{"pnginfo": texts, **params})


def make(pixels: np.ndarray, settings: Mapping[str, Any], *, model: str) -> Image.Image:
    """The picture of uint8 `pixels` [H, W, 3], carrying the `settings` of this one and the model's name.

    `image.info` holds the two texts of this module's docstring, and `image.save("x.png")` writes them.
    """
    image = Image.fromarray(pixels)
    image.__class__ = Picture  # PIL's constructors make plain images only
    image.info["parameters"] = infotext.write(settings, model)
    image.info["sdjax"] = json.dumps({"model": model, "settings": dict(settings)}, default=_plain)
    return image


@dataclass(frozen=True)
class FoundSettings:
    """What a picture says of itself, not yet checked.

    Attributes:
      where: the picture, for messages. program: whose form it is. place: what messages about its values begin with.
      settings: by the names of `generate`'s arguments. notes: what of it makes another picture.
    """

    where: str
    program: str
    place: str
    settings: Mapping[str, Any]
    notes: Sequence[str]


def find_settings(source: str | os.PathLike[str] | Image.Image) -> FoundSettings:
    """The settings that a picture holds, as they stand there: `request.stored_settings` checks them.

    Raises FileNotFoundError, and ValueError where it is no picture, holds no settings, or holds broken ones.
    """
    held = picture_texts.read(source)
    try:
        program, place, found = _found(held)
    except ValueError as error:
        raise ValueError(f"{held.where}: {error}") from None
    return FoundSettings(held.where, program, place, found.settings, found.notes)


def save_all(images: Sequence[Image.Image], folder: str | os.PathLike[str], prefix: str = "") -> list[Path]:
    """Writes the images to `folder` as PNG, named `prefix` and the next free numbers, from 00000.png on.

    No file is overwritten, not even one that another process makes at the same time, and none is left
    half-written; a number whose steps are there (00000_steps.png) is taken. Raises OSError where the folder
    cannot be made or the disk is full; images written before that stay.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = re.compile(re.escape(prefix) + r"(\d{1,9})(?:_steps)?\.(?:png|webp)")
        numbers = [int(found[1]) for path in folder.iterdir() if (found := taken.fullmatch(path.name))]
        first = max(numbers, default=-1) + 1
        return [_save(image, folder, prefix, first + i) for i, image in enumerate(images)]
    except OSError as error:
        raise unwritable(folder, error) from None


def _save(image: Image.Image, folder: Path, prefix: str, number: int) -> Path:
    """Writes one image under another name, flushes it to the disk, only then gives it a free number."""
    with made(folder, lambda path: path.write_bytes(encoded(image))) as unfinished:
        path = _claim(folder, prefix, number)
        try:
            os.replace(unfinished, path)
        except BaseException:
            path.unlink()
            raise
        return path


def _claim(folder: Path, prefix: str, number: int) -> Path:
    """Creates the file of the first free number from `number` on, so that nobody else can take it."""
    while True:
        path = folder / f"{prefix}{number:05d}.png"
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            number += 1


def _found(held: picture_texts.Held) -> tuple[str, str, Found]:
    """(The program that wrote a picture's settings, how messages name them, what they are): the plainest first.

    Raises ValueError.
    """
    texts = held.texts
    if "sdjax" in texts:
        return "sdjax", "broken settings: ", _ours(texts["sdjax"])
    for read, place in (
        (lambda: foreign.read(texts, held.size), "{}: "),
        (lambda: _a1111s(texts, fields=True), ""),
        (lambda: foreign.read_graph(texts), "{}: "),
        (lambda: _a1111s(texts, fields=False), ""),
    ):
        if (told := read()) is not None:
            program, found = told
            return program, place.format(program), found
    others = f", and only texts that no program known here writes ({', '.join(texts)[:80]})" if texts else ""
    if held.too_long:
        others += f", and texts of over {picture_texts.LONGEST:,} characters ({', '.join(held.too_long)[:80]})"
    raise ValueError(
        f"holds no settings{others}: it was made or saved again by a program that keeps none; read are those of "
        f"{foreign.PROGRAMS}"
    )


def _ours(text: str) -> Found:
    """Our own settings. Raises ValueError."""
    try:
        return Found(_from_json(_short_enough(text)))
    except ValueError as error:
        raise ValueError(f"broken settings: {error}") from None


def _a1111s(texts: Mapping[str, str], *, fields: bool) -> tuple[str, Found] | None:
    """(Whose form it is, settings in A1111's), from wherever they stand; `fields`: a prompt alone will not do."""
    places = ("parameters", picture_texts.COMMENT, "comment", picture_texts.DESCRIPTION)
    for name in places if fields else places[:1]:
        text = texts.get(name)
        if text is not None and (not fields or (len(text) <= LONGEST and infotext.has_fields(text))):
            try:
                return "A1111's form", infotext.read(_short_enough(text))
            except ValueError as error:
                raise ValueError(f"broken settings: {error}") from None
    return None


def _short_enough(text: str) -> str:
    if len(text) > LONGEST:
        raise ValueError(f"a text of over {LONGEST:,} characters cannot be a picture's settings")
    return text


def _from_json(text: str) -> dict[str, Any]:
    """Our own text. Raises ValueError."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    settings = found.get("settings") if isinstance(found, dict) else None
    if not isinstance(settings, dict) or "prompt" not in settings:
        raise ValueError('no {"settings": {"prompt": ...}} in the text `sdjax`')
    return settings


def _plain(value: Any) -> Any:
    """NumPy's numbers, which JSON does not know, as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be a setting of a picture")
