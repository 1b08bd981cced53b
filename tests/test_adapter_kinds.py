"""Kinds of adapters by the golden numbers of ADAPTERS.md, section 10: what several independent programs agreed on.

There f(k, *shape) = sin(arange(n) + k) in float64, and of a result four numbers are held: the first, the last, the
norm, and c = sum(x[i] cos(i)).
"""

import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters.kinds import KINDS, SUFFIXES, fit, read_module


def f(k, *shape):
    return np.sin(np.arange(np.prod(shape)) + k).reshape(shape)


def four(x):
    flat = np.asarray(x).reshape(-1)
    return np.array([flat[0], flat[-1], np.linalg.norm(flat), flat @ np.cos(np.arange(flat.size))])


W, WC, UP, DOWN = f(7, 6, 4), f(7, 6, 4, 3, 3), f(1, 6, 2), f(2, 2, 4)
LORA = {"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": np.array(1.0)}
LOHA = {"hada_w1_a": f(1, 6, 2), "hada_w1_b": f(2, 2, 4), "hada_w2_a": f(3, 6, 2), "hada_w2_b": f(4, 2, 4)}
TUCKER = {
    "hada_w1_a": f(1, 2, 6), "hada_w1_b": f(2, 2, 4), "hada_w2_a": f(3, 2, 6), "hada_w2_b": f(4, 2, 4),
    "hada_t1": f(5, 2, 2, 3, 3), "hada_t2": f(6, 2, 2, 3, 3),
}  # fmt: skip
W1, W2 = {"lokr_w1": f(1, 2, 2)}, {"lokr_w2_a": f(3, 3, 2), "lokr_w2_b": f(4, 2, 2)}
OUTPUTS, INPUTS = np.abs(f(9, 6, 1)) + 1, np.abs(f(9, 1, 4)) + 1
MAGNITUDE = np.abs(f(9, 6)) + 1
OFT, BOFT = {"oft_blocks": 0.1 * f(1, 3, 2, 2)}, {"oft_blocks": 0.1 * f(1, 2, 2, 4, 4)}
GLORA = {"a1.weight": f(1, 4, 2), "a2.weight": f(2, 2, 4), "b1.weight": f(3, 6, 2), "b2.weight": f(4, 2, 4)}
IA3_OUT = {"weight": f(1, 6), "on_input": np.array(0)}
IA3_IN = {"weight": f(1, 4), "on_input": np.array(1)}
CONV = {"lora_up.weight": f(1, 6, 2, 1, 1), "lora_down.weight": f(2, 2, 4, 3, 3)}
MID = {"lora_up.weight": f(1, 6, 2, 1, 1), "lora_mid.weight": f(3, 2, 2, 3, 3), "lora_down.weight": f(2, 2, 4, 1, 1)}
ONE = {"alpha": np.array(1.0)}
ALL = {
    "LoRA": (LORA, W), "LoCon": (CONV | ONE, WC), "mid": (MID | ONE, WC), "LoHa": (LOHA | ONE, W),
    "LoHa Tucker": (TUCKER | ONE, WC), "LoKr": (W1 | W2, W), "DoRA": (LORA | {"dora_scale": OUTPUTS}, W),
    "DoRA of inputs": (LORA | {"dora_scale": INPUTS}, W), "DoRA of LoHa": (LOHA | {"dora_scale": OUTPUTS}, W),
    "DoRA of LoKr": (W1 | W2 | {"dora_scale": OUTPUTS}, W), "OFT": (OFT | {"rescale": OUTPUTS}, W),
    "BOFT": (BOFT, f(7, 8, 4)), "GLoRA": (GLORA | ONE, W), "IA3": (IA3_OUT, W), "diff": ({"diff": f(1, 6, 4)}, W),
    "norm": ({"w_norm": f(1, 6)}, f(2, 6)), "set": ({"set_weight": f(1, 6, 4)}, W),
    "PEFT's OFT": ({"oft_R.weight": 0.1 * f(1, 2, 1)}, W),
}  # fmt: skip


def merged(tensors, weight, scale=1.0, convention="a1111", target="weight"):
    before = weight.copy()
    found = read_module(tensors, convention)[target].apply(weight, scale)
    assert found.dtype == weight.dtype and found.shape == weight.shape and np.array_equal(before, weight)
    return found


