"""What steers the pictures of one call: every network that was given, checked against the model and the pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from PIL import Image

from sdjax.adapters.control import ControlAdapter
from sdjax.adapters.image_scales import layer_scales
from sdjax.core.errors import unknown
from sdjax.core.short import short
from sdjax.diffusion.progress import Run
from sdjax.images import control_map, read
from sdjax.images.image_prompt_masks import image_masks
from sdjax.images.masks import Box
from sdjax.model.spec import ModelSpec
from sdjax.nn.conditioning import Kinds
from sdjax.request import checks, steered
from sdjax.request.control import Control, ImagePrompt
from sdjax.request.image_inputs import ImageInputs
from sdjax.request.per_picture import each, once, read_each
from sdjax.request.steered import Course, Mask, Steered

MOST_PICTURES = 64  # that one picture is shown together


@dataclass(frozen=True, eq=False)
class Steering:
    """All networks that steer b pictures, in the order in which they were given."""

    control: tuple[Steered, ...] = ()
    image_prompts: tuple[Steered, ...] = ()

    @cached_property
    def all(self) -> tuple[Steered, ...]:
        """Each of them."""
        return self.control + self.image_prompts

    def said(self, which: str, i: int) -> str | None:
        """In words, what steers picture i by `which` argument, as its settings have it; None for nothing."""
        return ", ".join(one.said[i] for one in getattr(self, which)) or None


@dataclass(frozen=True, eq=False)
class Frame:
    """What the maps must fit: b runs of one model, and what these start from.

    Attributes:
      presets: of each picture, whose conventions say where a net acts.
    """

    spec: ModelSpec
    runs: Sequence[Run]
    presets: Sequence[str | None]
    inputs: ImageInputs

    @cached_property
    def courses(self) -> list[Course]:
        """Each picture's run, and how places in it are counted."""
        begun = [self.inputs.begun and one is not None for one in self.inputs.strengths]
        return list(map(Course, self.runs, self.presets, begun))

    @property
    def count(self) -> int:
        """Of the pictures."""
        return len(self.runs)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of the latents on each level of the U-Net, finest first."""
        return steered.level_sizes(self.spec, self.inputs.height, self.inputs.width)

    def part(self, i: int) -> tuple[Box | None, tuple[int, int] | None]:
        """The box of picture i that is worked on alone, and the size of the picture that it lies in."""
        under = None if self.inputs.under is None else self.inputs.under[i]
        return (None, None) if under is None or under[2] is None else (under[2], under[0].size[::-1])

    def check_whole(self, size: tuple[int, int], i: int, name: str) -> None:
        """Raises ValueError where a part of picture i is worked on, and what lies over it is not of its size."""
        whole = self.part(i)[1]
        if whole is not None and size != whole:
            raise ValueError(
                f"{name} is {size[1]} x {size[0]} and the picture {whole[1]} x {whole[0]}, of which mask_crop takes a "
                "part: give one of the whole picture"
            )

    def along(self, value: Any, start: Any, end: Any, name: str) -> np.ndarray:
        """See `steered.along`."""
        return steered.along(value, start, end, self.courses, self.spec, name)

    def masks(self, value: Any, name: str, made: Callable[..., Mask]) -> dict[str, np.ndarray]:
        """Where a network counts, float32 `b l` by the places of each level; None is everywhere. Raises ValueError.

        made: of a mask, height and width in pixels, and the levels' sizes.
        """
        if value is None:
            each = [steered.everywhere(self.sizes)] * self.count
        else:
            drawn = read_each(value, self.count, f"{name}: mask", read.read_mask)
            cut = [self._cut(one, i, f"{name}: mask") for i, one in enumerate(drawn)]
            each = [made(one, self.inputs.height, self.inputs.width, self.sizes) for one in cut]
        return {str(places): np.stack([own[places] for own in each]) for places in each[0]}

    def _cut(self, mask: Image.Image, i: int, name: str) -> Image.Image:
        box = self.part(i)[0]
        self.check_whole(mask.size[::-1], i, name)
        return mask if box is None else mask.crop(box)


# ---------------------------------------------------------------------- nets that look at maps


def controlled(one: Control, number: int, frame: Frame) -> Steered:
    """One net, what it looks at and how. Raises ValueError, FileNotFoundError."""
    net, name = one.net, f"control[{number}] ({one.net.name})"
    net.check(frame.spec.unet, frame.spec.expected_params["unet"], frame.spec.name)
    net.check_size(frame.inputs.height, frame.inputs.width, frame.spec.vae.factor, name)
    mode, kind = steered.mode_of(net, one.mode, name)
    if one.mask is not None and net.kind == "lllite":
        raise ValueError(f"{name}: a ControlNet-LLLite stands before whole layers and cannot be masked")
    maps, kinds, scale = _maps(one, kind, name)
    images = np.stack([_fitted(net, maps[key], frame, one.resize, where) for key, where in _named(maps, name)], axis=1)
    along = frame.along(1.0 if len(maps) > 1 else scale, one.start, one.end, name)
    weights = np.tile(steered.weights_of(net, mode, one.weights, name), (frame.count, 1))
    told = None if kinds is None else _kinds(net, kinds, scale, frame.count, name)
    most = np.ones(frame.count, np.float32) if told is None else _largest(told.scales)
    along *= most != 0  # where no map enters, a Union would still add what it makes of none
    said = tuple(_said(net, along[:, i] * most[i], mode) for i in range(frame.count))
    where = frame.masks(one.mask, name, steered.soft_mask)
    return Steered(net, images, along, weights, where, told, mode in ("guess", "control"), said)


def _maps(one: Control, kind: str | None, name: str) -> tuple[Mapping[str, Any], list[str] | None, Any]:
    """The maps by kind, their kinds where the net is a Union, and the scale. Raises ValueError."""
    kinds = [*one.net.kinds]
    if not isinstance(one.image, Mapping):
        if kinds and kind is None:
            raise ValueError(
                f"{name} is a Union: say what its map is, as image={{{kinds[0]!r}: map}} or mode={kinds[0]!r}; known: "
                f"{', '.join(kinds)}"
            )
        return {"image": one.image}, [kind] if kind else None, one.scale
    if not kinds:
        raise ValueError(f"{name} looks at one map, and image= names several kinds; only a Union knows kinds")
    if kind is not None:
        raise ValueError(
            f"{name}: image= says of what kinds its maps are, and mode={kind!r} does too; leave out the last"
        )
    if not one.image:
        raise ValueError(f"{name}: image is an empty mapping; give {{kind: map}}")
    for key in one.image:
        if key not in kinds:
            raise ValueError(unknown(f"{name}: {short(key)} is no kind of map", key, kinds))
    scale = one.scale
    for key in scale if isinstance(scale, Mapping) else ():
        if key not in one.image:
            raise ValueError(unknown(f"{name}: scale of {short(key)}, which image= does not have", key, one.image))
    if len(one.image) == 1 and isinstance(scale, Mapping):
        scale = next(iter(scale.values()), 1.0)
    return one.image, list(one.image), scale


def _named(maps: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    return [(key, f"{name}: {key}" if len(maps) > 1 or key != "image" else name) for key in maps]


def _column(value: Any, frame: Frame, name: str) -> list[Any]:
    """One map for each picture. Raises ValueError, FileNotFoundError."""
    if value is None:
        raise ValueError(f"{name}: the map is None; give a picture")
    if isinstance(value, jax.Array):
        value = np.asarray(value)
    return once(each(value, frame.count, name), partial(control_map.read_map, name=name))


def _fitted(net: ControlAdapter, value: Any, frame: Frame, resize: str | None, name: str) -> np.ndarray:
    """A map of each picture at its size and in the net's channels, float32 `b H W c`."""
    column = enumerate(_column(value, frame, name))
    return np.stack([_fitted_one(net, one, i, frame, resize, name) for i, one in column])


