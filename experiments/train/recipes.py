"""Recipes: what each --method stands for: what learns, from which loss, at which usual rate. A new one is one line.

full                 the U-Net, or what --rules say            lcm        a LoRA that paints in few steps
text_encoder         the text encoders                         dpo        a LoRA from pairs, better and worse
dreambooth           the U-Net, of a thing and its class       reward     a LoRA from a score, through the sampler
lora dora loha lokr  factors beside its layers                 controlnet, ip_adapter: networks beside it
textual_inversion    vectors of a new word                     hypernetwork: layers before keys and values
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdjax.train.consistency import Consistency
from sdjax.train.data.texts import Tokenise
from sdjax.train.errors import Error
from sdjax.train.methods.dora import DoRA
from sdjax.train.methods.loha import LoHa
from sdjax.train.methods.lokr import LoKr
from sdjax.train.methods.lora import LoRA
from sdjax.train.noising import Noising
from sdjax.train.preference import Preference
from sdjax.train.timesteps import Biased, Density, LogitNormal, Timesteps, Uniform
from sdjax.train.weightings import Weighting

from experiments.train.model import Model
from sdjax.core import tree
from sdjax.train.denoising import Denoising
from sdjax.train.methods.controlnet import ControlDenoising, TrainControlNet
from sdjax.train.methods.full import TEXT_ENCODER, UNET, Full
from sdjax.train.methods.method import Method
from sdjax.train.objective import Objective

Params = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Learner:
    """What a run trains.

    Attributes:
      components: of the model's, which take part beside the U-Net whatever is made beforehand.
      more: parameters that take part beside the model's own, by name.
      tokens: captions as arrays, where the model's tokenizers do not do.
      texts_learn: whether what becomes of a caption changes on the way.
      unprompted: whether batches hold what stands for no text.
    """

    method: Method
    objective: Objective
    more: Callable[[Params], dict[str, Any]] = lambda params: {}
    components: tuple[str, ...] = ()
    tokens: Tokenise | None = None
    texts_learn: bool = False
    unprompted: bool = False


@dataclass(frozen=True)
class Recipe:
    """A --method. rate: the usual one, of AdamW. needs: flags that it cannot do without."""

    make: Callable[[Any, Model], Learner]
    rate: float
    needs: tuple[str, ...] = ("data",)
    only: tuple[str, ...] = field(default=())  # flags that are no other method's


def denoising(values: Any, model: Model) -> dict[str, Any]:
    """What the flags say of the loss."""
    return {
        "weighting": Weighting(values.weighting, values.gamma),
        "error": Error(values.error, values.huber_c),
        "noising": Noising(
            offset=values.offset_noise, pyramid=values.pyramid_noise, perturbation=values.input_perturbation
        ),
        "timesteps": Timesteps(_density(values.timesteps), stratified=values.stratified),
    }


def _density(name: str) -> Density:
    """Of --timesteps: the later or the earlier quarter comes twice as often."""
    return {
        "uniform": Uniform(),
        "logit_normal": LogitNormal(),
        "later": Biased(0.75, 1.0, 2.0),
        "earlier": Biased(0.0, 0.25, 2.0),
    }[name]


def _loss(values: Any, model: Model) -> Denoising:
    return Denoising(model.architecture, **denoising(values, model))


def full(values: Any, model: Model) -> Learner:
    """The U-Net, or what --rules say."""
    rules = tuple((pattern, True) for pattern in values.rules) + (("", False),) if values.rules else UNET
    text = any(path[0].startswith("text_encoder") for path in _learning(rules, model))
    return Learner(Full(rules), _loss(values, model), texts_learn=text)


def _learning(rules: Any, model: Model) -> set[tree.Path]:
    from sdjax.train.methods.rules import learning

    return learning(model.params, rules)


def text_encoder(values: Any, model: Model) -> Learner:
    """The text encoders."""
    return Learner(Full(TEXT_ENCODER), _loss(values, model), texts_learn=True)


def adapter(kind: Callable[..., Any]) -> Callable[[Any, Model], Learner]:
    """LoRA and its relatives."""

    def make(values: Any, model: Model) -> Learner:
        return Learner(_beside(kind, values, model), _loss(values, model), texts_learn=bool(values.text_layers))

    return make


def _beside(kind: Callable[..., Any], values: Any, model: Model) -> Any:
    layers = (("unet", values.layers),) if values.layers else ()
    if values.text_layers:
        layers += tuple((tower.component, values.text_layers) for tower in model.architecture.texts)
    return kind(rank=values.rank, alpha=values.alpha, layers=layers)


def controlnet(values: Any, model: Model) -> Learner:
    """A ControlNet that is shown --maps."""
    method = TrainControlNet(model.unet_json, tuple(int(width) for width in values.control_widths))
    if method.config.factor != model.architecture.vae.factor:
        raise ValueError(
            f"--control_widths: {len(method.widths)} of them shrink the map by {method.config.factor}, and the VAE of "
            f"this model shrinks pictures by {model.architecture.vae.factor}"
        )
    objective = ControlDenoising(model.architecture, control=method.config, **denoising(values, model))
    return Learner(method, objective, more=lambda params: _started(values))


def _started(values: Any) -> dict[str, Any]:
    """The net of --start."""
    if not values.start:
        return {}
    import sdjax

    return {"controlnet": sdjax.load_controlnet(values.start).params}


def lcm(values: Any, model: Model) -> Learner:
    """A LoRA on the model that is its own teacher."""
    lowest, highest = (float(one) for one in values.guidance_range)
    objective = Consistency(model.architecture, values.solver_steps, lowest, highest)
    method = _beside(LoRA, values, model)
    return Learner(method, objective, more=lambda params: {"teacher": params["unet"]}, unprompted=True)


def dpo(values: Any, model: Model) -> Learner:
    """A LoRA from pairs; the model without it is the reference."""
    objective = Preference(_loss(values, model), values.beta)
    return Learner(_beside(LoRA, values, model), objective, more=lambda params: {"reference": params["unet"]})


RECIPES: dict[str, Recipe] = {
    "full": Recipe(full, 1e-5, only=("rules",)),
    "text_encoder": Recipe(text_encoder, 1e-6),
    "dreambooth": Recipe(full, 5e-6, ("data", "class_data")),
    "lora": Recipe(adapter(LoRA), 1e-4),
    "dora": Recipe(adapter(DoRA), 1e-4),
    "loha": Recipe(adapter(LoHa), 1e-4),
    "lokr": Recipe(adapter(LoKr), 1e-4),
    "controlnet": Recipe(controlnet, 1e-5, ("data", "maps")),
    "lcm": Recipe(lcm, 1e-4),
}
