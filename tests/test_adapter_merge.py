"""Merging: a new tree, each changed leaf as its deltas have it, every other one the very same object."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters import merging
from sdjax.adapters.kinds import read_module
from sdjax.adapters.merging import merge
from sdjax.core.tree import flatten
from sdjax.weights.names import from_file, to_file
from tests.checkpoints import random_params

MODULES = {
    ("unet", "down_blocks.0.conv"): (3, 3, 4, 6),
    ("unet", "down_blocks.0.to_q"): (4, 6),
    ("unet", "mid_block.to_v"): (4, 6),
    ("text_encoder", "layers.0.q_proj"): (4, 6),
}


def tree(dtype=np.float32, seed=0):
    shapes = {"unet": {}, "text_encoder": {}}
    for (component, path), shape in MODULES.items():
        block, name = path.rsplit(".", 1)
        shapes[component].setdefault(block, {})[name] = {
            "kernel": jax.ShapeDtypeStruct(shape, dtype), "bias": jax.ShapeDtypeStruct((6,), dtype)
        }  # fmt: skip
    del shapes["unet"]["mid_block"]["to_v"]["bias"]
    shapes["unet"]["norm"] = {name: jax.ShapeDtypeStruct((6,), dtype) for name in ("scale", "bias")}
    return random_params(shapes, dtype, seed)


class Fake:
    """What merge needs of an adapter: a name, and the deltas of parameters by where they are."""

    def __init__(self, name, changes):
        self.name, self.changes = name, changes

    def bind(self, params):
        bound = {}
        for (component, path), tensors in self.changes.items():
            leaves = {"bias": "bias", "weight": "scale" if path == "norm" else "kernel"}
            found = {leaves[target]: delta for target, delta in read_module(tensors).items()}
            bound.setdefault(component, {})[path] = found
        return bound


def lora(seed, shape, rank=2):
    rng = np.random.default_rng(seed)
    down = (rank, shape[-2], *shape[:-2])
    return {
        "lora_up.weight": rng.standard_normal((shape[-1], rank)).astype(np.float32),
        "lora_down.weight": rng.standard_normal(down).astype(np.float32),
        "alpha": np.array(1.0, np.float32),
    }


def everywhere(name="style", seed=1):
    return Fake(name, {key: lora(seed + i, shape) for i, (key, shape) in enumerate(MODULES.items())})


def expected(params, *adapters, at=lambda component, path: 1.0):
    """Each leaf by the deltas alone, in float64."""
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
    for adapter in adapters:
        for component, modules in adapter.bind(params).items():
            for module, deltas in modules.items():
                for leaf, delta in deltas.items():
                    path = (component, *(module.rsplit(".", 1)), leaf)
                    weight = to_file(path, flat.get(path, np.zeros(6)))
                    flat[path] = from_file(path, delta.apply(weight, at(component, module)))
    return flat


def close(params, flat, tolerance):
    found = flatten(params)
    assert set(found) == set(flat)
    for path, leaf in found.items():
        assert np.abs(np.asarray(leaf, np.float64) - flat[path]).max() <= tolerance, path


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float16", 4e-3), ("bfloat16", 3e-2), ("float64", 0)])
def test_every_leaf_is_what_its_deltas_make_of_it(dtype, tolerance):
    params, adapter = tree(jnp.dtype(dtype)), everywhere()
    merged = merge(params, [(adapter, 0.5)])
    assert {leaf.dtype for leaf in flatten(merged).values()} == {jnp.dtype(dtype)}
    close(merged, expected(params, adapter, at=lambda *_: 0.5), tolerance)


def test_it_is_rounded_once():
    params, first, second = tree(np.float16), everywhere(), everywhere("other", 9)
    found = flatten(merge(params, [(first, 0.5), (second, 0.5)]))
    for path, leaf in expected(params, first, second, at=lambda *_: 0.5).items():
        assert np.abs(found[path] - leaf.astype(np.float16)).max() <= np.spacing(np.float16(np.abs(leaf).max())), path
        assert (found[path] == leaf.astype(np.float16)).mean() > 0.99


def test_the_base_is_not_written_to():
    params = tree()
    before = {path: np.array(leaf) for path, leaf in flatten(params).items()}
    merge(params, [(everywhere(), 1.0), (Fake("oft", {("unet", "mid_block.to_v"): OFT}), 1.0)])
    assert all(np.array_equal(leaf, before[path]) for path, leaf in flatten(params).items())


def test_what_nothing_changes_is_the_very_same_object():
    params = tree()
    one = Fake("one", {("unet", "down_blocks.0.to_q"): lora(1, (4, 6))})
    found = flatten(merge(params, [(one, 1.0)]))
    changed = [path for path, leaf in flatten(params).items() if found[path] is not leaf]
    assert changed == [("unet", "down_blocks.0", "to_q", "kernel")]


def test_scale_0_is_the_base():
    params = tree(np.float16)
    found = flatten(merge(params, [(everywhere(), 0), (everywhere("other"), 0.0)]))
    assert all(found[path] is leaf for path, leaf in flatten(params).items())


def test_another_dtype():
    params = tree(np.float16)
    one = Fake("one", {("unet", "down_blocks.0.to_q"): lora(1, (4, 6))})
    merged = merge(params, [(one, 1.0)], dtype=jnp.bfloat16)
    assert merged["unet"]["down_blocks.0"]["to_q"]["kernel"].dtype == jnp.bfloat16
    assert merged["unet"]["down_blocks.0"]["conv"]["kernel"].dtype == np.float16


def test_leaves_stay_where_they_are():
    params = jax.tree.map(jnp.asarray, tree())
    merged = merge(params, [(everywhere(), 1.0), (Fake("ia3", {("unet", "mid_block.to_v"): IA3}), 1.0)])
    assert all(isinstance(leaf, jax.Array) for leaf in flatten(merged).values())
    again = merge(tree(), [(everywhere(), 1.0), (Fake("ia3", {("unet", "mid_block.to_v"): IA3}), 1.0)])
    assert all(isinstance(leaf, np.ndarray) for leaf in flatten(again).values())
    close(merged, flatten(again), 0)


def test_leaves_that_lie_in_a_file():
    # Read-only views whose axes are turned, as `weights.tensors.in_the_file` leaves them.
    params, adapter = tree(np.float16), everywhere()
    turned = tree(np.float16)
    for path, leaf in flatten(params).items():
        stored = to_file(path, leaf)
        stored.flags.writeable = False
        level = turned
        for key in path[:-1]:
            level = level[key]
        level[path[-1]] = from_file(path, stored)
    assert not turned["unet"]["down_blocks.0"]["conv"]["kernel"].flags.c_contiguous
    close(merge(turned, [(adapter, 0.5)]), flatten(merge(params, [(adapter, 0.5)])), 1e-3)


OFT = {"oft_blocks": 0.1 * np.arange(12.0).reshape(3, 2, 2)}
IA3 = {"weight": np.arange(6.0) / 6, "on_input": np.array(0)}
DORA = lora(3, (4, 6)) | {"dora_scale": np.arange(1.0, 7.0)[:, None]}


def test_one_after_the_other():
    params, at = tree(), ("unet", "mid_block.to_v")
    chain = [
        Fake("lora", {at: lora(1, (4, 6))}),
        Fake("ia3", {at: IA3}),
        Fake("dora", {at: DORA}),
        Fake("oft", {at: OFT}),
    ]
    there = merge(params, [(one, 1.0) for one in chain])
    close(there, expected(params, *chain), 1e-5)
    back = merge(params, [(one, 1.0) for one in reversed(chain)])
    close(back, expected(params, *reversed(chain)), 1e-5)
    kernels = [one["unet"]["mid_block"]["to_v"]["kernel"] for one in (there, back)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_two_loras_in_either_order():
    params, first, second = tree(np.float64), everywhere(), everywhere("other", 9)
    there = merge(params, [(first, 0.7), (second, -0.3)])
    close(there, flatten(merge(params, [(second, -0.3), (first, 0.7)])), 1e-15)


def test_biases_norms_and_a_bias_that_is_not_there():
    params = tree()
    change = np.arange(6, dtype=np.float32)
    one = Fake("one", {
        ("unet", "mid_block.to_v"): {"diff_b": change},
        ("unet", "down_blocks.0.to_q"): {"diff_b": change},
        ("unet", "norm"): {"w_norm": change, "b_norm": -change},
    })  # fmt: skip
    merged = merge(params, [(one, 0.5)])
    assert np.array_equal(merged["unet"]["mid_block"]["to_v"]["bias"], 0.5 * change)
    before = params["unet"]["down_blocks.0"]["to_q"]["bias"]
    assert np.allclose(merged["unet"]["down_blocks.0"]["to_q"]["bias"], before + 0.5 * change)
    assert np.allclose(merged["unet"]["norm"]["scale"], params["unet"]["norm"]["scale"] + 0.5 * change)
    assert np.allclose(merged["unet"]["norm"]["bias"], params["unet"]["norm"]["bias"] - 0.5 * change)
    assert "bias" not in params["unet"]["mid_block"]["to_v"]


def test_a_scale_for_each_part_and_each_module():
    params, adapter = tree(), everywhere()
    found = merge(params, [(adapter, {"unet": 0.6, "text_encoder": 0.3, "text_encoder_2": 1.0})])
    close(
        found, expected(params, adapter, at=lambda component, path: {"unet": 0.6, "text_encoder": 0.3}[component]), 1e-6
    )
    alone = merge(params, [(adapter, {"unet": 0.6, "text_encoder": 0})])
    assert (
        alone["text_encoder"]["layers.0"]["q_proj"]["kernel"] is params["text_encoder"]["layers.0"]["q_proj"]["kernel"]
    )

    def rule(component, path):
        return 0.5 if path.startswith("down_blocks") else 0

    found = merge(params, [(adapter, rule)])
    close(found, expected(params, adapter, at=rule), 1e-6)
    assert found["unet"]["mid_block"]["to_v"]["kernel"] is params["unet"]["mid_block"]["to_v"]["kernel"]


@pytest.mark.parametrize(
    "scale, message",
    [
        (float("nan"), "adapter style: the scale must be a finite number, not nan"),
        (float("inf"), "finite number, not inf"),
        (True, "finite number, not True"),
        ("0.8", "finite number, not '0.8'"),
        ({"unet": 1.0, "text_encoder": float("nan")}, "adapter style: text_encoder: the scale must be"),
        ({"unet": 1.0, "text_encode": 1.0}, "'text_encode' is no part of a model; nearest: 'text_encoder'"),
        ({"unet": 1.0}, "says nothing of text_encoder, which it changes too"),
        (lambda component, path: None, "style: unet: down_blocks.0.conv: the scale must be a finite number, not None"),
    ],
)  # fmt: skip
def test_a_scale_that_is_none(scale, message):
    with pytest.raises(ValueError, match=message):
        merge(tree(), [(everywhere(), scale)])


def test_a_weight_that_leaves_its_range():
    params = tree(np.float16)
    with pytest.raises(
        ValueError, match=r"unet: down_blocks.0.conv.kernel: merged at these scales \(style\) it leaves"
    ):
        merge(params, [(everywhere(), 1e6)])
    with pytest.raises(ValueError, match="leaves the range of float16"):
        merge(params, [(Fake("diff", {("unet", "mid_block.to_v"): {"diff": np.full((6, 4), 7e4)}}), 1.0)])


def test_an_adapter_of_another_width_is_told_by_module():
    wrong = Fake("wide", {("unet", "mid_block.to_v"): lora(1, (8, 6))})
    for scale in (1.0, 0.5):
        with pytest.raises(
            ValueError, match=r"adapter wide: unet: mid_block.to_v.kernel: it is for a weight of \[6, 8\]"
        ):
            merge(tree(), [(wrong, scale)])


def test_nothing_is_compiled_again():
    params, adapter = tree(), everywhere()
    merge(params, [(adapter, 0.5)])
    before = merging.add._cache_size()
    for scale in (0.1, 0.2, -3):
        merge(params, [(adapter, scale), (everywhere("other", 20), 2 * scale)])
    assert merging.add._cache_size() == before


def test_a_leaf_on_the_device_is_not_overwritten_by_the_next():
    # The one room for changes is used again and again: results must not be views of it.
    params, adapter = jax.tree.map(jnp.asarray, tree()), everywhere()
    merged = merge(params, [(adapter, 1.0)])
    close(merged, expected(params, adapter), 1e-6)
