"""Adapters that learn: which layers, the start, the gradient, the file; the numbers themselves are in tests/parity."""
# ruff: noqa: F811  (fixtures that are imported)

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import sdjax
from sdjax.adapters.paths import published
from sdjax.core import tree
from sdjax.train.methods.dora import DoRA
from sdjax.train.methods.layers import PRESETS, chosen
from sdjax.train.methods.loha import LoHa
from sdjax.train.methods.lokr import LoKr, factorised
from sdjax.train.methods.lora import LoRA
from tests.train_fixtures import answer, base, batch, learnt, objective, sd  # noqa: F401

EVERYWHERE = (("unet", ""), ("text_encoder", "transformers"))
KINDS = [LoRA, DoRA, LoHa, LoKr]
METHODS = [
    *(kind(2, alpha=3.0, layers=EVERYWHERE) for kind in KINDS),
    LoRA(3, alpha=2.0, layers=(("unet", "convolutions"),), rank_stabilised=True),
    LoKr(8, layers=EVERYWHERE, factor=2),
]


# ---------------------------------------------------------------------- which layers


@pytest.mark.parametrize(
    "preset, counts, millions",
    [
        ("sd15", (128, 192, 278), 3.19),
        ("sd21", (128, 192, 278), 3.32),
        ("sdxl", (560, 722, 788), 23.22),
    ],
)
def test_the_layers_are_those_that_trainers_choose(preset, counts, millions):
    """192 and 722 are kohya's, 86 and 66 more with conv_dim (ADAPTERS.md 1.2); TRAINING.md golden 17."""
    params = published(preset)
    assert [*PRESETS] == ["attention", "transformers", "convolutions"]
    assert tuple(len(chosen(params, (("unet", name),))["unet"]) for name in PRESETS) == counts
    started = jax.eval_shape(LoRA(16).start, params, jax.random.key(0))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(started)) / 1e6, 2) == millions


def test_kohyas_text_encoders():
    found = chosen(published("sdxl"), (("text_encoder", "transformers"), ("text_encoder_2", "transformers")))
    assert [len(own) for own in found.values()] == [72, 192]


@pytest.mark.parametrize(
    "layers, told",
    [
        ((("unet", "atention"),), "'atention' chooses none of unet's [0-9]+, such as .*; nearest: 'attention'"),
        ((("unet", "("),), "'\\(' is no regular expression"),
        ((("unett", "attention"),), "no 'unett' with layers; nearest: 'unet'"),
        ((("vae", ""),), "no 'vae' with layers"),
        ((("text_encoder_2", ""),), "no 'text_encoder_2' with layers; nearest: 'text_encoder'"),
        ((("unet", "attn1"), ("unet", "attn2")), "unet is named twice"),
        ((), "no component is named"),
    ],
)
def test_a_choice_of_nothing_is_an_error(base, layers, told):
    with pytest.raises(ValueError, match=told):
        LoRA(2, layers=layers).start(base, jax.random.key(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"rank": 0}, "rank must be a whole number from 1 on"),
        ({"rank": 2.0}, "rank must be"),
        ({"alpha": 0.0}, "alpha must be a finite number above 0"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"dtype": "float61"}, "dtype 'float61' is unknown; nearest: 'float16'"),
    ],
)
def test_wrong_settings(kind, wrong, told):
    with pytest.raises(ValueError, match=told):
        kind(**wrong)


# ---------------------------------------------------------------------- the start, and what learns


@pytest.mark.parametrize("method", METHODS, ids=lambda one: type(one).__name__)
def test_it_starts_as_the_base(base, answer, method):
    started = method.start(base, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(started)} == {jnp.dtype(jnp.float32)}
    got, plain = answer(method.join(started, base)), answer(base)
    if isinstance(method, DoRA):
        np.testing.assert_allclose(got, plain, atol=1e-5 * np.abs(plain).max())
    else:
        np.testing.assert_array_equal(got, plain)
    again, other = (method.start(base, jax.random.key(seed)) for seed in (0, 1))
    assert jax.tree.all(jax.tree.map(np.array_equal, started, again))
    assert not jax.tree.all(jax.tree.map(np.array_equal, started, other))


def test_no_two_layers_start_alike(base):
    started = LoRA(4, layers=EVERYWHERE).start(base, jax.random.key(0))
    downs = [np.asarray(leaf).ravel()[:4].tolist() for path, leaf in tree.flatten(started).items() if "down" in path]
    assert len({*map(tuple, downs)}) == len(downs) > 40


