"""generate: one compilation for everything that is data, pictures that do not depend on their neighbours, bad input."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.nn.conditioning import Added, Conditions
from sdjax.runtime import denoisers, programs
from tests.checkpoints import TO_LATENTS, respecified


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


def compilations() -> int:
    """Programs compiled so far by everything that a picture goes through."""
    return sum(step._cache_size() for step in (*TO_LATENTS, programs.decode))


def test_one_compilation_for_all_settings(sd):
    for schedule in (None, "interval:0:1"):  # runs with an interval are a program that need not evaluate both halves
        sd.generate(["a", "b"], "green", steps=3, sampler="euler_ancestral", guidance_schedule=schedule)
    before = compilations()
    settings = itertools.product(("ddim", "pndm", "euler", "dpmpp_2m"), (None, "karras", "trailing"), (1, 2, 20, 63))
    for i, (sampler, schedule, steps) in enumerate(settings):
        sd.generate(
            ["a small red square", "an ant"],
            ["", "a circle"],
            sampler=sampler,
            schedule=schedule,
            steps=steps,
            guidance_scale=[2.0 + i, 1.5],
            guidance_schedule=(None, "linear", "interval:0.2:0.8", ["cosine:1:0", "noise_interval:0.3:5.4"])[i % 4],
            guidance_rescale=(0.0, 0.7, [0.0, 0.3])[i % 3],
            seed=i,
            decode=i % 9 == 0,
        )
    sd.generate(["a circle", "a square"], steps=64, sampler="ddim", eta=1.0)
    assert compilations() == before


def test_one_compilation_for_all_lanes(sd):
    """Two pictures with samplers, schedules, steps and guidance of their own are one program, too."""
    samplers = ("ddim", "pndm", "euler", "dpmpp_2m")
    sd.generate(["a", "b"], sampler=["euler_ancestral", "ddim"], steps=3, decode=False)
    before = compilations()
    for i, one in enumerate(samplers):
        sd.generate(
            ["an ant", "a circle"],
            sampler=[one, "euler"],
            steps=[1 + 20 * i, 5],
            schedule=["karras", None],
            eta=[1.0 if one == "ddim" else None, None],
            guidance_scale=[2.0 + i, 1.0],
            guidance_schedule=["linear", None],
            guidance_rescale=[0.0, 0.5],
            seed=i,
            decode=False,
        )
    assert compilations() == before


def test_a_sampler_without_noise_needs_no_program_for_it(sd):
    """It is the longest of the small ones to compile."""
    before = programs.draw._cache_size()
    for steps in (3, 5):
        sd.generate("a circle", steps=steps, sampler="heun", height=12, width=12, decode=False)
    assert programs.draw._cache_size() == before
    sd.generate("a circle", steps=3, sampler="euler_ancestral", height=12, width=12, decode=False)
    assert programs.draw._cache_size() == before + 1


PROMPTS = ["a red circle", "a blue square", "an ant", "a small green circle"]
LANES = {
    "sampler": ["dpmpp_2m", "ddim", "euler", "pndm"],
    "steps": [20, 9, 5, 12],
    "schedule": [None, "trailing", "karras", None],
    "eta": [None, 1.0, None, None],
    "sampler_options": [{"solver_type": "heun"}, None, {"s_churn": 2.0}, None],
    "guidance_scale": [7.5, 2.0, 4.5, 3.0],
    "guidance_schedule": ["linear:0.0:1.0", "constant", "constant", "interval:0.2:0.8"],
    "guidance_rescale": [0.0, 0.75, 0.0, 0.0],
}


@pytest.mark.parametrize("pair", [slice(0, 2), slice(2, 4)], ids=["first", "second"])
def test_a_lane_does_not_depend_on_its_neighbours(sd, pair):
    """Nor do its settings: each picture's PNG makes it again, alone."""
    lanes = {name: values[pair] for name, values in LANES.items()}
    together = sd.generate(PROMPTS[pair], seed=7, **lanes)
    assert {name: together.settings[name] for name in lanes} == lanes
    for i, image in enumerate(together.images):
        settings = sdjax.read_settings(image)
        assert {name: settings[name] for name in lanes} == {name: values[i] for name, values in lanes.items()}
        alone = sd.generate(**settings, decode=False).latents[0]
        assert np.abs(alone - together.latents[i]).max() <= 1e-5 * np.abs(alone).max()


