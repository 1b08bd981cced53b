"""Pictures of the shapes model with nets and an image prompt beside its U-Net, made from the parts that were trained.

Nothing of `sdjax.generate` is in it but the sampler, so that what is measured is what was learnt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

import sdjax
from experiments.shapes import control_lora, image_tokens, models, train_control, train_image_prompt, train_pictures
from sdjax.core.keys import key
from sdjax.diffusion.guidance import classifier_free
from sdjax.diffusion.plan import Plan
from sdjax.images.pixels import to_uint8
from sdjax.nn.conditioning import Conditions
from sdjax.nn.controlnet import HINT, HintEmbedding
from sdjax.nn.injections import NOTHING
from sdjax.nn.shapes import expected_params
from sdjax.nn.unet import UNet
from sdjax.weights import read_component

Tree = Any


@dataclass(frozen=True)
class Steered:
    """What is beside the U-Net: nets by their parameters, each with its strength, and perhaps an image prompt.

    prompt: "image_encoder", "image_proj" and "ip_adapter", with its strength.
    """

    nets: Mapping[str, tuple[Tree, float]] = field(default_factory=dict)
    prompt: tuple[Tree, float] | None = None


def read_net(folder: Path, unet: Tree) -> Tree:
    """The parameters of a net that `train_control` wrote."""
    return control_lora.worn(unet, control_lora.untensors(load_file(folder / control_lora.FILE), unet))


def read_prompt(path: Path, unet: Tree) -> Tree:
    """The image prompt that `train_image_prompt` wrote, with the encoder in the folder beside it."""
    trained = train_image_prompt.untensors(load_file(path), unet)
    expected = expected_params({"image_encoder": image_tokens.ENCODER})["image_encoder"]
    params, _ = read_component(path.parent / "image_encoder", expected)
    return trained | {"image_encoder": jax.tree.map(lambda p: np.asarray(p, np.float32), params)}


def pictures(
    sd: sdjax.StableDiffusion,
    prompts: Sequence[str],
    steered: Steered,
    *,
    maps: Mapping[str, np.ndarray] | None = None,
    references: np.ndarray | None = None,
    batch: int = 50,
    steps: int = 20,
    scale: float = 3.0,
    seed: int = 0,
) -> np.ndarray:
    """One picture of each prompt, uint8 `b H W 3`; picture i's noise depends on the seed and i alone.

    maps: of each net by name, float32 `b H W 3` in [0, 1]. references: uint8 `b s s 3`, for the image prompt.
    scale: of the guidance; whatever steers is in both halves, but for the image prompt, which has no picture in one.
    """
    unet = train_pictures.shipped_unet()
    run = jax.jit(partial(_run, sd.plan("dpmpp_2m", steps), scale, {n: s for n, (_, s) in steered.nets.items()}))
    nets = {name: net for name, (net, _) in steered.nets.items()}
    texts = train_pictures.contexts(train_pictures.tokenizer().tokens(["", *prompts]))
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key(seed), i), (16, 16, 4)))
    made = []
    for start in range(0, len(prompts), batch):
        chosen = np.minimum(np.arange(start, start + batch), len(prompts) - 1)
        context = np.concatenate([np.repeat(texts[:1], batch, axis=0), texts[1 + chosen]]).astype(np.float32)
        seen = {name: values[chosen] for name, values in (maps or {}).items()}
        images = None if references is None or steered.prompt is None else _images(steered.prompt, references[chosen])
        latents = run(unet, nets, seen, images, context, noise(jnp.asarray(chosen)))
        made.append(to_uint8(np.asarray(sd.decode(latents)))[: len(prompts) - start])
    return np.concatenate(made)


def _images(prompt: tuple[Tree, float], references: np.ndarray) -> Any:
    """What the U-Net attends to in both halves: no picture, then the picture."""
    params, strength = prompt
    embeddings = train_image_prompt.embeddings(params, references)
    both = np.concatenate([np.zeros_like(embeddings), embeddings])
    return train_image_prompt.image_tokens_at(
        params, train_image_prompt.projected(params["image_proj"], both), strength
    )


def _run(
    plan: Plan,
    scale: float,
    strengths: Mapping[str, float],
    unet: Tree,
    nets: Mapping[str, Tree],
    maps: Mapping[str, jax.Array],
    images: Any,
    context: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """Latents `b h w c` from noise; context: of both halves."""
    conditions = Conditions(context)
    hints = {name: _hint(net, maps[name]) for name, net in nets.items()}
    looks = NOTHING if images is None else train_control.Injections(images=(images,))

    def model(x: jax.Array, t: jax.Array) -> jax.Array:
        time, added = jnp.broadcast_to(t, x.shape[:1]).astype(jnp.float32), looks
        for name, net in nets.items():
            own = train_control.injected(net, x, time, conditions, jnp.tile(hints[name], (2, 1, 1, 1)))
            added = added + jax.tree.map(partial(jnp.multiply, strengths[name]), own)
        return UNet(models.UNET).apply({"params": unet}, x, time, conditions, added)

    return sdjax.sample(plan, classifier_free(model, scale), noise)


def _hint(net: Tree, maps: jax.Array) -> jax.Array:
    return HintEmbedding(control_lora.CONFIG).apply({"params": net[HINT]}, maps)
