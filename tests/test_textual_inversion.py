"""Textual inversions: their files in every format, broken ones, and what a model makes of a prompt with a new word.

The reference for the latter is another vocabulary: where the rows of the embedding table that two ordinary words have
are a new word's vectors, those two words are it.
"""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest

import sdjax
from sdjax.adapters.textual_inversion import TextualInversion
from sdjax.core.errors import CheckpointError
from sdjax.metadata import picture
from sdjax.request.prompting import warn_of_words
from sdjax.runtime import programs
from sdjax.text import prompts
from sdjax.text.grammar import Grammar
from sdjax.weights.write import Draft, write_tensors
from tests.checkpoints import WIDTH


def vectors(n: int, d: int, seed: int = 0, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def read(tensors: dict, name: str = "cat", metadata: dict | None = None) -> TextualInversion:
    return TextualInversion.read(name, tensors, metadata or {}, "x.safetensors")


FORMATS = {
    "diffusers": ({"<cat>": vectors(3, 768)}, "<cat>", {"text_encoder": (3, 768)}),
    "diffusers, one": ({"<cat>": vectors(1, 1024)[0]}, "<cat>", {"text_encoder": (1, 1024)}),
    "kohya": ({"emb_params": vectors(2, 768, dtype=np.float16)}, "cat", {"text_encoder": (2, 768)}),
    "sdxl": (
        {"clip_l": vectors(2, 768), "clip_g": vectors(2, 1280)},
        "cat",
        {"text_encoder": (2, 768), "text_encoder_2": (2, 1280)},
    ),
    "pti": (
        {"text_encoders_0": vectors(2, 768), "text_encoders_1": vectors(2, 1280)},
        "cat",
        {"text_encoder": (2, 768), "text_encoder_2": (2, 1280)},
    ),
    "refiner": ({"<cat>": vectors(2, 1280)}, "<cat>", {"text_encoder_2": (2, 1280)}),
    "bundle": ({"string_to_param.*": vectors(2, 768)}, "cat", {"text_encoder": (2, 768)}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_claimed_read_and_written_as_it_came(name, tmp_path):
    tensors, word, shapes = FORMATS[name]
    assert TextualInversion.claims({key: array.shape for key, array in tensors.items()}, {})
    made = read(tensors, metadata={"a": "b"})
    assert made.word == word and {key: array.shape for key, array in made.vectors.items()} == shapes
    assert all(array.dtype == np.float32 for array in made.vectors.values())
    made.save(tmp_path / "cat.safetensors")
    again = sdjax.load_adapter(tmp_path / "cat.safetensors")
    assert again.word == word and again.sha256 == made.sha256 and again.metadata == {"a": "b"}
    for key, array in tensors.items():
        held = again.tensors["emb_params" if name == "bundle" else key]
        assert held.dtype == array.dtype and held.tobytes() == array.tobytes()
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "cat.safetensors").read_bytes()


def test_it_is_shown_in_a_line():
    assert repr(read({"<cat>": vectors(3, 768)})) == ("TextualInversion('cat', word '<cat>', 3 vectors, SD 1.x (768))")
    assert "1 vector, of width 16" in repr(read({"<cat>": vectors(1, 16)}))


def test_a_folder_of_diffusers(tmp_path):
    write_tensors({"<cat>": Draft.of(vectors(2, 768))}, {}, tmp_path / "learned_embeds.safetensors")
    assert sdjax.load_adapter(tmp_path).word == "<cat>"


def test_the_digest_is_of_the_vectors():
    one = vectors(2, 768, dtype=np.float16)
    assert read({"<cat>": one}).sha256 == read({"emb_params": one.astype(np.float32)}).sha256
    assert read({"<cat>": one}).sha256 != read({"<cat>": one[::-1]}).sha256


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"lora_unet_x.lora_down.weight": (4, 8)},
        {"a": (4, 8), "b": (4, 8)},
        {"conv": (4, 4, 3, 3)},
        {"clip_l": (2, 768), "other": (2, 768)},
        {"clip_l": (2, 768, 1)},
        {"alpha": ()},
    ],
)
def test_what_is_no_textual_inversion_is_not_claimed(shapes):
    assert not TextualInversion.claims(shapes, {})


NAN = vectors(2, 768)
NAN[1, 5] = np.nan


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"<cat>": NAN}, r"x.safetensors: <cat> holds NaN or infinite numbers"),
        ({"<cat>": np.full((1, 4), 1e300)}, "holds NaN or infinite numbers"),
        ({"<cat>": np.ones((2, 4), np.int32)}, "is of the dtype int32, and vectors are floats"),
        ({"<cat>": np.ones((2, 4, 4), np.float32)}, "must be one vector [d], or several [n, d], not [2, 4, 4]"),
        ({"<cat>": np.ones((0, 4), np.float32)}, "not [0, 4]"),
        ({"<cat>": np.ones((1001, 4), np.float32)}, "holds 1,001 vectors"),
        ({"clip_l": vectors(2, 768), "clip_g": vectors(3, 1280)}, "has 2 and 3 vectors for the two encoders"),
        ({"a": vectors(2, 768), "b": vectors(2, 768)}, "should hold one tensor, or clip_l and clip_g, and holds a, b"),
        ({}, "holds nothing"),
    ],
)
def test_a_broken_file_is_told_in_a_line(tensors, message):
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match=re.escape(message)) as raised:
        warnings.simplefilter("error")
        read(tensors)
    assert "\n" not in str(raised.value)


