"""Sums of adapters, and adapters of lower rank: by what they do to weights, against plain linear algebra."""

import jax
import numpy as np
import pytest

from sdjax.adapters.adapter import Adapter, Module
from sdjax.adapters.algebra import build, combine
from sdjax.adapters.kinds import read_module
from sdjax.adapters.reduce import extract, resize
from sdjax.core.tree import flatten
from tests.test_adapter_kinds import IA3_OUT, LOHA, OFT, f
from tests.test_adapter_merge import close, tree

AT = Module("unet", "mid_block_to_v")
TEXT = Module("te", "layers_0_q_proj")


def made(name, family="SD 1.x", **modules):
    """An adapter of kohya's with these tensors, by part and name joined by two underscores."""
    found = {Module(*key.split("__")): tensors for key, tensors in modules.items()}
    return Adapter(
        name, "kohya", family, {key: read_module(one) for key, one in found.items()},
        {f"lora_{key.part}_{key.name}.{suffix}": one for key, x in found.items() for suffix, one in x.items()}, {},
    )  # fmt: skip


def change(adapter, module=AT, target="weight", shape=(6, 4)):
    """What an adapter adds to a module at scale 1."""
    return adapter.modules[module][target].apply(np.zeros(shape), 1.0)


def lora(k, rank=2, alpha=1.0, shape=(4,)):
    return {
        "lora_up.weight": f(k, 6, rank), "lora_down.weight": f(k + 1, rank, *shape), "alpha": np.array(alpha)
    }  # fmt: skip


A, B = made("a", unet__mid_block_to_v=lora(1)), made("b", unet__mid_block_to_v=lora(3, 3, 2.0))


def test_a_sum_is_of_changes_and_not_of_factors():
    both = combine([(A, 0.8), (B, -0.5)], dtype=np.float64)
    assert np.abs(change(both) - (0.8 * change(A) - 0.5 * change(B))).max() < 1e-15
    assert both.modules[AT]["weight"].kind == "LoRA" and both.modules[AT]["weight"].rank == 5
    # What adding up and down apart would give, each scaled by the root of its own scale as PEFT does.
    same = made("c", unet__mid_block_to_v=lora(3))
    up = np.sqrt(0.5) * (f(1, 6, 2) + f(3, 6, 2))
    cross = up @ (np.sqrt(0.5) * (f(2, 2, 4) + f(4, 2, 4)))
    summed = change(combine([(A, 1), (same, 1)]))
    assert np.linalg.norm(cross - summed) > 0.2 * np.linalg.norm(summed)


def test_it_is_written_as_kohya_would():
    both = combine([(A, 1), (B, 1)], name="both", dtype=np.float16)
    shapes = {name: (one.shape, one.dtype) for name, one in both.tensors.items()}
    half = np.dtype(np.float16)
    assert shapes == {
        "lora_unet_mid_block_to_v.lora_up.weight": ((6, 5), half),
        "lora_unet_mid_block_to_v.lora_down.weight": ((5, 4), half),
        "lora_unet_mid_block_to_v.alpha": ((), half),
    }
    assert (both.name, both.dialect, both.family) == ("both", "kohya", "SD 1.x")
    assert both.metadata["sdjax_combined"] == "a: 1, b: 1"


def test_parts_have_scales_of_their_own():
    one = made("one", unet__mid_block_to_v=lora(1), te__layers_0_q_proj=lora(5))
    found = combine([(one, {"unet": 0.5, "text_encoder": 2.0}), (A, 1.0)])
    assert np.allclose(change(found), 0.5 * change(one) + change(A))
    assert np.allclose(change(found, TEXT), 2 * change(one, TEXT))
    assert set(combine([(one, {"unet": 1, "text_encoder": 0})]).modules) == {AT}
    with pytest.raises(ValueError, match="says nothing of text_encoder"):
        combine([(one, {"unet": 0.5})])


