"""How a notebook shows pictures: one as it is, several in a sheet or side by side, each with a caption."""

import base64
import html as markup
import json
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from sdjax.core.short import cut
from sdjax.images import sheet
from sdjax.images.pixels import encoded

WIDEST = 1280  # pixels of several pictures side by side: larger ones are made smaller for it
MOST = 64  # pictures that are shown; the others are counted
LONGEST = 200  # characters of a caption


def png(images: Sequence[Image.Image], captions: Sequence[str]) -> bytes | None:
    """One picture's PNG as `save` writes it, several in a sheet with captions; None for none."""
    if len(images) < 2:
        return encoded(images[0]) if images else None
    columns = min(len(images), max(4, math.ceil(math.sqrt(min(len(images), MOST)))))
    small = [_at_most(one, WIDEST // columns) for one in images[:MOST]]
    lines = [sheet.wrapped(caption, small[0].width) for caption in captions[:MOST]]
    return encoded(sheet.sheet(small, lines, columns))


def html(images: Sequence[Image.Image], captions: Sequence[str]) -> str | None:
    """The pictures side by side, each with its caption below; None for none."""
    if not images:
        return None
    widest = WIDEST if len(images) == 1 else WIDEST // 4
    shown = [_at_most(one, widest) for one in images[:MOST]]
    figures = [_figure(one, caption) for one, caption in zip(shown, captions, strict=False)]
    more = f"<p>and {len(images) - MOST} more</p>" if len(images) > MOST else ""
    return f'<div style="display:flex;flex-wrap:wrap">{"".join(figures)}</div>{more}'


def captions(images: Sequence[Image.Image]) -> list[str]:
    """The prompt and the seed of each picture, from its own settings."""
    return [_caption(json.loads(one.info.get("sdjax", "{}")).get("settings", {})) for one in images]


def _caption(settings: dict[str, Any]) -> str:
    number = f", number {settings['first_image']}" if settings.get("first_image") else ""
    return f"{cut(settings.get('prompt', ''), LONGEST)} (seed {settings.get('seed')}{number})"


def _figure(image: Image.Image, caption: str) -> str:
    """One picture as HTML; a caption is a text from anywhere, and never markup."""
    data, text = base64.b64encode(encoded(image)).decode(), markup.escape(caption)
    return (
        f'<figure style="margin:0 8px 8px 0;width:{image.width}px">'
        f'<img src="data:image/png;base64,{data}" alt="{text}">'
        f'<figcaption style="font-size:small">{text}</figcaption></figure>'
    )


def _at_most(image: Image.Image, width: int) -> Image.Image:
    if image.width <= width:
        return image
    return image.resize((width, max(1, round(width * image.height / image.width))), Image.Resampling.LANCZOS)