def test_a_pickle_is_never_opened(tmp_path):
    for name, content in (("x.pt", b"anything"), ("y.safetensors", b"\x80\x02}q\x00.")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            CheckpointError, match=r"is a pickle\. .*'emb_params': torch\.load\(old, weights_only=True\)"
        ):
            sdjax.load_adapter(tmp_path / name)


def test_a_file_of_another_kind(tmp_path):
    write_tensors({"a.lora_down.weight": Draft.of(vectors(2, 768))}, {}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.lora_down\.weight"):
        sdjax.load_adapter(tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="is neither a file nor a folder"):
        sdjax.load_adapter(tmp_path / "none.safetensors")


def test_onetrainers_output_embeddings_are_left_aside():
    given = {"clip_l": vectors(2, 768), "clip_g": vectors(2, 1280), "clip_l_out": vectors(2, 768)}
    with pytest.warns(UserWarning, match="clip_l_out are left aside"):
        assert len(read(given)) == 2


SD1, SD2, XL, REFINER = (
    {"text_encoder": 768},
    {"text_encoder": 1024},
    {"text_encoder": 768, "text_encoder_2": 1280},
    {"text_encoder_2": 1280},
)


@pytest.mark.parametrize(
    ("format", "widths", "encoders"),
    [
        ("diffusers", SD1, ["text_encoder"]),
        ("diffusers, one", SD2, ["text_encoder"]),
        ("sdxl", XL, ["text_encoder", "text_encoder_2"]),
        ("sdxl", REFINER, ["text_encoder_2"]),
        ("refiner", REFINER, ["text_encoder_2"]),
    ],
)
def test_a_family_that_fits(format, widths, encoders):
    assert list(read(FORMATS[format][0]).check(widths, "m")) == encoders


@pytest.mark.parametrize(
    ("format", "widths", "message"),
    [
        (
            "diffusers",
            XL,
            "embedding 'cat' is for SD 1.x (768), and the text encoders of m are 768 + 1280 wide: take one for SDXL",
        ),
        ("diffusers", SD2, "is for SD 1.x (768), and the text encoder of m is 1024 wide: take one for SD 2.x"),
        ("sdxl", SD1, "is for SDXL (768 + 1280), and the text encoder of m is 768 wide: take one for SD 1.x"),
        ("diffusers, one", REFINER, "is for SD 2.x (1024), and the text encoder of m is 1280 wide"),
    ],
)
def test_another_family_is_refused_with_both_widths(format, widths, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(FORMATS[format][0]).check(widths, "m")


# ---------------------------------------------------------------------- in a model


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


@pytest.fixture(scope="module")
def cat():
    return read({"<cat>": vectors(2, WIDTH)})


@pytest.fixture(scope="module")
def other(sd, cat):
    """The model to which "green blue" is the new word."""
    tree = sd.params["text_encoder"]
    embeddings = tree["text_model"]["embeddings"]
    table = np.array(embeddings["token_embedding"]["embedding"])
    table[[sd.tokenizer.pieces(word)[0] for word in ("green", "blue")]] = cat.vectors["text_encoder"]
    changed = embeddings | {"token_embedding": {"embedding": table}}
    own = {**tree, "text_model": {**tree["text_model"], "embeddings": changed}}
    return replace(sd, params={**sd.params, "text_encoder": own})


@pytest.mark.parametrize(
    ("style", "text", "same"),
    [
        ("plain", "a <cat> circle", "a green blue circle"),
        ("plain", "<cat>", "green blue"),
        ("a1111", "a (<cat>:1.4) circle [on]", "a (green blue:1.4) circle [on]"),
        ("a1111", "a <cat> BREAK red <cat>", "a green blue BREAK red green blue"),
        ("a1111", "a a a a a a a a a <cat>", "a a a a a a a a a BREAK green blue"),  # 10 have room
        ("comfy", "a (embedding:<cat> circle:1.4)", "a (green blue circle:1.4)"),
        ("comfy", "a a a a a a a a a embedding:<cat>", "a a a a a a a a a green blue"),
    ],
)
def test_a_text_is_encoded_as_if_the_word_were_one(sd, other, cat, style, text, same):
    told = {"prompt_style": style}
    got, want = sd.encode_prompt([text], embeddings={"<cat>": cat}, **told), other.encode_prompt([same], **told)
    if style != "comfy" or "a a" not in text:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    else:  # where ComfyUI keeps the word together, and tears a text
        assert got.shape == want.shape and np.abs(got - want).max() > 0.1
    assert np.abs(got - sd.encode_prompt([same], **told)).max() > 0.1


def test_pictures_are_those_of_the_other_vocabulary(sd, other, cat, tmp_path):
    """With prompts joined by AND, a negative prompt that changes, and the word from a file."""
    cat.save(tmp_path / "cat.safetensors")
    asked = {"steps": 3, "progress": False, "decode": False, "prompt_style": "a1111", "guidance_scale": 4.0}
    given = {"<cat>": tmp_path / "cat.safetensors"}
    got = sd.generate("a <cat> AND red (<cat>) :0.5", "[a:<cat>:1]", embeddings=given, **asked)
    want = other.generate("a green blue AND red (green blue) :0.5", "[a:green blue:1]", **asked)
    np.testing.assert_allclose(got.latents, want.latents, rtol=1e-4, atol=1e-4)


def test_words_of_any_number_are_one_program(sd):
    sd.encode_prompt(["a <cat> circle"], embeddings={"<cat>": read({"x": vectors(1, WIDTH)})})
    before = programs.encode_text._cache_size()
    for n in range(1, 11):
        for text in ("<cat> red", "a <cat>", "<dog>"):
            new = {"<cat>": read({"x": vectors(n, WIDTH, n)}), "<dog>": read({"x": vectors(2, WIDTH)})}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of words that are in no prompt, or are cut
                sd.encode_prompt([text], embeddings=new)
    assert programs.encode_text._cache_size() == before


def test_settings_name_words_and_digests_and_no_file(sd, cat, tmp_path):
    cat.save(tmp_path / "cat.safetensors")
    asked = sd.request("a <cat>", embeddings={"<cat>": str(tmp_path / "cat.safetensors")})
    assert asked.settings["embeddings"] == f"<cat>: {cat.sha256[:12]}"
    one = picture.make(np.zeros((16, 16, 3), np.uint8), asked.alone(asked.settings, 0), model="m")
    assert "safetensors" not in str(one.info)
    found = sdjax.read_settings(one)
    with pytest.raises(ValueError, match=r"made with the embeddings '<cat>: \w{12}': pass your own by these words"):
        sd.request(**found)
    assert sd.request(**found | {"embeddings": {"<cat>": cat}}).settings == asked.settings
    assert "embeddings" not in sd.request("a").settings and "embeddings" not in sd.request("a", embeddings={}).settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, 'embeddings must map words to textual inversions, as {"<cat>": x}, not 3'),
        ({"<cat>": 3}, "embeddings['<cat>'] must be a textual inversion"),
        ({"red": read({"x": vectors(1, WIDTH)})}, "'red' is a word that the model knows"),
        ({"": read({"x": vectors(1, WIDTH)})}, "embeddings must be named by words"),
        ({"<cat>": read({"x": vectors(1, 24)})}, "embedding 'cat' is of width 24, and the text encoder of"),
        ({"<cat>": read({"x": vectors(11, WIDTH)})}, "has 11 vectors, and a row of this text encoder holds 10"),
    ],
)
def test_what_cannot_be_worn_is_told_before_anything_is_made(sd, given, message):
    for ask in (lambda: sd.request("a <cat>", embeddings=given), lambda: sd.encode_prompt(["a"], embeddings=given)):
        with pytest.raises(ValueError, match=re.escape(message)):
            ask()


