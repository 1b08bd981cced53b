"""Prompts along a run and in pieces: what the U-Net is told, when, and in which program."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.config import ClipTextConfig
from sdjax.diffusion.progress import Run
from sdjax.model.families import SD, SDXL
from sdjax.model.text_encoder import ClipSkip
from sdjax.nn.conditioning import Chunks, Conditions
from sdjax.request.prompting import Branch, branches, in_pieces, negative_branch, pieces
from sdjax.runtime import programs
from sdjax.runtime.denoisers import denoiser_of
from tests.checkpoints import TO_LATENTS


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


def text_config(layers: int = 12, act: str = "quick_gelu") -> ClipTextConfig:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": layers, "hidden_act": act}
    return ClipTextConfig.from_dict(sizes)


@pytest.mark.parametrize(
    "given,style,xl,negative,act,depth",
    [
        (None, "plain", False, False, "quick_gelu", 1),
        (None, "plain", True, False, "quick_gelu", 2),
        ("diffusers:1", "plain", False, False, "quick_gelu", 2),  # hidden_states[-(1 + 1)]
        ("diffusers:1", "plain", False, True, "quick_gelu", 1),  # the negative prompt ignores it
        ("diffusers:2", "a1111", True, False, "gelu", 4),  # hidden_states[-(2 + 2)]
        (2, "plain", False, False, "quick_gelu", 3),
        ("a1111:2", "plain", False, False, "quick_gelu", 2),
        ("a1111:2", "plain", False, True, "quick_gelu", 2),
        ("a1111:3", "a1111", True, False, "quick_gelu", 2),  # no effect on SDXL
        ("a1111:3", "a1111", False, False, "gelu", 1),  # nor on OpenCLIP
        (2, "a1111", False, True, "quick_gelu", 2),
        ("comfy:-2", "plain", False, True, "gelu", 2),
        (-1, "comfy", True, False, "gelu", 1),
    ],
)
def test_clip_skip_counts_as_the_peers_do(given, style, xl, negative, act, depth):
    skip = ClipSkip.read(given, style)
    assert skip.depth(text_config(act=act), SDXL if xl else SD, negative) == depth
    assert ClipSkip.read(str(skip), "plain") == skip


@pytest.mark.parametrize("bad", ["a1111:0", "comfy:1", "diffusers:-1", "webui:2", "x", True, 1.5, "a1111:"])
def test_clip_skip_doors(bad):
    with pytest.raises(ValueError, match="clip_skip"):
        ClipSkip.read(bad, "plain")


def test_clip_skip_beyond_the_encoder():
    with pytest.raises(ValueError, match="has 12 layers"):
        ClipSkip.read("diffusers:13", "plain").depth(text_config(), SD, False)


def test_clip_skip_takes_a_hidden_state_through_the_final_norm(sd):
    """Layer k from the end is the last layer of an encoder that stops there."""
    from sdjax.nn.clip import ClipTextEncoder

    config = next(iter(sd.encoders.values())).config
    shorter = replace(config, num_hidden_layers=config.num_hidden_layers - 1)
    ids = jnp.asarray(sd.tokenizer.tokens(["a red circle"]))
    want = ClipTextEncoder(shorter).apply({"params": sd.params["text_encoder"]}, ids).last_hidden_state
    got = sd.encode_prompt(["a red circle"], clip_skip="diffusers:1")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(sd.encode_prompt(["a red circle"])) - want).max() > 0.1


@dataclass
class FakePlan:
    """Seven rows before the result, of which the third brings in noise only."""

    sampler: str = "euler"
    steps: int = 6
    evaluate: np.ndarray = field(default_factory=lambda: np.array([True, True, False, True, True, True, True]))

    @property
    def evaluations(self) -> int:
        return int(self.evaluate.sum())


RUN = Run(FakePlan(), FakePlan())


def test_texts_change_between_rows():
    line = tuple({"text_encoder": text} for text in "aabbba")
    still = tuple({"text_encoder": "n"} for _ in range(6))
    found = list(pieces([[Branch(still), Branch(line)]], [FakePlan()], 8))
    spans = [(start, stop, texts[0][1]["text_encoder"]) for start, stop, texts in found]
    # evaluations 0 1 . 2 3 4 5 lie in rows 0 1 2 3 4 5 6; row 2 belongs to the one before, the result to the last
    assert spans == [(0, 3, "a"), (3, 6, "b"), (6, 8, "a")]


def test_pulls_of_a_prompt():
    made = branches({"text_encoder": "a [cat:dog:0.5] AND hat :0.7"}, RUN, "a1111")
    assert [branch.weight for branch in made] == [1.0, 0.7]
    said = [one["text_encoder"].strip() for one in made[0].texts]
    assert said[0] == "a cat" and said[-1] == "a dog"
    assert negative_branch({"text_encoder": "x"}, RUN, "plain", False).texts == ({"text_encoder": "x"},) * 6
    with pytest.raises(ValueError, match="joined by AND"):
        branches({"text_encoder": "a AND b", "text_encoder_2": "a"}, RUN, "a1111")


def test_a_part_of_a_run_has_the_whole_runs_texts():
    """The last two of six evaluations lie behind an edit at half of them."""
    rest = Run(FakePlan("euler", 6, np.ones(2, bool)), FakePlan(), before=4)
    [branch] = branches({"text_encoder": "[cat:dog:0.5]"}, rest, "a1111")
    assert [texts["text_encoder"] for texts in branch.texts] == ["dog"] * 2


def test_samplers_of_two_evaluations_a_step():
    """Heun's 4 steps make 7 evaluations, which A1111 counts as 8: half of them is evaluation 4 of a count from 0."""
    heun = FakePlan("heun", 4, np.ones(7, bool))
    [branch] = branches({"text_encoder": "[cat:dog:0.5]"}, Run(heun, heun), "a1111")
    assert [texts["text_encoder"] for texts in branch.texts] == ["cat"] * 5 + ["dog"] * 2