def test_a_lane_that_is_done_costs_nothing():
    """On a CPU the network runs only for the pictures that need it; the others get zeros that nobody uses."""
    seen = []

    def network(inputs):
        jax.debug.callback(lambda x: seen.append(float(x[0, 0])), inputs[0])
        return 2.0 * inputs[0]

    x = jnp.arange(6.0)[:, None]
    run = jax.jit(lambda needed: denoisers.one_by_one(network, (x,), needed, 2))
    made = run(jnp.array([True, False, True]))
    jax.effects_barrier()
    assert made[:, 0].tolist() == [0, 0, 4, 6, 0, 10] and sorted(seen) == [0, 2]
    np.testing.assert_array_equal(run(jnp.array(True)), 2 * x)


def test_no_guidance_next_to_guidance(sd):
    """A scale below 1 is none, whatever the neighbour has; nor is a guided picture outside its interval."""
    asked = {"steps": 5, "sampler": "euler", "decode": False}
    twice = asked | {"prompt": ["a red circle"] * 2, "seed": [1, 1]}
    none = sd.generate(**twice, guidance_scale=[0.5, 4.0], guidance_schedule=[None, "noise_interval:100:200"]).latents
    some = sd.generate(**twice, guidance_scale=4.0).latents
    alone = sd.generate("a red circle", seed=1, guidance_scale=1.0, **asked).latents[0]
    # The one runs both halves and the other its prompt alone: products of one row round otherwise on some CPUs.
    assert np.abs(none[0] - none[1]).max() <= 1e-5 * np.abs(alone).max()
    assert np.abs(none[0] - alone).max() <= 1e-4 * np.abs(alone).max()
    assert np.abs(some[0] - alone).max() >= 1e-2 * np.abs(alone).max()


def test_a_solver_of_one_s_own(sd):
    def half_way(tape, schedule):
        x = tape.x_T
        for here, there in schedule.steps:
            clean = tape.denoise(x, here)
            x = there.alpha * clean + there.sigma / here.sigma * (x - here.alpha * clean)
        return x

    out = sd.generate("a red circle", sampler=half_way, steps=3, schedule="leading")
    assert out.settings["sampler"] == sdjax.read_settings(out.images[0])["sampler"] == "half_way"
    assert np.isfinite(out.latents).all()
    with pytest.raises(ValueError, match="'half_way' is unknown"):
        sd.generate(**out.settings)


def test_levels_of_one_s_own(sd):
    sigmas = np.array([12.0, 3.0, 0.5, 0.0])
    out = sd.generate("a red circle", sampler="euler", steps=None, sampler_options={"sigmas": sigmas}, decode=False)
    assert out.settings["steps"] == 3 and out.settings["sampler_options"] == {"sigmas": sigmas.tolist()}
    np.testing.assert_array_equal(sd.generate(**out.settings, decode=False).latents, out.latents)


def test_a_picture_does_not_depend_on_its_batch(sd):
    for sampler, eta in (("dpmpp_2m", 0.0), ("ddim", 1.0)):
        together = sd.generate(PROMPTS, seed=7, steps=20, sampler=sampler, eta=eta, decode=False).latents
        largest = np.abs(together).max()
        for i, prompt in enumerate(PROMPTS):
            alone = sd.generate(prompt, seed=7, first_image=i, steps=20, sampler=sampler, eta=eta, decode=False)
            assert np.abs(alone.latents[0] - together[i]).max() <= 1e-5 * largest


def test_seeds_differ_and_repeat(sd):
    one = sd.generate("a red circle", seed=[3], num_images=1, steps=2).latents
    many = sd.generate("a red circle", seed=[3, 4, 3], num_images=3, steps=2).latents
    np.testing.assert_allclose(many[0], many[2], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5, atol=1e-4)
    assert np.abs(many[0] - many[1]).max() > 0.1


def test_progress_gives_the_same_latents(sd, capsys):
    quiet = sd.generate("a red circle", steps=20, decode=False, progress=False)
    shown = sd.generate("a red circle", steps=20, decode=False, progress=True)
    np.testing.assert_allclose(shown.latents, quiet.latents, rtol=1e-5, atol=1e-5)
    assert "20" in capsys.readouterr().err


def test_settings_make_the_same_pictures(sd, tmp_path):
    out = sd.generate(["a red circle", "an ant"], "blue", num_images=2, seed=5, steps=4, sampler="euler", height=24)
    again = sd.generate(**out.settings)
    np.testing.assert_array_equal(again.pixels, out.pixels)
    out.images[3].save(tmp_path / "x.png")
    alone = sd.generate(**sdjax.read_settings(tmp_path / "x.png"))
    assert np.abs(alone.pixels[0].astype(int) - out.pixels[3]).max() <= 1


