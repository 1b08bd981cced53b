"""Image-to-image against diffusers: the same small checkpoint, pictures, prompts and torch seeds; latents compared.

Three things in diffusers are not as they should be, and so not ours (each has a test that shows it):
    PNDM, cut     step_plms counts calls, and takes the second for the first timestep's repetition. In a run that
                  begins later no timestep is repeated, or another one: it ends on latents that still hold noise.
    LMS, cut      its order is that of the whole run's step, from more past slopes than it has: zip() drops the rest of
                  the weights, which then no longer add up to the step.
    strength 1    a little of the picture stays in the start (alpha z + sigma e of the first level). Here it is noise
                  alone; diffusers' start can be had as latents of a part that begins at once.
"""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from sdjax.diffusion import scan
from tests.parity import families, from_picture
from tests.parity.families import FACTOR, channels_first, channels_last, opened, relative, run
from tests.parity.from_picture import (
    COMMON,
    HEIGHT,
    MOVES,
    NEGATIVES,
    PICTURES,
    PROMPTS,
    SEEDS,
    TOLERANCE,
    WIDTH,
    V,
    drawn_as,
    generators,
    ours,
    picture,
)

STRENGTHS = (0.2, 0.55, 0.8, 0.95)
# That begin late as they should in diffusers: the first step of what is left is one of first order.
CUT = (
    "ddim",
    "euler",
    "euler_ancestral",
    "heun",
    "dpm2",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "unipc",
    "deis",
    "lcm",
)
PIPELINES = {
    "sd1": diffusers.StableDiffusionImg2ImgPipeline,
    "sd2": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
    "refiner": diffusers.StableDiffusionXLImg2ImgPipeline,
}


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    with families.quick_compiles():
        yield


def theirs(kind, sampler, **asked):
    return from_picture.theirs(kind, sampler, PIPELINES[kind], **asked)


def check(kind, sampler, **asked):
    return from_picture.check(kind, sampler, PIPELINES[kind], **asked)


@pytest.mark.parametrize("changed", [None, V], ids=["epsilon", "velocity"])
@pytest.mark.parametrize("sampler", CUT)
def test_strengths(sampler, changed):
    made = [check("sd1", sampler, strength=strength, changed=changed) for strength in STRENGTHS]
    assert all(relative(one, other) > MOVES for one, other in zip(made, made[1:], strict=False))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m", "unipc"])
def test_spacings(sampler, spacing):
    check("sd1", sampler, strength=0.6, changed={"timestep_spacing": spacing})


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "unipc", "heun"])
def test_karras(sampler):
    check("sd1", sampler, strength=0.6, changed={"use_karras_sigmas": True})


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc", "deis"])
def test_orders_at_the_end_of_a_long_run(sampler):
    """20 steps are more than the 15 that diffusers calls few, whatever share of them is run."""
    check("sd1", sampler, strength=0.5, steps=20)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_without_guidance(kind):
    guided = theirs(kind, "dpmpp_2m", strength=0.6)
    assert relative(check(kind, "dpmpp_2m", strength=0.6, guidance_scale=1.0), guided) > MOVES


def test_latents_and_noise_given():
    """diffusers takes latents as the picture; its noise is handed to `latents=`."""
    z = families.noise(2, 12, 16, seed=5)
    drawn = torch.cat([torch.randn((1, 4, 12, 16), generator=one) for one in generators()])
    want = theirs("sd1", "dpmpp_2m", image=channels_first(z), strength=0.6)
    assert relative(ours("sd1", "dpmpp_2m", image=z, strength=0.6), want) <= TOLERANCE
    out = ours("sd1", "dpmpp_2m", image=z, latents=channels_last(drawn), noise_source="jax", strength=0.6)
    assert relative(out, want) <= TOLERANCE


def test_one_picture_for_two_prompts():
    check("sd1", "euler", image=PICTURES[0], strength=0.6)


def test_two_pictures_of_a_prompt():
    """num_images, and each with a picture of its own in diffusers' order."""
    asked = dict(prompt=PROMPTS[:1], negative_prompt=NEGATIVES[:1], num_images=2, strength=0.6)
    check("sd1", "euler", **asked)


@pytest.mark.parametrize("size", [(25, 33), (27, 39)])
def test_odd_sizes_are_floored(size):
    """To multiples of the VAE's factor, by Lanczos. The larger floors to 26 x 38, another number of latents."""
    odd = [picture(*size, seed) for seed in (1, 2)]
    want = check("sd1", "ddim", image=odd, strength=0.6)
    assert want.shape[1:3] == (size[0] // FACTOR, size[1] // FACTOR)


def test_another_size_asked_for():
    """height and width: what Lanczos makes of the picture beforehand."""
    large = [picture(50, 61, seed) for seed in (1, 2)]
    small = [one.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS) for one in large]
    out = ours("sd1", "ddim", image=large, height=HEIGHT, width=WIDTH, strength=0.6)
    assert relative(out, theirs("sd1", "ddim", image=small, strength=0.6)) <= TOLERANCE


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_stable_diffusion_2(sampler, strength):
    check("sd2", sampler, strength=strength)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral", "ddim"])
@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_sdxl(sampler, strength):
    check("sdxl", sampler, strength=strength)


