"""Several adapters as one, exactly: changes are added, never their factors.

    m_1 D_1 + m_2 D_2 = [m_1 up_1 | m_2 up_2] [down_1; down_2]          the ranks laid side by side         (1)

To add up and down apart, as some tools do ("linear" merging), gives another thing,

    (up_1 + up_2) (down_1 + down_2) = D_1 + D_2 + up_1 down_2 + up_2 down_1                                 (2)

whose cross terms are as large as what was meant. What has no factors but is additive all the same (LoHa, LoKr, whole
differences) becomes a whole difference where it takes part: exact, and as large as the weight; `reduce.resize` makes it
small. DoRA, IA3, OFT and their like depend on the weight they meet, so that no sum of them is an adapter.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from sdjax.adapters.adapter import Adapter, Module
from sdjax.adapters.kinds import read_module
from sdjax.adapters.kinds.additive import Additive
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.merging import Scale, scale_rule
from sdjax.core.tree import Shape

Weighted = tuple[Additive, float]
COMPONENTS = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
_SGM = ("input_blocks_", "output_blocks_", "middle_block_")


def combine(
    adapters: Iterable[tuple[Adapter, Scale]], name: str = "combined", dtype: DTypeLike = np.float32
) -> Adapter:
    """One adapter that does at scale 1 what these do together, by equation 1.

    adapters: each with its scale, a finite number or one for each part that it changes: "unet", "text_encoder",
    "text_encoder_2". name: of the new one. dtype: of its tensors.

    Raises ValueError for a kind that is not additive, for adapters of different families or that name a U-Net's blocks
    in different ways, for changes of different shapes, and for scales as `merge.merge` does.
    """
    given = list(adapters)
    _check_alike([adapter for adapter, _ in given])
    sums: dict[Module, dict[str, list[Weighted]]] = {}
    for adapter, scale in given:
        parts = dict.fromkeys(COMPONENTS.get(module.part, module.part) for module in adapter.modules)
        rule = scale_rule(scale, adapter.name, {part: {} for part in parts})
        for module, deltas in adapter.modules.items():
            factor = rule(COMPONENTS.get(module.part, module.part), module.name)
            for target, delta in deltas.items() if factor != 0 else ():
                added = additive(delta, f"{adapter.name}: {module.part}_{module.name}")
                sums.setdefault(module, {}).setdefault(target, []).append((added, factor))
    modules = {module: _summed(module, targets) for module, targets in sums.items()}
    if not modules:
        raise ValueError("combine: nothing is left of these adapters at these scales")
    told = ", ".join(f"{adapter.name}: {scale if not callable(scale) else 'a rule'}" for adapter, scale in given)
    return build(name, given[0][0].family, modules, {"sdjax_combined": told}, dtype)


def additive(delta: Delta, what: str) -> Additive:
    """A delta that does not depend on the weight; raises ValueError for others."""
    if not isinstance(delta, Additive):
        raise ValueError(
            f"{what}: {delta.kind} depends on the weight that it changes, and is no sum: merge it into parameters "
            "instead (adapters.merge), and extract the difference if it must be an adapter"
        )
    return delta


def build(
    name: str,
    family: str,
    modules: Mapping[Module, Mapping[str, np.ndarray]],
    metadata: Mapping[str, str],
    dtype: DTypeLike,
) -> Adapter:
    """An adapter that was computed, as if read from a file of kohya's; modules: tensors by kohya's suffix.

    Raises ValueError for numbers beyond the range of `dtype`.
    """
    cast: dict[Module, dict[str, np.ndarray]] = {}
    for module, tensors in modules.items():
        with np.errstate(over="ignore"):
            cast[module] = {suffix: np.asarray(one).astype(dtype) for suffix, one in tensors.items()}
        for suffix, one in cast[module].items():
            if not np.isfinite(one.astype(np.float32)).all():
                raise ValueError(f"{name}: {module.part}_{module.name}.{suffix} leaves the range of {np.dtype(dtype)}")
    return Adapter(
        name=name,
        dialect="kohya-sgm" if any(module.name.startswith(_SGM) for module in cast) else "kohya",
        family=family,
        modules={module: read_module(tensors) for module, tensors in cast.items()},
        tensors={
            f"lora_{module.part}_{module.name}.{suffix}": one
            for module, tensors in cast.items()
            for suffix, one in tensors.items()
        },
        metadata={"ss_network_module": "networks.lora", **metadata},
    )


def low_rank(up: np.ndarray, down: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of a LoRA of scale 1, in kohya's spelling."""
    up = up if down.ndim == 2 else up.reshape(*up.shape, 1, 1)
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": np.array(float(len(down)))}


