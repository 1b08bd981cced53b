"""Training against diffusers' scripts: loss, every gradient, and the parameters after five steps of AdamW.

`theirs` is the loss of `examples/text_to_image/train_text_to_image.py` and its SDXL and DreamBooth siblings, on
diffusers' own schedulers, U-Net and `compute_snr`, for the batches, noise and timesteps that are drawn here.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from diffusers.training_utils import compute_snr
from torch.nn import functional

from sdjax.config import UNetConfig
from sdjax.nn.conditioning import Added, Conditions
from sdjax.nn.unet import UNet
from sdjax.train.losses.denoising import Denoising
from sdjax.train.losses.noising import NOISE, OFFSET, Noising
from sdjax.train.losses.weightings import Weighting
from sdjax.train.objective import standard_normal
from tests import training
from tests.parity import families
from tests.parity.families import channels_first
from tests.parity.test_networks import load, nested_like, to_params

TOLERANCE = 1e-4
STEPS, BATCH, RATE = 5, 4, 1e-4  # the rate is the scripts' own
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@dataclass(frozen=True)
class Case:
    """What of the scripts' arguments is other than it is, and the family of the U-Net."""

    prediction: str = "epsilon"
    snr_gamma: float | None = None
    noise_offset: float = 0.0
    prior: float | None = None
    zero_snr: bool = False
    kind: str = "sd1"


CASES = {
    "epsilon": Case(),
    "min_snr": Case(snr_gamma=5.0),
    "velocity": Case("v_prediction"),
    "velocity_min_snr_zero_snr": Case("v_prediction", snr_gamma=5.0, zero_snr=True),
    "offset": Case(noise_offset=0.1),
    "prior": Case(prior=0.7),
    "sdxl": Case(kind="sdxl"),
}


def theirs(case: Case, unet: torch.nn.Module, scheduler: diffusers.DDPMScheduler, seen: dict) -> torch.Tensor:
    """The script's loss of a batch that `Denoising.draw` has seen."""
    latents, t = channels_first(np.asarray(seen["latents"])), torch.from_numpy(np.array(seen["timesteps"])).long()
    shape = seen["latents"].shape[1:]
    noise = channels_first(np.asarray(standard_normal(seen["keys"], NOISE, shape)))
    noise += case.noise_offset * channels_first(np.asarray(standard_normal(seen["keys"], OFFSET, (1, 1, shape[-1]))))
    noisy, context = scheduler.add_noise(latents, noise, t), torch.from_numpy(np.array(seen["context"]))
    told = {name: torch.from_numpy(np.array(seen[leaf])) for name, leaf in ADDED.items() if leaf in seen}
    answer = unet(noisy, t, context, added_cond_kwargs=told or None).sample
    target = noise if case.prediction == "epsilon" else scheduler.get_velocity(latents, noise, t)
    if case.prior is not None:
        halves = zip(answer.chunk(2), target.chunk(2), strict=True)
        instance, prior = (functional.mse_loss(*half, reduction="mean") for half in halves)
        return instance + case.prior * prior
    if case.snr_gamma is None:
        return functional.mse_loss(answer, target, reduction="mean")
    snr = compute_snr(scheduler, t)
    weights = torch.stack([snr, case.snr_gamma * torch.ones_like(t)], dim=1).min(dim=1)[0]
    weights = weights / snr if case.prediction == "epsilon" else weights / (snr + 1)
    each = functional.mse_loss(answer, target, reduction="none")
    return (each.mean(dim=list(range(1, each.ndim))) * weights).mean()


ADDED = {"text_embeds": "pooled", "time_ids": "time_ids"}


def ours(case: Case, config: UNetConfig, scheduler: diffusers.DDPMScheduler) -> Denoising:
    """The objective of the same arguments."""
    levels = np.cumprod(1 - scheduler.betas.double().numpy())
    architecture = training.architecture(case.prediction)
    architecture = type(architecture)(config, architecture.vae, (), tuple(map(float, levels)), case.prediction)
    weighting = Weighting() if case.snr_gamma is None else Weighting("min_snr", case.snr_gamma)
    return Denoising(architecture, weighting=weighting, noising=Noising(offset=case.noise_offset))


