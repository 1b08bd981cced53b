"""Several pictures as one, in rows, each with its caption."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 8  # pixels around each picture of a sheet


FONT = 13  # pixels


LINE = 15  # pixels from one line of a caption to the next


CHARACTER = 7  # pixels, roughly, of one at this size


def sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """Pictures of one size in rows of `columns`, each with its caption, of one line or several, below."""
    width, height = pictures[0].size
    lines = [len(caption.splitlines()) for caption in captions]
    below = [4 + LINE * max(lines[first : first + columns]) for first in range(0, len(lines), columns)]
    tops = [GAP + sum(height + one + GAP for one in below[:row]) for row in range(len(below) + 1)]
    canvas = Image.new("RGB", (columns * (width + GAP) + GAP, tops[-1]), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)
    for i, (one, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = GAP + i % columns * (width + GAP), tops[i // columns]
        canvas.paste(one, (x, y))
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline="#cccccc")
        draw.multiline_text((x, y + height + 4), caption, "black", font=font)
    return canvas


def wrapped(text: str, width: int) -> str:
    """A caption in lines of `width` pixels."""
    return "\n".join(textwrap.wrap(text, width // CHARACTER))
