"""Pictures that carry their settings, and the way back from a picture to `generate`'s arguments.

A PNG holds any number of named texts. Ours hold two:

    parameters   the form that AUTOMATIC1111's web UI began and that galleries and other tools read; see `infotext`
    sdjax        JSON, {"model": name, "settings": {...}}: exactly the keyword arguments of `generate`

The first is ambiguous (a prompt may itself hold a line "Negative prompt: ...") and knows no `first_image`, so
`read_settings` prefers the second. Other programs keep theirs elsewhere: `picture_texts` finds a picture's texts,
`foreign` and `infotext` understand them. All are data from strangers: they are measured, parsed as JSON or by a
pattern, and checked by type and range (`bounds`); nothing of them is ever run, and nothing names a file to open.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from sdjax.core.files import made, unwritable
from sdjax.core.notice import notice
from sdjax.images.pixels import encoded
from sdjax.metadata import bounds, foreign, infotext
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


def read_settings(source: str | os.PathLike[str] | Image.Image) -> dict[str, Any]:
    """The arguments that make a picture again: `sd.generate(**read_settings("x.png"))`.

    From our own text where there is one: what is missing there is left to `generate`'s default; what this
    version does not know is an error, since the picture would come out another. Else from what another program wrote:
    `foreign` and `infotext` say which, and where its words differ. Fields we have no word for are left out; where they
    change the picture one warning names them. A sampler or schedule of A1111's text that we do not know keeps its name
    for `generate` to judge. The model is not among the settings: load it first. Starting noise that was given
    (`latents`) is in no picture, and neither are a picture or a mask: a file says that there was one, never where.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no picture, holds no settings, or holds broken ones; or numbers beyond those of `bounds`.
    """
    held = picture_texts.read(source)
    try:
        program, found = _found(held)
        settings = bounds.check(found.settings)
    except ValueError as error:
        raise ValueError(f"{held.where}: {error}") from None
    if found.notes:
        notice(f"{held.where}: settings of {program}: {'; '.join(found.notes)}")
    return settings


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


def _found(held: picture_texts.Held) -> tuple[str, Found]:
    """(The program that wrote a picture's settings, what they are): the plainest first. Raises ValueError."""
    texts = held.texts
    found = _ours(texts) or foreign.read(texts, held.size) or _a1111s(texts, fields=True)
    found = found or foreign.read_graph(texts) or _a1111s(texts, fields=False)
    if found is None:
        others = f", and only texts that no program known here writes ({', '.join(texts)[:80]})" if texts else ""
        if held.too_long:
            others += f", and texts of over {picture_texts.LONGEST:,} characters ({', '.join(held.too_long)[:80]})"
        raise ValueError(
            f"holds no settings{others}: it was made or saved again by a program that keeps none; read are those of "
            f"{foreign.PROGRAMS}"
        )
    return found


def _ours(texts: Mapping[str, str]) -> tuple[str, Found] | None:
    """(sdjax, our own settings), or None where there are none. Raises ValueError."""
    if "sdjax" not in texts:
        return None
    try:
        return "sdjax", Found(bounds.check(_from_json(_short_enough(texts["sdjax"]))))
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
