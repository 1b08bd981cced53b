"""Hypernetwork: a file of small networks that rewrite what attention makes its keys and values from.

A1111 saves them as a pickle, which is never opened here. As safetensors the same tensors are

    768.k.linear.0.weight    768.k.linear.0.bias    768.k.linear.2.weight ..    320.v.linear.0.weight ..     (1)

with the width of the attention's input first, then what it is for (k or v), then the members of torch's `Sequential`
by number, activations and dropouts counted too; files of the first days have `linear1` and `linear2` for `linear.0`
and `linear.1`. The settings are the file's metadata, under A1111's own words: `layer_structure` ("[1, 2, 1]", widths
as multiples of the first), `activation_func`, `is_layer_norm`, `activate_output`. Dropout does nothing outside of
training. What the layers compute is in `nn.hypernetwork`.

Where a file says nothing of `activate_output`, A1111 takes it for True and ComfyUI for False: `convention` says whose.

Source: AUTOMATIC1111/stable-diffusion-webui modules/hypernetworks/hypernetwork.py, HypernetworkModule and load.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.core.errors import CheckpointError, shown, unknown
from sdjax.core.notice import notice
from sdjax.nn.hypernetwork import ACTIVATIONS, HypernetworkLayer, Step, input_widths, put_before
from sdjax.weights.write import Draft, write_file, write_tensors

KEY = re.compile(
    r"(?P<width>[1-9]\d{0,5})\.(?P<use>[kv])\.linear(?P<old>[12])?\.(?:(?P<member>\d{1,3})\.)?(?P<what>weight|bias)",
    re.ASCII,
)
CONVENTIONS = ("a1111", "comfy")
EXAMPLE = "768.k.linear.0.weight"
Members = dict[int, dict[str, np.ndarray]]  # weight and bias by the member's number


@dataclass(frozen=True, eq=False, repr=False)
class Hypernetwork:
    """A hypernetwork as it was read.

    Attributes:
      name: what prompts and messages call it. layers: by the width of what goes in, the one before `to_k` and the one
        before `to_v`; their scale is 1.
      tensors, metadata: of the file, as they lie there.
    """

    name: str
    layers: Mapping[int, tuple[HypernetworkLayer, HypernetworkLayer]]
    tensors: Mapping[str, np.ndarray] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)

    def __repr__(self) -> str:
        """Of one line: the name, the widths, the activation, the size."""
        one = next(iter(self.layers.values()))[0]
        size = sum(array.nbytes for array in self.tensors.values()) / 1e6
        norm = ", layer norm" if one.steps[0].scale is not None else ""
        widths = "/".join(map(str, self.layers))
        return f"Hypernetwork({self.name!r}, {widths}, {len(one.steps)} layers, {one.activation}{norm}, {size:.1f} MB)"

    @cached_property
    def short_hash(self) -> str:
        """The first 12 letters of a digest of its tensors, as settings have it."""
        found = hashlib.sha256()
        for name, array in sorted(self.tensors.items()):
            found.update(f"{name} {array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:12]

    @classmethod
    def claims(cls, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bool:
        """Whether a file of tensors of these names and shapes is a hypernetwork."""
        return any(KEY.fullmatch(name) for name in shapes)

    @classmethod
    def read(
        cls,
        name: str,
        tensors: Mapping[str, np.ndarray],
        metadata: Mapping[str, str],
        where: str,
        convention: str = "a1111",
    ) -> "Hypernetwork":
        """From a file's tensors and metadata; `where` it is, for messages. Raises CheckpointError."""
        if convention not in CONVENTIONS:
            raise ValueError(unknown(f"convention {convention!r} is unknown", convention, CONVENTIONS))
        settings = _Settings(metadata, where)
        found = _members(tensors, where)
        widths = sorted({width for width, _ in found})
        layers = {}
        for width in widths:
            pair = tuple(settings.layer(found.get((width, use), {}), width, use, convention) for use in "kv")
            layers[width] = (pair[0], pair[1])
        return cls(name, layers, dict(tensors), dict(metadata))

    def check(self, params: Mapping[str, Any], model: str = "this model") -> None:
        """Raises ValueError where it is for another family than the U-Net of these parameters; `model` is its name.

        Warns of widths that this U-Net does not have, as A1111's trainer writes them beside the right ones.
        """
        there = input_widths(params)
        fitting = sorted(there & set(self.layers))
        others = sorted(set(self.layers) - there)
        listed = ", ".join(map(str, self.layers))
        text = max(_text_widths(params), default=0)
        if not fitting or (others and text not in self.layers):
            raise ValueError(
                f"hypernetwork {self.name!r} is for attention of width {listed} (768 is SD 1.x, 1024 SD 2.x), and "
                f"{model} has {', '.join(map(str, sorted(there)))}: it belongs to another family of models"
            )
        if others:
            told = ", ".join(map(str, others))
            notice(f"hypernetwork {self.name!r}: {model} has no attention of width {told}; those layers do nothing")

    def save(self, path: str | Path) -> None:
        """Writes the safetensors file that it was read from, tensor for tensor. Raises CheckpointError."""
        drafts = {name: Draft.of(array) for name, array in self.tensors.items()}
        write_file(Path(path), lambda unfinished: write_tensors(drafts, self.metadata, unfinished))


