"""The batch of a step: what is in it, on one process or several, from files or from what was made beforehand."""

import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.images.pixels import to_uint8
from sdjax.text.tokens import Tokenizer, write_word_tokenizer
from sdjax.train.architecture import Architecture
from sdjax.train.conditioning import conditions_of, latents_of
from sdjax.train.data import encoders, sheets
from sdjax.train.data.ahead import Ahead
from sdjax.train.data.batches import Batches, Form
from sdjax.train.data.buckets import Buckets, square
from sdjax.train.data.captions import Captions, Tokens
from sdjax.train.data.crops import Crops
from sdjax.train.data.dreambooth import DreamBooth
from sdjax.train.data.moments import Moments
from sdjax.train.data.scan import scan
from sdjax.train.data.sources import find
from sdjax.train.data.states import States
from sdjax.train.data.store import Store, digest
from sdjax.train.objective import mean, picture_keys

SDXL = Form(8, time_ids=True, zeros_for_empty=True)
NAMES = [f"p{letter}" for letter in "abcdefghijkl"]
TALL_AND_WIDE = Buckets(((64, 64), (96, 48), (48, 96)))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    write_word_tokenizer(folder, [*NAMES, "old", "new"], 5)
    return Tokens({"text_encoder": Tokenizer.load(folder)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of three shapes; red is the column, green the row, blue the picture's number."""
    made = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        height, width = [(70, 66), (110, 50), (50, 110)][i % 3]
        write(made / f"{i:02}.png", coordinates(height, width, i))
        (made / f"{i:02}.txt").write_text(NAMES[i])
    return made


def coordinates(height, width, number):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, 0 * rows + number], axis=-1).astype(np.uint8)


def write(path, array):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path)


def batches(folder, tokens, buckets=TALL_AND_WIDE, size=4, **how):
    return Batches(scan(find(folder, "")), tokens, buckets, size, **how)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def numbers(batch):
    return np.unique(to_uint8(batch["pixels"])[..., 2].reshape(len(batch["pixels"]), -1), axis=1)[:, 0].tolist()


def test_a_batch_is_a_function_of_the_step(folder, tokens):
    how = {"crops": Crops(random=True, flip=True), "captions": Captions(0.3), "form": SDXL}
    first = batches(folder, tokens, seed=5, **how)
    all_of_them = [first.batch(step) for step in range(9)]
    again = batches(folder, tokens, seed=5, **how)
    for step in (7, 2, 8, 0):  # another process, later, in any order
        same(again.batch(step), all_of_them[step])
    other = batches(folder, tokens, seed=6, **how).batch(0)
    assert (
        other["pixels"].shape != all_of_them[0]["pixels"].shape or (other["pixels"] != all_of_them[0]["pixels"]).any()
    )


def test_what_is_in_a_batch(folder, tokens):
    """Every picture once an epoch, in its own bucket, with its own caption, shown as SDXL is told."""
    made = batches(folder, tokens, crops=Crops(random=True, flip=True), captions=Captions(0.0), form=SDXL)
    words = tokens(NAMES)["ids"]["text_encoder"]
    for epoch in range(2):
        seen = []
        for step in range(3 * epoch, 3 * epoch + 3):
            batch = made.batch(step)
            assert {name: value.dtype.name for name, value in batch.items() if name != "ids"} == {
                name: "float32" for name in ("pixels", "time_ids", "empty")
            }
            size = batch["pixels"].shape[1:3]
            assert batch["pixels"].shape == (4, *size, 3) and size in TALL_AND_WIDE.sizes
            for own, told, ids in zip(numbers(batch), batch["time_ids"], batch["ids"]["text_encoder"], strict=True):
                original = [(70, 66), (110, 50), (50, 110)][own % 3]
                assert tuple(told[:2]) == original and tuple(told[4:]) == size == TALL_AND_WIDE.of(*original)
                np.testing.assert_array_equal(ids, words[own])
                seen.append(own)
            np.testing.assert_array_equal(batch["empty"], 0)
        assert sorted(seen) == list(range(12))


