"""New words and hypernetworks that learn: the start, what a caption becomes, the gradient, the file."""
# ruff: noqa: F811  (fixtures that are imported)

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import sdjax
from sdjax.adapters.hypernetwork import attach
from sdjax.adapters.paths import published
from sdjax.core import tree
from sdjax.nn.clip import NewWords
from sdjax.train.architecture import Architecture
from sdjax.train.methods.hypernetwork import Hypernetwork
from sdjax.train.methods.textual_inversion import TextualInversion
from tests.train_fixtures import answer, base, batch, learnt, objective, sd  # noqa: F401

CAPTIONS = ["a <ring> above a red circle", "a blue square"]


@pytest.fixture(scope="module")
def tokenizer(sd):
    return sd.networks.spec.encoders["text_encoder"].tokenizer


def table(params):
    return np.asarray(params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"])


# ---------------------------------------------------------------------- new words


def test_vectors_begin_as_those_of_words(base, tokenizer):
    (red,), (blue,), (circle,) = (tokenizer.pieces(word) for word in ("red", "blue", "circle"))
    for start, vectors, expected in (
        ("red", None, [[red]]),
        ("red circle", None, [[red], [circle]]),
        ("red circle", 4, [[red], [red], [circle], [circle]]),
        ("red blue circle", 2, [[red], [blue]]),
        (["red blue", "circle"], None, [[red, blue], [circle]]),
    ):
        started = TextualInversion.of("<ring>", start, tokenizer, vectors).start(base, jax.random.key(0))
        assert [*started] == ["text_encoder"]
        mean = np.stack([table(base)[ids].mean(0) for ids in expected])
        np.testing.assert_allclose(started["text_encoder"], mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "given, told",
    [
        (("red", "blue"), "'red' is a word that the model knows"),
        (("<ring>", ""), "'' has no token"),
        (("<ring>", []), "at least one vector"),
        (("<ring>", ["red"], 2), "2 vectors, and start has 1 texts"),
        (("<ring>", "red", 0), "at least one vector"),
        (("<ring>", "red", 11), "11 vectors, and a row of this text encoder holds 10"),
        ((" ", "red"), "must be named by words"),
    ],
)
def test_words_that_cannot_be_learnt(tokenizer, given, told):
    with pytest.raises(ValueError, match=told):
        TextualInversion.of(*given[:2], tokenizer, *given[2:])


def test_a_caption_becomes_ids_and_places(tokenizer):
    method = TextualInversion.of("<ring>", "red circle", tokenizer)
    made = method.rows(CAPTIONS, {"text_encoder": tokenizer})
    np.testing.assert_array_equal(made["ids"]["text_encoder"][1:], tokenizer.tokens(CAPTIONS[1:]))
    assert made["words"]["text_encoder"].tolist() == [[-1, -1, 0, 1, *[-1] * 8], [-1] * 12]
    ids, (above,) = made["ids"]["text_encoder"][0], tokenizer.pieces("above")
    assert ids[4] == above and ids.dtype == made["words"]["text_encoder"].dtype == np.int32
    assert ids.max() == tokenizer.eos  # so that the end of the text stays where it is


def test_the_vectors_alone_learn(base, objective, batch, tokenizer):
    method = TextualInversion.of("<ring>", "red circle", tokenizer)
    trainable, given = (
        method.start(base, jax.random.key(0)),
        {**batch, **method.rows(CAPTIONS, {"text_encoder": tokenizer})},
    )
    joined = method.join(trainable, base)
    assert all(joined[name] is base[name] for name in base)
    step = jax.jit(jax.value_and_grad(lambda own, batch: objective.loss(method.join(own, base), batch)[0]))
    # A caption with the word is the caption with the words as which it began.
    told = [CAPTIONS[0].replace("<ring>", "red circle"), CAPTIONS[1]]
    unused = {"text_encoder": np.full_like(given["words"]["text_encoder"], -1)}
    loss, gradient = step(trainable, given)
    spelled, none = step(trainable, {**given, "ids": {"text_encoder": tokenizer.tokens(told)}, "words": unused})
    np.testing.assert_allclose(loss, spelled, rtol=1e-6)
    assert (np.abs(gradient["text_encoder"]).max(1) > 0).all() and not np.any(none["text_encoder"])


def test_a_word_is_written_and_read(sd, base, tokenizer, tmp_path):
    method = TextualInversion.of("<ring>", "red circle", tokenizer)
    trainable = learnt(method.start(base, jax.random.key(0)))
    path = method.write(trainable, base, tmp_path / "run", {"ss_steps": "7"})
    ((name, held),) = load_file(path).items()
    assert name == "<ring>" and held.dtype == np.float32
    np.testing.assert_array_equal(held, trainable["text_encoder"])
    read = sdjax.load_adapter(path)
    assert read.word == "<ring>" and len(read) == 2 and read.metadata["ss_steps"] == "7"
    # What a prompt with it is told is what training was told.
    rows = method.rows(CAPTIONS[:1], {"text_encoder": tokenizer})
    tower = Architecture.of(sd.networks.spec).texts[0]
    which = rows["words"]["text_encoder"]
    new = NewWords(which >= 0, trainable["text_encoder"][np.maximum(which, 0)])
    expected, _ = tower(base["text_encoder"], rows["ids"]["text_encoder"], new)
    got = sd.encode_prompt(CAPTIONS[:1], embeddings={"<ring>": read})
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(got - sd.encode_prompt(CAPTIONS[1:])).max() > 0.1


def test_sdxls_two_encoders(tmp_path):
    """Real shapes and no numbers but the new ones."""
    params = published("sdxl")
    method = TextualInversion("<ring>", ((320,), (1125,)))
    started = jax.eval_shape(method.start, params, jax.random.key(0))
    assert {name: leaf.shape for name, leaf in started.items()} == {
        "text_encoder": (2, 768),
        "text_encoder_2": (2, 1280),
    }
    trainable = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), started)
    path = method.write(trainable, params, tmp_path, {})
    assert {name: held.shape for name, held in load_file(path).items()} == {"clip_l": (2, 768), "clip_g": (2, 1280)}
    read = sdjax.load_adapter(path)
    assert read.family.startswith("SDXL") and json.loads(read.metadata["sdjax.words"]) == ["<ring>"]