def delta(tensors, weight, scale=1.0):
    return merged(tensors, weight, scale) - weight


DELTAS = {
    "G1": (LORA, W, (0.255538, 0.368892, 1.388432, -0.670920)),
    "G2": (CONV | ONE, WC, (0.517317, 0.503335, 5.151925, 12.713962)),
    "G3": (MID | ONE, WC, (0.588466, -0.871071, 7.748596, 6.116858)),
    "G4": (LOHA | ONE, W, (-0.218625, -0.263593, 0.775183, -0.517395)),
    "G5": (TUCKER | ONE, WC, (-0.637830, -0.258686, 7.148097, 0.070116)),
    "G6": (
        W1 | {"lokr_w2": f(2, 3, 2), "alpha": np.array(8.0)}, W,
        (0.765147, -0.497209, 2.461877, 0.309007),
    ),
    "G7": (W1 | W2 | ONE, W, (0.044035, -0.007566, 1.081175, -0.108114)),
    "G8": (
        {"lokr_w1_a": f(5, 2, 1), "lokr_w1_b": f(6, 1, 2)} | W2 | ONE, W,
        (0.014022, -0.001835, 0.528560, -1.168089),
    ),
    "G9": (W1 | {"lokr_w2": f(2, 3, 2, 3, 3)}, WC, (0.765147, 0.756617, 7.621011, -11.326127)),
    "G10": (
        W1 | {"lokr_t2": f(5, 2, 2, 3, 3), "lokr_w2_a": f(3, 2, 3), "lokr_w2_b": f(4, 2, 2)} | ONE, WC,
        (-0.030520, -0.476624, 2.595122, 1.684058),
    ),
    "G11": (
        W1 | {"lokr_w2_a": f(3, 3, 2), "lokr_w2_b": f(4, 2, 18)} | ONE, WC,
        (-0.042116, -0.568817, 4.464181, 9.438731),
    ),
    "G14": (BOFT, f(7, 8, 4), (-0.303770, -0.015781, 2.493033, -2.565283)),
    "G15": (GLORA | ONE, W, (-0.342694, -0.781616, 2.407135, 1.046637)),
    "G16 outputs": (IA3_OUT, W, (0.552835, 0.276071, 2.536284, 0.080746)),
    "G16 inputs": (IA3_IN, W, (0.552835, 0.747745, 2.650024, 1.870796)),
}  # fmt: skip

DORA = LORA | {"dora_scale": OUTPUTS}
G12B, HALF_OFT = (0.671834, -1.104258, 3.755147, 8.856317), (0.729499, -0.951284, 3.513721, 8.438595)
MERGED = {
    "G12a": (DORA, 1, "a1111", (0.686682, -1.220485, 4.088825, 9.297143)),
    "G12b": (DORA, 0.5, "a1111", G12B),
    "G12 lycoris": (DORA, 0.5, "lycoris", (0.799603, -0.919813, 3.728340, 8.520857)),
    "G12c": (LORA | {"dora_scale": INPUTS}, 1, "a1111", (0.839771, -0.691912, 3.277056, 7.186756)),
    "G12d": (LORA | {"dora_scale": INPUTS}, 0.5, "a1111", (0.748379, -0.839972, 3.331730, 7.801124)),
    "G13": (OFT, 1, "a1111", (0.802011, -0.914535, 3.523047, 8.461699)),
    "G13 half": (OFT, 0.5, "a1111", HALF_OFT),
    "G13 half, lycoris": (OFT, 0.5, "lycoris", HALF_OFT),
    "G13 constrained": (OFT | {"alpha": np.array(0.01)}, 1, "a1111", (0.706488, -0.964798, 3.523047, 8.449257)),
    "G17": (LORA | {"lora_magnitude_vector": MAGNITUDE}, 1, "peft", (0.686682, -1.220485, 4.088825, 9.297143)),
    "G17 ours": (LORA | {"lora_magnitude_vector": MAGNITUDE}, 0.5, "a1111", G12B),
    "G17 half": (LORA | {"lora_magnitude_vector": MAGNITUDE}, 0.5, "peft", (0.682744, -1.255345, 4.088825, 9.412836)),
}