def test_pixels_are_what_the_crop_says(folder, tokens):
    """Against the file, by NumPy and PIL: flipped, scaled, cut, and in [-1, 1]."""
    made = batches(folder, tokens, crops=Crops(random=True, flip=True), seed=2)
    places = made.order.places(4)
    size = made.sizes[places.bucket]
    for i, row in enumerate(made.batch(4)["pixels"]):
        crop = made.pictures.crop(places.numbers[i], places.turns[i], size)
        array = np.asarray(Image.open(folder / f"{places.numbers[i]:02}.png"))
        scaled = Image.fromarray(array[:, ::-1] if crop.flip else array).resize(crop.scaled[::-1], Image.LANCZOS)
        want = np.asarray(scaled)[crop.top : crop.top + size[0], crop.left : crop.left + size[1]]
        np.testing.assert_allclose(row, want / 127.5 - 1, atol=1e-6)
        assert crop.scaled[0] == size[0] or crop.scaled[1] == size[1]  # one side just fits


@pytest.mark.parametrize("number", [2, 4])
def test_processes_share_a_batch(folder, tokens, number):
    how = {"crops": Crops(random=True), "captions": Captions(0.5), "form": SDXL, "seed": 1}
    whole, parts = (
        batches(folder, tokens, **how),
        [batches(folder, tokens, share=(i, number), **how) for i in range(number)],
    )
    for step in range(4):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[part.batch(step) for part in parts])
        same(joined, whole.batch(step))
    with pytest.raises(ValueError, match=r"a batch of 4 cannot be shared by 3 processes \(this one is 0\)"):
        batches(folder, tokens, share=(0, 3))


def test_captions_are_left_out_in_some_turns(folder, tokens):
    """As the empty text, or as SDXL has it, and of the same picture not always."""
    sd, xl = (batches(folder, tokens, captions=Captions(0.5), form=form) for form in (Form(), SDXL))
    nothing = tokens([""])["ids"]["text_encoder"][0]
    left_out = {i: [] for i in range(12)}
    for step in range(60):
        batch, zeros = sd.batch(step), xl.batch(step)
        empty = (batch["ids"]["text_encoder"] == nothing).all(axis=1)
        np.testing.assert_array_equal(zeros["empty"], empty)
        for own, out in zip(numbers(batch), empty, strict=True):
            left_out[own].append(out)
    assert "empty" not in batch and all(0 < sum(one) < len(one) == 20 for one in left_out.values())


def test_repeats(tmp_path, tokens):
    for name, i in (("3_new/a", 1), ("b", 2)):
        write(tmp_path / f"{name}.png", coordinates(64, 64, i))
    made = batches(tmp_path, tokens, square(64), 2)
    assert sorted(numbers(made.batch(0)) + numbers(made.batch(1))) == [1, 1, 1, 2]


# What lies on a picture -----------


def test_weights_of_masks_and_transparency(tmp_path, tokens):
    """The left half counts: its weights are 2, the other's 0, and where the picture is flipped it is the right half."""
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    for i in range(2):
        colour = np.full((64, 64, 3), 200, np.uint8)
        write(tmp_path / f"own/{i}.png", colour)
        write(tmp_path / f"masks/{i}.png", np.repeat(np.repeat(half[::2, ::2], 4, 0), 4, 1))  # of twice the size
        write(tmp_path / f"clear/{i}.png", np.dstack([colour, half]))
    dataset = scan(find(tmp_path / "own", "", masks=tmp_path / "masks"))
    made = Batches(dataset, tokens, square(64), 2, crops=Crops(flip=True))
    clear = batches(tmp_path / "clear", tokens, square(64), 2, crops=Crops(flip=True), opaque_only=True, ground="black")
    for step in range(2):
        for one in (made, clear):
            places = one.order.places(step)
            weights = one.batch(step)["weights"]
            assert weights.shape == (2, 8, 8, 1) and weights.dtype == np.float32
            for row, number, turn in zip(weights, places.numbers, places.turns, strict=True):
                flip = one.pictures.crop(number, turn, (64, 64)).flip
                np.testing.assert_allclose(row[:, 2:6].mean(), 1)
                np.testing.assert_allclose(row[:, :3, 0], 0.0 if flip else 2.0, atol=0.05)
                np.testing.assert_allclose(row.mean(), 1, rtol=1e-5)
    shown = to_uint8(clear.batch(0)["pixels"])
    assert set(np.unique(shown)) == {0, 200}  # nothing shines through: the ground's colour
    assert "weights" not in batches(tmp_path / "clear", tokens, square(64), 2).batch(0)
    with pytest.raises(ValueError, match="ground 'blakc' is no colour"):
        batches(tmp_path / "clear", tokens, square(64), 2, ground="blakc")