def test_broken_vectors_are_not_written(base, tokenizer, tmp_path):
    method = TextualInversion.of("<ring>", "red", tokenizer)
    with pytest.raises(ValueError, match="NaN or infinite"):
        method.write({"text_encoder": jnp.full((1, 16), jnp.nan)}, base, tmp_path / "run", {})
    with pytest.raises(ValueError, match="has no text encoder"):
        method.start({"unet": base["unet"]}, jax.random.key(0))
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- hypernetworks


@pytest.mark.parametrize(
    "method", [Hypernetwork(), Hypernetwork((16,), (1, 2, 0.5, 1), "relu"), Hypernetwork((8,), (1, 1), "swish")]
)
def test_a_hypernetwork_begins_as_nothing_and_is_read_again(sd, base, answer, tmp_path, method):
    started = method.start(base, jax.random.key(0))
    assert sorted(map(int, started)) == sorted(method.widths or (8, 16))
    np.testing.assert_array_equal(answer(method.join(started, base)), answer(base))
    trainable = learnt(started)
    expected = answer(method.join(trainable, base))
    assert np.abs(expected - answer(base)).max() > 1e-3 * np.abs(expected).max()
    read = sdjax.load_adapter(method.write(trainable, base, tmp_path / "run", {"step": "7"}))
    assert read.metadata["step"] == "7"
    got = answer({**base, "unet": attach(base["unet"], [read], [1.0])})
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_every_layer_of_a_hypernetwork_learns(base, objective, batch):
    method = Hypernetwork(activation="relu")
    trainable = learnt(method.start(base, jax.random.key(0)))
    gradients = jax.jit(jax.grad(lambda own: objective.loss(method.join(own, base), batch)[0]))(trainable)
    silent = ["/".join(path) for path, leaf in tree.flatten(gradients).items() if not np.abs(leaf).max() > 1e-7]
    # What is added to all keys alike adds one number to all scores of a query, which softmax does not see.
    assert len(jax.tree.leaves(gradients)) == 2 * 2 * 4 and sorted(silent) == ["16/k/1/bias", "8/k/1/bias"]


def test_hypernetworks_that_cannot_be(base):
    for given, told in (
        ({"structure": (1,)}, "structure must lead from 1 to 1"),
        ({"structure": (1, 2)}, "structure must lead"),
        ({"structure": (1, 0, 1)}, "structure must lead"),
        ({"activation": "rilu"}, "activation 'rilu' is unknown; nearest: "),
    ):
        with pytest.raises(ValueError, match=told):
            Hypernetwork(**given)
    with pytest.raises(ValueError, match="no attention of this U-Net takes in 768 numbers; nearest.*known: 8, 16"):
        Hypernetwork((768,)).start(base, jax.random.key(0))
