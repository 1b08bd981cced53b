"""The linear decoder is the least-squares one and shows what the VAE would; a preview shows itself."""

import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import sdjax
from experiments.shapes import world
from sdjax.images.pixels import from_uint8, to_uint8
from sdjax.sampling import preview
from sdjax.sampling.preview import LinearDecoder, Preview, Viewer
from sdjax.sampling.trace import Step


@pytest.fixture(scope="module")
def shapes():
    return sdjax.load()


@pytest.fixture(scope="module")
def viewer(shapes):
    return Viewer(shapes.decode, shapes.encode, shapes.vae.factor)


def step(number: int = 3, b: int = 2, channels: int = 4, size: int = 4) -> Step:
    rng = np.random.default_rng(number)
    x, denoised = rng.normal(size=(2, b, size, size, channels)).astype(np.float32)
    return Step(number, 20, 801.0, 4.61, x, denoised)


# The fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor,channels", [(8, 4), (4, 3), (2, 7)])
def test_a_linear_autoencoder_is_found_exactly(factor, channels):
    """Latents made from averaged pixels by a known map with a known offset: fit inverts it."""
    rng = np.random.default_rng(1)
    mix, offset = rng.normal(size=(3, channels)), rng.normal(size=channels)
    decoder = preview.fit(lambda pixels: preview.averaged(pixels, factor) @ mix + offset, factor)
    rgb = rng.uniform(-1, 1, (2, 5, 6, 3))
    np.testing.assert_array_equal(decoder(rgb @ mix + offset), to_uint8(rgb))
    assert decoder.weights.shape == (channels, 3) and decoder.bias.shape == (3,) and decoder.residual < 1e-6


def test_the_residual_is_what_the_map_leaves():
    """Latents that know red alone: green and blue are left at their means, and their spread is the residual."""
    decoder = preview.fit(lambda pixels: preview.averaged(pixels, 8)[..., :1], 8)
    y = preview.averaged(from_uint8(preview.drawn(128)), 8).reshape(-1, 3)
    red = y[:, :1] - y[:, 0].mean()
    rest = y - y.mean(0) - red @ (red.T @ (y - y.mean(0))) / (red**2).sum()
    assert decoder.residual == pytest.approx(np.sqrt(np.mean(rest**2)), rel=1e-9)


def test_the_pictures_of_the_fit_are_of_all_colours_and_always_the_same():
    first = preview.drawn(64)
    np.testing.assert_array_equal(first, preview.drawn(64))
    assert first.shape == (20, 64, 64, 3)
    np.testing.assert_allclose(first.mean((0, 1, 2)), 127.5, atol=15)
    assert np.linalg.cond(np.cov(first.reshape(-1, 3).T.astype(float))) < 2  # no colour hangs on another


@pytest.mark.parametrize(
    "encode,message",
    [
        (lambda pixels: np.full((len(pixels), 16, 16, 4), np.nan), "not finite: load the model with dtype float32"),
        (lambda pixels: np.zeros((len(pixels), 32, 32, 4)), r"became latents \[20, 32, 32, 4\]"),
    ],
)
def test_an_encoder_that_gives_nothing_to_fit_is_told(encode, message):
    with pytest.raises(ValueError, match=message):
        preview.fit(encode, 8)


# Against the VAE of the shapes model -----------------------------------------------------------------


def quality(shown: np.ndarray, decoded: np.ndarray) -> tuple[float, float]:
    """PSNR in dB and correlation of pictures in [-1, 1]."""
    error = float(np.mean((shown - decoded) ** 2))
    return 10 * np.log10(4 / error), float(np.corrcoef(shown.ravel(), decoded.ravel())[0, 1])


def test_rendered_shapes_look_as_the_vae_shows_them(shapes, viewer):
    """Pictures that the fit did not see; the bars are between the map (16.7 dB, 0.85) and all wrong ones."""
    z = np.asarray(shapes.encode(from_uint8(world.dataset(77, 0, 32)[0])))
    decoded = preview.averaged(shapes.decode(z), 8)

    def measured(decoder) -> tuple[float, float]:
        return quality(from_uint8(decoder(z)), decoded)

    linear = viewer.linear
    psnr, correlation = measured(linear)
    assert psnr > 16 and correlation > 0.82

    def other(weights) -> LinearDecoder:
        return LinearDecoder(weights, linear.bias, linear.factor, 0.0)

    wrong = [other(linear.weights[order]) for order in ([1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 3, 2], [3, 2, 1, 0])]
    wrong += [other(linear.weights[:, ::-1]), other(-linear.weights), other(0.3 * linear.weights)]
    for i in range(4):
        dropped = linear.weights.copy()
        dropped[i] = 0
        wrong.append(other(dropped))
    assert max(measured(decoder)[0] for decoder in wrong) < 16


