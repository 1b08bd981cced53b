"""Recipes: what each --method stands for: what learns, from which loss, at which usual rate. A new one is one line.

full                 the U-Net, or what --rules say            lcm        a LoRA that paints in few steps
text_encoder         the text encoders                         dpo        a LoRA from pairs, better and worse
dreambooth           the U-Net, of a thing and its class       reward     a LoRA from a score, through the sampler
lora dora loha lokr  factors beside its layers                 controlnet, ip_adapter: networks beside it
textual_inversion    vectors of a new word                     hypernetwork: layers before keys and values
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import sdjax
from experiments.train import rewards
from experiments.train.model import Model
from experiments.train.seen import Seen, config_of, encoder_folder
from sdjax.train.data.texts import Tokenise
from sdjax.train.losses.consistency import Consistency
from sdjax.train.losses.denoising import Denoising
from sdjax.train.losses.errors import Error
from sdjax.train.losses.noising import Noising
from sdjax.train.losses.preference import Preference
from sdjax.train.losses.preserving import Preserving
from sdjax.train.losses.reward import Reward
from sdjax.train.losses.timesteps import Density, LogitNormal, Timesteps, Uniform, earlier, later
from sdjax.train.losses.weightings import Weighting
from sdjax.train.methods.controlnet import COMPONENT as CONTROLNET
from sdjax.train.methods.controlnet import ControlDenoising, ControlNetTraining
from sdjax.train.methods.dora import DoRA
from sdjax.train.methods.full import TEXT_ENCODER, UNET, Full
from sdjax.train.methods.hypernetwork import Hypernetwork
from sdjax.train.methods.image_prompt import COMPONENT as IMAGE_PROMPT
from sdjax.train.methods.image_prompt import ImagePromptDenoising, ImagePromptTraining
from sdjax.train.methods.layers import Layers, chosen
from sdjax.train.methods.loha import LoHa
from sdjax.train.methods.lokr import LoKr
from sdjax.train.methods.lora import LoRA
from sdjax.train.methods.method import Method
from sdjax.train.methods.rules import learning
from sdjax.train.methods.textual_inversion import TextualInversion
from sdjax.train.objective import Objective

Params = Mapping[str, Any]
DENSITIES: dict[str, Callable[[], Density]] = {
    "uniform": Uniform,
    "logit_normal": LogitNormal,
    "later": later,
    "earlier": earlier,
}


@dataclass(frozen=True, eq=False)
class Learner:
    """What a run trains.

    Attributes:
      more: parameters that take part beside the model's own, by name.
      tokens: captions as arrays, where the model's tokenizers do not do.
      texts_learn: whether what becomes of a caption changes on the way, so that none is encoded beforehand.
      decodes: whether the loss looks at pixels, and so needs the VAE.
      unprompted: whether batches hold what stands for no text.
      sees: the material with what a method wants in a batch beside pictures and captions.
    """

    method: Method
    objective: Objective
    more: Callable[[Params], dict[str, Any]] = lambda params: {}
    tokens: Tokenise | None = None
    texts_learn: bool = False
    decodes: bool = False
    unprompted: bool = False
    sees: Callable[[Any], Any] = lambda material: material


@dataclass(frozen=True)
class Recipe:
    """A --method.

    Attributes:
      rate: the usual one, of AdamW.
      reads: flags that not every method looks at, and this one does. needs: flags that it cannot do without.
    """

    make: Callable[[Any, Model], Learner]
    rate: float
    reads: tuple[str, ...]
    needs: tuple[str, ...] = ("data",)


def full(values: Any, model: Model) -> Learner:
    """The U-Net, or what --rules say."""
    rules = (*((pattern, True) for pattern in values.rules), ("", False)) if values.rules else UNET
    texts = any(path[0].startswith("text_encoder") for path in learning(model.params, rules))
    return Learner(Full(rules), _loss(values, model), texts_learn=texts)


def text_encoder(values: Any, model: Model) -> Learner:
    """The text encoders."""
    return Learner(Full(TEXT_ENCODER), _loss(values, model), texts_learn=True)


def adapter(kind: Callable[..., Any], values: Any, model: Model) -> Learner:
    """LoRA and its relatives."""
    return Learner(_beside(kind, values, model), _loss(values, model), texts_learn=bool(values.text_layers))


def textual_inversion(values: Any, model: Model) -> Learner:
    """Vectors of --word, which begin as those of --word_start."""
    tokenizers = model.tokenizers
    starts = [one.replace("+", " ") for one in values.word_start]
    method = TextualInversion.of(values.word, starts, next(iter(tokenizers.values())))
    rows = partial(method.rows, tokenizers=tokenizers)
    return Learner(method, _loss(values, model), tokens=rows, texts_learn=True)


def hypernetwork(values: Any, model: Model) -> Learner:
    """Layers before keys and values."""
    method = Hypernetwork(structure=tuple(float(one) for one in values.structure), activation=values.activation)
    return Learner(method, _loss(values, model))


def controlnet(values: Any, model: Model) -> Learner:
    """A ControlNet that is shown --maps."""
    method = ControlNetTraining(model.unet_json, tuple(int(width) for width in values.control_widths))
    if method.config.factor != model.architecture.vae.factor:
        raise ValueError(
            f"--control_widths: {len(method.widths)} of them shrink the map by {method.config.factor}, and the VAE of "
            f"this model shrinks pictures by {model.architecture.vae.factor}"
        )
    objective = ControlDenoising(model.architecture, control=method.config, **_denoising(values))
    return Learner(method, objective, partial(_begun_net, values, model))


def ip_adapter(values: Any, model: Model) -> Learner:
    """An IP-Adapter that looks through --image_encoder."""
    folder = encoder_folder(values.image_encoder)
    config = config_of(folder, model.architecture.unet.cross_attention_dim, values.image_tokens)
    objective = ImagePromptDenoising(model.architecture, image_prompt=config, **_denoising(values))
    sees = partial(Seen, folder=folder, dropout=values.image_dropout, seed=values.seed)
    return Learner(ImagePromptTraining(config), objective, partial(_begun_prompt, values, model), sees=sees)


def lcm(values: Any, model: Model) -> Learner:
    """A LoRA; the model without it is the teacher."""
    lowest, highest = (float(one) for one in values.guidance_range)
    if values.error == "smooth_l1":
        raise ValueError("--error=smooth_l1 is not of lcm, whose distances are squared or huber")
    c = values.huber_c if values.error == "huber" else None
    objective = Consistency(model.architecture, values.solver_steps, lowest, highest, c=c)
    return Learner(_beside(LoRA, values, model), objective, partial(_unet_as, "teacher"), unprompted=True)


def dpo(values: Any, model: Model) -> Learner:
    """A LoRA from pairs; the model without it is the reference."""
    objective = Preference(_loss(values, model), values.beta)
    return Learner(_beside(LoRA, values, model), objective, partial(_unet_as, "reference"))


def reward(values: Any, model: Model) -> Learner:
    """A LoRA that raises a score of its own pictures."""
    plan = model.sd.plan(values.sampler, values.sampler_steps)
    side = (values.resolution or model.sd.networks.spec.side) // model.architecture.vae.factor
    objective = Reward(
        model.architecture,
        rewards.read(values.reward),
        plan,
        side,
        side,
        last=min(values.last_rows, plan.rows - 1),
        guidance_scale=values.guidance_scale,
    )
    guided = values.guidance_scale != 1
    return Learner(_beside(LoRA, values, model), objective, decodes=True, unprompted=guided)


LOSS = (
    *("weighting", "gamma", "error", "huber_c", "offset_noise", "pyramid_noise", "input_perturbation"),
    *("timesteps", "stratified", "masks", "opaque_only"),
)
OLD = ("class_data", "class_caption", "class_batch", "preserve", "prior")
LAYERS = ("rank", "alpha", "layers")
TEXTS = (*LAYERS, "text_layers")
REWARD = ("prompts", "reward", "sampler", "sampler_steps", "last_rows", "guidance_scale")

RECIPES: dict[str, Recipe] = {
    "full": Recipe(full, 1e-5, (*LOSS, *OLD, "rules")),
    "text_encoder": Recipe(text_encoder, 1e-6, (*LOSS, *OLD)),
    "dreambooth": Recipe(full, 5e-6, (*LOSS, *OLD, "rules"), ("data", "class_data")),
    "lora": Recipe(partial(adapter, LoRA), 1e-4, (*LOSS, *OLD, *TEXTS)),
    "dora": Recipe(partial(adapter, DoRA), 1e-4, (*LOSS, *OLD, *TEXTS)),
    "loha": Recipe(partial(adapter, LoHa), 1e-4, (*LOSS, *OLD, *TEXTS)),
    "lokr": Recipe(partial(adapter, LoKr), 1e-4, (*LOSS, *OLD, *TEXTS)),
    "textual_inversion": Recipe(
        textual_inversion, 5e-3, (*LOSS, *OLD, "word", "word_start"), ("data", "word", "word_start")
    ),
    "hypernetwork": Recipe(hypernetwork, 1e-5, (*LOSS, *OLD, "structure", "activation")),
    "controlnet": Recipe(controlnet, 1e-5, (*LOSS, "maps", "control_widths", "start"), ("data", "maps")),
    "ip_adapter": Recipe(
        ip_adapter,
        1e-4,
        (*LOSS, "start", "image_encoder", "image_tokens", "image_dropout"),
        ("data", "image_encoder"),
    ),
    "lcm": Recipe(lcm, 1e-4, (*LAYERS, "masks", "opaque_only", "error", "huber_c", "solver_steps", "guidance_range")),
    "dpo": Recipe(dpo, 1e-5, (*LOSS, *LAYERS, "rejected", "beta"), ("data", "rejected")),
    "reward": Recipe(reward, 1e-3, (*TEXTS, *REWARD), ("prompts", "reward")),
}


def _loss(values: Any, model: Model) -> Denoising:
    kind = Preserving if values.preserve else Denoising
    return kind(model.architecture, **_denoising(values))


def _denoising(values: Any) -> dict[str, Any]:
    """What the flags say of the loss."""
    return {
        "weighting": Weighting(values.weighting, values.gamma),
        "error": Error(values.error, values.huber_c),
        "noising": Noising(
            offset=values.offset_noise, pyramid=values.pyramid_noise, perturbation=values.input_perturbation
        ),
        "timesteps": Timesteps(DENSITIES[values.timesteps](), values.stratified),
    }


def _beside(kind: Callable[..., Any], values: Any, model: Model) -> Any:
    layers: Layers = (("unet", values.layers),) if values.layers else ()
    if values.text_layers:
        layers += tuple((tower.component, values.text_layers) for tower in model.architecture.texts)
    chosen(model.params, layers)  # a mistake in them is told before any picture is looked at
    return kind(rank=values.rank, alpha=values.alpha, layers=layers)


def _begun_net(values: Any, model: Model, params: Params) -> dict[str, Any]:
    """The net of --start, where one is given."""
    if not values.start:
        return {}
    return {CONTROLNET: sdjax.load_controlnet(values.start).params(model.sd.params["unet"])}


def _begun_prompt(values: Any, model: Model, params: Params) -> dict[str, Any]:
    """The adapter of --start, where one is given."""
    if not values.start:
        return {}
    bound = sdjax.load_image_prompt(values.start, image_encoder=values.image_encoder).bind(model.sd.params["unet"])
    return {IMAGE_PROMPT: {"image_proj": bound["image_proj"], "ip_adapter": bound["attention"]}}


def _unet_as(name: str, params: Params) -> dict[str, Any]:
    return {name: params["unet"]}