def attach(
    params: Mapping[str, Any], hypernetworks: Sequence[Hypernetwork], scales: Sequence[float] | None = None
) -> dict[str, Any]:
    """A U-Net's parameters with hypernetworks before its keys and values, the first of them first.

    scales: m of each, for all pictures; None leaves them to be given for each picture (`nn.worn`). Raises ValueError
    for one that is of another family.
    """
    made = dict(params)
    for i, one in enumerate(hypernetworks):
        one.check(params)
        own = {"scale": None, "index": i} if scales is None else {"scale": jnp.float32(scales[i])}
        placed = jax.tree.map(jnp.asarray, dict(one.layers))  # once, for all the layers that share them
        made = put_before(made, {width: (replace(k, **own), replace(v, **own)) for width, (k, v) in placed.items()})
    return made


def _text_widths(params: Mapping[str, Any]) -> set[int]:
    """The width of the text: what goes into the cross-attention's keys."""
    found: set[int] = set()
    for name, child in params.items():
        if name == "attn2":
            found.add(int(child["to_k"]["kernel"].shape[0]))
        elif isinstance(child, Mapping):
            found |= _text_widths(child)
    return found


def _members(tensors: Mapping[str, np.ndarray], where: str) -> dict[tuple[int, str], Members]:
    """The tensors by width, use and member. Raises CheckpointError for a name of another form, and for NaN."""
    found: dict[tuple[int, str], Members] = {}
    for name, array in tensors.items():
        key = KEY.fullmatch(name)
        if key is None or (key["old"] is None) == (key["member"] is None):
            raise CheckpointError(f"{where}: {shown(name)} is no tensor of a hypernetwork, as {EXAMPLE} is")
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.ndim not in (1, 2) or 0 in array.shape:
            raise CheckpointError(
                f"{where}: {name} must hold numbers, `o i` or `o`, not {array.dtype}{list(array.shape)}"
            )
        with np.errstate(over="ignore"):  # told as an error below
            wide = np.asarray(array, np.float32)
        if not np.isfinite(wide).all():
            raise CheckpointError(f"{where}: {name} holds NaN or infinite numbers; its weights are broken")
        member = int(key["old"]) - 1 if key["old"] else int(key["member"])
        of = found.setdefault((int(key["width"]), key["use"]), {}).setdefault(member, {})
        if key["what"] in of:
            raise CheckpointError(f"{where}: {name} is there twice, also by another name")
        of[key["what"]] = wide
    if not found:
        raise CheckpointError(f"{where} holds no tensors of a hypernetwork, as {EXAMPLE}")
    return found


