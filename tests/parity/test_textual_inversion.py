"""Textual inversions against diffusers' `load_textual_inversion`: the hidden states of prompts with new words.

diffusers gives new words ids behind the end-of-text token's. A text encoder with the published `eos_token_id` of 2
finds the end of a text by the largest id, and then pools at the new word: what SDXL is told besides is another text's.
That is not followed here; the pooled state is compared with what transformers has at the true end.
"""

import numpy as np
import pytest
import torch

import sdjax
from sdjax.adapters.textual_inversion import TextualInversion
from tests.parity import families
from tests.parity.families import NARROW, WIDE, relative

pytestmark = pytest.mark.filterwarnings("ignore:no prompt has")
TOLERANCE = 1e-5
ENCODERS = {"sd1": {"": NARROW}, "sd2": {"": WIDE}, "sdxl": {"": NARROW, "_2": WIDE}}
TEXTS = ["a <cat> circle", "<cat> above a <cat>", "a red<dog>, blue circle", "a <cat> and a <dog> ring", "<dog>"]


def drawn(kind: str, n: int, seed: int) -> dict[str, np.ndarray]:
    """n vectors for each encoder, as spread as a vocabulary's, by "" and "_2"."""
    rng = np.random.default_rng(seed)
    return {which: rng.standard_normal((n, width)).astype(np.float32) for which, width in ENCODERS[kind].items()}


@pytest.fixture(scope="module", params=ENCODERS)
def both(request, tmp_path_factory):
    """(kind, diffusers' pipeline with two new words, the same checkpoint here, the words here)."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    pipeline = families.build(kind)
    pipeline.save_pretrained(folder, safe_serialization=True)
    sd = sdjax.load(folder, compilation_cache=False)
    new = {}
    for word, (n, seed) in {"<cat>": (3, 1), "<dog>": (1, 2)}.items():
        vectors = drawn(kind, n, seed)
        for which, array in vectors.items():
            told = {"text_encoder": getattr(pipeline, f"text_encoder{which}")}
            told["tokenizer"] = getattr(pipeline, f"tokenizer{which}")
            pipeline.load_textual_inversion({word: torch.from_numpy(array)}, token=word, **told)
        pair = {"clip_l": vectors[""], "clip_g": vectors["_2"]} if "_2" in vectors else {word: vectors[""]}
        new[word] = TextualInversion.read(word, pair, {}, word)
    return kind, pipeline, sd, new


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_hidden_states(both, text):
    kind, pipeline, sd, new = both
    theirs = pipeline.encode_prompt(text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
    ours = sd.encode_prompt([text], embeddings=new)
    assert relative(ours, theirs.numpy()) < TOLERANCE, (kind, text)
    assert relative(sd.encode_prompt(["a circle"]), theirs.numpy()) > 0.01


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_pooled_states_are_those_of_the_end(both, text):
    kind, pipeline, sd, new = both
    if kind != "sdxl":
        pytest.skip("its U-Net is told no pooled state")
    tokenizer, encoder = pipeline.tokenizer_2, pipeline.text_encoder_2
    told = pipeline.maybe_convert_prompt(text, tokenizer)
    ids = tokenizer(told, padding="max_length", max_length=families.LENGTH, return_tensors="pt").input_ids
    out = encoder(ids)
    end = int((ids[0] == tokenizer.eos_token_id).nonzero()[0])
    want = encoder.text_projection(out.last_hidden_state[:, end])
    got = sd.conditions([text], embeddings=new).added.pooled
    assert relative(got, want.numpy()) < TOLERANCE
    assert relative(got, out.text_embeds.numpy()) > 0.01, "diffusers pools at the largest id, a new word's"


def test_a_text_that_does_not_fit_is_cut_alike(both):
    kind, pipeline, sd, new = both
    text = "a red circle above a blue square <cat>"  # 7 words and 3 vectors: all that there is room for
    for words in (text, "a " + text, "a a " + text):  # and then 2 of the vectors, and 1
        told = dict(device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        theirs = pipeline.encode_prompt(words, **told)[0].detach().numpy()
        with pytest.warns(UserWarning, match="no prompt has <dog>" if words == text else "cut: '<cat>'"):
            ours = sd.encode_prompt([words], embeddings=new)
        assert relative(ours, theirs) < TOLERANCE


def test_latents_of_a_run(both):
    kind, pipeline, sd, new = both
    if kind == "sdxl":
        pytest.skip("diffusers pools at the new word")
    noise = families.noise(1)
    asked = dict(prompt="a <cat> circle", negative_prompt="<dog>", guidance_scale=5.0, steps=4, sampler="ddim")
    theirs = families.channels_last(families.run(pipeline, latents=families.channels_first(noise), **asked))
    with families.quick_compiles():
        ours = sd.generate(**asked, latents=noise, embeddings=new, decode=False, progress=False).latents
    assert relative(ours, theirs) < 1e-4
