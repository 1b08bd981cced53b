"""The tables of samplers and schedules."""

import pytest

import sdjax
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.spacing import SCHEDULES


def test_samplers_are_all_there_with_what_they_cost():
    listed = sdjax.samplers()
    assert list(listed) == list(SAMPLERS) and len(listed) == 30 and "heun" in listed and "nobody" not in listed
    assert [listed[name].evaluations for name in ("ddim", "euler", "heun", "dpmpp_sde", "dpmpp_2m")] == [1, 1, 2, 2, 1]
    fresh = {name for name in listed if listed[name].stochastic}
    assert {"euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "ddpm", "sa_solver"} <= fresh
    assert not {"ddim", "euler", "heun", "dpmpp_2m", "unipc", "deis", "lms"} & fresh
    assert (listed["heun"].order, listed["ddim"].order) == (2, 1) and "s_churn" in listed["euler"].options
    assert all(listed[name].about for name in listed)


def test_schedules_are_all_there():
    listed = sdjax.schedules()
    assert list(listed) == list(SCHEDULES)
    assert listed["karras"].presets == ("diffusers", "a1111", "comfy") and listed["lu"].presets == ("diffusers",)


def test_a_table_is_printed_a_line_each():
    text = repr(sdjax.samplers()).splitlines()
    assert text[0].split() == ["name", "order", "evaluations", "stochastic", "about"] and len(text) == 31
    assert text[1].startswith("ddim ") and max(map(len, text)) < 170
    assert sdjax.schedules()._repr_html_().count("<tr>") == 1 + len(SCHEDULES)


def test_a_table_is_a_mapping_and_tells_what_it_has():
    assert "heun" in sdjax.samplers().keys() and sdjax.samplers().get("Euler a") is None  # noqa: SIM118
    assert dict(sdjax.schedules().items())["karras"].name == "karras"
    with pytest.raises(KeyError, match="'Euler a' is none of ddim, .*euler_ancestral"):
        sdjax.samplers()["Euler a"]