def test_convolutions_and_1x1_convolutions():
    conv = made("conv", unet__conv=lora(1, shape=(4, 3, 3)))
    mid = made("mid", unet__conv={
        "lora_up.weight": f(1, 6, 2), "lora_mid.weight": f(3, 2, 2, 3, 3), "lora_down.weight": f(2, 2, 4)
    })  # fmt: skip
    both = combine([(conv, 1), (mid, 0.5)])
    at = Module("unet", "conv")
    both_, one, other = (change(x, at, shape=(6, 4, 3, 3)) for x in (both, conv, mid))
    assert np.allclose(both_, one + 0.5 * other, atol=1e-6)
    assert both.tensors["lora_unet_conv.lora_up.weight"].shape == (6, 4, 1, 1)
    flat, point = made("flat", unet__conv=lora(1)), made("point", unet__conv=lora(1, shape=(4, 1, 1)))
    assert np.allclose(change(combine([(flat, 1), (point, 1)]), at), 2 * change(flat, at))
    with pytest.raises(ValueError, match=r"unet_conv: changes of different shapes, \[6, 4\] and \[6, 4, 3, 3\]"):
        combine([(flat, 1), (conv, 1)])


def test_what_is_additive_and_not_of_low_rank_becomes_a_difference():
    loha = made("loha", unet__mid_block_to_v=LOHA)
    both = combine([(A, 0.5), (loha, 2.0)], dtype=np.float64)
    assert np.abs(change(both) - 0.5 * change(A) - 2 * change(loha)).max() < 1e-15
    assert both.modules[AT]["weight"].kind == "diff"
    norms = made("n", unet__norm={"w_norm": f(1, 6), "b_norm": f(2, 6)}, unet__mid_block_to_v={"diff_b": f(3, 6)})
    found = combine([(norms, 2), (norms, 1)])
    assert np.allclose(found.tensors["lora_unet_norm.w_norm"], 3 * f(1, 6))
    assert np.allclose(found.tensors["lora_unet_norm.b_norm"], 3 * f(2, 6))
    assert np.allclose(found.tensors["lora_unet_mid_block_to_v.diff_b"], 3 * f(3, 6))


def test_what_is_no_sum_is_refused():
    for tensors, kind in ((IA3_OUT, "IA3"), (OFT, "OFT"), (lora(1) | {"dora_scale": f(1, 6, 1)}, "DoRA")):
        one = made("one", unet__mid_block_to_v=tensors)
        with pytest.raises(ValueError, match=f"one: unet_mid_block_to_v: {kind} depends on the weight"):
            combine([(A, 1), (one, 1)])
        with pytest.raises(ValueError, match=f"{kind} depends on the weight"):
            resize(one, 1)
    with pytest.raises(ValueError, match="different families, SD 1.x and SDXL"):
        combine([(A, 1), (made("x", "SDXL", unet__mid_block_to_v=lora(1)), 1)])
    sgm = made("sgm", unet__middle_block_1_proj_in=lora(1))
    with pytest.raises(ValueError, match="sgm names the U-Net's blocks as the original code does and a as diffusers"):
        combine([(A, 1), (sgm, 1)])
    assert combine([(sgm, 1)]).dialect == "kohya-sgm"
    with pytest.raises(ValueError, match="nothing is left"):
        combine([(A, 0)])
    with pytest.raises(ValueError, match="adapter a: the scale must be a finite number"):
        combine([(A, float("nan"))])
    with pytest.raises(ValueError, match="leaves the range of float16"):
        combine([(A, 1e6)], dtype=np.float16)


class Bound:
    """What `merge` needs, where `Adapter.bind` is not in question: the modules of tests.test_adapter_merge by name."""

    PATHS = {
        "mid_block_to_v": "mid_block.to_v", "down_blocks_0_conv": "down_blocks.0.conv", "norm": "norm",
        "down_blocks_0_to_q": "down_blocks.0.to_q", "layers_0_q_proj": "layers.0.q_proj",
    }  # fmt: skip

    def __init__(self, adapter):
        self.name, self.adapter = adapter.name, adapter

    def bind(self, params):
        bound = {}
        for module, deltas in self.adapter.modules.items():
            component = {"unet": "unet", "te": "text_encoder"}[module.part]
            names = {"weight": "scale" if module.name == "norm" else "kernel", "bias": "bias"}
            found = {names[target]: delta for target, delta in deltas.items()}
            bound.setdefault(component, {})[self.PATHS[module.name]] = found
        return bound


