"""Noise as torch draws it, against the installed torch (bit for bit) and whole sampling loops of diffusers."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from diffusers.utils.torch_utils import randn_tensor

from sdjax.diffusion.plan import plan
from sdjax.torch_noise import generator, picture_noise
from sdjax.torch_noise.mersenne import gaussian
from tests.parity.toy import BOUND, difference, run_padded
from tests.reference import SD, SHAPE, toy

# The path that is reproduced; `python -m pytest` with ATEN_CPU_CAPABILITY=default takes another.
vectorised = pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="no AVX2")
SEEDS = (0, 1, 32, 2**31, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 1)
SIZES = (3, 16, (), 5, 17, 1, 0, 31, 15, (4, 64, 64), 7, (2, 3, 5, 7), 2, 48, 33)


def seeded(seed):
    return torch.Generator().manual_seed(seed if seed < 2**63 else seed - 2**64)  # torch reads a signed number


def same_bits(ours, theirs):
    assert ours.dtype == theirs.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


@vectorised
@pytest.mark.parametrize("seed", SEEDS)
def test_bit_for_bit(seed):
    """Calls of mixed sizes: the odd one of a small tensor waits for the next small one, behind larger ones too."""
    theirs, ours = seeded(seed), generator("torch_cpu", seed)
    for size in SIZES:
        shape = (size,) if isinstance(size, int) else size
        same_bits(ours.randn(shape), torch.randn(shape, generator=theirs).numpy())


@vectorised
def test_a_million_and_every_small_size():
    theirs, ours = seeded(5), generator("torch_cpu", 5)
    for size in (1_000_003, *range(100), 1_000_000):
        same_bits(ours.randn((size,)), torch.randn(size, generator=theirs).numpy())


@vectorised
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [7, 16, 4096])
def test_half_precision_rounds_the_same_numbers(dtype, size):
    theirs, ours = seeded(2), generator("torch_cpu", 2)
    for _ in range(2):
        drawn = torch.from_numpy(ours.randn((size,))).to(dtype)
        assert torch.equal(drawn, torch.randn(size, generator=theirs, dtype=dtype))


# ---------------------------------------------------------------------- every input of the transform


def untempered(words):
    """The state words that a Mersenne Twister tempers to these: each of its four steps undone."""
    x = words.astype(np.uint32)
    x = x ^ x >> 18
    x = x ^ (x << 15 & np.uint32(0xEFC60000))
    y = x
    for _ in range(4):  # 7 bits a time
        y = x ^ (y << 7 & np.uint32(0x9D2C5680))
    z = y
    for _ in range(2):  # 11 bits a time
        z = y ^ z >> 11
    return z


def torch_of(words):
    """What torch makes of chosen words, 608 to a call: written into a generator's state as the ones that come next."""
    theirs = torch.Generator().manual_seed(0)
    state = theirs.get_state().numpy()  # seed 8, left 4, seeded 4, next 8, then 624 words of 8 bytes
    state[8:12].view(np.int32)[:] = 624
    made = []
    for chosen in untempered(words).reshape(-1, 608):
        state[24 : 24 + 608 * 8].view(np.uint64)[:] = chosen
        theirs.set_state(torch.from_numpy(state))
        made.append(torch.randn(608, generator=theirs).numpy())
    return np.concatenate(made)


def same_transform(radii, angles):
    """Words [8 n] each, of which the low 24 bits count."""
    words = np.stack([radii.reshape(-1, 8), angles.reshape(-1, 8)], 1).reshape(-1)
    same_bits(gaussian(words.astype(np.float32) * np.float32(2**-24)), torch_of(words))


@vectorised
def test_every_uniform_number():
    """All 2^24 that come under the logarithm, each beside another of all 2^24 that come under the sine."""
    rng, half = np.random.default_rng(0), 304 * 512
    radii, angles = (np.resize(rng.permutation(1 << 24).astype(np.uint32), (-1 << 24) // -half * half) for _ in "ra")
    for i in range(0, len(radii), half):
        same_transform(radii[i : i + half], angles[i : i + half])


@vectorised
def test_the_ends():
    """Zero radius, where signs of zero show, and the largest, all around."""
    around = (np.arange(304, dtype=np.uint64) * 2**24 // 304).astype(np.uint32)
    for radius in (0, 1, 2**24 - 1):
        same_transform(np.full(304, radius, np.uint32), around)


# ---------------------------------------------------------------------- the order of draws

# our name: (diffusers' class, what its config says besides, arguments of its step and of our plan)
PEERS = {
    "ddim": (DDIMScheduler, {}, {"eta": 1.0}),
    "ddpm": (DDPMScheduler, {}, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}, {}),
    "dpm2_ancestral": (KDPM2AncestralDiscreteScheduler, {}, {}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, {}),
    "lcm": (LCMScheduler, {}, {}),
    "tcd": (TCDScheduler, {}, {"eta": 0.3}),
}


def diffusers_loop(name, steps, config, seeds):
    """Latents [b, h, w, c] of diffusers' own loop, with a CPU generator for each picture, as its pipelines write it."""
    cls, extra, step = PEERS[name]
    b, h, w, c = SHAPE
    scheduler, generators = cls.from_config({**config, **extra}), [seeded(seed) for seed in seeds]
    scheduler.set_timesteps(steps)
    x = randn_tensor((b, c, h, w), generator=generators) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        raw = toy(torch, scheduler.scale_model_input(x, t).permute(0, 2, 3, 1), t.to(torch.float32))
        x = scheduler.step(raw.permute(0, 3, 1, 2), t, x, generator=generators, **step).prev_sample
    return x.permute(0, 2, 3, 1).numpy()


def our_loop(the_plan, seeds, length=64):
    made = [picture_noise("torch_cpu", seed, 0, SHAPE[1:], the_plan.draws) for seed in seeds]
    noise = np.zeros((length, *SHAPE), np.float32)
    noise[: the_plan.draws] = np.stack([draws for _, draws in made], 1)
    return np.asarray(run_padded(the_plan.table(length, np.float32), np.stack([x for x, _ in made]), noise))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", PEERS)
def test_the_same_seed_is_the_same_picture(name, spacing):
    """Our start and draws are diffusers' in the order in which its scheduler asks for them, ends included."""
    config, step = {**SD, "timestep_spacing": spacing}, PEERS[name][2]
    for steps, prediction in ((1, "epsilon"), (4, "v_prediction"), (20, "epsilon")):
        config["prediction_type"] = prediction
        ours = our_loop(plan(name, steps, config, **step), (32, 2**32 - 1))
        assert difference(ours, diffusers_loop(name, steps, config, (32, 2**32 - 1))) <= BOUND, (steps, prediction)