def test_every_factor_learns_and_nothing_else_changes(base, objective, batch):
    """At the start A has no gradient, since B is 0; a little later all have. Other kinds' are in tests/parity."""
    method = LoRA(2, layers=EVERYWHERE)
    trainable = learnt(method.start(base, jax.random.key(0)))
    joined, plain = tree.flatten(method.join(trainable, base)), tree.flatten(base)
    assert all(joined[path] is plain[path] for path in plain) and {path[-1] for path in joined.keys() - plain} == {
        "low_rank"
    }
    gradients = jax.jit(jax.grad(lambda own: objective.loss(method.join(own, base), batch)[0]))(trainable)
    assert not ["/".join(path) for path, leaf in tree.flatten(gradients).items() if not np.abs(leaf).max() > 0]


def test_loras_gradient_never_multiplies_the_factors_with_each_other(base, objective, batch):
    """See `low_rank.beside`: no array of a kernel's shape is made on the way back, nor on the way there."""
    method = LoRA(2, layers=(("unet", r"ff\.net\.0\.proj$"),))
    trainable = method.start(base, jax.random.key(0))
    (path, factors), *_ = trainable["unet"].items()
    wide = f"f32[{factors['down'].shape[0]},{factors['up'].shape[1]}]"
    program = str(jax.make_jaxpr(jax.grad(lambda own: objective.loss(method.join(own, base), batch)[0]))(trainable))
    made = [
        line for line in program.splitlines() if re.match(rf"\s*\S+:{re.escape(wide)} = (dot_general|mul|add)", line)
    ]
    assert f"{path}" and not made


# ---------------------------------------------------------------------- the file


@pytest.mark.parametrize("method", METHODS, ids=lambda one: type(one).__name__)
def test_what_is_written_is_what_was_learnt(sd, base, answer, tmp_path, method):
    trainable = learnt(method.start(base, jax.random.key(0)))
    path = method.write(trainable, sd.params, tmp_path / "run", {"ss_output_name": "ring", "ss_steps": "7"})
    adapter = sdjax.load_adapter(path)
    assert path == tmp_path / "run" / "adapter.safetensors" and not list(path.parent.glob("*.partial"))
    assert adapter.metadata["ss_steps"] == "7" and "ring" in adapter.aliases
    joined = method.join(trainable, base)
    merged = sdjax.adapters.merge(base, [(adapter, 1)])
    expected, got = answer(joined), answer(merged)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(answer(base) - expected).max() > 0.01 * np.abs(expected).max()


def test_a_lora_is_worn_by_pictures(sd, base, tmp_path):
    """Through `generate(adapters=)`, beside the kernels, and merged: the same picture."""
    method = LoRA(2, layers=EVERYWHERE)
    path = method.write(learnt(method.start(base, jax.random.key(0))), sd.params, tmp_path, {})
    asked = {"prompt": "a red circle", "steps": 2, "seed": 0}
    worn = sd.generate(adapters=[(path, 1)], **asked).latents
    merged = sd.with_adapters([(path, 1)]).generate(**asked).latents
    np.testing.assert_allclose(worn, merged, atol=1e-4 * np.abs(merged).max())
    assert np.abs(sd.generate(**asked).latents - merged).max() > 0.01 * np.abs(merged).max()


def test_sdxl_is_written_as_a1111_reads_it(tmp_path):
    """By SGM's block names and with a number for each text encoder; read again, every module finds its place."""
    params = published("sdxl")
    method = LoRA(1, layers=(("unet", r"attn2\.to_k$"), ("text_encoder", "attention"), ("text_encoder_2", "attention")),
                  dtype="float16")  # fmt: skip
    started = method.start(params, jax.random.key(0))
    path = method.write(started, params, tmp_path, {})
    names, adapter = load_file(path), sdjax.load_adapter(path)
    assert {name.split("_", 3)[2] for name in names if name.startswith("lora_unet")} <= {"input", "output", "middle"}
    assert {leaf.dtype for leaf in names.values()} == {np.dtype(np.float16)}
    assert {name[:9] for name in names} == {"lora_unet", "lora_te1_", "lora_te2_"} and adapter.family == "SDXL"
    assert {part: len(own) for part, own in adapter.bind(params).items()} == {
        part: len(own) for part, own in started.items()
    }
    assert adapter.metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert adapter.metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


def test_numbers_that_are_not_finite_are_not_written(sd, base, tmp_path):
    method = LoRA(2)
    broken = jax.tree.map(lambda leaf: leaf.at[0, 0].set(jnp.nan), method.start(base, jax.random.key(0)))
    with pytest.raises(ValueError, match="leaves the range of float32"):
        method.write(broken, sd.params, tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_sizes_are_factorised():
    """ADAPTERS.md 2.2, which LyCORIS gave."""
    found = {size: factorised(size) for size in (320, 640, 768, 1280, 2048, 7)}
    assert found == {320: (16, 20), 640: (20, 32), 768: (24, 32), 1280: (32, 40), 2048: (32, 64), 7: (1, 7)}
    assert factorised(1280, 8) == (8, 160) and factorised(320, 3) == (2, 160) and factorised(6, 4) == (2, 3)
    with pytest.raises(ValueError, match="factor must be -1"):
        LoKr(factor=0)