@pytest.mark.parametrize("row", DELTAS)
def test_what_is_added(row):
    tensors, weight, expected = DELTAS[row]
    assert np.abs(four(delta(tensors, weight)) - expected).max() < 1e-6
    wide = {name: np.asarray(one, np.float32) for name, one in tensors.items()}
    narrow = delta(wide, weight.astype(np.float32))
    assert np.abs(narrow - delta(tensors, weight)).max() < 1e-6 * max(1, np.abs(narrow).max())


@pytest.mark.parametrize("row", MERGED)
def test_what_a_weight_becomes(row):
    tensors, scale, convention, expected = MERGED[row]
    assert np.abs(four(merged(tensors, W, scale, convention)) - expected).max() < 1e-6


WRONG = {
    "mid the other way round": (lambda: delta(MID | ONE, WC), (-0.140678, -0.140604, 2.700514, -5.100972)),
    "ComfyUI's norm of W": (lambda: merged(DORA, W), (0.940738, -0.794781, 3.925464, 8.884196)),
    "LyCORIS' scale in DoRA": (lambda: merged(DORA, W, 0.5), (0.799603, -0.919813, 3.728340, 8.520857)),
    "OFT's strength twice": (lambda: merged(OFT, W, 0.5), (0.693243, -0.969658, 3.516055, 8.427043)),
    "ComfyUI's constraint": (
        lambda: merged(OFT | {"alpha": np.array(0.01)}, W),
        (0.665358, -0.984220, 3.523047, 8.422408),
    ),
    "PEFT's scale in DoRA": (
        lambda: merged(LORA | {"lora_magnitude_vector": MAGNITUDE}, W, 0.5),
        (0.682744, -1.255345, 4.088825, 9.412836),
    ),
}


@pytest.mark.parametrize("row", WRONG)
def test_what_others_have_wrong_is_not_what_we_have(row):
    ours, theirs = WRONG[row]
    assert np.abs(four(ours()) - theirs).max() > 0.01


def test_each_sees_what_those_before_left():
    first, second = read_module(LORA)["weight"], read_module(IA3_OUT)["weight"]
    after = second.apply(first.apply(W, 1), 1)
    assert np.abs(four(after) - (1.680387, -0.446143, 4.550133, 8.060962)).max() < 1e-6
    both = first.apply(W, 1) + second.apply(W, 1) - W
    assert np.abs(four(both) - (1.465360, -0.343069, 4.398148, 7.825317)).max() < 1e-6


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("convention", ["a1111", "lycoris", "peft"])
def test_scale_0_is_the_weight_to_the_last_bit(name, convention):
    tensors, weight = ALL[name]
    if name == "PEFT's OFT":
        convention = "peft"  # the only one by which it is read
    weight = weight.copy()
    weight.flat[1] = -0.0
    assert merged(tensors, weight, 0, convention).tobytes() == weight.tobytes()


def test_two_in_either_order():
    first, second = read_module(LORA)["weight"], read_module(W1 | W2)["weight"]
    there, back = second.apply(first.apply(W, 0.7), -0.4), first.apply(second.apply(W, -0.4), 0.7)
    assert np.abs(there - back).max() <= 1e-15


def test_factors_make_the_difference():
    for tensors, weight in ((LORA, W), (CONV | ONE, WC), (MID | ONE, WC), (MID | {"scale": np.array(-3.0)}, WC)):
        one = read_module(tensors)["weight"]
        down, up = fit.factors_for(one, weight.shape)
        assert down.shape[1:] == weight.shape[1:] and up.shape == (6, one.rank)
        assert np.abs(np.einsum("or,r...->o...", up, down) - (one.apply(weight, 1) - weight)).max() < 1e-12
    for name in set(ALL) - {"LoRA", "LoCon", "mid"}:
        assert read_module(ALL[name][0], "peft")["weight"].factors() is None, name


def test_a_linear_layer_and_a_1x1_convolution_are_the_same():
    for up in (UP, UP[..., None, None]):
        for down in (DOWN, DOWN[..., None, None]):
            one = LORA | {"lora_up.weight": up, "lora_down.weight": down}
            assert np.allclose(merged(one, W[..., None, None])[..., 0, 0], merged(LORA, W))
            assert np.allclose(merged(one, W), merged(LORA, W))
    for tensors, weight in ALL.values():
        if weight.ndim == 2:
            convention = "peft" if "oft_R.weight" in tensors else "a1111"
            wide = merged(tensors, weight[..., None, None], 0.5, convention)
            assert np.allclose(wide[..., 0, 0], merged(tensors, weight, 0.5, convention), 1e-13, 1e-13)


