"""The sound adapters of `fuzz_adapters`: small files of every dialect and kind, and what their names mean.

They are for one small Stable Diffusion 1.x and one small SDXL of random shapes. Each name is written out here from a
module's path by string formatting alone, so that no table of names is trusted to judge itself: `MEANS` says of every
tensor of a base which module and which of its tensors it is.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.weights.write import Draft, write_tensors

Means = dict[str, tuple[str, str, str]]  # by name: the component, the path of the module, kohya's word for the tensor
RANK = 2
# Of the small SD 1.x: a path with dots, SGM's name for it, and the shape of its weight.
UNET = (
    ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "input_blocks.1.1.transformer_blocks.0.attn1.to_q"),
    ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "input_blocks.1.1.transformer_blocks.0.attn2.to_k"),
    ("down_blocks.0.attentions.0.proj_in", "input_blocks.1.1.proj_in"),
    ("down_blocks.0.resnets.0.conv1", "input_blocks.1.0.in_layers.2"),
    ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
    ("down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"),
)
ATTENTION = UNET[:2]
TEXT = ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.0.mlp.fc1")
NORM = ("down_blocks.0.resnets.0.norm1", "input_blocks.1.0.in_layers.0")


@cache
def trees() -> dict[str, Any]:
    """The parameters, as shapes, of the two models, by family."""
    from sdjax.config import read_networks
    from sdjax.nn.shapes import expected_params
    from tests.checkpoints import TEXT as text
    from tests.checkpoints import UNET as unet

    text = text | {"vocab_size": 20, "bos_token_id": 18, "eos_token_id": 19}
    second = text | {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 16}
    return {
        "sd": expected_params(read_networks({"unet": unet, "text_encoder": text})),
        "xl": expected_params(read_networks({"unet": unet, "text_encoder": text, "text_encoder_2": second})),
    }


def weight_shape(family: str, component: str, path: str, leaf: str = "kernel") -> tuple[int, ...]:
    """In torch's order of axes."""
    from sdjax.core import tree

    flat = {".".join(found[:-1]): leaves for found, leaves in tree.flatten(trees()[family][component]).items()}
    shapes = {
        (".".join(found[:-1]), found[-1]): tuple(array.shape)
        for found, array in tree.flatten(trees()[family][component]).items()
    }
    assert path in flat, path
    shape = shapes[path, leaf]
    if leaf != "kernel":
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def low_rank(shape: tuple[int, ...], rng: Any, dtype: Any) -> dict[str, np.ndarray]:
    """A LoRA's two factors for a weight."""
    o, i, *kernel = shape
    up = rng.standard_normal((o, RANK, *[1] * len(kernel))).astype(dtype)
    return {"lora_up.weight": up, "lora_down.weight": rng.standard_normal((RANK, i, *kernel)).astype(dtype)}


def loha(shape: tuple[int, ...], rng: Any, dtype: Any) -> dict[str, np.ndarray]:
    """Likewise of a LoHa, flat."""
    o, i = shape[0], int(np.prod(shape[1:]))
    found = {"hada_w1_a": (o, RANK), "hada_w1_b": (RANK, i), "hada_w2_a": (o, RANK), "hada_w2_b": (RANK, i)}
    return {name: rng.standard_normal(own).astype(dtype) for name, own in found.items()} | {"alpha": np.array(1, dtype)}