def test_small_objects_weigh_as_much_as_large_ones(tmp_path, tokens):
    """A mask of a sixteenth: the mean over the picture is 1, not 1/16; by area, whatever lies between the latents."""
    mask = np.zeros((64, 64), np.uint8)
    mask[4:20, 4:20] = 255
    write(tmp_path / "own/a.png", coordinates(64, 64, 0))
    write(tmp_path / "masks/a.png", mask)
    made = Batches(scan(find(tmp_path / "own", "", masks=tmp_path / "masks")), tokens, square(64), 1)
    want = (mask.reshape(8, 8, 8, 8).mean((1, 3)) / mask.mean())[..., None]
    np.testing.assert_allclose(made.batch(0)["weights"][0], want, rtol=1e-5)


def test_maps_are_cut_as_their_pictures(tmp_path, tokens):
    for i in range(3):
        array = coordinates(70, 90, i)
        write(tmp_path / f"own/{i}.png", array)
        write(tmp_path / f"maps/{i}.png", array)
    dataset = scan(find(tmp_path / "own", "", maps=tmp_path / "maps"))
    batch = Batches(dataset, tokens, square(64), 3, crops=Crops(random=True, flip=True)).batch(1)
    assert batch["map"].dtype == np.float32 and batch["map"].shape == (3, 64, 64, 3)
    np.testing.assert_allclose(batch["map"], (batch["pixels"] + 1) / 2, atol=1e-6)


