"""The steps of a run: which are kept, what they hold, and a run that is stopped."""

import numpy as np
import pytest

import sdjax
from sdjax.request.arguments.monitoring import Monitoring
from sdjax.runtime import programs


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


@pytest.mark.parametrize(
    "value, numbers",
    [
        (None, ()),
        (False, ()),
        (True, (0, 1, 2, 3, 4, 5)),
        (3, (0, 2, 5)),
        (1, (0,)),
        (100, (0, 1, 2, 3, 4, 5)),
        ([4, 0, 4], (0, 4)),
        ([], ()),
    ],
)
def test_wanted(value, numbers):
    assert Monitoring(show_steps=value).wanted(6) == numbers


@pytest.mark.parametrize(
    "value, message", [(0, "at least 1"), ([6], "evaluations 0 to 5"), ([-1], "0 to 5"), ("all", "True"), (2.5, "True")]
)
def test_not_to_be_had(value, message):
    with pytest.raises(ValueError, match=message):
        Monitoring(show_steps=value).wanted(6)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "euler_ancestral"])
def test_steps_are_what_the_network_saw_and_said(sd, sampler):
    """With no guidance, so that the network can be asked again: D = c_skip x + c_out network(x, t)."""
    settings = {"steps": 4, "sampler": sampler, "guidance_scale": 1.0, "seed": 3}
    made = sd.generate("a red circle", show_steps=True, **settings)
    p, context = sd.plan(sampler, 4), sd.encode_prompt(["a red circle"])
    assert len(made.steps) == p.evaluations
    for i, step in enumerate(made.steps):
        assert (step.number, step.of, step.timestep) == (i, p.evaluations, pytest.approx(p.timesteps[i]))
        row = np.flatnonzero(p.evaluate)[i]
        raw = sd.predict(step.latents, step.timestep, context)
        said = p.c_skip[row] * step.latents + p.c_out[row] * np.asarray(raw)
        np.testing.assert_allclose(step.denoised, said, rtol=1e-4, atol=2e-4 * abs(said).max())
        assert step.sigma == pytest.approx(p.sigma[row] / p.alpha[row], rel=1e-5)


def test_looking_changes_nothing(sd):
    """Kept, shown live or not looked at: the same picture by the same program."""
    plain = sd.generate("a red circle", steps=5)
    before = programs.run_rows._cache_size()
    seen: list[int] = []
    watched = sd.generate("a red circle", steps=5, show_steps=2, callback=lambda step: seen.append(step.number))
    np.testing.assert_array_equal(watched.latents, plain.latents)
    assert seen == [0, 1, 2, 3, 4] and [step.number for step in watched.steps] == [0, 4]
    assert programs.run_rows._cache_size() == before


def test_a_stopped_run_keeps_what_is_done(sd):
    whole = sd.generate("a red circle", steps=6, show_steps=True)
    stopped = sd.generate("a red circle", steps=6, show_steps=True, callback=lambda step: step.number < 2)
    np.testing.assert_array_equal(stopped.latents, whole.steps[2].denoised)
    assert [step.number for step in stopped.steps] == [0, 1, 2] and stopped.settings["stop_after"] == 3
    again = sd.generate(**sdjax.read_settings(stopped.images[0]))
    np.testing.assert_array_equal(again.latents, stopped.latents)


def test_lanes_that_are_done_keep_their_result(sd):
    """Two pictures of unlike step counts: stopped when the shorter one is done, it has its own last picture."""
    prompts = ["a red circle", "a blue square"]
    alone = sd.generate(prompts[0], steps=2, sampler="euler")
    made = sd.generate(prompts, steps=[2, 6], sampler="euler", stop_after=4, show_steps=[3])
    np.testing.assert_allclose(made.latents[0], alone.latents[0], atol=1e-5)
    longer = sd.generate(prompts[1], steps=6, sampler="euler", first_image=1, show_steps=[3])
    np.testing.assert_allclose(made.latents[1], longer.steps[0].denoised[0], atol=1e-5)
    np.testing.assert_allclose(made.steps[0].denoised[1], longer.steps[0].denoised[0], atol=1e-5)
    assert abs(made.steps[0].denoised[0]).max() > 0.1  # its last, not nothing


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_stop_after_is_a_count(sd, value):
    with pytest.raises(ValueError, match="stop_after must be a whole number"):
        sd.generate("a red circle", stop_after=value)
