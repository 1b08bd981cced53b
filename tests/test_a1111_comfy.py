"""A1111's and ComfyUI's levels, derived a second time from their sources, and what the presets refuse."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from sdjax.diffusion.a1111_comfy import NAMES, discards, peer_name, peer_schedule
from sdjax.diffusion.noise import Settings
from sdjax.diffusion.plan import plan
from sdjax.diffusion.sigmas import beta_quantile
from sdjax.metadata import infotext
from sdjax.model import families
from sdjax.model.spec import ModelSpec
from sdjax.request import prompting
from sdjax.request.arguments.handoff import Handoff
from sdjax.request.arguments.sampling import Sampling
from tests.reference import SD, ZERO_SNR, alphas_cumprod
from tests.test_sigmas import COMFY_AYS, COMFY_NORMAL_20

VE = np.sqrt(1 / alphas_cumprod(SD) - 1)
LOW, HIGH = float(VE[0]), float(VE[-1])
KARRAS = lambda n: [(HIGH ** (1 / 7) + i / (n - 1) * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7 for i in range(n)]  # noqa: E731


def visited(p):
    """Every level of an Euler plan, the end included."""
    return p.sigma / p.alpha


def at(t):
    return np.exp(np.interp(t, np.arange(1000), np.log(VE)))


def euler(preset, schedule, steps, config=SD, **chosen):
    return plan("euler", steps, config, schedule, preset=preset, **chosen)


def published(steps):
    """Both peers' schedules by hand: (preset, name) -> all levels."""
    n = steps
    beta = beta_quantile(np.linspace(1, 0, n))
    timesteps = [int(t) for t in np.rint(999 * beta_quantile(1 - np.arange(n) / n))]
    kept = [t for i, t in enumerate(timesteps) if i == 0 or t != timesteps[i - 1]]
    both = {
        "karras": [*KARRAS(n), 0],
        "exponential": [*(HIGH * (LOW / HIGH) ** (i / (n - 1)) for i in range(n)), 0],
        "normal": [*(at(999 - 999 * i / (n - 1)) for i in range(n)), 0],
        "sgm_uniform": [*(at(999 - 999 * i / n) for i in range(n)), 0],
        "simple": [*(VE[-(1 + int(i * (1000 / n)))] for i in range(n)), 0],
        "ddim_uniform": [*(VE[t] for t in reversed(range(1, 1000, 1000 // n))), 0],
    }
    angles = math.atan(HIGH), math.atan(LOW)
    comfy = {
        "kl_optimal": [*(math.tan(angles[0] + i / (n - 1) * (angles[1] - angles[0])) for i in range(n)), 0],
        "beta": [*VE[kept], 0],
    }
    a1111 = {
        "kl_optimal": [math.tan(angles[0] + i / n * (angles[1] - angles[0])) for i in range(n + 1)],
        "beta": [*(LOW + beta * (HIGH - LOW)), 0],
    }
    for preset, own in (("comfy", comfy), ("a1111", a1111)):
        for name, ve in {**both, **own}.items():
            yield preset, name, np.array(ve, float)


@pytest.mark.parametrize("steps", [2, 7, 20, 30, 150])
def test_levels(steps):
    """Every schedule of both, over all training levels.

    30 does not divide 1000; of 150 levels of ComfyUI's beta two are one.
    """
    for preset, name, ve in published(steps):
        p = euler(preset, name, steps)
        np.testing.assert_allclose(visited(p), ve, rtol=1e-9, err_msg=f"{preset} {name}")
        assert p.schedule == NAMES[preset][name]


def test_counts_differ_from_what_was_asked_for():
    """As at the peer: duplicates are left out, an uneven stride goes on to the end."""
    assert euler("comfy", "beta", 150).evaluations == 149
    assert euler("comfy", "ddim_uniform", 30).evaluations == 31
    assert euler("comfy", "laplace", 20).evaluations == 19


def test_published_tables():
    np.testing.assert_allclose(visited(euler("comfy", "normal", 20))[:-1], COMFY_NORMAL_20, atol=5.1e-5)
    for name in ("ays", "ays_sdxl"):
        np.testing.assert_allclose(visited(euler("comfy", name, 10))[:-1], COMFY_AYS[name][:-1], rtol=1e-8)
    nvidia = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029, 0.0]
    np.testing.assert_allclose(visited(euler("a1111", "ays", 11)), nvidia, rtol=1e-12)
    sdxl = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029]
    middle = np.interp(np.linspace(0, 10, 21), np.arange(11), np.log(sdxl))
    np.testing.assert_allclose(visited(euler("a1111", "ays_sdxl", 21))[:-1], np.exp(middle), rtol=1e-12)


def test_timesteps():
    """A1111 tells the network the fractional timestep, ComfyUI the nearest whole one, between levels too."""
    ours, whole = euler("a1111", "karras", 12), euler("comfy", "karras", 12)
    np.testing.assert_allclose(ours.timesteps, np.interp(np.log(KARRAS(12)), np.log(VE), np.arange(1000)), atol=1e-6)
    nearest = [int(np.argmin(abs(np.log(VE) - math.log(s)))) for s in KARRAS(12)]
    np.testing.assert_array_equal(whole.timesteps, nearest)
    chosen = Settings(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", schedule="karras")
    for preset, fraction in (("a1111", True), ("comfy", False)):
        level = peer_schedule(Settings(**{**vars(chosen), "preset": preset}), 12).level(1.0)
        assert (level.t % 1 != 0) == fraction and level.t == pytest.approx(
            np.interp(0, np.log(VE), range(1000)), abs=0.5
        )


def test_starting_noise():
    """A1111 scales x_T by sigma; ComfyUI by sqrt(1 + sigma^2) at the noisiest level and by sigma elsewhere."""
    scale = lambda p: p.weights[0, 0] * math.sqrt(1 + visited(p)[0] ** 2)  # noqa: E731
    assert scale(euler("a1111", "karras", 8)) == pytest.approx(HIGH)
    assert scale(euler("comfy", "karras", 8)) == pytest.approx(math.sqrt(1 + HIGH**2))
    assert scale(euler("comfy", "ddim_uniform", 8)) == pytest.approx(VE[876])
    assert scale(euler("comfy", None, None, sigmas=[5.0, 1.0, 0.0])) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("preset", "sampler", "schedule", "expected"),
    [
        ("a1111", "dpm2", "karras", True),
        ("a1111", "dpm2_ancestral", "ays", True),
        ("a1111", "dpmpp_3m_sde", "exponential", True),
        ("a1111", "dpmpp_2m", "karras", False),
        ("comfy", "dpm2", "karras", True),
        ("comfy", "unipc", "normal", True),
        ("comfy", "dpmpp_3m_sde", "karras", False),
        ("comfy", "dpm2", "ays", False),  # its node feeds a sampler without that habit
        ("diffusers", "dpm2", "karras", False),
    ],
)
def test_who_leaves_out_the_smallest_noise(preset, sampler, schedule, expected):
    assert discards(preset, sampler, schedule) == expected


def test_the_smallest_noise_left_out():
    """One step more is asked of the schedule, and its last level before clean skipped."""
    chosen = {"preset": "comfy", "schedule": "karras", "discard_penultimate_sigma": True}
    read = Settings(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **chosen)
    schedule = peer_schedule(read, 8)
    ve = [*(here.ve for here, _ in schedule.steps), schedule.end.ve]
    np.testing.assert_allclose(ve, [*KARRAS(9)[:-1], 0.0], rtol=1e-9)


def test_zero_terminal_snr():
    """Both peers keep alpha_bar 4.8973e-8 of signal: sigma 4518.8, not diffusers' 4096."""
    for preset in ("a1111", "comfy"):
        p = euler(preset, "sgm_uniform", 10, ZERO_SNR)
        assert visited(p)[0] == pytest.approx(math.sqrt(1 / 4.8973451890853435e-08 - 1), rel=1e-9)


def test_the_config_has_no_say_in_the_spacing():
    """Neither program reads scheduler_config.json; what the network was trained on does count."""
    odd = {
        "use_karras_sigmas": True,
        "sigma_min": 0.2,
        "timestep_spacing": "trailing",
        "final_sigmas_type": "sigma_min",
    }
    for preset in ("a1111", "comfy"):
        p = euler(preset, None, 9, {**SD, **odd})
        assert p.schedule == "normal"
        np.testing.assert_array_equal(p.weights, euler(preset, "normal", 9).weights)


def test_default_schedule():
    """A1111's "Automatic" goes by sampler."""
    automatic = {"dpmpp_2m": "karras", "dpmpp_3m_sde": "exponential", "euler": "normal", "restart": "karras"}
    assert {name: peer_name("a1111", name, None) for name in automatic} == automatic
    assert peer_name("comfy", "dpmpp_2m", None) == "normal"


@pytest.mark.parametrize(
    ("name", "steps", "schedule", "preset", "message"),
    [
        ("euler", 9, "lu", "comfy", "preset 'comfy' has no schedule 'lu'"),
        ("euler", 9, "trailing", "a1111", "preset 'a1111' has no schedule 'trailing'"),
        ("euler", 9, "linear_quadratic", "a1111", "has no schedule"),
        ("euler", 9, "kerras", "comfy", "nearest: 'karras'"),
        ("ddim", 9, None, "a1111", "A1111 has no ddim on sigmas"),
        ("euler", 1, "laplace", "comfy", "2 steps or more"),
        ("ddim", 9, "laplace", "comfy", "end them with 0"),
        ("euler", 9, "karras", "forge", "known: diffusers, a1111, comfy"),
    ],
)
def test_refused(name, steps, schedule, preset, message):
    with pytest.raises(ValueError, match=message):
        plan(name, steps, SD, schedule, preset=preset)


def test_whole_timestep_samplers_take_comfys_levels():
    """ComfyUI's ddim is Euler on its sigmas; the two are one solver."""
    np.testing.assert_allclose(
        visited(plan("ddim", 8, {**SD, "clip_sample": False}, "karras", preset="comfy")),
        visited(euler("comfy", "karras", 8)),
        rtol=1e-12,
    )


def test_align_your_steps_are_the_familys():
    """A1111 has one name for both; the steps of the model that is loaded. Callers of the others name the model's."""
    text = "a\nSteps: 11, Sampler: Euler, Schedule type: Align Your Steps, Seed: 1, Version: v1.10.1"
    asked = {name: infotext.read(text).settings[name] for name in ("sampler", "steps", "schedule", "preset")}
    for xl, first in ((True, [14.615, 6.315, 3.771, 2.181]), (False, [14.615, 6.475, 3.861, 2.697])):
        model = SimpleNamespace(scheduler=SD, family=families.SDXL if xl else families.SD)
        made = ModelSpec.plan(model, **asked)
        np.testing.assert_allclose(visited(made)[:4], first, rtol=1e-12)
        own = ModelSpec.plan(model, "euler", 10, "ays", preset="comfy")
        np.testing.assert_allclose(visited(own)[:-1], COMFY_AYS["ays"][:-1], rtol=1e-8)


# Image-to-image ------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "strength", "run", "first"), [(100, 0.3, 31, 0.3628), (20, 0.5, 11, 1.4832), (10, 0.05, 1, LOW)]
)
def test_a1111_begins_a_step_earlier(steps, strength, run, first):
    """int(min(s, 0.999) N) + 1 of N steps: setup_img2img_steps and sample_img2img."""
    for name in ("dpmpp_2m", "euler", "lms"):
        p = plan(name, steps, SD, "karras", preset="a1111", strength=strength)
        assert p.evaluations == run and p.start.ve == pytest.approx(first, abs=5e-5)
        assert p.steps == steps


@pytest.mark.parametrize(("strength", "first"), [(0.05, 91), (0.5, 541), (1.0, 991)])
@pytest.mark.parametrize("name", ["euler", "dpm2"])
def test_a1111_counts_from_the_first_level_of_a_schedule_that_has_more(name, strength, first):
    """sample_img2img: sigmas[steps - t_enc - 1:], and 11 or 12 steps of ddim_scheduler are from 991 down to 1 by 90
    or from 997 by 83, without the last one: t_enc is 0, 5 and 10."""
    p = plan(name, 11, SD, "ddim_uniform", preset="a1111", strength=strength)
    first = first if name == "euler" else {91: 167, 541: 582, 991: 997}[first]
    assert p.timesteps[0] == pytest.approx(first, abs=1e-6)


def test_one_step_of_a1111s_align_your_steps():
    """np.interp at the one place 0 of its reversed table."""
    np.testing.assert_allclose(visited(euler("a1111", "ays", 1)), [0.029, 0.0], rtol=1e-12)
    np.testing.assert_allclose(visited(euler("a1111", "ays", 2)), [14.615, 0.029, 0.0], rtol=1e-12)


@pytest.mark.parametrize("strength", [0.07, 0.3, 0.5, 0.95, 0.9995])
def test_comfyui_runs_as_many_steps_as_were_asked_for(strength):
    """The last N of int(N / s): KSampler.set_steps. Above 0.9999 it is a whole run."""
    total = int(20 / strength) if strength <= 0.9999 else 20
    p = euler("comfy", "karras", 20, strength=strength)
    np.testing.assert_allclose(visited(p), [*KARRAS(total)[-20:], 0], rtol=1e-9)
    two = plan("dpm2", 20, SD, "karras", preset="comfy", strength=strength)  # one level more, and the last but one out
    assert two.start.ve == pytest.approx(KARRAS(total + 1)[-21], rel=1e-9)


def test_comfyuis_nodes_run_the_end_of_their_own_levels():
    """round(N s) of N: AlignYourStepsScheduler, and SplitSigmasDenoise for the others."""
    whole = visited(euler("comfy", "ays", 10))
    np.testing.assert_allclose(visited(euler("comfy", "ays", 10, strength=0.36)), whole[-5:], rtol=1e-12)
    p = euler("comfy", None, None, sigmas=[8.0, 4.0, 2.0, 1.0, 0.0], strength=0.5)
    np.testing.assert_allclose(visited(p), [2.0, 1.0, 0.0])


def test_no_noise_at_all():
    """At 0 ComfyUI samples nothing; A1111 makes its one step from the smallest level."""
    assert euler("comfy", "karras", 20, strength=0.0).evaluations == 0
    assert euler("a1111", "karras", 20, strength=0.0).start.ve == pytest.approx(LOW)


@pytest.mark.parametrize("preset", ["a1111", "comfy"])
@pytest.mark.parametrize("name", ["heun", "dpm2", "dpmpp_2s_ancestral", "dpmpp_3m_sde", "restart", "deis", "euler"])
def test_a_sampler_knows_no_steps_but_those_of_the_part(preset, name):
    """Both hand a sampler the levels that are left and nothing more: as if they were given by hand."""
    part = plan(name, 12, SD, "karras", preset=preset, strength=0.5)
    levels = KARRAS(12 if preset == "a1111" else 24)[-7 if preset == "a1111" else -12 :]
    if name in ("dpm2", "dpmpp_3m_sde") and discards(preset, name, "karras"):
        levels = KARRAS(13 if preset == "a1111" else 25)[-8 if preset == "a1111" else -13 : -1]
    fresh = plan(name, None, SD, preset=preset, sigmas=[*levels, 0.0])
    scale = np.append(fresh.weights[0, 0], np.ones(fresh.weights.shape[1] - 1))
    np.testing.assert_allclose(part.weights, fresh.weights / scale, rtol=1e-9, atol=1e-9)


def test_churn_of_a_part_is_its_own():
    part = plan("euler", 12, SD, "karras", preset="a1111", strength=0.5, s_churn=2.0)
    fresh = plan("euler", None, SD, preset="a1111", sigmas=[*KARRAS(12)[-7:], 0.0], s_churn=2.0)
    np.testing.assert_allclose(part.sigma, fresh.sigma, rtol=1e-9)


def test_a_strength_too_small_for_comfyui():
    with pytest.raises(ValueError, match="strength 1e-06 is too small for 20 steps.*take a strength from 0.001"):
        euler("comfy", "karras", 20, strength=1e-6)


@pytest.mark.parametrize(("preset", "expected"), [("a1111", "a" * 11), ("diffusers", "a" + "b" * 9)])
def test_edits_of_a_run_from_a_picture(preset, expected):
    """A1111's count begins with the picture (CFGDenoiser.step is 0 in sample_img2img); elsewhere with the whole run."""
    model = SimpleNamespace(plan=lambda sampler, steps, schedule, **how: plan(sampler, steps, SD, schedule, **how))
    given = Sampling(sampler="euler", steps=20, schedule="karras", preset=preset)
    (run,) = given.runs(model, Handoff(), [0.5])
    (branch,) = prompting.branches({"text_encoder": "[a:b:0.5]"}, run, "a1111")
    assert "".join(texts["text_encoder"] for texts in branch.texts) == expected
