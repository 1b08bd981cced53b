"""The arguments of `generate`, declared once; and the checked request that they become, which is run or is not."""

import inspect
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from absl import flags

import sdjax
from experiments import _arguments
from sdjax.pipeline import StableDiffusion
from sdjax.request.arguments.arguments import DECLARED, DEFAULTS, TOPICS, Arguments
from sdjax.request.arguments.topic import ALWAYS, GIVEN, NEVER
from sdjax.request.request import Request

ASKED = {"prompt": ["a red circle", "a blue square"], "steps": 3, "sampler": "euler_ancestral", "progress": False}


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


@dataclass(frozen=True)
class Refusing:
    """An executor that runs nothing."""

    def run(self, program, *args):
        raise AssertionError(f"{program} was run")

    def shard_inputs(self, tree, axis, parts=None):
        raise AssertionError("something was laid out")


@pytest.fixture
def blank(sd):
    """The model without its numbers, on an executor that refuses to run."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), sd.networks.params)
    networks = replace(sd.networks, stored=shapes, params=shapes, executor=Refusing())
    return replace(sd, networks=networks, params=shapes)


# ---------------------------------------------------------------------- declared once


def test_the_signature_is_what_the_topics_declare():
    parameters = inspect.signature(StableDiffusion.generate).parameters
    assert {name: one.default for name, one in parameters.items() if name != "self"} == DEFAULTS
    assert sum(len(topic.declarations()) for topic in TOPICS.values()) == len(DEFAULTS)  # none in two topics
    taken = inspect.signature(StableDiffusion.request)
    assert taken.parameters == parameters and taken.return_annotation is Request


@pytest.mark.parametrize("name", DECLARED)
def test_what_is_declared_fits_together(name):
    one, default = DECLARED[name], DEFAULTS[name]
    assert bool(one.types) == (one.told != NEVER), "a file holds what settings tell"
    assert one.told != GIVEN or (one.types == (str,) and default is None and one.raw)
    if one.span is not None and default is not None:
        assert {int, float} & {*one.types} and one.span[0] <= default <= one.span[1]
    if one.flag is not None and one.flag.least is not None and one.span is not None:
        assert one.span[0] <= one.flag.least, "a flag refuses nothing that a file may hold"


def test_a_flag_says_the_default():
    asked = flags.FlagValues()
    _arguments.define_flags(among=asked)
    asked(["program"])
    assert len(_arguments.FLAGS) > 30
    for name in _arguments.FLAGS:
        assert getattr(asked, name) == DEFAULTS[name], name
    assert _arguments.given(asked) == {name: DEFAULTS[name] for name in _arguments.PLAIN}


# ---------------------------------------------------------------------- checked, and not run


def test_a_request_runs_nothing(blank):
    mask, size = np.full((16, 16), 255, np.uint8), blank.spec.side
    mask[:4] = 0
    picture = np.zeros((size, size, 3), np.uint8)
    for more in ({}, {"image": picture, "mask": np.resize(mask, (size, size))}, {"refiner": blank}, {"seed": [3, 4]}):
        made = blank.request(**ASKED, **more)
        assert len(made.prompts) == 2 and (made.refiner is not None) == ("refiner" in more)
    with pytest.raises(AssertionError, match="was run"):
        blank.run(made)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"guidance_scale": [1.0, 2.0, 3.0]}, "guidance_scale has 3 entries for 2 pictures"),
        ({"height": 51}, "height must be a multiple"),
        ({"show_steps": [9]}, "show_steps has 9, and this run has the evaluations 0 to 2"),
        ({"callback": 3}, "callback must be a function"),
        ({"strength": 0.5}, "strength= belongs to a picture"),
        ({"refiner": "x"}, "refiner must be a loaded checkpoint"),
        ({"crop": (0, 0)}, "crop belongs to SDXL"),
    ],
)
def test_a_request_is_checked(blank, wrong, message):
    with pytest.raises(ValueError, match=message):
        blank.request(**ASKED | wrong)


def test_a_request_has_the_hints_of_generate(blank):
    with pytest.raises(TypeError, match=r"request\(\) has no argument cfg_scale: write guidance_scale=$"):
        blank.request("a", cfg_scale=3)
    with pytest.raises(TypeError, match="no argument promt: did you mean prompt"):
        blank.request(promt="a")


def test_a_request_is_shown_in_a_line(blank):
    mask = np.full((4000, 4000), 255, np.uint8)
    told = repr(blank.request(**ASKED, refiner=blank, regions=[("a dog", mask)]))
    side = blank.spec.side
    assert (
        told.startswith(f"Request(2 pictures, {side}x{side}, euler_ancestral, seed 0, 'a red circle', ..")
        and len(told) < 300
    )
    assert blank.name in told and "\n" not in told


# ---------------------------------------------------------------------- run


@pytest.mark.parametrize(
    "more", [{}, {"guidance_scale": [1.0, 4.0], "num_images": 1}, {"decode": False, "stop_after": 2}]
)
def test_a_request_that_is_run_is_generate(sd, more):
    asked = ASKED | more
    request, made = sd.request(**asked), sd.generate(**asked)
    for _ in range(2):  # as often as one likes
        out = sd.run(request)
        np.testing.assert_array_equal(out.latents, made.latents)
        assert out.settings == made.settings and (out.pixels is None) == (made.pixels is None)
        if out.pixels is not None:
            np.testing.assert_array_equal(out.pixels, made.pixels)


def test_both_stages_are_one_request(sd):
    request = sd.request(**ASKED, refiner=sd, refiner_start=0.5)
    made = sd.generate(**ASKED, refiner=sd, refiner_start=0.5)
    for _ in range(2):
        np.testing.assert_array_equal(sd.run(request).latents, made.latents)
    assert request.refiner.request.stage == 500_000 and request.settings == made.settings


def test_settings_ask_for_the_same(sd):
    """What a request tells of itself is a request for the same."""
    size = sd.spec.side
    asked = ASKED | {
        "eta": [0.5, 1.0],
        "guidance_scale": 3.3,
        "seed": [5, jax.random.key(7)],
        "clip_skip": 1,
        "preset": None,
    }
    first = sd.request(**asked, height=size, noise_source="torch_cpu", guidance_schedule=["linear", None])
    again = sd.request(**first.settings)
    assert again.settings == first.settings and again.numbers == first.numbers == (0, 0)
    np.testing.assert_array_equal(again.guidance_scales, first.guidance_scales)
    assert [name for name in first.settings if DECLARED[name].told == ALWAYS] == list(first.settings)[:16]


def test_a_request_is_of_its_model(sd, blank):
    other = replace(sd, networks=replace(sd.networks, spec=replace(sd.spec, name="another")))
    with pytest.raises(ValueError, match="was made by another; make another by request of"):
        sd.run(other.request("a"))
    with pytest.raises(ValueError, match=r"run takes what sd.request\(prompt, ...\) gives, not 'a'"):
        sd.run("a")


def test_arrays_are_lists_and_keys_are_numbers():
    given = Arguments.of({"steps": np.array([3, 4]), "seed": jax.random.key(3), "latents": np.zeros(3)})
    assert given.sampling.steps == [3, 4] and given.batch.seed == 3 and given.handoff.latents.shape == (3,)
    assert {name: value for name, value in given.items() if name not in ("steps", "seed", "latents")} == {
        name: value for name, value in DEFAULTS.items() if name not in ("steps", "seed", "latents")
    }
    with pytest.raises(ValueError, match="eta is a jax key"):
        Arguments.of({"eta": jax.random.key(3)})