def test_a_change_of_the_first_convolution_is_continued_by_zeros():
    inpainting = f(1, 6, 9, 3, 3)
    found = merged(CONV | ONE, inpainting, 0.5)
    assert np.allclose(found[:, :4] - inpainting[:, :4], 0.5 * delta(CONV | ONE, WC))
    assert np.array_equal(found[:, 4:], inpainting[:, 4:])
    down, _ = fit.factors_for(read_module(CONV)["weight"], inpainting.shape)
    assert down.shape == (2, 9, 3, 3) and not down[:, 4:].any()
    with pytest.raises(ValueError, match=r"for a weight of \[6, 4, 3, 3\], and this one is \[6, 16, 3, 3\]"):
        read_module(CONV)["weight"].apply(f(1, 6, 16, 3, 3), 1.0)


def test_the_lengths_of_a_square_layer():
    square, down = f(7, 6, 6), f(2, 2, 6)
    lora = {"lora_up.weight": UP, "lora_down.weight": down}
    moved = square + UP @ down
    rows = moved * (MAGNITUDE / np.linalg.norm(moved, axis=1))[:, None]
    columns = moved * (MAGNITUDE / np.linalg.norm(moved, axis=0))
    for name, shape, expected in (
        ("dora_scale", (6,), rows), ("lora_magnitude_vector", (6,), rows), ("dora_scale", (6, 1), rows),
        ("dora_scale", (1, 6), columns),
    ):  # fmt: skip
        assert np.abs(merged(lora | {name: MAGNITUDE.reshape(shape)}, square) - expected).max() < 1e-12


def test_the_lengths_of_a_convolution():
    conv = CONV | {"lora_up.weight": f(1, 4, 2), "lora_down.weight": f(2, 2, 4, 3, 3)}
    weight, lengths = f(7, 4, 4, 3, 3), np.abs(f(9, 4)) + 1
    moved = weight + np.einsum("or,rixy->oixy", f(1, 4, 2), f(2, 2, 4, 3, 3))
    rows = moved * (lengths / np.sqrt((moved**2).sum((1, 2, 3))))[:, None, None, None]
    columns = moved * (lengths / np.sqrt((moved**2).sum((0, 2, 3))))[None, :, None, None]
    for name, shape, expected in (
        ("lora_magnitude_vector", (1, 4, 1, 1), rows), ("dora_scale", (1, 4, 1, 1), columns),
        ("dora_scale", (4, 1, 1, 1), rows),
    ):  # fmt: skip
        assert np.abs(merged(conv | {name: lengths.reshape(shape)}, weight) - expected).max() < 1e-12
    # PEFT's by LyCORIS' name, where the weight is not square: it can be only outputs'.
    tall = {"lora_up.weight": f(1, 6, 2), "lora_down.weight": f(2, 2, 4, 3, 3)}
    shape = (1, 6, 1, 1)
    found = merged(tall | {"dora_scale": MAGNITUDE.reshape(shape)}, WC)
    assert np.array_equal(found, merged(tall | {"lora_magnitude_vector": MAGNITUDE}, WC))
    assert np.allclose(np.sqrt((found**2).sum((1, 2, 3))), MAGNITUDE)


def test_dora_around_other_kinds():
    for inner in (LOHA, W1 | W2):
        moved = merged(inner, W)
        expected = W + 0.5 * (moved * OUTPUTS / np.linalg.norm(moved, axis=1, keepdims=True) - W)
        assert np.abs(merged(inner | {"dora_scale": OUTPUTS}, W, 0.5) - expected).max() < 1e-12


def test_a_row_of_nothing_stays_nothing():
    still = {"lora_up.weight": np.zeros((6, 2)), "lora_down.weight": DOWN, "dora_scale": OUTPUTS}
    assert not merged(still, np.zeros((6, 4))).any()


