"""Sheet: what a model is going to see, for a person to look at first: pictures as they are cut, with captions."""

from PIL import Image, ImageOps

from sdjax.core.short import cut
from sdjax.images import sheet as sheets
from sdjax.train.data.batches import Batches

SIDE = 192  # pixels of a picture on the sheet, on its longer side
LONGEST = 120  # characters of a caption


def sheet(batches: Batches, count: int = 16, first: int = 0, columns: int = 4) -> Image.Image:
    """The first `count` pictures from step `first` on; below each its size, its crop and its caption."""
    if count < 1:
        raise ValueError(f"a sheet shows at least one picture, not {count}")
    pictures, captions = [], []
    for i in range(count):
        places = batches.order.places(first + i // batches.size)
        place, turn = (int(own[i % batches.size]) for own in (places.numbers, places.turns))
        crop = batches.pictures.crop(place, turn, batches.sizes[places.bucket])
        shown = ImageOps.contain(batches.pictures.image(place, crop), (SIDE, SIDE), Image.Resampling.LANCZOS)
        canvas = Image.new("RGB", (SIDE, SIDE), "white")
        canvas.paste(shown, ((SIDE - shown.width) // 2, (SIDE - shown.height) // 2))
        pictures.append(canvas)
        text = batches.texts.text(batches.pictures.item(place), place, turn)
        flip = ", flipped" if crop.flip else ""
        told = f"{crop.target[1]} x {crop.target[0]} at {crop.left}, {crop.top}{flip}"
        captions.append(f"{told}\n{sheets.wrapped('(left out)' if text is None else cut(text, LONGEST), SIDE)}")
    return sheets.sheet(pictures, captions, min(columns, count))