def test_pieces_of_a_text_are_attended_as_one(sd):
    """A U-Net told a text in 3 of up to 16 pieces, and one in 1, as if each were one long text."""
    unet, length, width = sd.networks.params["unet"], sd.tokenizer.max_length, sd.unet.cross_attention_dim
    rng = np.random.default_rng(0)
    texts = [rng.standard_normal((c, length, width), np.float32) for c in (3, 1)]
    states, count = in_pieces(texts, 16)
    x, t = jnp.asarray(rng.standard_normal((2, 8, 8, 4), np.float32)), jnp.array([700.0, 20.0])
    denoiser = denoiser_of(sd.unet, sd.dtype)
    text = programs.precompute_kv(denoiser, unet, Conditions(Chunks({}, states, count)))
    together = programs.predict(denoiser, unet, x, t, text)
    for i, text in enumerate(texts):
        alone = sd.predict(x[i : i + 1], t[i], jnp.asarray(text).reshape(1, -1, width))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-4, atol=1e-5)

    def total(states):
        given = programs.precompute_kv(denoiser, unet, Conditions(Chunks({}, states, count)))
        return programs.predict(denoiser, unet, x, t, given).sum()

    slope = np.abs(np.asarray(jax.jit(jax.grad(total))(jnp.asarray(states)))).max((2, 3))
    assert (slope[0, :3] > 0).all() and slope[1, 0] > 0 and slope[0, 3:].max() == slope[1, 1:].max() == 0


PROMPTS = (
    "a red circle",
    "a (red:1.3) [circle]",
    "a [red:blue:0.5] circle",
    "[a|b|c] circle",
    "a red circle BREAK a blue square",
    "a red circle, " * 30,
    "[a red circle, :blue, :3]" * 12,
)