def test_alpha_and_scale():
    plain = {"lora_up.weight": UP, "lora_down.weight": DOWN}
    assert np.allclose(delta(plain, W), UP @ DOWN)
    assert np.allclose(delta(plain | {"alpha": np.array([4.0])}, W), 2 * UP @ DOWN)
    assert np.allclose(delta(plain | {"alpha": np.array(4, jnp.bfloat16)}, W), 2 * UP @ DOWN)
    assert np.allclose(delta(LORA | {"scale": np.array(3.0)}, W), 3 * UP @ DOWN)
    assert np.allclose(delta(LORA | {"bias": f(3, 6, 4)}, W), 0.5 * (UP @ DOWN + f(3, 6, 4)))
    assert np.allclose(delta(W1 | {"lokr_w2": f(2, 3, 2), "scale": np.array(2.0)}, W), 2 * np.kron(*_pair()))
    assert np.allclose(merged(LORA | {"lora_up.bias": f(3, 6)}, f(4, 6), 2, target="bias"), f(4, 6) + f(3, 6))


def _pair():
    return f(1, 2, 2), f(2, 3, 2)


def test_narrow_files_are_multiplied_in_float32():
    narrow = {name: np.asarray(one).astype(jnp.bfloat16) for name, one in LORA.items()}
    weight, down = W.astype(np.float32), narrow["lora_down.weight"].astype(np.float32)
    expected = weight + 0.5 * narrow["lora_up.weight"].astype(np.float32) @ down
    assert np.abs(merged(narrow, weight) - expected).max() < 1e-6


def test_differences_of_weights_biases_and_norms():
    assert np.allclose(delta({"diff": f(1, 6, 4)}, W, 0.5), 0.5 * f(1, 6, 4))
    both = read_module({"w_norm": f(1, 6), "b_norm": f(2, 6)})
    assert np.allclose(both["weight"].apply(f(3, 6), 2), f(3, 6) + 2 * f(1, 6))
    assert np.allclose(both["bias"].apply(f(3, 6), 2), f(3, 6) + 2 * f(2, 6))
    lora = read_module(LORA | {"diff_b": f(2, 6)})
    assert lora["weight"].kind == "LoRA" and np.allclose(lora["bias"].apply(np.zeros(6), 0.5), 0.5 * f(2, 6))
    assert np.array_equal(merged({"set_weight": f(1, 6, 4)}, W, 0.3), f(1, 6, 4))
    assert np.allclose(delta({"diff": f(1, 6, 4), "alpha": np.array(4.0)}, W), f(1, 6, 4))


def test_rotations_keep_lengths():
    # The rows of a block are turned together, so what stays is the block's length in every column.
    def lengths(x, size):
        return np.linalg.norm(x.reshape(-1, size, x.shape[1]), axis=1)

    assert np.allclose(lengths(merged(OFT, W), 2), lengths(W, 2))
    weight = f(7, 8, 4)
    assert np.allclose(np.linalg.norm(merged(BOFT, weight), axis=0), np.linalg.norm(weight, axis=0))
    assert not np.allclose(lengths(merged(BOFT, weight), 4), lengths(weight, 4))


def test_rotations_as_they_are_and_rescaled():
    q = OFT["oft_blocks"] - OFT["oft_blocks"].swapaxes(1, 2)
    rotation = np.stack([(np.eye(2) + one) @ np.linalg.inv(np.eye(2) - one) for one in q])
    assert np.allclose(merged({"oft_diag": rotation}, W, 0.5), merged(OFT, W, 0.5))
    rescaled = OFT | {"rescale": OUTPUTS}
    assert np.allclose(merged(rescaled, W, 0.5), W + 0.5 * (OUTPUTS * merged(OFT, W) - W))
    assert np.allclose(merged(rescaled, W, 0.5, "lycoris"), OUTPUTS * merged(OFT, W, 0.5))
    assert np.array_equal(merged(OFT | {"alpha": np.array(0.0)}, W), merged(OFT, W))
    assert np.array_equal(merged(OFT | {"alpha": np.array(10.0)}, W), merged(OFT, W))