def test_no_linear_map_is_much_better(shapes, viewer):
    """The best one for the very pictures that are looked at gains less than 0.6 dB."""
    z = np.asarray(shapes.encode(from_uint8(world.dataset(78, 0, 32)[0])), np.float64)
    decoded = preview.averaged(shapes.decode(z), 8)
    rows = np.concatenate([z, np.ones((*z.shape[:3], 1))], -1).reshape(-1, 5)
    best = rows @ np.linalg.lstsq(rows, decoded.reshape(-1, 3), rcond=None)[0]
    ours = quality(from_uint8(viewer.linear(z)), decoded)[0]
    assert quality(np.clip(best, -1, 1).reshape(decoded.shape), decoded)[0] - ours < 0.6


# The decoder -----------------------------------------------------------------------------------------

SWAP = LinearDecoder(np.eye(4)[:, 2::-1], np.zeros(3), 4, 0.0)  # its first three channels are blue, green, red


def test_colours_and_sizes():
    z = np.zeros((2, 3, 5, 4))
    z[0, ..., 0], z[1, ..., 2] = 1, -1
    pixels = SWAP(z)
    assert pixels.dtype == np.uint8 and pixels.shape == (2, 3, 5, 3)
    assert pixels[0, 0, 0].tolist() == [128, 128, 255] and pixels[1, 0, 0].tolist() == [0, 128, 128]
    assert [one.size for one in SWAP.images(z)] == [(20, 12)] * 2
    both = SWAP.image(z)
    assert (
        both.size == (40, 12) and both.getpixel((5, 5)) == (128, 128, 255) and both.getpixel((30, 5)) == (0, 128, 128)
    )


def test_what_is_outside_the_range_is_clipped():
    assert SWAP(np.full((1, 1, 1, 4), 9.0)).tolist() == [[[[255] * 3]]]


@pytest.mark.parametrize("shape", [(4, 4, 4), (1, 4, 4, 16)])
def test_latents_of_another_kind_are_refused(shape):
    with pytest.raises(ValueError, match=r"latents must be \[b, h, w, 4\], not"):
        SWAP(np.zeros(shape))


# Previews --------------------------------------------------------------------------------------------


def counted_viewer() -> tuple[Viewer, list[str]]:
    """A viewer of a model that is none, and what it has been asked to compute."""
    calls: list[str] = []

    def encode(pixels):
        calls.append("encode")
        return preview.averaged(pixels, 8) @ np.eye(3, 4)

    def decode(latents):
        calls.append("decode")
        return np.repeat(np.repeat(latents[..., :3], 8, 1), 8, 2)

    return Viewer(decode, encode, 8), calls


def test_a_preview_computes_what_is_asked_for_and_once():
    viewer, calls = counted_viewer()
    shown, later = viewer.preview(step(3)), viewer.preview(step(4))
    assert isinstance(shown, Step) and (shown.number, shown.of, shown.timestep, shown.sigma) == (3, 20, 801.0, 4.61)
    assert repr(shown) == "Preview(step 3 of 20, t 801, sigma 4.61)" and calls == []
    assert shown.image.size == (64, 32) and len(shown.images) == 2 and later.image and calls == ["encode"]
    np.testing.assert_array_equal(np.asarray(shown.decoded[1]), to_uint8(viewer.decode(shown.denoised))[1])
    assert calls == ["encode", "decode", "decode"] and shown.decoded and len(calls) == 3


def test_a_notebook_shows_its_picture():
    shown = counted_viewer()[0].preview(step())
    with Image.open(io.BytesIO(shown._repr_png_())) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(shown.image))


def test_it_shows_what_was_predicted_and_not_the_noise():
    viewer, _ = counted_viewer()
    shown = viewer.preview(step())
    np.testing.assert_array_equal(np.asarray(shown.image), np.asarray(viewer.linear.image(shown.denoised)))
    assert (np.asarray(shown.image) != np.asarray(viewer.linear.image(shown.latents))).any()


class Display:
    """In the place of IPython.display.display."""

    def __init__(self):
        self.outputs: list[list[Preview]] = []

    def __call__(self, shown, *, display_id):
        assert display_id is True
        own = [shown]
        self.outputs.append(own)
        return SimpleNamespace(update=own.append)


def test_a_notebook_has_one_output_for_a_run(monkeypatch, capsys):
    display, module = Display(), ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    viewer, callback = counted_viewer()[0], preview.notebook_callback()
    for number in (0, 1, 2, 0, 1):
        assert callback(viewer.preview(step(number))) is None  # which lets the run go on
    assert [[shown.number for shown in own] for own in display.outputs] == [[0, 1, 2], [0, 1]]
    assert capsys.readouterr() == ("", "")


def test_without_ipython_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ImportError, match="pip install ipython, or give a callback of your own"):
        preview.notebook_callback()


def test_a_run_shows_itself_step_by_step(shapes):
    """dpmpp_2m ends on its last jump, so that the last preview is the result."""
    seen: list[Preview] = []
    out = shapes.generate("a red circle", steps=4, num_images=2, callback=lambda shown: seen.append(shown))
    assert [(shown.number, shown.of) for shown in seen] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert [shown.image.size for shown in seen] == [(256, 128)] * 4
    for image, decoded in zip(out.images, seen[-1].decoded, strict=True):
        assert np.abs(np.asarray(image, int) - np.asarray(decoded, int)).max() <= 1
    assert seen[0].viewer is seen[-1].viewer is shapes.viewer