def batches(case: Case, objective: Denoising) -> list[dict[str, Any]]:
    """Batches that have been drawn; the first has both ends of the schedule."""
    rng, made = np.random.default_rng(0), []
    width = objective.architecture.unet.cross_attention_dim
    for n in range(STEPS):
        told = {"latents": rng.standard_normal((BATCH, 8, 8, 4)), "context": rng.standard_normal((BATCH, 7, width))}
        if objective.architecture.takes_pooled:
            told["pooled"] = rng.standard_normal((BATCH, families.POOLED))
            told["time_ids"] = rng.integers(0, 1024, (BATCH, 6))
        if case.prior is not None:  # two means, of which each is of half the batch
            told["weight"] = np.repeat([2.0, 2.0 * case.prior], BATCH // 2)
        seen = objective.draw(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), told), jax.random.key(n))
        ends = seen["timesteps"].at[:2].set(jnp.array([0, 999])) if n == 0 else seen["timesteps"]
        made.append({**seen, "timesteps": ends})
    return made


def largest_difference(found: Any, wanted: Any) -> float:
    """Over leaves, the norm of the difference over the leaf's norm, or over a thousandth of the largest leaf's.

    Not by element: where a gradient is rounding alone, the first step of Adam is the rate by that rounding's sign.
    """
    least = 1e-3 * max(float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(wanted))

    def one(ours: Any, theirs: Any) -> float:
        return float(np.linalg.norm(np.asarray(ours) - theirs) / max(np.linalg.norm(theirs), least))

    return max(jax.tree.leaves(jax.tree.map(one, found, wanted)))


@pytest.mark.parametrize("name", CASES)
def test_five_steps(name):
    case = CASES[name]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    unet = diffusers.UNet2DConditionModel(sample_size=8, norm_num_groups=4, **families.UNETS[case.kind])
    families._move_norms(unet)
    scheduler = diffusers.DDPMScheduler(**BETAS, prediction_type=case.prediction, rescale_betas_zero_snr=case.zero_snr)
    objective = ours(case, UNetConfig.from_dict(dict(unet.config)), scheduler)
    seen = batches(case, objective)
    params = load(UNet(objective.architecture.unet), to_params(unet), *example(seen[0]))["params"]
    params = jax.tree.map(jnp.asarray, params)
    optimiser, torchs = optax.adamw(RATE, weight_decay=1e-2), torch.optim.AdamW(unet.parameters(), RATE)
    state = optimiser.init(params)

    @jax.jit
    def step(params, state, batch):
        (loss, _), grads = jax.value_and_grad(lambda p: objective.loss({"unet": p}, batch), has_aux=True)(params)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, grads

    start = params
    for batch in seen:
        torchs.zero_grad()
        loss = theirs(case, unet, scheduler, batch)
        loss.backward()
        params, state, found, grads = step(params, state, batch)
        assert float(found) == pytest.approx(float(loss), rel=TOLERANCE)
        wanted = {key: parameter.grad for key, parameter in unet.named_parameters()}
        wanted = nested_like(params, to_params(SimpleNamespace(state_dict=lambda w=wanted: w)))
        assert largest_difference(grads, wanted) < TOLERANCE
        torchs.step()
    after = nested_like(params, to_params(unet))
    moved, apart = (jax.tree.map(lambda a, b: np.asarray(a) - b, one, after) for one in (start, params))
    assert float(optax.tree.norm(apart)) < 1e-3 * float(optax.tree.norm(moved))  # of what was learnt, too


def example(batch: dict[str, Any]) -> tuple[Any, ...]:
    """What a U-Net is initialised on."""
    added = Added(batch["pooled"], batch["time_ids"]) if "pooled" in batch else None
    return batch["latents"], jnp.zeros(BATCH), Conditions(batch["context"], added)