@pytest.mark.parametrize("style", ["a1111", "comfy"])
def test_one_compilation_for_all_prompts(sd, style):
    """Whatever a prompt's length, weights and editing, its clip skip and whose noise it starts from."""
    asked = {"steps": 5, "sampler": "euler", "decode": False, "progress": False}
    sd.generate("a", **asked)
    sd.generate("a", noise_source="torch_cpu", **asked | {"sampler": "euler_ancestral"})
    before = [step._cache_size() for step in TO_LATENTS]
    for i, prompt in enumerate(PROMPTS):
        sd.generate(prompt, PROMPTS[-i], prompt_style=style, clip_skip=("diffusers:1", None)[i % 2], **asked)
    sd.generate("a", **asked | {"sampler": "euler_ancestral", "noise_source": "torch_cpu", "progress": True})
    assert [step._cache_size() for step in TO_LATENTS] == before


def test_an_edited_prompt_is_one_then_the_other(sd):
    """With the change after all steps or before the first it is one of the two; in between it is neither."""
    asked = {"steps": 6, "sampler": "euler", "decode": False, "prompt_style": "a1111", "progress": False}

    def latents(prompt: str) -> np.ndarray:
        return sd.generate(prompt, **asked).latents

    red, blue, edited = latents("a red circle"), latents("a blue circle"), latents("a [red:blue:0.5] circle")
    np.testing.assert_array_equal(latents("a [red:blue:1.0] circle"), red)
    assert np.abs(edited - red).max() > 1e-3 and np.abs(edited - blue).max() > 1e-3
    by_hand = sd.generate("a red circle", **asked | {"progress": True}).latents
    np.testing.assert_array_equal(by_hand, red)  # a run in pieces is the run


def test_prompts_that_pull_together(sd):
    """AND of a prompt with itself, half each, is that prompt; shares count (Liu et al. 2022, equation 11)."""
    asked = {"steps": 4, "sampler": "euler", "decode": False, "guidance_scale": 4.0, "progress": False}
    one = sd.generate("a red circle", **asked).latents
    half = sd.generate("a red circle :0.5 AND a red circle :0.5", prompt_style="a1111", **asked).latents
    np.testing.assert_allclose(half, one, rtol=1e-4, atol=1e-4)
    double = sd.generate("a red circle", **asked | {"guidance_scale": 8.0}).latents
    weighed = sd.generate("a red circle :2", prompt_style="a1111", **asked).latents
    np.testing.assert_allclose(weighed, double, rtol=1e-4, atol=1e-4)
    batch = sd.generate(["a red circle AND a blue square", "a red circle"], prompt_style="a1111", seed=[0, 0], **asked)
    np.testing.assert_allclose(batch.latents[1], one[0], rtol=1e-4, atol=1e-4)
    assert np.abs(batch.latents[0] - one[0]).max() > 1e-3


@pytest.mark.parametrize(
    "given,message",
    [
        ({"prompt_style": "a111"}, "nearest is 'a1111'"),
        ({"noise_source": "torch"}, "nearest: 'torch_c"),
        ({"clip_skip": "diffusers:99"}, "layers"),
        ({"prompt_2": "x"}, "second text encoder"),
        ({"original_size": (8, 8)}, "belongs to SDXL"),
        ({"refiner": "sdxl"}, "refiner must be a loaded checkpoint"),
        ({"denoising_start": 0.5}, "pass those of a run with denoising_end"),
        ({"prompt": "a, " * 20000, "prompt_style": "a1111"}, "limit is 16 chunks"),
        ({"prompt": "(a:nan)", "prompt_style": "comfy"}, "weights are infinite or no numbers"),
        ({"prompt": f"a AND b :{'9' * 400}", "prompt_style": "a1111"}, "joined by AND is infinite"),
    ],
)
def test_doors(sd, given, message):
    with pytest.raises(ValueError, match=message):
        sd.generate(**{"prompt": "a", "steps": 2} | given)


def test_settings_make_the_picture_again(sd):
    asked = {"prompt_style": "a1111", "clip_skip": 2, "noise_source": "torch_cpu", "steps": 3, "seed": 32}
    made = sd.generate("a (red:1.2) [circle|square]", **asked)
    settings = sdjax.read_settings(made.images[0])
    assert settings["clip_skip"] == "a1111:2"
    np.testing.assert_array_equal(sd.generate(**settings).latents, made.latents)
