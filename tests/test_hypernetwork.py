"""Hypernetworks: golden values, their files and settings, and a U-Net with them against the formula in NumPy.

The reference for a whole U-Net is the same U-Net told other contexts by hand: `linear` is replaced by one that gives
`to_k` and `to_v` what equation 1 of `nn.hypernetwork` makes of their input, by NumPy's words alone.
"""

import json
import re
import warnings
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters.hypernetwork import Hypernetwork, attach
from sdjax.config import UNetConfig
from sdjax.core.errors import CheckpointError
from sdjax.core.tree import flatten
from sdjax.nn.attention import attention_over_chunks, cross_keys_values
from sdjax.nn.conditioning import Chunks, Conditions
from sdjax.nn.hypernetwork import ACTIVATIONS, HypernetworkLayer, Step, input_widths
from sdjax.nn.linear import linear
from sdjax.nn.shapes import expected_params
from sdjax.runtime.denoisers import denoiser_of
from sdjax.weights.files import read_single_header
from sdjax.weights.tensors import read_tensor
from tests import checkpoints

F32 = jnp.dtype("float32")


def f(k: int, *shape: int) -> np.ndarray:
    """ADAPTERS.md 0.3."""
    return np.sin(np.arange(np.prod(shape)) + k).reshape(shape)


def four(x: np.ndarray) -> list[float]:
    """First, last, norm and the checksum of ADAPTERS.md 0.3."""
    flat = np.asarray(x, np.float64).ravel()
    return [flat[0], flat[-1], np.linalg.norm(flat), (flat * np.cos(np.arange(flat.size))).sum()]


def golden_tensors(gap: int) -> dict[str, np.ndarray]:
    """Those of rows H1 to H3, for keys and for values; `gap`: members between the two linear layers."""
    second = f"linear.{1 + gap}"
    one = {"linear.0.weight": f(1, 8, 4), "linear.0.bias": f(2, 8), f"{second}.weight": f(3, 4, 8)}
    return {f"4.{use}.{name}": array for use in "kv" for name, array in (one | {f"{second}.bias": f(4, 4)}).items()}


GOLDEN = {
    "H1": ({}, [-1.346436, 2.657314, 6.858208, -6.522877]),
    "H2": ({"activation_func": "swish", "activate_output": "False"}, [-1.786318, 2.078341, 5.407635, -6.804273]),
    "H3": ({"activation_func": "swish", "activate_output": "True"}, [-1.144428, 2.078341, 4.134864, -6.828781]),
}


@pytest.mark.parametrize("row", GOLDEN)
def test_golden(row):
    settings, want = GOLDEN[row]
    made = Hypernetwork.read("h", golden_tensors(1 if settings else 0), settings, "h.safetensors")
    for layer in made.layers[4]:
        got = replace(layer, scale=0.5)(f(5, 3, 4).astype(np.float32))
        np.testing.assert_allclose(four(got), want, atol=2e-5)


def test_the_conventions_differ_where_a_file_is_silent():
    settings = {"activation_func": "swish"}
    for convention, row in (("a1111", "H3"), ("comfy", "H2")):
        made = Hypernetwork.read("h", golden_tensors(1), settings, "h", convention)
        got = replace(made.layers[4][0], scale=0.5)(f(5, 3, 4).astype(np.float32))
        np.testing.assert_allclose(four(got), GOLDEN[row][1], atol=2e-5)
    with pytest.raises(ValueError, match="convention 'a1' is unknown; nearest: 'a1111'"):
        Hypernetwork.read("h", golden_tensors(1), settings, "h", "a1")


