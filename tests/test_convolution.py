"""The cheaper forms of a convolution against XLA's own, and attention in blocks against attention at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.core.devices import tracing_for
from sdjax.nn import attention, convolution, winograd
from sdjax.nn.layers import nearest


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def plain(x: jax.Array, kernel: jax.Array, padding: convolution.Padding) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def assert_same(one, other, *args: jax.Array) -> None:
    """Equal results, and equal gradients of a nonlinear function of them."""

    def answer(f, *args: jax.Array):
        y, back = jax.vjp(f, *args)
        return y, back(jnp.cos(y))

    (mine, gradients), (want, wanted) = (jax.jit(answer, static_argnums=0)(f, *args) for f in (one, other))
    np.testing.assert_allclose(mine, want, rtol=1e-4, atol=1e-4)
    for one_gradient, other_gradient in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(one_gradient, other_gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (0, 1)), ((0, 0), (2, 1))])
def test_few_pixels_under_a_large_kernel(padding):
    x, kernel = draw(2, 3, 4, 5), draw(3, 3, 5, 96)
    assert kernel.size // 5 > convolution.KERNEL_TO_PICTURE * 2 * 3 * 4
    assert_same(lambda *a: convolution.convolve(*a, 1, padding), lambda *a: plain(*a, padding), x, kernel)


@pytest.mark.parametrize("at_once", [1, 16 * 2 * 2 * 4 * 6, 2**22])  # strips of one row of tiles, of some, of all
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (0, 1)), ((0, 0), (2, 1))])
@pytest.mark.parametrize("size", [(10, 8), (9, 7), (3, 3)])
def test_in_fewer_multiplications(monkeypatch, size, padding, at_once):
    monkeypatch.setattr(winograd, "AT_ONCE", at_once)
    x, kernel = draw(2, *size, 5), draw(3, 3, 5, 6)
    assert_same(lambda *a: winograd.convolve(*a, padding), lambda *a: plain(*a, padding), x, kernel)


def test_many_channels_take_fewer_multiplications():
    """Those of 36 products in 16: what Stable Diffusion's convolutions on a CPU are."""
    x, kernel = draw(1, 40, 40, 128), draw(3, 3, 128, 128)
    asked = jax.jit(lambda *a: convolution.convolve(*a, 1, ((1, 1), (1, 1)))).lower(x, kernel)
    flops = 2 * 40 * 40 * 9 * 128 * 128
    assert asked.compile().cost_analysis()["flops"] < 0.55 * flops
    got, want = convolution.convolve(x, kernel, 1, ((1, 1), (1, 1))), plain(x, kernel, ((1, 1), (1, 1)))
    np.testing.assert_allclose(got, want, atol=5e-6 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 5), (1, 16, 9, 5)])
def test_a_doubled_picture(shape):
    def enlarged(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return plain(nearest(x, (2 * x.shape[1], 2 * x.shape[2])), kernel, ((1, 1), (1, 1)))

    assert_same(convolution.convolve_doubled, enlarged, draw(*shape), draw(3, 3, 5, 6))


@pytest.mark.parametrize("platform, block", [("cpu", (1, 4)), ("tpu", (3, 4)), ("gpu", (6, 4))])
@pytest.mark.parametrize("queries", [12, 13])
def test_attention_in_blocks(monkeypatch, queries, platform, block):
    """The forms of all platforms, run on this one."""
    q, k, v = draw(2, queries, 3, 4), draw(2, 7, 3, 4), draw(2, 7, 3, 4)
    monkeypatch.setattr(attention, "FEW_SCORES", 0)
    monkeypatch.setattr(attention, "CPU_SCORES", 5 * 7)
    monkeypatch.setattr(attention, "TPU_SCORES", 3 * 5 * 7)
    monkeypatch.setattr(attention, "TPU_HEADS", 3)
    monkeypatch.setattr(attention, "SCORES", 6 * 5 * 7)

    def at_once(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(jnp.einsum("blkd,bmkd->bklm", q, k) / 2, axis=-1)
        return jnp.einsum("bklm,bmkd->blkd", weights, v)

    with tracing_for(platform):
        assert queries == 13 or attention._block(6, queries, 7) == block
        assert_same(attention.attention, at_once, q, k, v)