def test_pairs_of_preference(tmp_path, tokens):
    """What is liked less is cut as what is liked more, and both are encoded."""
    for i in range(3):
        write(tmp_path / f"own/{i}.png", coordinates(70, 90, i))
        write(tmp_path / f"less/{i}.jpg", coordinates(140, 180, 40 * i) // 2)
    dataset = scan(find(tmp_path / "own", "", rejected=tmp_path / "less"))
    how = {"crops": Crops(random=True, flip=True, variants=2)}
    batch = Batches(dataset, tokens, square(64), 3, **how).batch(1)
    assert batch["rejected"].shape == batch["pixels"].shape
    apart = to_uint8(batch["rejected"])[..., :2].astype(int) - to_uint8(batch["pixels"])[..., :2]
    assert abs(apart[:, 4:-4, 4:-4]).max() < 12
    made = Batches(dataset, tokens, square(64), 3, moments=Moments(tmp_path / "kept", "vae", np.float32), **how)
    assert made.moments.fill(made.pictures, made.crops_of(), encode) == 12
    for name, pixels in (("moments", "pixels"), ("rejected", "rejected")):
        np.testing.assert_allclose(made.batch(1)[name], encode(batch[pixels]), rtol=1e-6)


# What was made beforehand -----------


def encode(pixels):
    """A VAE of sorts: means of 8 x 8 pixels, not the same mirrored, and their logarithms."""
    b, height, width, _ = pixels.shape
    means = pixels.reshape(b, height // 8, 8, width // 8, 8, 3)[:, :, :, :, :5].mean((2, 4))
    return np.concatenate([means, np.log(means + 2)], axis=-1)


def encode_text(ids):
    rows = ids["text_encoder"]
    return np.cos(rows[..., None] * np.arange(1, 7)), np.sin(rows[:, :4])


@pytest.mark.parametrize("crops", [Crops(), Crops(flip=True), Crops(random=True, flip=True, variants=3)])
def test_latents_made_beforehand(folder, tokens, tmp_path, monkeypatch, crops):
    moments = Moments(tmp_path, "vae", np.float32)
    made = batches(folder, tokens, crops=crops, moments=moments, form=SDXL)
    plain = batches(folder, tokens, crops=crops, form=SDXL)
    with pytest.raises(ValueError, match="has no latents of this crop of .* by this VAE: they have to be made before"):
        made.batch(0)
    monkeypatch.setattr("sdjax.train.data.progress.SECONDS", -1.0)
    told = []
    count = moments.fill(made.pictures, made.crops_of(), encode, 4, told.append)
    assert count == len(set(made.crops_of())) >= 10 * crops.count
    assert told[-1] == f"{count} of {count} crops encoded, 0.0 min left"
    for step in range(12):
        want, got = plain.batch(step), made.batch(step)
        np.testing.assert_allclose(got.pop("moments"), encode(want.pop("pixels")), rtol=1e-6)
        same(got, want)
    assert moments.fill(made.pictures, made.crops_of(), None) == 0  # nothing is encoded twice


def test_a_store_of_latents_knows_what_they_are_of(folder, tokens, tmp_path):
    for i in range(3):
        write(tmp_path / f"own/{i}.png", coordinates(64, 64, i))

    def fill(encoder="vae", **how):
        made = batches(tmp_path / "own", tokens, square(64), 1, moments=Moments(tmp_path / "kept", encoder), **how)
        return made.moments.fill(made.pictures, made.crops_of(), encode)

    assert [fill(), fill(), fill("another"), fill(crops=Crops(flip=True)), fill()] == [3, 0, 3, 3, 0]
    write(tmp_path / "own/1.png", coordinates(64, 64, 9))  # a file of the same name with another picture
    assert [fill(), fill(), fill("another"), fill(crops=Crops(flip=True))] == [1, 0, 1, 1]
    files = sorted((tmp_path / "kept").rglob("*.safetensors"))
    assert len(files) == 12
    for path, change in ((files[0], b"\x07"), (files[1], b"")):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + change)
    assert fill() + fill("another") + fill(crops=Crops(flip=True)) == 2  # what is damaged is made again
    with pytest.raises(ValueError, match="crops that are drawn anew in each turn have no latents"):
        fill(crops=Crops(random=True))


def test_a_store_is_filled_up_where_it_was_left(folder, tokens, tmp_path):
    """Killed in the middle: what was written stays, and there is nothing that is half."""
    made = batches(folder, tokens, square(64), 1, moments=Moments(tmp_path, "vae"))
    calls = []

    def stops(pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        made.moments.fill(made.pictures, made.crops_of(), stops, 2)
    assert calls == [2, 2, 2] and len([one for one in tmp_path.rglob("*") if one.is_file()]) == 4
    assert made.moments.fill(made.pictures, made.crops_of(), encode, 5) == 8


def test_a_damaged_entry_is_named(tmp_path):
    store = Store(tmp_path, "latents")
    store.write("ab" * 32, {"moments": np.ones((2, 2, 8))}, np.float16, "a.png")
    path = store.path("ab" * 32)
    np.testing.assert_array_equal(store.read("ab" * 32)["moments"], np.ones((2, 2, 8), np.float16))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name} is damaged: its numbers are not those that were written"):
        store.read("ab" * 32)
    for value in (np.nan, np.inf, 1e6):
        with pytest.raises(ValueError, match=r"the latents of b.png are not finite \(moments, as float16\)"):
            store.write("cd" * 32, {"moments": np.full(3, value)}, np.float16, "b.png")
    assert store.read("cd" * 32) is None


def test_text_states_made_beforehand(folder, tokens, tmp_path):
    """Each text once, and the empty one; left out, it is the empty text's or zeros."""
    for form in (Form(), SDXL):
        states = States(tmp_path / str(form.time_ids), "clip")
        made = batches(folder, tokens, captions=Captions(0.5, prefix="new "), states=states, form=form)
        plain = batches(folder, tokens, captions=Captions(0.5, prefix="new "), form=form)
        with pytest.raises(ValueError, match="has no text states of one of the captions"):
            made.batch(0)
        texts = made.texts.all(made.dataset.items)
        assert states.fill(texts, tokens, encode_text) == 13 == len(list(states.folder.rglob("*.*")))
        assert states.fill(texts, tokens, encode_text) == 0
        for step in range(6):
            got, want = made.batch(step), plain.batch(step)
            context, pooled = encode_text(want["ids"])
            here = 1 - want.get("empty", np.zeros(4))
            np.testing.assert_allclose(got["context"], context * here[:, None, None], atol=5e-4)
            np.testing.assert_allclose(got["pooled"], pooled * here[:, None], atol=5e-4)
            assert got["context"].dtype == np.float32 and not {"ids", "empty"} & got.keys()
    with pytest.raises(ValueError, match="has no text states"):
        batches(folder, tokens, states=States(states.folder, "another")).batch(0)
    with pytest.raises(ValueError, match="shuffled can have no states"):
        batches(folder, tokens, captions=Captions(shuffle=True), states=states)


def test_a_digest_of_parameters():
    params = {"a": {"kernel": np.ones((2, 3), np.float32)}, "b": np.zeros(2)}
    found = {digest(params), digest({"a": params["a"]}), digest({**params, "b": np.ones(2)})}
    found.add(digest({"b": {"kernel": np.ones((2, 3), np.float32)}, "a": np.zeros(2)}))
    assert len(found) == 4 and digest(params) == digest(jax.tree.map(np.copy, params))


# DreamBooth -----------


def test_dreambooth_is_the_sum_of_two_means(folder, tokens, tmp_path):
    for i in range(5):
        write(tmp_path / f"{i}.png", coordinates(80, 80, 100 + i))
    instance, class_ = batches(folder, tokens, size=2), batches(tmp_path, tokens, square(64), 4)
    both = DreamBooth(instance, class_, prior=0.7)
    old, each = [], np.random.default_rng(0).random(6).astype(np.float32)
    for step in range(10):
        batch = both.batch(step)
        alone = instance.batch(step)
        np.testing.assert_array_equal(batch["pixels"][:2], alone["pixels"])  # of whatever size these are
        loss, count = mean(each, batch)
        np.testing.assert_allclose(loss, each[:2].mean() + 0.7 * each[2:].mean(), rtol=1e-6)
        assert count == 6
        old += numbers(batch)[2:]
    assert sorted(old) == sorted([*range(100, 105)] * 8)
    parts = [DreamBooth(instance, class_, 0.7, (i, 3)).batch(3) for i in range(3)]
    same(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), both.batch(3))
    with pytest.raises(ValueError, match="weight of the class must be at least 0"):
        DreamBooth(instance, class_, -1.0)
    with pytest.raises(ValueError, match="go into one batch"):
        DreamBooth(instance, batches(tmp_path, tokens, square(64), 4, form=SDXL))


