"""Samplers and schedules by the names that other programs have for them."""

import pytest

from sdjax.diffusion import names, samplers, spacing

KARRAS_2M = {"sampler": "dpmpp_2m", "schedule": "karras"}


@pytest.mark.parametrize(
    "name,meant",
    [
        ("DPM++ 2M Karras", KARRAS_2M),
        ("dpm++ 2m karras", KARRAS_2M),
        ("DPM++2M Karras", KARRAS_2M),
        ("dpmpp_2m_karras", KARRAS_2M),
        ("k_dpmpp_2m", {"sampler": "dpmpp_2m"}),
        ("sample_euler_ancestral", {"sampler": "euler_ancestral"}),
        ("dpmpp_2m_sde_gpu", {"sampler": "dpmpp_2m_sde"}),
        ("Euler a", {"sampler": "euler_ancestral"}),
        ("euler_a", {"sampler": "euler_ancestral"}),
        ("DPM2 a Karras", {"sampler": "dpm2_ancestral", "schedule": "karras"}),
        ("DPM++ 2M SDE Heun", {"sampler": "dpmpp_2m_sde", "sampler_options": {"solver_type": "heun"}}),
        ("DPM++ 3M SDE Exponential", {"sampler": "dpmpp_3m_sde", "schedule": "exponential"}),
        ("uni_pc", {"sampler": "unipc"}),
        ("PLMS", {"sampler": "pndm"}),
        ("DDIM", {"sampler": "ddim"}),
        ("dpm_2", {"sampler": "dpm2"}),
        ("RES Multistep", {"sampler": "res_multistep"}),
        ("DPMSolverMultistepScheduler", {"sampler": "dpmpp_2m"}),
        ("EulerAncestralDiscreteScheduler", {"sampler": "euler_ancestral"}),
        ("KDPM2DiscreteScheduler", {"sampler": "dpm2"}),
        ("FlaxDDIMScheduler", {"sampler": "ddim"}),
        ("FlaxDPMSolverMultistepScheduler", {"sampler": "dpmpp_2m"}),
        ("DPM-Solver++", {"sampler": "dpmpp_2m"}),
        ("dpmsolver++", {"sampler": "dpmpp_2m"}),
        ("uni_pc_bh2", {"sampler": "unipc"}),
        ("nobody's", None),
        ("", None),
    ],
)
def test_samplers_of_others(name, meant):
    assert names.here(name, samplers.SAMPLERS) == meant


def test_every_name_means_something_of_ours():
    for table in (names.SAMPLERS, dict.fromkeys((names.DIFFUSERS | names.OTHERS).values())):
        assert set(table) <= {*samplers.SAMPLERS, "dpm_adaptive"}
    assert {*names.SCHEDULES, *names.ALSO.values()} <= set(spacing.SCHEDULES)


def test_a_name_of_ours_stays_and_another_is_told():
    assert samplers.sampler("dpmpp_2m")[0] == "dpmpp_2m"
    with pytest.raises(ValueError, match="another program's name; write sampler='dpmpp_2m', schedule='karras'$"):
        samplers.sampler("DPM++ 2M Karras")
    with pytest.raises(ValueError, match="call sdjax.dpm_adaptive"):
        samplers.sampler("DPM adaptive")


def test_diffusers_own_classes_and_objects_are_told():
    scheduler = type("DPMSolverMultistepScheduler", (), {})
    for given in (scheduler, scheduler()):
        with pytest.raises(ValueError, match="write sampler='dpmpp_2m'$"):
            samplers.sampler(given)
    with pytest.raises(ValueError, match="sampler must be a name, .* not 5"):
        samplers.sampler(5)


def test_an_unknown_sampler_is_listed_once():
    with pytest.raises(ValueError) as near:
        samplers.sampler("dpmp_2m")
    assert "nearest: dpmpp_2m" in str(near.value) and "known:" not in str(near.value)
    with pytest.raises(ValueError) as far:
        samplers.sampler("qqq")
    assert "nearest" not in str(far.value) and str(far.value).count("restart") == 1


@pytest.mark.parametrize(
    "name,told",
    [
        ("Karras", "write schedule='karras'$"),
        ("Align Your Steps", "write schedule='ays'$"),
        ("SGM Uniform", "write schedule='sgm_uniform'$"),
        ("Automatic", "is None here"),
        ("karas", "nearest: 'karras'"),
    ],
)
def test_schedules_of_others(name, told):
    with pytest.raises(ValueError, match=told):
        spacing.check_schedule(name)


def test_a_schedule_of_training_is_none_of_sampling():
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        with pytest.raises(ValueError, match=f"'{name}' is a beta_schedule, which the checkpoint's scheduler config"):
            spacing.check_schedule(name)
    with pytest.raises(ValueError, match="'default' is None here, the checkpoint's own"):
        spacing.check_schedule("default")