def test_a_difference_of_low_rank_is_extracted_exactly():
    # f(3, 6, 4) has rank 2: sin(k + i) is a combination of sin(i) and cos(i).
    ours = tree(np.float32)
    theirs = jax.tree.map(np.copy, ours)
    theirs["unet"]["mid_block"]["to_v"]["kernel"] += f(3, 6, 4).T.astype(np.float32)
    adapter, kept = extract(ours, theirs, 2)
    assert kept > 1 - 1e-6 and adapter.metadata["sdjax_kept"] == "1.000000"
    assert list(adapter.modules) == [AT] and adapter.modules[AT]["weight"].rank == 2
    assert np.abs(change(adapter) - f(3, 6, 4)).max() < 1e-6
    close(_merged(ours, adapter), flatten(theirs), 1e-6)
    clamped, _ = extract(ours, theirs, 2, clamp=0.9)
    assert np.abs(change(clamped) - f(3, 6, 4)).max() > 1e-2


def _merged(params, adapter):
    from sdjax.adapters.merging import merge

    return merge(params, [(Bound(adapter), 1.0)])


def test_what_is_kept_is_what_the_singular_values_say():
    ours, theirs = tree(np.float32), tree(np.float32, seed=5)
    for path, leaf in flatten(theirs).items():
        if path[-1] != "kernel":
            leaf[...] = flatten(ours)[path]
    for rank in (1, 3):
        adapter, kept = extract(ours, theirs, rank)
        top = whole = 0.0
        merged = flatten(_merged(ours, adapter))
        for path, leaf in flatten(theirs).items():
            if path[-1] != "kernel":
                continue
            there = leaf - flatten(ours)[path]
            matrix = there.transpose(3, 2, 0, 1).reshape(6, -1) if there.ndim == 4 else there.T
            u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
            top, whole = top + (s[:rank] ** 2).sum(), whole + (s**2).sum()
            found = merged[path] - flatten(ours)[path]
            found = found.transpose(3, 2, 0, 1).reshape(6, -1) if found.ndim == 4 else found.T
            assert np.abs(found - u[:, :rank] * s[:rank] @ vt[:rank]).max() < 1e-5, path
        assert abs(kept - top / whole) < 1e-6 and 0.1 < kept < 1
        assert {adapter.modules[m]["weight"].rank for m in adapter.modules} == {rank}
    assert Module("te", "layers_0_q_proj") in adapter.modules


def test_a_rank_of_its_own_for_convolutions_and_all_with_biases():
    ours, theirs = tree(np.float32), tree(np.float32, seed=5)
    adapter, kept = extract(ours, theirs, 4, conv_rank=6, biases=True)
    assert adapter.modules[Module("unet", "down_blocks_0_conv")]["weight"].rank == 6
    assert kept > 1 - 1e-6
    close(_merged(ours, adapter), flatten(theirs), 1e-5)
    assert {"lora_unet_norm.w_norm", "lora_unet_norm.b_norm", "lora_unet_down_blocks_0_to_q.diff_b"} <= set(
        adapter.tensors
    )


