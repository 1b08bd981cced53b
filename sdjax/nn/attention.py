"""Attention, and the transformer that stands between the U-Net's convolutions.

    softmax(Q K^T / sqrt(d)) V                                                        (Vaswani et al. 2017, eq. 1)

The `l x l` score matrix of a 512 x 512 picture (4,096 tokens, 8 heads, two guidance halves) would be 1 GiB. On a
GPU in 16-bit precision cuDNN never forms it; everywhere else heads and queries go through in blocks (`lax.map`): few
enough at a time that their scores stay in a CPU's cache, or in a TPU's fast memory, and never travel.

Text enters through cross-attention only, so its keys and values are the same at every sampling step:
`cross_keys_values` computes them once, outside the loop, and the U-Net takes them in place of the text.
"""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.core.devices import on_cpu, platform
from sdjax.core.tree import modules_named
from sdjax.nn.conditioning import Chunks, KeysValues, Signals
from sdjax.nn.injections import ImageTokens
from sdjax.nn.layers import Conv, Dense, GroupNorm, LayerNorm, gelu
from sdjax.nn.linear import linear
from sdjax.nn.parameter import path_of

Sums = tuple[jax.Array, jax.Array, jax.Array]  # of a running softmax: the largest score, the weights, the values

# Scores held at once, in elements: in a CPU's cache (8 MiB of float32), in a TPU's fast memory (80 MiB, which 5 heads
# share where there are as many), elsewhere in memory (256 MiB). Few enough need no loop.
CPU_SCORES, TPU_SCORES, TPU_HEADS, SCORES, FEW_SCORES = 2**21, 5 * 2**22, 5, 2**26, 2**20


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = False, upcast: bool = False) -> jax.Array:
    """Multi-head attention: q `b l k d`, k and v `b m k d` (k heads) -> `b l k d`, in q's dtype.

    The softmax is float32 always; `upcast` also takes the scores in float32 (SD 2.1's `upcast_attention`, whose
    products overflow float16). `causal` lets token i see tokens 0..i.
    """
    if _cudnn_takes(q) and not upcast:
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    q, k, v = (part.swapaxes(1, 2) for part in (q, k, v))
    few = q.size // q.shape[-1] * k.shape[2] <= FEW_SCORES
    out = _attend(q, k, v, causal, upcast) if causal or few else _attend_in_blocks(q, k, v, upcast)
    return out.swapaxes(1, 2)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, upcast: bool) -> jax.Array:
    """q `... l d`, k and v `... m d` -> `... l d`."""
    if upcast:
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    scores = jnp.einsum("...ld,...md->...lm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if causal:
        visible = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(visible, scores, -jnp.inf)
    # Dividing after the product with v touches l x d numbers where softmax would touch l x m.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("...lm,...md->...ld", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / total).astype(v.dtype)


def _attend_in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, upcast: bool) -> jax.Array:
    """q `b k l d`, k and v `b k m d` (k heads) -> `b k l d`, a block of queries at a time."""
    shape, pairs = q.shape, q.shape[0] * q.shape[1]
    together, block = _block(pairs, q.shape[2], k.shape[2])

    # Scores are made again on the way back: kept, they would be most of what training holds.
    attend = jax.checkpoint(partial(_attend, causal=False, upcast=upcast), prevent_cse=False)

    def head(parts: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, k, v = parts
        out = jax.lax.map(lambda rows: attend(rows, k, v), q.reshape(-1, block, q.shape[-1]))
        return out.reshape(q.shape)

    # A product of two matrices runs two to five times faster on a CPU than the same one with batch dimensions.
    q, k, v = (part.reshape(pairs, *part.shape[2:]) for part in (q, k, v))
    if together == pairs:
        return jax.vmap(head)((q, k, v)).reshape(shape)
    return jax.lax.map(head, (q, k, v), batch_size=None if together == 1 else together).reshape(shape)


def attention_over_chunks(
    q: jax.Array,
    states: jax.Array,
    count: jax.Array,
    layers: Mapping[str, Mapping[str, jax.Array]],
    *,
    path: str,
    upcast: bool = False,
) -> jax.Array:
    """Attention to a text in pieces: q `b l k d`, states `b c m e`, count `b` -> `b l k d`, in q's dtype.

    layers: the parameters of `to_k` and `to_v`, from states to keys and values. path: of the attention they are in.

    One piece after the other by a running softmax (Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3); pieces
    that no picture of the batch has are skipped. Raises ValueError as `linear` does.
    """
    wide = q.astype(jnp.float32) if upcast else q
    heads, scale = q.shape[2], q.shape[-1] ** -0.5

    def add(sums: Sums, piece: jax.Array, here: jax.Array) -> Sums:
        most, total, out = sums
        k, v = (split_heads(part, heads) for part in _keys_values(layers, piece, q.dtype, path))
        scores = jnp.einsum("blkd,bmkd->bklm", wide * scale, k.astype(wide.dtype), preferred_element_type=jnp.float32)
        scores = jnp.where(here[:, None, None, None], scores, -jnp.inf)
        new = jnp.maximum(most, jax.lax.stop_gradient(scores.max(-1)))
        weights, keep = jnp.exp(scores - new[..., None]), jnp.exp(most - new)
        mixed = jnp.einsum("bklm,bmkd->bkld", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return new, total * keep + weights.sum(-1), out * keep[..., None] + mixed

    def step(sums: Sums, now: tuple[jax.Array, jax.Array]) -> tuple[Sums, None]:
        piece, index = now
        here = index < count
        return jax.lax.cond(here.any(), add, lambda sums, *_: sums, sums, piece, here), None

    shape = (q.shape[0], heads, q.shape[1])
    lowest = jnp.full(shape, jnp.finfo(jnp.float32).min, jnp.float32)
    start = (lowest, jnp.zeros(shape, jnp.float32), jnp.zeros((*shape, q.shape[-1]), jnp.float32))
    (_, total, out), _ = jax.lax.scan(step, start, (states.swapaxes(0, 1), jnp.arange(states.shape[1])))
    return (out / total[..., None]).swapaxes(1, 2).astype(q.dtype)


def _block(pairs: int, queries: int, keys: int) -> tuple[int, int]:
    """How many pairs of a picture and a head go together, and how many queries of each, where all have `keys`."""
    if platform() == "tpu":
        rows = _divisor(queries, TPU_SCORES // (min(pairs, TPU_HEADS) * keys))
        return _divisor(pairs, TPU_SCORES // (rows * keys)), rows
    if on_cpu():
        return 1, _divisor(queries, CPU_SCORES // keys)
    return pairs, _divisor(queries, SCORES // pairs // keys)


def _divisor(whole: int, most: int) -> int:
    """The largest divisor of `whole` that is at most `most`, which counts as 1 if it is less."""
    return max(n for n in range(1, max(1, min(whole, most)) + 1) if whole % n == 0)


def _cudnn_takes(q: jax.Array) -> bool:
    """Whether cuDNN's fused attention has a kernel for it: 16-bit, head size a multiple of 8 up to 256."""
    if q.dtype not in (jnp.float16, jnp.bfloat16) or q.shape[-1] % 8 or q.shape[-1] > 256:
        return False
    return platform() == "gpu"


class Attention(nn.Module):
    """Projections around `attention`: x `b l d` attends to the signals' text, or to itself where there are none."""

    heads: int
    dtype: DTypeLike
    qkv_bias: bool = False
    upcast: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, signals: Signals | None = None) -> jax.Array:
        features, source = x.shape[-1], x if signals is None else signals.conditions.context
        q = split_heads(Dense(features, self.dtype, self.qkv_bias, name="to_q")(x), self.heads)
        if isinstance(source, Chunks):
            out = self._to_chunks(q, source)
        else:
            out = attention(q, *self._keys_values(source, features), upcast=self.upcast)
        for image in () if signals is None else signals.injected.images:
            out = out + self._to_image(q, image)
        return Dense(features, self.dtype, name="to_out.0")(out.reshape(x.shape))

    def _to_image(self, q: jax.Array, image: ImageTokens) -> jax.Array:
        """Attention of q `b l k d` to a picture's own keys and values, as strongly as it counts: a softmax of its own.

        Nothing where the picture has none for this attention, as an x4 upscaler's first of each pair.
        """
        path = path_of(self)
        if path not in image.keys_values:
            return jnp.zeros_like(q)
        k, v = (split_heads(part, self.heads) for part in image.keys_values[path])
        weight = image.weight(path, q.shape[1])[:, :, None, None]
        return weight.astype(q.dtype) * attention(q, k, v, upcast=self.upcast)

    def _keys_values(self, source: jax.Array | KeysValues, features: int) -> tuple[jax.Array, ...]:
        """`b m k d` each: looked up where they are made already."""
        if isinstance(source, Mapping):
            made = source[path_of(self)]
        else:
            made = tuple(Dense(features, self.dtype, self.qkv_bias, name=f"to_{part}")(source) for part in "kv")
        return tuple(split_heads(part, self.heads) for part in made)

    def _to_chunks(self, q: jax.Array, text: Chunks) -> jax.Array:
        """Attention of q `b l k d` to a text in pieces, `b l k d`: of one piece as ever, of more one by one."""
        k, v = self._keys_values(text.first, q.shape[-1])
        if text.states.shape[1] == 1:
            return attention(q, k, v, upcast=self.upcast)
        layers = {name: self.variables["params"][name] for name in ("to_k", "to_v")}
        return jax.lax.cond(
            (text.count > 1).any(),
            partial(attention_over_chunks, path=path_of(self), upcast=self.upcast),
            lambda q, *_: attention(q, k, v, upcast=self.upcast),
            *(q, text.states, text.count, layers),
        )


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """`b l (k d) -> b l k d`."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def cross_keys_values(params: Mapping, context: jax.Array, dtype: DTypeLike) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Keys and values of every cross-attention in a U-Net's `params`, for a context `b m e`: {path: (k, v)}, `b m d`.

    A self-attention whose width happens to equal the context's is computed too, and read by nobody. Raises ValueError
    as `linear` does.
    """
    return {
        path: _keys_values(layers, context, dtype, path)
        for path, layers in modules_named(params, ("attn1", "attn2"))
        if layers["to_k"]["kernel"].shape[0] == context.shape[-1]
    }


def _keys_values(
    layers: Mapping[str, Mapping[str, jax.Array]], source: jax.Array, dtype: DTypeLike, path: str
) -> tuple[jax.Array, jax.Array]:
    """By the layers `to_k` and `to_v` of the attention at `path`: source `b m e` -> `b m d` each."""
    k, v = (linear(layers[name], source, dtype, f"{path}.{name}") for name in ("to_k", "to_v"))
    return k, v


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020) and a projection back: `b l d -> b l d`, four times as wide in between. Exact erf GELU."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        value, gate = jnp.split(Dense(8 * features, self.dtype, name="net.0.proj")(x), 2, axis=-1)
        return Dense(features, self.dtype, name="net.2")(value * gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each after a LayerNorm and around a residual: `b l d -> b l d`.

    `only_cross` lets the first attention look at the text too, as the x4 upscaler's levels do.
    """

    heads: int
    dtype: DTypeLike
    upcast: bool = False
    only_cross: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, signals: Signals) -> jax.Array:
        normed = LayerNorm(1e-5, self.dtype, name="norm1")(x)
        attn1 = Attention(self.heads, self.dtype, upcast=self.upcast, name="attn1")
        x = x + attn1(normed, signals if self.only_cross else None)
        normed = LayerNorm(1e-5, self.dtype, name="norm2")(x)
        x = x + Attention(self.heads, self.dtype, upcast=self.upcast, name="attn2")(normed, signals)
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(1e-5, self.dtype, name="norm3")(x))


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels of `b h w c` as tokens, between two projections and around a residual.

    The projections are 1 x 1 convolutions in SD 1.x and linear layers in SD 2.x and SDXL: the same product, stored
    in another shape. The entry norm's epsilon is 1e-6 while the resnets beside it have 1e-5.
    """

    heads: int
    layers: int
    groups: int
    linear_projection: bool
    dtype: DTypeLike
    upcast: bool = False
    only_cross: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, signals: Signals) -> jax.Array:
        b, h, w, c = x.shape
        tokens = self._projection("proj_in", c)(GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x))
        tokens = tokens.reshape(b, h * w, c)
        kind = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        for i in range(self.layers):
            block = kind(self.heads, self.dtype, self.upcast, self.only_cross, name=f"transformer_blocks.{i}")
            tokens = block(tokens, signals)
        return x + self._projection("proj_out", c)(tokens.reshape(b, h, w, c))

    def _projection(self, name: str, features: int) -> nn.Module:
        if self.linear_projection:
            return Dense(features, self.dtype, name=name)
        return Conv(features, self.dtype, size=1, name=name)
