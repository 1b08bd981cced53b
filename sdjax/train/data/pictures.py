"""Pictures of a data set as a run shows them: each cut to its bucket's size, with what lies on it cut alike.

    pixels    `H W 3` in [-1, 1]; transparent parts are the ground's colour
    weights   `h w 1`, where the error counts: the mask's, times the opacity where transparent parts are not to count,
              averaged over each latent's f x f pixels, then divided by their mean over the picture
    map       `H W 3` in [0, 1], what a ControlNet is shown
    rejected  `H W 3` in [-1, 1], the picture that is liked less, of preference data

Weights that are divided by their mean teach a small object as fast as a large one; where the error is only multiplied
by the mask, one of a twentieth of the picture learns at a twentieth of the rate.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageChops, ImageColor

from sdjax.images.pixels import from_uint8
from sdjax.images.read import open_bytes, read_image, read_mask
from sdjax.train.data.buckets import Size
from sdjax.train.data.crops import Crop, Crops
from sdjax.train.data.scan import Dataset, Item

CROP = 2  # what is random about a picture; see also `order`, `texts`


@dataclass(frozen=True, eq=False)
class Pictures:
    """See above.

    Attributes:
      seed: of the run. ground: the colour under transparent parts, as PIL names colours.
      opaque_only: whether transparent parts do not count.
      factor: f, pixels per latent.
      places: the number of the item in each place of a pass; one that is repeated has several.
    """

    dataset: Dataset
    crops: Crops = Crops()
    seed: int = 0
    ground: str = "white"
    opaque_only: bool = False
    factor: int = 8
    places: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            ImageColor.getrgb(self.ground)
        except ValueError:
            raise ValueError(f"ground {self.ground!r} is no colour; write one as white or #808080") from None
        repeats = [one.record.repeats for one in self.dataset.items]
        object.__setattr__(self, "places", np.repeat(np.arange(len(repeats)), repeats))

    @property
    def weighted(self) -> bool:
        """Whether there are weights; all pictures of a run have them, or none."""
        return self.has("mask") or (self.opaque_only and any(one.transparent for one in self.dataset.items))

    def has(self, kind: str) -> bool:
        """Whether a picture of this kind lies beside each."""
        return kind in self.dataset.items[0].record.beside

    def item(self, place: int) -> Item:
        """The item in a place of a pass."""
        return self.dataset.items[self.places[place]]

    def crop(self, place: int, turn: int, target: Size) -> Crop:
        """How the picture in a place is cut in one of its turns."""
        item = self.item(place)
        return self.crops.crop((item.height, item.width), target, turn, (self.seed, CROP, int(place)))

    def image(self, place: int, crop: Crop, kind: str = "image") -> Image.Image:
        """A picture cut, RGB of the crop's target size. Raises OSError, ValueError where the file has changed.

        kind: "image", or what lies beside it.
        """
        opened = self._opened(place, crop) if kind == "image" else self._beside(place, kind)
        return crop(read_image(opened, self.item(place).record.name, self.ground))

    def arrays(self, place: int, crop: Crop, pixels: bool = True) -> dict[str, np.ndarray]:
        """See above; what there is of it. pixels: whether they are asked for. Raises as `image`."""
        made: dict[str, np.ndarray] = {}
        if pixels:
            made["pixels"] = from_uint8(np.asarray(self.image(place, crop)))
            if self.has("rejected"):
                made["rejected"] = from_uint8(np.asarray(self.image(place, crop, "rejected")))
        if self.weighted:
            made["weights"] = self._weights(place, crop)
        if self.has("map"):
            made["map"] = np.asarray(self.image(place, crop, "map"), np.float32) / 255
        return made

    def _opened(self, place: int, crop: Crop) -> Image.Image:
        item = self.item(place)
        image = open_bytes(item.record.read(), item.record.name)
        if image.size != crop.original[::-1]:
            raise ValueError(f"{item.record.name} is another picture than when it was scanned; start again")
        return image

    def _beside(self, place: int, kind: str) -> Image.Image:
        item = self.item(place)
        return open_bytes(item.record.beside[kind](), f"{item.record.name}: its {kind}")

    def _weights(self, place: int, crop: Crop) -> np.ndarray:
        item, counts = self.item(place), Image.new("L", crop.target[::-1], 255)
        if self.opaque_only and item.transparent:
            counts = crop(self._opened(place, crop).convert("RGBA").getchannel("A"))
        if self.has("mask"):
            counts = ImageChops.multiply(counts, crop(read_mask(self._beside(place, "mask"))))
        high, wide = (side // self.factor for side in crop.target)
        weights = np.asarray(counts, np.float32).reshape(high, self.factor, wide, self.factor, 1).mean((1, 3))
        mean = weights.mean()
        return weights / mean if mean else weights  # nothing of this crop counts