def test_extraction_by_part_and_what_is_refused():
    ours, theirs = tree(), tree(seed=5)
    pair = ours | {"text_encoder_2": ours["text_encoder"], "vae": {}}
    found, _ = extract(pair, theirs | {"text_encoder_2": theirs["text_encoder"]}, 1)
    assert {module.part for module in found.modules} == {"unet", "te1", "te2"}
    assert {module.part for module in extract(ours, {"unet": theirs["unet"]}, 1).adapter.modules} == {"unet"}
    for bad, message in (
        ((ours, ours, 1), "do not differ"),
        ((ours, {"text_encoder": theirs["text_encoder"]}, 1), "has no unet"),
        ((ours, theirs, 0), "rank must be a whole number of at least 1, not 0"),
        ((ours, theirs, True), "rank must be"),
        ((ours, tree() | {"unet": {"norm": {"scale": np.ones(6)}}}, 1), "unet is of different parts: only one has"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            extract(*bad)
    other = tree(seed=5)
    other["unet"]["mid_block"]["to_v"]["kernel"] = np.ones((4, 7), np.float32)
    with pytest.raises(ValueError, match=r"to_v.kernel is \[4, 6\] in one and \[4, 7\] in the other"):
        extract(ours, other, 1)
    other["unet"]["mid_block"]["to_v"]["kernel"] = np.full((4, 6), np.nan, np.float32)
    with pytest.raises(ValueError, match="to_v.kernel is not finite"):
        extract(ours, other, 1)
    with pytest.raises(ValueError, match="clamp is a quantile"):
        extract(ours, theirs, 1, clamp=2)


WIDE = made("wide", unet__mid_block_to_v=lora(1, 2, 3.0) | {"diff_b": f(3, 6)}, unet__conv=lora(2, 4, shape=(4, 3, 3)))


def test_a_lower_rank_keeps_the_largest():
    for rank in (1, 2, 8):
        adapter, kept = resize(WIDE, rank, dtype=np.float64)
        top = whole = (f(3, 6) ** 2).sum()
        for module, shape in ((AT, (6, 4)), (Module("unet", "conv"), (6, 4, 3, 3))):
            matrix = change(WIDE, module, shape=shape).reshape(6, -1)
            u, s, vt = np.linalg.svd(matrix, full_matrices=False)
            top, whole = top + (s[:rank] ** 2).sum(), whole + (s**2).sum()
            found = change(adapter, module, shape=shape).reshape(6, -1)
            assert np.abs(found - u[:, :rank] * s[:rank] @ vt[:rank]).max() < 1e-12
        assert abs(kept - top / whole) < 1e-12
        assert np.array_equal(adapter.tensors["lora_unet_mid_block_to_v.diff_b"], f(3, 6))
    assert resize(WIDE, 1).adapter.name == "wide-1"


def test_a_rank_for_each_module_by_its_singular_values():
    s = np.linalg.svd(change(WIDE), compute_uv=False)[:2]
    share = s[0] / np.linalg.norm(s)
    for fro, rank in ((share * 0.999, 1), (share * 1.001, 2), (1.0, 2)):
        assert resize(WIDE, sv_fro=fro).adapter.modules[AT]["weight"].rank == rank
    for ratio, rank in ((s[0] / s[1] * 0.999, 1), (s[0] / s[1] * 1.001, 2)):
        assert resize(WIDE, sv_ratio=ratio).adapter.modules[AT]["weight"].rank == rank
    assert resize(WIDE, 1, sv_fro=1.0).adapter.modules[AT]["weight"].rank == 1


def test_other_additive_kinds_become_lora():
    loha = made("loha", unet__mid_block_to_v=LOHA)
    adapter, kept = resize(loha, 4, dtype=np.float64)
    assert adapter.modules[AT]["weight"].kind == "LoRA" and abs(kept - 1) < 1e-12
    assert np.abs(change(adapter) - change(loha)).max() < 1e-12


@pytest.mark.parametrize("asked, message", [
    ({}, "give a rank, sv_fro or sv_ratio"),
    ({"rank": 1.5}, "rank must be a whole number"),
    ({"sv_fro": 0}, "above 0 and up to 1, not 0"),
    ({"sv_fro": float("nan")}, "not nan"),
    ({"sv_ratio": 0.5}, "not 0.5"),
])  # fmt: skip
def test_what_is_no_rank(asked, message):
    with pytest.raises(ValueError, match=message):
        resize(WIDE, **asked)


def test_what_is_built_is_read_as_it_was_written():
    one = build("x", "SDXL", {AT: lora(1)}, {}, np.float32)
    assert np.abs(change(one) - change(A)).max() < 1e-6 and one.metadata["ss_network_module"] == "networks.lora"