def test_settings_of_given_noise_ask_for_it(sd):
    noise = np.zeros((1, 8, 8, 4), np.float32)
    out = sd.generate("a red circle", steps=1, latents=noise)
    with pytest.raises(ValueError, match="made from given noise"):
        sd.generate(**out.settings)
    with pytest.raises(ValueError, match="made from given noise"):
        sd.generate(**sdjax.read_settings(out.images[0]))


def test_guidance_off_is_the_plain_prediction(sd):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1, 8, 8, 4)).astype(np.float32)
    context = sd.encode_prompt(["a red circle"])
    plan = sd.plan("euler", 5)
    want = sdjax.sample(plan, lambda x, t: sd.predict(x, t, context), noise)
    got = sd.generate("a red circle", steps=5, sampler="euler", guidance_scale=1.0, latents=noise, decode=False).latents
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_encode_is_a_draw_by_key_or_the_mean(sd):
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    mean, drawn = sd.encode(pixels), sd.encode(pixels, jax.random.key(0))
    assert mean.shape == drawn.shape == (2, 8, 8, 4)
    np.testing.assert_array_equal(drawn, sd.encode(pixels, jax.random.key(0)))
    assert np.abs(drawn - mean).max() > 0
    with pytest.raises(ValueError, match="height must be a multiple of 2"):
        sd.encode(pixels[:, :15])


def test_half_precision_stays_near_float32(tiny_checkpoint, sd):
    half = sdjax.load(tiny_checkpoint, dtype="bfloat16", compilation_cache=False)
    noise = np.random.default_rng(0).standard_normal((1, 8, 8, 4)).astype(np.float32)
    context = sd.encode_prompt(["a red circle"])
    want, got = (np.asarray(one.predict(noise, 500.0, context)) for one in (sd, half))
    assert got.dtype == np.float32
    assert np.abs(got - want).max() <= 0.05 * np.abs(want).max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": ["a", 3]}, r"prompt\[1\] must be a string, not 3"),
        ({"height": 17}, "height must be a multiple of 2, not 17; the nearest are 16 and 18"),
        ({"width": 0}, "width must be a multiple of 2"),
        ({"sampler": "dpmp_2m"}, "nearest: .*dpmpp_2m"),
        ({"schedule": "karas"}, "nearest: .*karras"),
        ({"width": "128"}, "width must be a whole number, a multiple of 2, not '128'"),
        ({"decode": "no"}, "decode must be one of True, False, not 'no'"),
        ({"decode": None}, "decode must be one of True, False, not None"),
        ({"progress": "yes"}, "progress must be one of True, False, None, not 'yes'"),
        ({"callback": 3}, "callback must be a function, which is called with a Preview, not 3"),
        ({"steps": 0}, "steps must be"),
        ({"num_images": 0}, "num_images must be"),
        ({"first_image": -1}, "first_image must be"),
        ({"first_image": 2**32}, "first_image must be at most 4,294,967,295"),
        ({"first_image": 2**32 - 1, "num_images": 2}, "first_image must be at most 4,294,967,294 here"),
        ({"first_image": 2_000_000_000, "noise_source": "torch_cpu"}, "come after|comes after"),
        ({"num_images": 10**9}, "are 1,000,000,000 pictures, and a call makes at most 10,000"),
        ({"num_images": 10**400}, "num_images must be at most"),
        ({"prompt": ["a"] * 200, "num_images": 100}, "200 prompts with num_images=100 are 20,000 pictures"),
        ({"height": 10**400}, "height must be at most 16,384 pixels"),
        ({"guidance_scale": 10**400}, "guidance_scale must be a finite number"),
        ({"guidance_scale": 1e39}, "guidance_scale must be a finite number"),
        ({"guidance_rescale": 10**400}, "guidance_rescale must be a number from 0"),
        ({"seed": 10**5000}, "not a number of 16610 bits"),
        ({"stop_after": 10**400}, "stop_after must be at most"),
        ({"latents": "noise"}, "pass that array as latents="),
        ({"latents": {"a": 1}}, "latents must be an array of numbers, not dict"),
        ({"latents": [["a"]]}, "latents must be an array of numbers, not list"),
        ({"latents": np.ones((1, 8, 8, 4), complex)}, "latents must be an array of numbers"),
        ({"latents": np.full((1, 8, 8, 4), 1e300)}, "latents hold NaN or infinite"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2 entries for 1 pictures"),
        ({"seed": [1, 2]}, "seed has 2 entries for 1 pictures"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**64}, "seed must be"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be"),
        ({"guidance_scale": [1.0, 2.0]}, "guidance_scale has 2 entries"),
        ({"latents": np.zeros((1, 4, 8, 8))}, r"latents must be \[1, 8, 8, 4\]"),
        ({"latents": np.full((1, 8, 8, 4), np.nan)}, "latents hold NaN"),
        ({"eta": 2.0, "sampler": "ddim"}, "eta must be"),
        ({"guidance_scale": "7"}, "guidance_scale must be"),
        ({"guidance_rescale": 1.5}, "guidance_rescale must be a number from 0"),
        ({"guidance_rescale": None}, "guidance_rescale must be a number from 0"),
        ({"guidance_schedule": "lineal"}, "'lineal' is unknown; nearest: 'linear'"),
        ({"guidance_schedule": ["linear", "cosine"]}, "guidance_schedule has 2 entries for 1 pictures"),
        ({"sampler": ["ddim", "euler"]}, "sampler has 2 entries for 1 pictures"),
        ({"steps": [1, 2, 3]}, "steps has 3 entries for 1 pictures"),
        ({"preset": "a1112"}, "preset 'a1112' is unknown; nearest: 'a1111'"),
        ({"sampler_options": {"s_chrun": 1.0}, "sampler": "euler"}, "sampler euler has no option 's_chrun'"),
        ({"sampler_options": [1]}, "sampler_options must map options' names to values"),
        ({"sampler_options": {"steps": 3}}, "sampler_options holds 'steps', which is no option"),
        ({"sampler_options": {"sigmas": object()}}, "sampler_options must hold numbers"),
    ],
)
def test_bad_input_is_named_before_anything_compiles(sd, arguments, message):
    before = compilations()
    with pytest.raises(ValueError, match=message):
        sd.generate(**({"prompt": "a red circle"} | arguments))
    assert compilations() == before