def _fitted_one(
    net: ControlAdapter, value: np.ndarray, i: int, frame: Frame, resize: str | None, name: str
) -> np.ndarray:
    frame.check_whole((value.shape[0], value.shape[1]), i, name)
    size = frame.inputs.height, frame.inputs.width
    return control_map.fitted(value, size, net.channels, resize, frame.spec.vae.factor, name, frame.part(i)[0])


def _kinds(net: ControlAdapter, kinds: Sequence[str], scale: Any, count: int, name: str) -> Kinds:
    """Of a Union's maps; several enter by scales of their own, one by the scale of the whole."""
    modes = np.tile(np.array([net.kinds[kind] for kind in kinds], np.int32), (count, 1))
    entering = np.ones(modes.shape, np.float32)
    if len(kinds) > 1:
        if np.ndim(scale) == 2:  # of a mapping it is 0
            raise ValueError(f"{name}: scale as an array is for one map; a Union's several take {{kind: scale}}")
        by_kind = scale if isinstance(scale, Mapping) else dict.fromkeys(kinds, scale)
        for j, kind in enumerate(kinds):
            listed = checks.spread(by_kind.get(kind, 1.0), count, f"{name}: scale")
            entering[:, j] = [steered.finite(one, name) for one in listed]
    return Kinds(modes, entering)


