"""Other programs' names of samplers and schedules: each is a sampler here, and none says two things."""

import pytest

from sdjax.diffusion import names
from sdjax.diffusion.names import Choice, translated
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.spacing import SCHEDULES


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("DPM++ 2M Karras", Choice("dpmpp_2m", "karras")),
        ("dpm++ 2m  karras", Choice("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Heun Exponential", Choice("dpmpp_2m_sde", "exponential", {"solver_type": "heun"})),
        ("Euler a", Choice("euler_ancestral")),
        ("PLMS", Choice("pndm")),
        ("dpmpp_2m_sde_gpu", Choice("dpmpp_2m_sde")),
        ("dpm_2_ancestral", Choice("dpm2_ancestral")),
        ("uni_pc", Choice("unipc", None, {"solver_order": 3, "solver_type": "bh1"})),
        ("DPMSolverMultistepScheduler", Choice("dpmpp_2m")),
        ("EulerDiscrete", Choice("euler")),
        ("euler_k", Choice("euler", "karras")),
        ("kdpm_2_a", Choice("dpm2_ancestral")),
        ("", None),
        ("seeds_2", None),
        ("Karras", None),
    ],
)
def test_translated(name, ours):
    assert translated(name) == ours


def test_what_a_hint_says():
    assert str(translated("DPM++ 2M Karras")) == "sampler='dpmpp_2m', schedule='karras'"


def test_every_name_is_a_sampler_or_a_schedule_here():
    known = {*SAMPLERS, "dpm_adaptive"}
    for table in (names.COMFY_SAMPLERS, names.DIFFUSERS, names.INVOKE):
        assert set(table.values()) <= known
    assert set(names.A1111_SAMPLERS) <= known
    assert {*names.A1111_SCHEDULES, *names.ALSO.values(), *names.COMFY_SCHEDULES.values()} <= set(SCHEDULES)