NO_TEXTS = (-1, 1.5, b"x", 1j, [[1]], np.zeros(3))
OF_LOAD = [(name, value) for name in ("variant", "revision") for value in NO_TEXTS] + [
    (name, value)
    for name in ("source", "vae", "compilation_cache", "exported", "dtype")
    for value in (*NO_TEXTS, "x" * 5000, "a\0b")
]


@pytest.mark.parametrize(("name", "value"), OF_LOAD, ids=lambda v: str(v)[:17])
def test_arguments_of_load_of_another_type(tiny_checkpoint, name, value):
    with pytest.raises(ValueError, match=name if name != "source" else "load takes|source") as told:
        sdjax.load(**{"source": tiny_checkpoint, "compilation_cache": False, name: value})
    assert len(str(told.value)) < 400


def test_unknown_dtype(tiny_checkpoint):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16"):
        sdjax.load(tiny_checkpoint, dtype="int8")


def test_save_writes_back_what_was_loaded(sd, tiny_checkpoint, tmp_path):
    sd.save(tmp_path / "copy")
    files = sorted(path.relative_to(tiny_checkpoint) for path in tiny_checkpoint.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "copy") for p in (tmp_path / "copy").rglob("*") if p.is_file())
    for path in files:
        assert (tmp_path / "copy" / path).read_bytes() == (tiny_checkpoint / path).read_bytes()


def test_casting_copies_only_what_it_must():
    params = {"a": jnp.ones(5), "b": {"c": jnp.ones(3, jnp.float16)}}
    made = programs.cast(jnp.dtype("float32"), params)
    assert made["a"] is params["a"]
    assert made["b"]["c"].dtype == jnp.float32


def test_parameters_can_be_replaced(sd):
    zeroed = dataclasses.replace(sd, params={**sd.params, "unet": jax.tree.map(np.zeros_like, sd.params["unet"])})
    context = sd.encode_prompt(["a red circle"])
    assert np.all(np.asarray(zeroed.predict(np.ones((1, 8, 8, 4)), 1.0, context)) == 0)


# The parts, given what does not fit -----------------------------------------------------------------