def test_dreambooth_with_latents_and_a_mask(folder, tokens, tmp_path):
    """The class has no masks, so all of it counts; its latents are made at each of the instances' sizes."""
    for i in range(2):
        write(tmp_path / f"class/{i}.png", coordinates(80, 80, 100 + i))
        write(tmp_path / f"own/{i}.png", coordinates(64, 64 + 60 * i, i))
        write(tmp_path / f"masks/{i}.png", coordinates(64, 64 + 60 * i, i)[..., 0])
    moments = Moments(tmp_path / "kept", "vae")
    dataset = scan(find(tmp_path / "own", "new", masks=tmp_path / "masks"))
    instance = Batches(dataset, tokens, TALL_AND_WIDE, 1, moments=moments)
    class_ = batches(tmp_path / "class", tokens, square(64), 1, moments=moments)
    moments.fill(instance.pictures, instance.crops_of(), encode)
    moments.fill(class_.pictures, class_.crops_of(instance.sizes), encode)
    shapes = set()
    for step in range(4):
        batch = DreamBooth(instance, class_).batch(step)
        shapes.add(batch["moments"].shape)
        assert batch["weights"].shape == (*batch["moments"].shape[:3], 1)
        np.testing.assert_array_equal(batch["weights"][1], 1)
    assert shapes == {(2, 8, 8, 6), (2, 6, 12, 6)}


# Beside the batches -----------


def test_batches_made_ahead_are_the_same(folder, tokens):
    made = batches(folder, tokens, crops=Crops(random=True))
    with Ahead(made.batch, 3) as ahead:
        for step in (0, 1, 2, 3, 10, 11, 2, 3):
            same(ahead(step), made.batch(step))


