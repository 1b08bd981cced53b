"""Pictures that `generate` can be given: the flags for them, and how they become arguments.

--image=photo.png --strength=0.6                             begin from a picture
--image=photo.png --mask=mask.png --mask_blur=4              make its white part anew
--image=photo.png --grow=left:64,right:64 --ramp=16          make room around it and fill that
--image=photo.png --depth=map.png                            what stands where, of a depth model
--region_mask=left.png --region_prompt="a blue square"       another prompt for a part of the picture
"""

from typing import Any

from absl import flags

SIDES = ("left", "top", "right", "bottom")


def define_flags() -> None:
    """The flags of this module's docstring that are files, and --grow."""
    flags.DEFINE_multi_string("image", None, "A picture to begin from; several times: one for each result.")
    flags.DEFINE_multi_string("mask", None, "A picture, white where --image is to be made anew; the rest stays.")
    flags.DEFINE_list("grow", None, "Outpainting: pixels to add, as left:64,right:64; also top, bottom.")
    flags.DEFINE_integer("ramp", 0, "With --grow: pixels over which the new part runs into the old.", lower_bound=0)
    flags.DEFINE_multi_string("depth", None, "Of a depth model: a map of what is near (light).")
    flags.DEFINE_multi_string("region_prompt", [], "What to show in a region; as often as --region_mask.")
    flags.DEFINE_multi_string("region_mask", [], "A picture, white where that region is.")


def arguments(values: Any) -> dict[str, Any]:
    """What the flags ask of `generate`; the pictures are read here. Raises ValueError and FileNotFoundError."""
    from sdjax.images import depth
    from sdjax.images import read as images

    read: dict[str, Any] = {"image": images.read_image, "mask": images.read_mask, "depth": depth.read_depth}
    made: dict[str, Any] = {
        name: [door(one, f"--{name}") for one in getattr(values, name)] if getattr(values, name) else None
        for name, door in read.items()
    }
    if values.grow is not None:
        made |= _grown(made, _sides(values.grow), values.ramp)
    elif values.ramp:
        raise ValueError("--ramp belongs to --grow; name the sides, as --grow=left:64,right:64")
    if len(values.region_prompt) != len(values.region_mask):
        raise ValueError(
            f"{len(values.region_prompt)} --region_prompt and {len(values.region_mask)} --region_mask: they go in pairs"
        )
    regions = [images.read_mask(one, "--region_mask") for one in values.region_mask]
    return made | {"regions": list(zip(values.region_prompt, regions, strict=True)) or None}


def _grown(made: dict[str, Any], sides: dict[str, int], ramp: int) -> dict[str, Any]:
    """The pictures on larger canvases, with masks of what is new."""
    from sdjax.images import masks

    if made["image"] is None or made["mask"] is not None:
        raise ValueError("--grow makes room around --image, with a mask of its own; give --image and no --mask")
    pairs = [masks.grow(one, **sides, ramp=ramp) for one in made["image"]]
    return {"image": [image for image, _ in pairs], "mask": [mask for _, mask in pairs]}


def _sides(given: list[str]) -> dict[str, int]:
    """["left:64", "right:64"] as numbers by side. Raises ValueError."""
    made: dict[str, int] = {}
    for one in given:
        side, _, pixels = one.partition(":")
        if side not in SIDES or side in made or not pixels.isdecimal():
            raise ValueError(f"--grow={','.join(given)}: write pixels by side, {', '.join(SIDES)}, as left:64,right:64")
        made[side] = int(pixels)
    return made
