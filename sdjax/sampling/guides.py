"""What each network is told that steers the pictures of a request: made of what it looks at, once a run."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.adapters.image_prompt import ImagePromptAdapter
from sdjax.core.tree import Params
from sdjax.model.networks import Networks
from sdjax.nn.conditioning import Guide
from sdjax.nn.control import ControlNetwork
from sdjax.request.control_inputs import Steering
from sdjax.request.per_picture import once
from sdjax.request.prompting import Branch
from sdjax.request.steered import Steered
from sdjax.runtime import programs
from sdjax.runtime.control.controlled import Controlled


def make(
    networks: Networks,
    steering: Steering,
    beside: tuple[Controlled, Params],
    branches: Sequence[Branch],
    length: int,
) -> tuple[Guide, ...]:
    """A guide for each network, for the branches of b pictures after each other.

    beside: of `Networks.beside`. branches: of one picture, which those of the others are like. length: rows of the
    table. Raises ValueError where an image encoder gives no numbers.
    """
    denoiser, params = beside
    each = zip(steering.all, denoiser.networks, params["control"], strict=True)
    return tuple(_guide(networks, one, network, own, branches, length) for one, network, own in each)


def _guide(
    networks: Networks, one: Steered, network: ControlNetwork, params: Params, branches: Sequence[Branch], length: int
) -> Guide:
    told = _features(networks, one, network, params, [branch.negative for branch in branches])
    scale = np.concatenate([one.scale(length, guided=not branch.negative) for branch in branches])
    parts = len(branches)
    return Guide(_joined(told), scale, _tiled(one.masks, parts), _tiled(one.kinds, parts))


def _features(
    networks: Networks, one: Steered, network: ControlNetwork, params: Params, negative: Sequence[bool]
) -> list[Any]:
    """What a network makes of what it looks at, for each branch, with the prompt or `negative`: leaves `b ..`."""

    def look(image: Any) -> Any:
        return networks.executor.run(programs.look, network, params, image)

    if not isinstance(one.adapter, ImagePromptAdapter):
        return [look(one.images)] * len(negative)
    shown = _tokens(networks, one)
    made = {False: look(shown)}
    if any(negative):
        nothing = networks.encode_prompt_image(one.adapter, None)
        made[True] = look(np.tile(nothing, (len(shown), shown.shape[1] // len(nothing), 1)))
    return [made[each] for each in negative]


def _tokens(networks: Networks, one: Steered) -> np.ndarray:
    """The tokens of the pictures that are shown, `b m d`."""
    adapter = one.adapter
    assert isinstance(adapter, ImagePromptAdapter)
    flat = [picture for own in one.images for picture in own]
    made = iter(once(flat, lambda picture: networks.encode_prompt_image(adapter, picture)))
    return np.stack([np.concatenate([next(made) for _ in own]) for own in one.images])


def _joined(trees: Sequence[Any]) -> Any:
    """Like trees of leaves `b ..`, one after the other."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def _tiled(tree: Any, parts: int) -> Any:
    """Leaves `b ..`, so many times after each other."""
    return jax.tree.map(lambda leaf: np.concatenate([leaf] * parts), tree)