def test_the_next_batches_are_in_the_making():
    begun, may = [], threading.Event()

    def batch(step):
        begun.append(step)
        if step:
            may.wait(10)
        if step == 2:
            raise ValueError("no second step")
        return step

    with Ahead(batch, 2) as ahead:
        assert ahead(0) == 0
        for _ in range(500):
            if len(begun) == 3:
                break
            time.sleep(0.01)
        assert sorted(begun) == [0, 1, 2]
        may.set()
        assert ahead(1) == 1
        with pytest.raises(ValueError, match="no second step"):
            ahead(2)
    assert begun.count(1) == begun.count(2) == 1
    with pytest.raises(ValueError, match="at least one batch"):
        Ahead(batch, 0)


def test_the_sheet_shows_what_the_batches_hold(folder, tokens):
    made = batches(folder, tokens, captions=Captions(0.0))
    image = sheets.sheet(made, 8)
    assert image.mode == "RGB" and image.width == 4 * 200 + 8
    first = np.asarray(image)[8 : 8 + 192, 8 : 8 + 192]
    shown = to_uint8(made.batch(0)["pixels"][0])
    assert abs(first[96, 96].astype(int) - shown[shown.shape[0] // 2, shown.shape[1] // 2]).max() <= 2
    with pytest.raises(ValueError, match="at least one picture"):
        sheets.sheet(made, 0)


def test_the_summary(folder, tokens):
    lines = batches(folder, tokens, Buckets(((64, 64), (96, 48), (96, 192)))).summary()
    assert lines == [
        "12 pictures, 0 rejects; 12 in a pass, 3.0 steps",
        "  64 x 64: 4",
        "  48 x 96: 4",
        "  192 x 96: 4",
        "  4 are smaller than that and are enlarged",
    ]


def test_what_a_model_wants():
    architecture = SimpleNamespace(vae=SimpleNamespace(factor=8), takes_pooled=True, zeros_for_empty=True)
    assert Form.of(architecture) == SDXL


def test_a_picture_that_is_another_now(tmp_path, tokens):
    write(tmp_path / "a.png", coordinates(64, 64, 0))
    made = batches(tmp_path, tokens, square(64), 1)
    write(tmp_path / "a.png", coordinates(80, 64, 0))
    with pytest.raises(ValueError, match="a.png is another picture than when it was scanned"):
        made.batch(0)
    with pytest.raises(ValueError, match="no multiple of 8"):
        batches(tmp_path, tokens, square(60))


def test_a_model_is_shown_the_same_from_files_and_from_what_was_made_beforehand(folder, tmp_path):
    """The shapes model: pixels and ids, or moments and states kept in float32 and float16."""
    networks = sdjax.load().networks
    architecture, params = Architecture.of(networks.spec), networks.params
    tokens = Tokens({name: one.tokenizer for name, one in networks.spec.encoders.items()})
    (encode_pixels, vae), (encode_texts, clip) = (
        encoders.vae(architecture, params),
        encoders.texts(architecture, params),
    )
    moments, states = Moments(tmp_path, vae, np.float32), States(tmp_path, clip)
    how = {"form": Form.of(architecture), "captions": Captions(0.3, prefix="a red circle ")}
    plain = batches(folder, tokens, square(64), 4, **how)
    made = batches(folder, tokens, square(64), 4, moments=moments, states=states, **how)
    assert moments.fill(made.pictures, made.crops_of(), encode_pixels) == 12
    assert states.fill(made.texts.all(made.dataset.items), tokens, encode_texts) == 13
    assert set(made.batch(0)) == {"moments", "context"}

    @jax.jit
    def shown(batch):
        drawn = {**batch, "keys": picture_keys(jax.random.key(0), 4)}
        return latents_of(architecture, params, drawn), conditions_of(architecture, params, drawn).context

    for step in range(3):
        (latents, context), (got, told) = shown(plain.batch(step)), shown(made.batch(step))
        np.testing.assert_allclose(got, latents, atol=1e-4)
        np.testing.assert_allclose(told, context, atol=4e-3)
        assert np.std(latents) > 0.3 and np.std(context) > 0.3