# ---------------------------------------------------------------------- adapters that are shown pictures


def shown(one: ImagePrompt, number: int, frame: Frame) -> Steered:
    """One adapter, the pictures that it is shown and how. Raises ValueError, FileNotFoundError."""
    adapter, name = one.adapter, f"image_prompt[{number}] ({one.adapter.name})"
    unet = frame.spec.expected_params["unet"]
    adapter.check(unet, frame.spec.name)
    listed = one.image if isinstance(one.image, list) else [one.image]
    pictures = [_together(value, name) for value in checks.spread(listed, frame.count, f"{name}: image")]
    if len(set(map(len, pictures))) > 1:
        raise ValueError(
            f"{name}: image shows {' and '.join(str(len(each)) for each in pictures)} pictures together; give tuples "
            "of one length (a scale of 0 in another image prompt leaves one out)"
        )
    table = steered.by_evaluation(one.scale)
    scales = [1.0] * frame.count if table else _each_scale(one.scale, frame.count, name)
    weights = np.stack([layer_scales(value, unet, name) for value in scales])
    along = frame.along(one.scale if table else 1.0, one.start, one.end, name)
    most = _largest(weights)
    said = tuple(_said(adapter, along[:, i] * most[i], "balanced") for i in range(frame.count))
    return Steered(
        adapter, tuple(pictures), along, weights, frame.masks(one.mask, name, image_masks), None, False, said
    )


def _each_scale(value: Any, count: int, name: str) -> list[Any]:
    return [value] * count if isinstance(value, Mapping | str) else checks.spread(value, count, f"{name}: scale")


def _together(value: Any, name: str) -> tuple[Image.Image, ...]:
    """The pictures that one picture is shown together."""
    listed = value if isinstance(value, tuple) else (value,)
    if not 0 < len(listed) <= MOST_PICTURES:
        raise ValueError(f"{name}: a tuple of pictures holds 1 to {MOST_PICTURES}, not {len(listed)}")
    return tuple(read.read_image(picture, f"{name}: image") for picture in listed)


def _largest(values: Any) -> np.ndarray:
    """Of each row of `b n` the number that counts most, whatever its sign."""
    return np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)[:, 0]


def _said(adapter: Any, along: np.ndarray, mode: str) -> str:
    """How one picture is steered, in words: whose file it is, how strongly at most, and how."""
    most = float(along.max(initial=0.0)) or float(along.min(initial=0.0))
    return f"{adapter.name} ({adapter.short_hash}):{most:g}" + ("" if mode == "balanced" else f":{mode}")