def test_pefts_oft_turns_inputs():
    weight, turned = f(7, 6, 8), np.empty((6, 8))
    triangles = 0.1 * f(1, 2, 6)  # two blocks of 4 inputs
    for k in range(2):
        q = np.zeros((4, 4))
        q[np.triu_indices(4, 1)] = triangles[k]
        q -= q.T
        rotation = np.eye(4) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
        exact = (np.eye(4) + q) @ np.linalg.inv(np.eye(4) - q)
        assert 1e-9 < np.abs(rotation - exact).max() < 1e-2
        for o in range(6):
            for p in range(4):
                turned[o, 4 * k + p] = sum(rotation[p, j] * weight[o, 4 * k + j] for j in range(4))
    found = merged({"oft_R.weight": triangles}, weight, 0.5, "peft")
    assert np.abs(found - (weight + 0.5 * (turned - weight))).max() < 1e-12
    shared = merged({"oft_R.weight": triangles[:1]}, weight, 1.0, "peft")
    assert np.allclose(shared[:, :4], turned[:, :4])
    assert np.allclose(shared[:, 4:], merged({"oft_R.weight": triangles[:1]}, weight[:, 4:], 1.0, "peft"))


def test_a_butterfly_at_half_strength():
    weight, q = f(7, 8, 4), BOFT["oft_blocks"] - BOFT["oft_blocks"].swapaxes(2, 3)
    one = np.eye(4)
    stages = [[(one + b) @ np.linalg.inv(one - b) for b in stage] for stage in q]

    def turned(scale):
        x = weight
        for j, stage in enumerate(stages):
            # The rows that meet: those whose numbers differ by the stride come to stand side by side.
            stride = 2**j * 2
            order = [half * stride + place + 2 * stride * c for c in range(4 // stride) for place in range(stride)
                     for half in range(2)]  # fmt: skip
            y = np.empty_like(x)
            for b, block in enumerate(stage):
                rows = order[4 * b : 4 * b + 4]
                y[rows] = (one + scale * (block - one)) @ x[rows]
            x = y
        return x

    assert np.allclose(merged(BOFT, weight), turned(1.0))
    assert np.allclose(merged(BOFT, weight, 0.5, "lycoris"), turned(0.5))
    assert np.allclose(merged(BOFT, weight, 0.5), weight + 0.5 * (turned(1.0) - weight))


def test_glora_in_both_layouts():
    old = {"a1.weight": f(2, 2, 4), "a2.weight": f(1, 4, 2), "b1.weight": f(4, 2, 4), "b2.weight": f(3, 6, 2)}
    assert np.array_equal(merged(old | ONE, W), merged(GLORA | ONE, W))
    weight = f(7, 6, 6)
    square = {"a1.weight": f(1, 6, 2), "a2.weight": f(2, 2, 6), "b1.weight": f(3, 6, 2), "b2.weight": f(4, 2, 6)}
    expected = weight + 0.5 * (weight @ f(1, 6, 2) @ f(2, 2, 6) + f(3, 6, 2) @ f(4, 2, 6))
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    swapped = {name: square[names[i]] for name, i in zip(names, (1, 0, 3, 2), strict=True)}
    assert np.allclose(merged(square | ONE, weight), expected)
    assert np.allclose(merged(swapped | ONE, weight), expected)
    with pytest.raises(ValueError, match="nothing tells which"):
        read_module({name: f(1, 6, 6) for name in names})


def test_glora_of_a_convolution():
    conv = {"a1.weight": f(1, 4, 2, 1, 1), "a2.weight": f(2, 2, 4, 1, 1), "b1.weight": f(3, 6, 2, 1, 1)}
    whole = conv | {"b2.weight": f(4, 2, 4, 3, 3)}
    turned = np.einsum("ojyx,ji->oiyx", WC, f(1, 4, 2) @ f(2, 2, 4))
    expected = WC + turned + np.einsum("or,rixy->oixy", f(3, 6, 2), f(4, 2, 4, 3, 3))
    assert np.allclose(merged(whole, WC), expected)
    tucker = conv | {"b2.weight": f(4, 2, 4, 1, 1), "bm.weight": f(5, 2, 2, 3, 3)}
    expected = WC + turned + np.einsum("op,pqxy,qi->oixy", f(3, 6, 2), f(5, 2, 2, 3, 3), f(4, 2, 4))
    assert np.allclose(merged(tucker, WC), expected)


def test_ia3_of_a_convolution():
    found = merged({"weight": f(1, 1, 6, 1, 1), "on_input": np.array(False)}, WC, 0.5)
    assert np.allclose(found, WC * (1 + 0.5 * f(1, 6)[:, None, None, None]))
    found = merged({"weight": f(1, 1, 4, 1, 1), "on_input": np.array(True)}, WC)
    assert np.allclose(found, WC * (1 + f(1, 4)[None, :, None, None]))


def test_kinds_and_ranks():
    told = {name: read_module(tensors, "peft")["weight"] for name, (tensors, _) in ALL.items()}
    assert {name: one.kind for name, one in told.items()} == {
        "LoRA": "LoRA", "LoCon": "LoCon", "mid": "LoCon", "LoHa": "LoHa", "LoHa Tucker": "LoHa", "LoKr": "LoKr",
        "DoRA": "DoRA", "DoRA of inputs": "DoRA", "DoRA of LoHa": "DoRA of LoHa", "DoRA of LoKr": "DoRA of LoKr",
        "OFT": "OFT", "BOFT": "BOFT", "GLoRA": "GLoRA", "IA3": "IA3", "diff": "diff", "norm": "norm", "set": "set",
        "PEFT's OFT": "OFT (PEFT)",
    }  # fmt: skip
    assert {name for name, one in told.items() if one.additive} == {
        "LoRA", "LoCon", "mid", "LoHa", "LoHa Tucker", "LoKr", "diff", "norm"
    }  # fmt: skip
    assert {one.rank for one in told.values()} == {2, None}
    assert len(set(SUFFIXES)) == len(SUFFIXES) and {mark for kind in KINDS for mark in kind.marks} <= set(SUFFIXES)


def test_a_weight_of_another_shape_is_refused():
    for name, (tensors, weight) in ALL.items():
        one = read_module(tensors, "peft")["weight"]
        one.check(weight.shape)
        other = tuple(size + 1 for size in weight.shape)
        for refuse in (lambda one=one, other=other: one.check(other),
                       lambda one=one, other=other: one.apply(np.zeros(other), 1.0)):  # fmt: skip
            with pytest.raises(ValueError, match="weight"):
                refuse()
            assert name


def without(tensors, *names):
    return {name: one for name, one in tensors.items() if name not in names}


BAD = {
    "a partner that is missing": (without(LORA, "lora_down.weight"), "lora_down.weight is missing beside lora_up"),
    "up is missing": (without(LORA, "lora_up.weight"), "lora_up.weight is missing"),
    "half a LoHa": (without(LOHA, "hada_w2_b"), "hada_w2_b is missing"),
    "one core": (without(TUCKER, "hada_t2"), "hada_t2 is missing"),
    "half a LoKr": (W1, "lokr_w2, or lokr_w2_a with lokr_w2_b, is missing"),
    "half a factor": (W1 | {"lokr_w2_a": f(1, 3, 2)}, "lokr_w2_b is missing"),
    "half a GLoRA": (without(GLORA, "a2.weight"), "a2.weight is missing"),
    "IA3 without its side": ({"weight": f(1, 6)}, "on_input is missing"),
    "IA3's side is no side": (IA3_OUT | {"on_input": np.array(2)}, "on_input is 2.0, and must be 0 or 1"),
    "IA3 with a matrix": (IA3_OUT | {"weight": f(1, 6, 4)}, "a number for every output"),
    "ranks": (LORA | {"lora_up.weight": f(1, 6, 3)}, "ranks do not fit: lora_up.weight has 3, lora_down.weight has 2"),
    "ranks of mid": (MID | {"lora_mid.weight": f(1, 3, 2, 3, 3)}, "ranks do not fit"),
    "ranks of LoHa": (LOHA | {"hada_w1_a": f(1, 6, 3)}, "ranks do not fit: hada_w1_a has 3, hada_w1_b has 2"),
    "sizes of LoHa": (LOHA | {"hada_w2_a": f(1, 7, 2)}, "different sizes"),
    "ranks of LoKr": (W1 | W2 | {"lokr_w2_b": f(1, 3, 2)}, "ranks do not fit"),
    "ranks of its core": (
        W1 | {"lokr_t2": f(5, 2, 3, 3, 3), "lokr_w2_a": f(3, 2, 3), "lokr_w2_b": f(4, 2, 2)}, "ranks do not fit",
    ),
    "ranks of GLoRA": (GLORA | {"a1.weight": f(1, 4, 3)}, "do not fit, in either of GLoRA's layouts"),
    "alpha 0": (LORA | {"alpha": np.array(0.0)}, "alpha is 0, .* store the alpha that was meant, or leave it out"),
    "scale 0": (LORA | {"scale": np.array(0.0)}, "scale is 0"),
    "alpha NaN": (LORA | {"alpha": np.array(np.nan)}, "alpha is nan, and must be a finite number"),
    "many alphas": (LORA | {"alpha": f(1, 3)}, r"alpha is \[3\], and must be one number"),
    "alpha of LoKr": (W1 | {"lokr_w2": f(2, 3, 2), "alpha": np.array(np.inf)}, "alpha is inf"),
    "alpha of OFT": (OFT | {"alpha": np.array(-1.0)}, "cannot be below 0"),
    "left over": (LORA | {"hada_t1": f(1, 2, 2, 3, 3)}, "hada_w1_a is missing"),
    "left over beside a LoRA": (LORA | {"something": f(1, 2)}, "something: nothing reads them in LoRA"),
    "lengths of nothing": ({"dora_scale": OUTPUTS}, "dora_scale: nothing reads them without the tensors"),
    "lengths of IA3": (IA3_OUT | {"dora_scale": OUTPUTS}, "dora_scale: nothing reads them in IA3"),
    "lengths twice": (DORA | {"lora_magnitude_vector": MAGNITUDE}, "say the same thing twice"),
    "two kinds": (LORA | {"diff": f(1, 6, 4)}, "two kinds change its weight, LoRA and diff"),
    "two of one kind": ({"diff": f(1, 6, 4), "w_norm": f(1, 6)}, "w_norm says once more"),
    "set and diff": ({"diff": f(1, 6, 4), "set_weight": f(1, 6, 4)}, "set_weight says once more"),
    "another shape": ({"reshape_weight": f(1, 2)}, "reshape_weight asks for a weight of another shape"),
    "no matrix": (LORA | {"lora_up.weight": f(1, 12)}, "lora_up.weight is .12., and must be a matrix"),
    "no kernel": (LORA | {"lora_down.weight": f(1, 2, 4, 3)}, "must have 2 or 4 axes"),
    "nothing in it": (LORA | {"lora_up.weight": f(1, 6, 0), "lora_down.weight": f(1, 0, 4)}, "is empty"),
    "whole numbers": (LORA | {"lora_up.weight": np.ones((6, 2), np.int32)}, "holds int32, not floating-point"),
    "A1111's bias": (LORA | {"bias": f(1, 6)}, r"bias is \[6\], and must have the size of the weight, \[6, 4\]"),
    "blocks": ({"oft_blocks": f(1, 3, 2, 4)}, "must be square blocks"),
    "butterflies": ({"oft_blocks": f(1, 3, 3, 2, 2)}, "3 butterflies do not go into 6 rows"),
    "rescale": (OFT | {"rescale": f(1, 5)}, "rescale is .5., and must have 6 numbers"),
    "rescale alone": ({"rescale": f(1, 5)}, "is missing"),
    "PEFT's OFT": ({"oft_R.weight": f(1, 2, 1)}, "oft_R.weight is PEFT's OFT.*convention='peft'"),
    "PEFT's triangles": ({"oft_R.weight": f(1, 2, 2)}, "upper triangles"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_one_sentence_of_what_is_wrong(what):
    tensors, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        read_module(tensors)


def test_a_convention_of_another_name():
    with pytest.raises(ValueError, match="convention 'a111' is unknown; nearest: 'a1111'"):
        read_module(LORA, "a111")


def test_nothing_is_allocated_by_what_a_file_says():
    # A file of a few kilobytes whose product would take a terabyte: read and refused without making it.
    tall = {"lora_up.weight": np.ones((500_000, 1)), "lora_down.weight": np.ones((1, 500_000))}
    kron = {"lokr_w1": np.ones((1000, 1000)), "lokr_w2": np.ones((1000, 1000))}
    for tensors in (tall, kron):
        with pytest.raises(ValueError, match="for a weight of"):
            read_module(tensors)["weight"].apply(W, 1.0)