def test_sdxl_sizes():
    """As text-to-image has them; left out they are the picture's."""
    sizes = dict(original_size=(17, 40), crop=(3, 9), target_size=(50, 21), strength=0.6)
    assert relative(check("sdxl", "euler", **sizes), theirs("sdxl", "euler", strength=0.6)) > MOVES


def test_the_refiner_on_a_picture(recwarn):
    """Its scores by default, and given. A picture is what it was made for: nothing to warn of."""
    scores = dict(aesthetic_score=7.5, negative_aesthetic_score=1.25)
    usual = check("refiner", "euler", strength=0.3)
    assert relative(check("refiner", "euler", strength=0.3, **scores), usual) > MOVES
    assert not [warning for warning in recwarn if "refiner" in str(warning.message)]


def test_pixels():
    pipeline = from_picture.of_kind("sd1", PIPELINES["sd1"])
    asked = COMMON | dict(strength=0.6)
    want = run(pipeline, "ddim", generator=generators(), output_type="np", **asked)
    out = opened("sd1")[1].generate(**asked, sampler="ddim", seed=list(SEEDS), noise_source="torch_cpu", progress=False)
    assert np.abs(out.pixels - 255 * want).max() <= 0.51  # rounded, and no more than that


# ---------------------------------------------------------------------- where diffusers is otherwise


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "lms", "euler", "dpmpp_2m"])
def test_strength_1_with_a_trace_of_the_picture(sampler):
    """diffusers' start, handed over as latents: the same run. Without it the picture makes no difference here."""
    z, noise = families.noise(2, 12, 16, seed=5), families.noise(2, 12, 16, seed=6)
    sd = opened("sd1")[1]
    with drawn_as(noise):
        want = theirs("sd1", sampler, image=channels_first(z), strength=1.0)
    start = sd.plan(sampler, COMMON["steps"], denoising_start=1e-6).start
    mixed = (start.alpha * z + start.sigma * noise).astype(np.float32)
    asked = dict(image=None, height=HEIGHT, width=WIDTH)
    assert relative(ours("sd1", sampler, **asked, latents=mixed, denoising_start=1e-6), want) <= TOLERANCE
    free = ours("sd1", sampler, image=z, latents=noise, strength=1.0)
    np.testing.assert_array_equal(free, ours("sd1", sampler, **asked, latents=noise))
    assert relative(free, want) > MOVES


def shares_left(sampler, skipped, steps=10):
    """Of the noise that a network knows and always answers, how much a run that begins `skipped` steps late leaves in
    a picture of zeros beside what the level at its end has: in diffusers, and here."""
    scheduler = families.SAMPLERS[sampler].from_config(families.SCHEDULERS["sd1"][1])
    scheduler.set_timesteps(steps)
    timesteps, noise = scheduler.timesteps[skipped:], torch.ones(1, 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    x = scheduler.add_noise(0 * noise, noise, timesteps[:1])
    for t in timesteps:
        x = scheduler.step(noise, t, x).prev_sample
    plan = opened("sd1")[1].plan(sampler, steps, strength=(steps - skipped) / steps)
    table, carried = plan.table(), np.full((1, 1), plan.start.sigma, np.float32)
    made = float(scan.run(table, lambda x, t: jnp.ones_like(x), carried)[0, 0])
    return abs(float(x) - plan.sigma[-1]), abs(made - plan.sigma[-1])


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "lms"])
@pytest.mark.parametrize("skipped", [0, 1, 2, 5, 8])
def test_where_diffusers_loses_its_place(sampler, skipped):
    """PNDM and LMS, and only in runs that begin late; the others leave nothing, as here."""
    away, own = shares_left(sampler, skipped)
    assert (away > 0.01) == (sampler != "ddim" and skipped > 0)
    assert own < 1e-5


class MendedPNDM(diffusers.PNDMScheduler):
    """With the timestep that a late run's warm-up needs twice repeated there."""

    skipped = 0

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        plain = [int(t) for t in self.timesteps]
        del plain[1]
        told = plain[: self.skipped + 2] + plain[self.skipped + 1 :]
        self.timesteps = torch.tensor(told if len(plain) > self.skipped + 1 else plain)


class MendedLMS(diffusers.LMSDiscreteScheduler):
    """Of the order of the slopes that there are."""

    def get_lms_coefficient(self, order, t, current_order):
        known = len(self.derivatives)
        return super().get_lms_coefficient(min(order, known), t, current_order) if current_order < known else 0.0


@pytest.mark.parametrize("changed", [None, V], ids=["epsilon", "velocity"])
@pytest.mark.parametrize("sampler,mended", [("pndm", MendedPNDM), ("lms", MendedLMS)])
def test_strengths_of_pndm_and_lms(sampler, mended, changed, monkeypatch):
    for strength in STRENGTHS:
        as_it_is = theirs("sd1", sampler, strength=strength, changed=changed)
        with monkeypatch.context() as patched:
            patched.setitem(families.SAMPLERS, sampler, mended)
            patched.setattr(MendedPNDM, "skipped", COMMON["steps"] - int(COMMON["steps"] * strength))
            want = check("sd1", sampler, strength=strength, changed=changed)
        assert relative(as_it_is, want) > MOVES