@dataclass(frozen=True)
class _Settings:
    """What the metadata say. Raises CheckpointError, naming the entry."""

    metadata: Mapping[str, str]
    where: str

    def layer(self, members: Members, width: int, use: str, convention: str) -> HypernetworkLayer:
        """One of the two networks for a width, checked against the settings."""
        steps = self._steps(members, f"{width}.{use}", width)
        self._check_gaps(members, f"{width}.{use}")
        output = self._flag("activate_output", convention == "a1111")
        return HypernetworkLayer(tuple(steps), np.float32(1), self.activation, output)

    @property
    def activation(self) -> str:
        """Its name; "linear" where there is none."""
        said = self.metadata.get("activation_func", "linear").strip().strip('"').lower()
        name = "linear" if said in ("", "none", "null") else said
        if name not in ACTIVATIONS:
            raise CheckpointError(
                unknown(f"{self.where}: activation_func {shown(name, 40)!r} is unknown", name, ACTIVATIONS)
            )
        return name

    def _flag(self, name: str, default: bool) -> bool:
        said = self.metadata.get(name, str(default)).strip().lower()
        if said not in ("true", "false", "none", "null"):
            raise CheckpointError(f'{self.where}: {name} must be "True" or "False", not {shown(said, 40)!r}')
        return default if said in ("none", "null") else said == "true"

    def _structure(self) -> list[float] | None:
        """The widths as multiples of the first; None where the metadata do not say."""
        said = self.metadata.get("layer_structure", "None")
        if said.strip().lower() in ("none", "null"):
            return None
        try:
            found = json.loads(said)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(type(one) in (int, float) and 0 < one < 1e4 for one in found):
            raise CheckpointError(f"{self.where}: layer_structure must be as [1, 2, 1], not {shown(said, 40)!r}")
        return found

    def _steps(self, members: Members, which: str, width: int) -> list[Step]:
        """Its linear layers in order, each with the layer norm behind it."""
        normed = self._flag("is_layer_norm", False)
        if not members:
            raise CheckpointError(f"{self.where} has nothing for {which}: keys and values each need their layers")
        steps: list[Step] = []
        for number in sorted(members):
            one = members[number]
            at = f"{self.where}: {which}.linear.{number}"
            if set(one) != {"weight", "bias"}:
                missing = "bias" if "weight" in one else "weight"
                raise CheckpointError(f"{at}.{missing} is missing")
            weight, bias = one["weight"], one["bias"]
            if weight.shape[:1] != bias.shape:
                raise CheckpointError(f"{at}: weight {list(weight.shape)} and bias {list(bias.shape)} do not fit")
            if weight.ndim == 2:
                steps.append(Step(weight.T, bias))
            elif not normed or not steps or steps[-1].scale is not None or steps[-1].bias.shape != bias.shape:
                raise CheckpointError(f"{at} is a layer norm, where is_layer_norm and the layers before have none")
            else:
                steps[-1] = Step(steps[-1].kernel, steps[-1].bias, weight, bias)
        if normed and any(step.scale is None for step in steps):
            raise CheckpointError(f"{self.where}: is_layer_norm is True, and {which} lacks layer norms")
        self._check_widths(steps, which, width)
        return steps

    def _check_widths(self, steps: Sequence[Step], which: str, width: int) -> None:
        inner = [width, *(step.kernel.shape[1] for step in steps)]
        into = [step.kernel.shape[0] for step in steps]
        if into != inner[:-1] or inner[-1] != width:
            chain = ", ".join(f"{step.kernel.shape[0]} -> {step.kernel.shape[1]}" for step in steps)
            raise CheckpointError(f"{self.where}: {which} must lead from {width} to {width}; its layers: {chain}")
        said = self._structure()
        if said is not None and [int(width * one) for one in said] != inner:
            raise CheckpointError(f"{self.where}: layer_structure is {said}, and the widths of {which} are {inner}")

    def _check_gaps(self, members: Members, which: str) -> None:
        """The numbers count activations too: where they leave room for one, the settings must say which."""
        linear = [number for number in sorted(members) if members[number]["weight"].ndim == 2]
        norm = 1 if self._flag("is_layer_norm", False) else 0
        gaps = {after - before - 1 - norm for before, after in zip(linear, linear[1:], strict=False)}
        named = self.activation != "linear"
        dropped = self._flag("use_dropout", False) or "dropout_structure" in self.metadata
        if (named and min(gaps, default=1) < 1) or (not named and not dropped and max(gaps, default=0) > 0):
            told = "none between" if named else "something between"
            raise CheckpointError(
                f"{self.where}: activation_func is {self.activation}, and the numbers of {which}'s layers say {told} "
                "them; write the settings that belong to this file into its metadata"
            )