X = np.ones((1, 8, 8, 4), np.float32)


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (
            np.ones((1, 4, 8, 8)),
            1.0,
            r"x_t must be b h w c with c = 4, got \(1, 4, 8, 8\), which looks like b c h w: np.mov",
        ),
        (X[0], 1.0, r"got \(8, 8, 4\), one picture without the axis b: x\[None\]"),
        (np.ones((4, 8, 8)), 1.0, r"which looks like c h w: np.moveaxis\(x, 0, -1\)\[None\]"),
        (np.ones((1, 8, 8, 9)), 1.0, r"x_t must be b h w c with c = 4, got \(1, 8, 8, 9\)$"),
        (X, [1.0, 2.0], r"t must be one timestep or one for each of the 1 pictures, not of shape \(2,\)"),
        (X, [[1.0]], "t must be one timestep"),
        (X, "5", "t must be an array of real numbers, not '5'"),
        (X, None, "t must be an array of real numbers, not None"),
        ("x.png", 1.0, "x_t must be an array of real numbers, not 'x.png'"),
        (X * 1j, 1.0, r"x_t must be an array of real numbers, not complex64"),
        (jax.random.key(0), 1.0, "x_t must be an array of real numbers, not key<fry>"),
        ([[1.0], [1.0, 2.0]], 1.0, r"x_t must be an array of numbers, not \[\[1.0\], \[1.0, 2.0\]\]: "),
    ],
)
def test_what_predict_is_given_is_checked(sd, x, t, message):
    with pytest.raises(ValueError, match=message):
        sd.predict(x, t, np.zeros((1, 12, 16)))


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("a red circle", r"context is text: .* sd.encode_prompt\(\[...\]\)"),
        (["a red circle"], "context is text"),
        (np.zeros((12, 16)), r"context must be b l d with d = 16, .* not of shape \(12, 16\)"),
        (np.zeros((1, 12, 768)), "context must be b l d with d = 16"),
        (np.zeros((3, 12, 16)), "context is for 3 pictures and x_t holds 1"),
    ],
)
def test_the_context_is_checked(sd, context, message):
    with pytest.raises(ValueError, match=message):
        sd.predict(X, 1.0, context)


def test_what_a_model_is_shown_beside_the_latents_is_asked_for(sd):
    """A 9-channel U-Net with latents alone, an upscaler's without its noise level, SDXL's with one text for two."""
    context = np.zeros((1, 12, 16))
    painter = respecified(sd, unet=dataclasses.replace(sd.unet, in_channels=9))
    with pytest.raises(ValueError, match="tiny is shown 5 channels beside the latents"):
        painter.predict(X, 1.0, context)
    upscaler = respecified(sd, unet=dataclasses.replace(sd.unet, num_class_embeds=1000))
    with pytest.raises(ValueError, match="tiny is told a noise level: .* class_labels="):
        upscaler.predict(X, 1.0, context)
    added = Conditions(context, Added(np.zeros((1, 8)), np.zeros((1, 6))))
    with pytest.raises(ValueError, match="context is for 1 pictures and x_t holds 2"):
        sd.predict(np.ones((2, 8, 8, 4)), 1.0, added)


def test_latents_and_pixels_of_another_order_are_told(sd):
    with pytest.raises(
        ValueError, match=r"latents must be b h w c with c = 4, got \(1, 4, 8, 8\), which looks like b c h w"
    ):
        sd.decode(np.ones((1, 4, 8, 8)))
    with pytest.raises(ValueError, match=r"pixels must be b H W c with c = 3, got \(1, 3, 16, 16\), which looks like"):
        sd.encode(np.ones((1, 3, 16, 16)))
    with pytest.raises(ValueError, match=r"pixels must be numbers in \[-1, 1\]; x / 127.5 - 1 makes them of 0 to 255"):
        sd.encode(np.ones((1, 16, 16, 3), np.uint8))
    for pixels in (Image.new("RGB", (16, 16)), np.full((1, 16, 16, 3), 200.0), jnp.zeros((1, 16, 16, 3), jnp.uint8)):
        with pytest.raises(ValueError, match="pixels must be numbers in"):
            sd.encode(pixels)
    with pytest.raises(ValueError, match=r"latents must be \[1, 8, 8, 4\] .* which looks like b c h w"):
        sd.generate("a", latents=np.ones((1, 4, 8, 8)))
    with pytest.raises(ValueError, match="prompts must be a list of strings, not the one string"):
        sd.encode_prompt("a red circle")