def lokr(shape: tuple[int, ...], rng: Any, dtype: Any) -> dict[str, np.ndarray]:
    """Likewise of a LoKr, in halves, the second of low rank."""
    o, i = shape[0], int(np.prod(shape[1:]))
    found = {"lokr_w1": (2, 2), "lokr_w2_a": (o // 2, RANK), "lokr_w2_b": (RANK, i // 2)}
    return {name: rng.standard_normal(own).astype(dtype) for name, own in found.items()} | {"alpha": np.array(1, dtype)}


def _write(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    # Our own writer: safetensors' has the metadata in another order in each process.
    write_tensors({name: Draft.of(array) for name, array in tensors.items()}, metadata or {"n": "1"}, path)


def _named(style: str, component: str, path: str, sgm: str) -> str:
    """What stands before a tensor's word, in the styles of files."""
    te = {"text_encoder": "te1", "text_encoder_2": "te2"}
    clip = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    if component != "unet":
        return {
            "kohya": f"lora_te_{path.replace('.', '_')}.",
            "kohya_xl": f"lora_{te[component]}_{path.replace('.', '_')}.",
            "peft": f"{component}.{path}.",
            "folder": f"base_model.model.{path}.",
            "attn": f"{component}.{path.rpartition('.')[0]}.",
            "comfy": f"text_encoders.{clip[component]}.transformer.{path}.",
            "omi": f"{clip[component]}.{path}.",
        }[style]
    return {
        "kohya": f"lora_unet_{path.replace('.', '_')}.",
        "kohya_xl": f"lora_unet_{sgm.replace('.', '_')}.",
        "peft": f"unet.{path}.",
        "folder": f"base_model.model.{path}.",
        "attn": f"unet.{path.rpartition('.')[0]}.processor.",
        "comfy": f"diffusion_model.{sgm}.",
        "omi": f"unet.{sgm}.",
    }[style]


def _word(style: str, path: str, word: str) -> str:
    if style in ("peft", "folder"):
        return {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight"}.get(word, word)
    if style == "attn":
        projection = {"q_proj": "to_q"}.get(path.rpartition(".")[2], path.rpartition(".")[2])
        return f"{projection}_lora.{word.removeprefix('lora_')}"
    return word


STYLES = {  # by base: style, family, whether a folder
    "kohya.safetensors": ("kohya", "sd"),
    "kohya_xl.safetensors": ("kohya_xl", "xl"),
    "peft.safetensors": ("peft", "sd"),
    "folder": ("folder", "sd"),
    "attn.safetensors": ("attn", "sd"),
    "comfy.safetensors": ("comfy", "xl"),
    "omi.safetensors": ("omi", "xl"),
    "kinds.safetensors": ("kohya", "sd"),
}
ALPHA = 1.5  # of what PEFT's configs say


def make(folder: Path) -> None:
    """Writes all of them, with means.json beside each of what its names mean."""
    for base, (style, family) in STYLES.items():
        rng = np.random.default_rng(len(base))
        tensors, means = dict[str, np.ndarray](), Means()
        for component, path, sgm, own in _modules(base, style, family, rng):
            for word, array in own.items():
                name = _named(style, component, path, sgm) + _word(style, path, word)
                tensors[name], means[name] = array, (component, path, word)
        said = {"ss_output_name": "x"}
        if style == "peft":
            said = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": ALPHA, "text_encoder.lora_alpha": ALPHA})}
        file = folder / base
        if style == "folder":
            file.mkdir()
            config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "alpha_pattern": {}, "use_rslora": False}
            (file / "adapter_config.json").write_text(json.dumps(config))
            file = file / "adapter_model.safetensors"
        _write(file, tensors, said)
    rng = np.random.default_rng(9)
    pair = {name: rng.standard_normal((2, 16)).astype(np.float16) for name in ("clip_l", "clip_g")}
    _write(folder / "words.safetensors", pair)
    layers = {"linear.0": (32, 16), "linear.1": (16, 32)}
    hyper = {f"16.{use}.{name}.weight": rng.standard_normal(shape) for use in "kv" for name, shape in layers.items()}
    biases = {f"16.{use}.{name}.bias": rng.standard_normal(shape[0]) for use in "kv" for name, shape in layers.items()}
    said = {"layer_structure": "[1, 2, 1]", "activation_func": "linear"}
    _write(folder / "hyper.safetensors", {k: v.astype(np.float32) for k, v in (hyper | biases).items()}, said)


def means(base: str) -> Means:
    """What each name of a base means; nothing for those that change no weights."""
    if base not in STYLES:
        return {}
    style, family = STYLES[base]
    rng, found = np.random.default_rng(len(base)), Means()
    for component, path, sgm, own in _modules(base, style, family, rng):
        found |= {
            _named(style, component, path, sgm) + _word(style, path, word): (component, path, word) for word in own
        }
    return found


def _modules(base: str, style: str, family: str, rng: Any) -> Iterator[tuple[str, str, str, dict[str, np.ndarray]]]:
    """The component, the path, SGM's name and the tensors, by kohya's words, of each module of a base."""
    dtype = np.float16 if style in ("kohya", "comfy") else np.float32
    if base.startswith("kinds"):
        yield from _kinds(rng)
        return
    for path, sgm in ATTENTION if style == "attn" else UNET:
        own = low_rank(weight_shape(family, "unet", path), rng, dtype)
        if style in ("kohya", "kohya_xl"):
            own["alpha"] = np.array(1, dtype)
        yield "unet", path, sgm, own
    for component in ("text_encoder", "text_encoder_2") if family == "xl" else ("text_encoder",):
        for path in TEXT[:1] if style == "attn" else TEXT:
            yield component, path, "", low_rank(weight_shape(family, component, path), rng, dtype)


def _kinds(rng: Any) -> Iterator[tuple[str, str, str, dict[str, np.ndarray]]]:
    """A module of each kind."""
    shapes = [weight_shape("sd", "unet", path) for path, _ in UNET]
    made = [
        loha(shapes[0], rng, np.float32),
        low_rank(shapes[1], rng, np.float32) | {"dora_scale": 1 + rng.random((shapes[1][0], 1)).astype(np.float32)},
        {"weight": rng.standard_normal(shapes[2][0]).astype(np.float32), "on_input": np.array(0, np.int64)},
        {"diff": rng.standard_normal(shapes[3]).astype(np.float32), "diff_b": rng.random(shapes[3][0]).astype("f4")},
        lokr(shapes[4], rng, np.float32),
        {"oft_blocks": 0.1 * rng.standard_normal((shapes[5][0] // 4, 4, 4)).astype(np.float32)},
    ]
    for (path, sgm), own in zip(UNET, made, strict=True):
        yield "unet", path, sgm, own
    count = weight_shape("sd", "unet", NORM[0], "scale")[0]
    norms = {name: rng.standard_normal(count).astype(np.float32) for name in ("w_norm", "b_norm")}
    yield "unet", *NORM, norms