def whole(target: str, change: np.ndarray, is_norm: bool) -> dict[str, np.ndarray]:
    """The tensor of a whole difference, in kohya's spelling."""
    suffix = ("w_norm" if target == "weight" else "b_norm") if is_norm else "diff" if target == "weight" else "diff_b"
    return {suffix: change}


def _check_alike(adapters: list[Adapter]) -> None:
    """Raises ValueError where these can be no one adapter."""
    if families := sorted({adapter.family for adapter in adapters})[1:]:
        raise ValueError(f"combine: these are for different families, {adapters[0].family} and {', '.join(families)}")
    sgm = {
        module.name.startswith(_SGM): adapter.name
        for adapter in adapters
        for module in adapter.modules
        if module.part == "unet" and module.name.startswith((*_SGM, "down_blocks_", "up_blocks_", "mid_block_"))
    }
    if len(sgm) > 1:
        raise ValueError(
            f"combine: {sgm[True]} names the U-Net's blocks as the original code does and {sgm[False]} as diffusers "
            "does: save one of them in the other's dialect first (adapter.save)"
        )


def _summed(module: Module, targets: Mapping[str, list[Weighted]]) -> dict[str, np.ndarray]:
    """The tensors of the sum of what several adapters do to one module."""
    tensors: dict[str, np.ndarray] = {}
    for target, parts in targets.items():
        try:
            tensors |= _side_by_side(parts) or _added(target, parts)
        except ValueError as error:
            raise ValueError(f"combine: {module.part}_{module.name}: {error}") from None
    return tensors


def _side_by_side(parts: list[Weighted]) -> dict[str, np.ndarray] | None:
    """Equation 1; None where one of them has no factors."""
    factors = [delta.factors() for delta, _ in parts]
    found = [one for one in factors if one is not None]
    if len(found) < len(factors):
        return None
    shape = _common([delta.shape for delta, _ in parts])
    downs = [down.reshape(len(down), *shape[1:]) for down, _ in found]
    ups = [up * up.dtype.type(m) for (_, up), (_, m) in zip(found, parts, strict=True)]
    return low_rank(np.concatenate(ups, axis=1), np.concatenate(downs))


def _added(target: str, parts: list[Weighted]) -> dict[str, np.ndarray]:
    """The sum of whole differences."""
    shape = _common([delta.shape for delta, _ in parts])
    total = np.zeros(shape)
    for delta, m in parts:
        total += delta.difference(total, m).reshape(shape)
    return whole(target, total, any(delta.kind == "norm" for delta, _ in parts))


def _common(shapes: list[Shape]) -> Shape:
    """The one shape that all these have, a 1x1 convolution's being that of a linear layer."""
    bare = {shape[:2] if shape[2:] == (1, 1) else shape for shape in shapes}
    if len(bare) > 1:
        raise ValueError(f"changes of different shapes, {' and '.join(str(list(one)) for one in sorted(bare))}")
    return shapes[0] if len(set(shapes)) == 1 else bare.pop()


def parts_of(params: Mapping[str, Any]) -> dict[str, str]:
    """What kohya calls each component of a model whose weights adapters change: {"unet": "unet", ..}."""
    both = "text_encoder" in params and "text_encoder_2" in params
    text = {"text_encoder": "te1", "text_encoder_2": "te2"} if both else {"text_encoder": "te", "text_encoder_2": "te"}
    return {name: part for name, part in ({"unet": "unet"} | text).items() if name in params}