def test_predict_with_parameters_of_one_s_own(sd):
    """Those of another U-Net, and the tree that a loss is differentiated by: against the derivative by hand."""
    context, params = (
        sd.encode_prompt(["a red circle"]),
        jax.tree.map(lambda a: np.asarray(a, np.float32), sd.params["unet"]),
    )
    np.testing.assert_array_equal(sd.predict(X, 5.0, context, params=params), sd.predict(X, 5.0, context))
    zeros = jax.tree.map(np.zeros_like, params)
    assert not np.asarray(sd.predict(X, 5.0, context, params=zeros)).any()

    def loss(bias):
        changed = {**params, "conv_out": {**params["conv_out"], "bias": bias}}
        return jnp.sum(sd.predict(X, 5.0, context, params=changed) ** 2)

    bias = jnp.asarray(params["conv_out"]["bias"])
    slope = jax.grad(loss)(bias)[0]  # d/db sum (f + b)^2 = 2 sum (f + b), over the picture
    answer = np.asarray(sd.predict(X, 5.0, context), np.float64)
    assert float(slope) == pytest.approx(2 * answer[..., 0].sum(), rel=1e-4)
    with pytest.raises(
        ValueError, match=r'params must be the tree of a U-Net.s parameters: params\["unet"\] of what was'
    ):
        sd.predict(X, 5.0, context, params=sd.params)
    with pytest.raises(ValueError, match=r'as sd.params\["unet"\]'):
        sd.predict(X, 5.0, context, params={"conv_in": {}})
    with pytest.raises(ValueError, match=r"params\['conv_in'\] must hold what sd.params\['unet'\]\['conv_in'\] does"):
        sd.predict(X, 5.0, context, params={**params, "conv_in": None})


def test_a_prompt_is_encoded_within_a_program_too(sd):
    """As a constant of it: a loss that calls encode_prompt may be jitted."""
    text = ["a red circle"]
    inside = jax.jit(lambda x: x + sd.encode_prompt(text))(0.0)
    np.testing.assert_array_equal(inside, sd.encode_prompt(text))
    assert programs.encode_text._cache_size() and not isinstance(inside, jax.core.Tracer)


def test_generate_is_no_part_of_a_program(sd):
    """What it does on the host cannot be traced: the argument is named, before anything runs."""
    for name, value in {"latents": X, "guidance_scale": 3.0, "strength": 0.5}.items():
        with pytest.raises(ValueError, match=f"{name} must be known before tracing: call generate outside of jit"):
            jax.eval_shape(lambda one, name=name: sd.generate("a", **{name: one}).latents, value)
    with pytest.raises(ValueError, match="generate is no part of another program"):
        jax.eval_shape(lambda: sd.generate("a").latents)


def test_alphas_cumprod_are_stable_diffusion_s(sd):
    """From the betas by hand, and the number at the end that is in every write-up of SD 1.5: 0.00466."""
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert sd.alphas_cumprod.dtype == np.float64
    np.testing.assert_allclose(sd.alphas_cumprod, np.cumprod(1 - beta), rtol=1e-12)
    assert sd.alphas_cumprod[-1] == pytest.approx(0.00466, abs=5e-6)
    terminal = respecified(sd, scheduler={**sd.scheduler, "rescale_betas_zero_snr": True})
    assert terminal.alphas_cumprod[-1] == 0 and terminal.alphas_cumprod[0] == pytest.approx(1 - 0.00085)


def test_a_jax_key_is_a_seed_and_its_settings_make_the_picture_again(sd):
    prompts = ["a red circle", "a blue square"]
    number = sd.generate(prompts, steps=3, sampler="euler", seed=3, decode=False)
    key = sd.generate(prompts, steps=3, sampler="euler", seed=jax.random.key(3), decode=False)
    np.testing.assert_array_equal(key.latents, number.latents)
    assert key.settings["seed"] == 3
    each = sd.generate(prompts, steps=3, sampler="euler", seed=jax.random.split(jax.random.key(9)))
    assert np.abs(each.latents - number.latents).max() > 0.1
    np.testing.assert_array_equal(sd.generate(**each.settings).latents, each.latents)
    for i, image in enumerate(each.images):
        assert sdjax.read_settings(image)["seed"] == each.settings["seed"][i] > 2**32


def test_a_prompt_that_is_no_text_is_named(sd):
    for prompt, told in (
        (5, "prompt must be a string or a list of strings, not 5"),
        ([5], r"prompt\[0\] must be a string, not 5"),
    ):
        with pytest.raises(ValueError, match=told):
            sd.generate(prompt)
    scene = dataclasses.make_dataclass("Scene", ["shape"])("circle")
    with pytest.raises(ValueError, match="prompt must be a string or a list of strings, not Scene"):
        sd.generate(scene)
    with pytest.raises(ValueError, match="negative_prompt must be a string or a list of strings, not 5"):
        sd.generate("a red circle", 5)