@pytest.mark.parametrize(("style", "said"), [("plain", "<dog>"), ("a1111", "<dog>"), ("comfy", "embedding:<dog>")])
def test_a_word_that_no_prompt_has(sd, cat, style, said):
    text = "a embedding:<cat>" if style == "comfy" else "a <cat>"
    with pytest.warns(UserWarning) as noticed:
        sd.request(text, prompt_style=style, embeddings={"<cat>": cat, "<dog>": cat})
    assert [
        str(one.message).startswith(f"no prompt has {said}, so this embedding does nothing") for one in noticed
    ] == [1]


def test_what_a_model_was_not_trained_on_is_told_of_the_other_words_alone(sd):
    known = {"words": {"COLOUR": ["red"], "SHAPE": ["circle"]}, "sentence": ["a", "COLOUR", "SHAPE"]}
    grammar = Grammar.read(known | {"example": "a red circle"}, "grammar.json")
    encoders = {"text_encoder": replace(sd.encoders["text_encoder"], grammar=grammar)}

    def told(text):
        new = {"text_encoder": {"<teal>": vectors(1, WIDTH)}}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_words("m", [{"text_encoder": text}], encoders, "plain", new)
        return " ".join(str(one.message) for one in caught)

    assert told("a <teal> circle") == told("a <teal>") == told("a red circle") == ""
    assert "the word 'zebra'" in told("a <teal> zebra") and "teal" not in told("a <teal> zebra")
    assert "a sentence like 'red a circle'" in told("red a circle")


def test_rows_without_new_words_are_what_they_were(sd):
    for style in prompts.STYLES:
        rows = prompts.chunks("a red circle", sd.tokenizer, style, {"<cat>": 2})
        assert rows == prompts.chunks("a red circle", sd.tokenizer, style) and rows[0].vectors == ()