def test_every_activation_keeps_zero_or_is_known_there():
    """Values at -4, -1, 0, 1, 4 by hand, of those whose formula is in torch's documentation."""
    x = jnp.array([-4.0, -1.0, 0.0, 1.0, 4.0])
    sigmoid = 1 / (1 + np.exp(-np.asarray(x)))
    want = {
        "linear": x,
        "relu": [0, 0, 0, 1, 4],
        "relu6": [0, 0, 0, 1, 4],
        "leakyrelu": [-0.04, -0.01, 0, 1, 4],
        "elu": [np.expm1(-4), np.expm1(-1), 0, 1, 4],
        "sigmoid": sigmoid,
        "silu": x * sigmoid,
        "swish": [0, -1 / 3, 0, 2 / 3, 4],
        "hardswish": [0, -1 / 3, 0, 2 / 3, 4],
        "hardsigmoid": [0, 1 / 3, 0.5, 2 / 3, 1],
        "hardtanh": [-1, -1, 0, 1, 1],
        "softsign": [-0.8, -0.5, 0, 0.5, 0.8],
        "softshrink": [-3.5, -0.5, 0, 0.5, 3.5],
        "hardshrink": [-4, -1, 0, 1, 4],
        "gelu": [-0.00012669, -0.15865526, 0, 0.84134474, 3.99987331],
        "mish": [-0.07259173, -0.30340146, 0, 0.86509838, 3.99741284],
    }
    for name, values in want.items():
        np.testing.assert_allclose(ACTIVATIONS[name](x), values, atol=1e-6, err_msg=name)
    assert set(ACTIVATIONS) - set(want) == {
        "tanh", "softplus", "tanhshrink", "logsigmoid", "rrelu", "selu", "celu"
    }  # fmt: skip


# ---------------------------------------------------------------------- files


def written(
    widths=(16, 8), structure=(1, 2, 1), activation="relu", norm=False, seed=0, old=False, dtype=np.float32
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A file as A1111's modules would be written: members counted as torch's Sequential counts them."""
    rng, tensors = np.random.default_rng(seed), {}
    for width in widths:
        for use in "kv":
            member = 0
            for i, (a, b) in enumerate(zip(structure, structure[1:], strict=False)):
                name = f"{width}.{use}.linear{i + 1}" if old else f"{width}.{use}.linear.{member}"
                into, out = int(width * a), int(width * b)
                tensors[f"{name}.weight"] = (rng.standard_normal((out, into)) / np.sqrt(into)).astype(dtype)
                tensors[f"{name}.bias"] = (0.3 * rng.standard_normal(out)).astype(dtype)
                member += 1 + (activation != "linear")
                if norm:
                    tensors[f"{width}.{use}.linear.{member}.weight"] = (1 + 0.2 * rng.standard_normal(out)).astype(
                        dtype
                    )
                    tensors[f"{width}.{use}.linear.{member}.bias"] = (0.2 * rng.standard_normal(out)).astype(dtype)
                    member += 1
    metadata = {"layer_structure": json.dumps(structure), "activation_func": activation, "is_layer_norm": str(norm)}
    return tensors, metadata


def read(tensors: dict, metadata: dict | None = None) -> Hypernetwork:
    return Hypernetwork.read("h", tensors, metadata or {}, "h.safetensors")


def by_formula(made: Hypernetwork, width: int, use: str, x: np.ndarray, m: float) -> np.ndarray:
    """x + m net(x) of the file's tensors, with NumPy alone, in float64."""
    own = {name.removeprefix(f"{width}.{use}.linear."): np.asarray(array, np.float64) for name, array in
           made.tensors.items() if name.startswith(f"{width}.{use}.")}  # fmt: skip
    numbers = sorted({int(name.split(".")[0]) for name in own})
    matrices = [number for number in numbers if own[f"{number}.weight"].ndim == 2]
    h, said = np.asarray(x, np.float64), made.metadata
    for number in numbers:
        weight, bias = own[f"{number}.weight"], own[f"{number}.bias"]
        if weight.ndim == 2:
            h = h @ weight.T + bias
            if number != matrices[-1] or said.get("activate_output", "True") == "True":
                h = {"relu": lambda h: np.maximum(h, 0), "tanh": np.tanh, "linear": lambda h: h}[
                    said["activation_func"]
                ](h)
        else:
            h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5) * weight + bias
    return x + m * h


