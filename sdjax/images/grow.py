"""Room around a picture, to be filled by `generate(image=, mask=)`."""

from PIL import Image

from sdjax.images import masks, read


def grow(
    image: read.ImageLike, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0, ramp: int = 0
) -> tuple[Image.Image, Image.Image]:
    """Room around a picture: (a larger picture, the mask of what is new), for `generate(image=, mask=)`.

    left, top, right, bottom: pixels to add, where the outermost colours go on. ramp: pixels over which the mask falls
    from white to black within the old picture, from each side that grew. Raises ValueError.
    """
    return masks.grow(read.read_image(image), left, top, right, bottom, ramp)