@pytest.mark.parametrize("structure", [(1, 2, 1), (1, 0.5, 2, 1)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("output", ["True", "False"])
def test_a_layer_is_the_formula(structure, activation, norm, output):
    tensors, metadata = written(structure=structure, activation=activation, norm=norm)
    made = read(tensors, metadata | {"activate_output": output})
    x = np.random.default_rng(1).standard_normal((3, 5, 16)).astype(np.float32)
    for use, layer in zip("kv", made.layers[16], strict=True):
        got = replace(layer, scale=jnp.array([0.0, 0.5, -2.0]))(x)  # each picture its own
        want = [by_formula(made, 16, use, one, m) for one, m in zip(x, (0.0, 0.5, -2.0), strict=True)]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(got[0], x[0])


def test_dropout_is_a_gap_and_nothing_else():
    tensors, metadata = written(activation="relu")
    later = {name.replace("linear.2", "linear.3"): array for name, array in tensors.items()}
    made, plain = read(later, metadata | {"use_dropout": "True"}), read(tensors, metadata)
    jax.tree.map(np.testing.assert_array_equal, dict(made.layers), dict(plain.layers))


def test_the_old_names(tmp_path):
    tensors, metadata = written(activation="linear", old=True)
    assert Hypernetwork.claims({name: array.shape for name, array in tensors.items()}, {})
    new, _ = written(activation="linear")
    jax.tree.map(np.testing.assert_array_equal, dict(read(tensors).layers), dict(read(new).layers))


def test_it_is_written_as_it_came_and_shown_in_a_line(tmp_path):
    made = read(*written(dtype=np.float16, norm=True))
    made.save(tmp_path / "h.safetensors")
    header = read_single_header(tmp_path / "h.safetensors")
    again = read({name: read_tensor(header, name) for name in header.tensors}, dict(header.metadata))
    assert again.metadata == made.metadata
    for name, array in made.tensors.items():
        assert again.tensors[name].dtype == array.dtype and again.tensors[name].tobytes() == array.tobytes()
    assert repr(made) == "Hypernetwork('h', 8/16, 2 layers, relu, layer norm, 0.0 MB)"


def broken(**changed) -> tuple[dict, dict]:
    """A file of one width, with some tensors other (None: away); names with _ for the dots."""
    tensors, metadata = written(widths=(8,))
    for name, array in changed.items():
        key = name.replace("_", ".").removeprefix("w")
        tensors.pop(key, None)
        if array is not None:
            tensors[key] = array
    return tensors, metadata


def told(**metadata: str) -> tuple[dict, dict]:
    """A file of which the metadata say more, or other."""
    tensors, own = written()
    return tensors, own | metadata


def ones(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


NO_VALUES = ({name: array for name, array in written(widths=(8,))[0].items() if ".k." in name}, written()[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (({}, {}), "holds no tensors of a hypernetwork"),
        (({"a.weight": ones(3)}, {}), "a.weight is no tensor of a hypernetwork, as 768.k.linear.0.weight is"),
        (broken(w8_k_linear_0_bias=None), "8.k.linear.0.bias is missing"),
        (broken(w8_k_linear_0_bias=np.nan * ones(16)), "8.k.linear.0.bias holds NaN"),
        (broken(w8_k_linear_0_bias=ones(16, dtype=np.int8)), "must hold numbers"),
        (broken(w8_k_linear_0_bias=ones(15)), "weight [16, 8] and bias [15] do not fit"),
        (broken(w8_k_linear_0_weight=ones(16, 7)), "8.k must lead from 8 to 8; its layers: 7 -> 16, 16 -> 8"),
        (broken(w8_k_linear1_weight=ones(16, 8)), "is there twice, also by another name"),
        (NO_VALUES, "has nothing for 8.v"),
        (told(activation_func="rellu"), "activation_func 'rellu' is unknown; nearest: 'relu'"),
        (told(activate_output="maybe"), 'activate_output must be "True" or "False", not \'maybe\''),
        (told(layer_structure="[1, 3, 1]"), "layer_structure is [1, 3, 1], and the widths of 8.k are [8, 16, 8]"),
        (told(layer_structure="[[" * 9999), "layer_structure must be as [1, 2, 1]"),
        (told(is_layer_norm="True"), "is_layer_norm is True, and 8.k lacks layer norms"),
        ((written(norm=True)[0], written()[1]), "is a layer norm, where is_layer_norm"),
        ((written()[0], {}), "activation_func is linear, and the numbers of 8.k's layers say something between"),
        ((written(activation="linear")[0], written()[1]), "activation_func is relu, and the numbers of 8.k's layers"),
    ],
)
def test_a_broken_file_is_told_in_a_line(given, message):
    with pytest.raises(CheckpointError, match=re.escape(message)) as raised:
        read(*given)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------- before a U-Net's keys and values

ONE_LEVEL = checkpoints.UNET | {
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}
UNETS = {
    "apart": ONE_LEVEL | {"cross_attention_dim": 20},
    "alike": ONE_LEVEL | {"cross_attention_dim": 8},  # keys for self-attention are made before the run too, and unread
    "cross only": ONE_LEVEL | {"cross_attention_dim": 8, "only_cross_attention": [True]},
}


@cache
def unet(name: str) -> tuple[UNetConfig, dict]:
    config = UNetConfig.from_dict(UNETS[name])
    return config, checkpoints.random_params(expected_params({"it": config})["it"], np.float32, 3)


def answering(config: UNetConfig):
    """Parameters -> the answer for two pictures, the text of one of which is in three pieces, as a run has it."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((2, 3, 5, config.cross_attention_dim), np.float32)
    x = rng.standard_normal((2, 4, 4, 4), np.float32)
    denoiser = denoiser_of(config, F32)

    @jax.jit
    def run(params):
        given = denoiser.precompute(params, Conditions(Chunks({}, states, jnp.array([3, 1]))))
        return denoiser(params, x, jnp.array([700.0, 20.0]), given)

    return run


@pytest.mark.parametrize(
    ("name", "norm"),
    [("apart", True), *(pytest.param(name, False, marks=pytest.mark.ci) for name in ("alike", "cross only"))],
)
def test_a_unet_is_the_formula(name, norm, monkeypatch):
    config, params = unet(name)
    widths = sorted(input_widths(params))
    two = [read(*written(widths=widths, norm=norm, seed=seed)) for seed in (0, 1)]
    run = answering(config)
    got, zero = (run(attach(params, two, scales)) for scales in ((0.8, -0.5), (0.0, 0.0)))
    hooked = set()

    def hooks(own, x, dtype, path, *product):
        if re.search(r"attn[12]\.to_[kv]$", path):
            hooked.add(path)
            for one, m in zip(two, (0.8, -0.5), strict=True):
                x = x + m * _net(one, own["kernel"].shape[0], path[-1])(x)
        return linear(own, x, dtype, path, *product)

    for module in ("layers", "attention", "unet"):
        monkeypatch.setattr(f"sdjax.nn.{module}.linear", hooks)
    want = answering(config)(params)
    assert len(hooked) == len(
        [path for path in flatten(params) if path[-2:] in (("to_k", "kernel"), ("to_v", "kernel"))]
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * np.abs(want).max())
    assert np.abs(want - zero).max() > 0.05 * np.abs(zero).max()


def _net(made: Hypernetwork, width: int, use: str):
    """by_formula's net alone, in jax's words of the file's tensors: relu everywhere, layer norm where there is one."""
    own = {name.split(".", 3)[3]: jnp.asarray(array) for name, array in made.tensors.items() if
           name.startswith(f"{width}.{use}.")}  # fmt: skip

    def net(h):
        for number in sorted({int(name.split(".")[0]) for name in own}):
            weight, bias = own[f"{number}.weight"], own[f"{number}.bias"]
            if weight.ndim == 2:
                h = jnp.maximum(h @ weight.T + bias, 0)
            else:
                h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5) * weight + bias
        return h

    return net


def test_keys_and_values_of_all_pieces_go_through_it():
    """Those made before the run, and those that `attention_over_chunks` makes of the pieces, are of rewritten texts."""
    rng = np.random.default_rng(0)
    layers = {name: {"kernel": jnp.asarray(rng.standard_normal((16, 8), np.float32))} for name in ("to_k", "to_v")}
    params = {"a": {"attn2": layers}}
    made = read(*written(widths=(16,)))
    worn = attach(params, [made], [0.7])
    states = rng.standard_normal((1, 3, 5, 16)).astype(np.float32)
    k, v = cross_keys_values(worn, states[:, 0], F32)["a.attn2"]
    for got, use in ((k, "k"), (v, "v")):
        want = by_formula(made, 16, use, states[:, 0], 0.7) @ np.asarray(layers[f"to_{use}"]["kernel"])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    q = rng.standard_normal((1, 6, 2, 4)).astype(np.float32)
    out = attention_over_chunks(q, states, jnp.array([3]), worn["a"]["attn2"], path="a.attn2")
    whole = states.reshape(1, 15, 16)
    keys, values = (
        (by_formula(made, 16, use, whole, 0.7) @ np.asarray(layers[f"to_{use}"]["kernel"])).reshape(15, 2, 4)
        for use in "kv"
    )
    scores = np.exp(np.einsum("qhd,mhd->hqm", q[0], keys) / 2)
    want = np.einsum("hqm,mhd->qhd", scores / scores.sum(-1, keepdims=True), values)
    np.testing.assert_allclose(out[0], want, rtol=1e-4, atol=1e-5)


def test_several_are_chained_in_their_order():
    rng = np.random.default_rng(0)
    params = {
        "attn2": {name: {"kernel": jnp.asarray(rng.standard_normal((16, 8), np.float32))} for name in ("to_k", "to_v")}
    }
    one, two = read(*written(widths=(16,), seed=0)), read(*written(widths=(16,), seed=1))
    x = rng.standard_normal((1, 5, 16)).astype(np.float32)
    k, _ = cross_keys_values(attach(params, [one, two], [1.0, 0.5]), x, F32)["attn2"]
    want = by_formula(two, 16, "k", by_formula(one, 16, "k", x, 1.0), 0.5) @ np.asarray(
        params["attn2"]["to_k"]["kernel"]
    )
    np.testing.assert_allclose(k, want, rtol=1e-4, atol=1e-5)
    other, _ = cross_keys_values(attach(params, [two, one], [0.5, 1.0]), x, F32)["attn2"]
    assert np.abs(other - k).max() > 0.1
    assert "before" not in params["attn2"]["to_k"]  # the base is as it was


def test_half_precision_is_summed_in_float32():
    layer = HypernetworkLayer((Step(np.full((2048, 2048), 1e-3, np.float32), np.zeros(2048, np.float32)),), 1.0)
    x = jnp.full((1, 2048), 300.0, jnp.float16)
    assert layer(x).dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(layer(x), np.float32), 300 + 2048 * 0.3, rtol=1e-3)


def test_another_family_is_refused():
    _, params = unet("apart")  # text of 20, a level of 8
    with pytest.raises(ValueError, match=r"'h' is for attention of width 24, 32 .*and m has 8, 20: .*another family"):
        read(*written(widths=(24, 32))).check(params, "m")
    with pytest.raises(ValueError, match="another family"):  # its text is another, though a level fits
        attach(params, [read(*written(widths=(8, 24)))])
    with pytest.warns(UserWarning, match="has no attention of width 24; those layers do nothing"):
        attach(params, [read(*written(widths=(20, 24)))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(params, [read(*written(widths=(8,)))])
        attach(params, [read(*written(widths=(8, 20)))])
