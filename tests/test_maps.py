"""Control maps: the conventions that nets were trained with, golden maps of controlnet_aux, and mistakes."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdjax.images import maps
from sdjax.images.maps import depth, detail, edges, inpaint, lines, normals, pictures, segmentation, tones
from tests.golden import make_maps

GOLDEN = np.load(make_maps.PATH)
PICTURE = make_maps.image()
NOISE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
# What each map looks at, and the options that it needs.
LOOKED_AT = {
    "depth": (make_maps.depth(), {}),
    "normal": (make_maps.depth(), {}),
    "segmentation": (np.arange(150).reshape(10, 15), {}),
    "inpaint": (PICTURE, {"mask": make_maps.soft_edges()}),
    "openpose": (make_maps.poses()[0]["body"], {"size": (512, 512)}),
}


def array(image: Image.Image) -> np.ndarray:
    """One channel of a map whose three are alike."""
    found = np.asarray(image)
    assert image.mode == "RGB" and (found == found[..., :1]).all()
    return found[..., 0]


def gauss(image: np.ndarray, sigma: float, reach: int) -> np.ndarray:
    """A Gaussian in float64, by sums over 2 reach + 1 pixels of each axis, borders mirrored."""
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    made = image.astype(np.float64)
    for axis in (0, 1):
        padded = np.pad(made, [(reach, reach) if i == axis else (0, 0) for i in range(made.ndim)], mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis)
        made = (windows * weights).sum(axis=-1)
    return made


# Against controlnet_aux's own code, and against OpenCV -----------


def test_golden_maps():
    assert (array(edges.canny(PICTURE)) == GOLDEN["canny"]).all()
    assert (array(edges.canny(PICTURE, detect_resolution=320)) == GOLDEN["canny_320"]).all()
    assert (edges._crests(make_maps.soft_edges(), cv2) == GOLDEN["crests"]).all()
    lineart = array(lines.lineart_standard(make_maps.drawing())).astype(int)
    assert abs(lineart - GOLDEN["lineart_standard"]).max() <= 1 and (lineart > 100).mean() > 0.1
    assert (GOLDEN["palette"] == segmentation.PALETTE).all()


def test_the_size_that_edges_are_looked_for_at():
    assert (pictures.resized(PICTURE, 64, "canny") == GOLDEN["resized"]).all()
    assert (pictures.resized(PICTURE[:40, :50], 128, "canny") == GOLDEN["enlarged"]).all()
    for make in (edges.canny, edges.scribble, edges.scribble_xdog, lines.lineart_standard, lines.lines):
        assert make(PICTURE[:, :200]).size == (200, 192)
        assert make(PICTURE[:, :200], detect_resolution=128).size == (128, 128)  # of 133 x 128


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(0, 500), st.integers(0, 1500))
def test_canny_is_opencvs(seed, low, more):
    image = np.random.default_rng(seed).integers(0, 256, (20, 31, 3), np.uint8)
    assert (array(edges.canny(image, low, low + more)) == cv2.Canny(image, low, low + more)).all()


def test_canny_is_asked_of_the_colours():
    """Two colours of one brightness have an edge between them."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, :8], image[:, 8:] = (150, 0, 0), (0, 0, 150)
    assert array(edges.canny(image)).any() and not array(edges.canny(tones.grey((image > 0).astype(np.uint8)))).any()


# Edges by a second way -----------


def test_xdog_by_a_second_way():
    """In float64 by plain sums, where the truncated difference is not on the border between two numbers."""
    drawing = make_maps.drawing()
    difference = 255 - np.clip(255 - (gauss(drawing, 5, 20) - gauss(drawing, 0.5, 3)).min(axis=2), 0, 255)
    sure = abs(difference - 16) > 1.01  # 2 d > 32, d rounded up
    drawn = array(edges.scribble_xdog(drawing)) == 255
    assert (drawn == (difference > 16))[sure].all() and sure.mean() > 0.9 and 0.01 < drawn.mean() < 0.5


def test_xdog_has_no_holes_where_it_is_darkest():
    """A thin black line on white: darker than around by more than 128, of which 8 bits would lose the double."""
    image = np.full((40, 40, 3), 255, np.uint8)
    image[:, 18:21] = 0
    assert (array(edges.scribble_xdog(image))[:, 18:21] == 255).all()


def test_scribbles_are_wide_lines():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    thin, wide = array(edges.canny(image)), array(edges.scribble(image))
    assert (thin.sum(axis=1) == 255).all() and set(np.unique(wide)) == {0, 255}
    exact = 255 * np.exp(-(np.arange(-20, 21) ** 2) / 18) / (3 * np.sqrt(2 * np.pi)) > 4  # OpenCV's is of 8 bits
    width = wide.sum(axis=1) // 255
    assert (width == width[0]).all() and exact.sum() - 2 <= width[0] <= exact.sum()


def test_lines_are_straight_and_long_enough():
    image = np.full((100, 100, 3), 255, np.uint8)
    cv2.line(image, (10, 20), (90, 20), (0, 0, 0), 3)
    cv2.line(image, (10, 60), (18, 60), (0, 0, 0), 3)
    both, long = array(lines.lines(image, shortest=4)), array(lines.lines(image, shortest=40))
    assert both[15:26].any() and both[55:66].any() and long[15:26].any() and not long[40:].any()
    assert not array(lines.lines(np.zeros((50, 50, 3), np.uint8))).any()
    assert (long > 0).sum() < 400  # lines of one pixel


# Tones and detail -----------


def test_tones():
    assert (np.asarray(tones.invert(NOISE)) == 255 - NOISE).all()
    assert (array(tones.threshold(NOISE)) == np.where((NOISE > 127).all(axis=2), 255, 0)).all()
    assert (array(tones.threshold(NOISE, 20)) == np.where(NOISE.min(axis=2) > 20, 255, 0)).all()
    weighed = NOISE @ np.array([0.299, 0.587, 0.114])
    assert abs(array(tones.grey(NOISE)) - weighed).max() < 1
    assert abs(array(tones.recolor(NOISE, by="intensity")).astype(int) - NOISE.max(axis=2)).max() <= 1


def test_luminance_of_lab():
    """L = 116 Y^(1/3) - 16 of sRGB's luminance, and a gamma."""
    linear = np.where(NOISE / 255 > 0.04045, ((NOISE / 255 + 0.055) / 1.055) ** 2.4, NOISE / 255 / 12.92)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    light = np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y) / 100
    assert abs(array(tones.recolor(NOISE)) / 255 - light).max() < 0.015
    assert abs(array(tones.recolor(NOISE, gamma=2.2)) / 255 - light**2.2).max() < 0.03


def test_tile():
    assert (np.asarray(detail.tile(NOISE)) == NOISE).all() and (np.asarray(detail.tile(NOISE, 1.05)) == NOISE).all()
    halves = NOISE.reshape(35, 2, 45, 2, 3).mean(axis=(1, 3))
    assert abs(np.asarray(detail.tile(NOISE, 2)) - halves).max() <= 0.5
    assert detail.tile(NOISE, 3).size == (30, 23) and detail.tile(NOISE[:1, :1], 64).size == (1, 1)


def test_blur():
    assert abs(np.asarray(detail.blur(NOISE, 3)) - gauss(NOISE, 3, 12)).max() < 2
    assert np.asarray(detail.blur(NOISE)).std() < np.asarray(detail.blur(NOISE, 1)).std() < NOISE.std()


def test_shuffle():
    image = np.zeros((300, 400, 3), np.uint8)
    image[:, 200:] = (200, 100, 50)
    mixed = np.asarray(detail.shuffle(image, seed=1))
    assert mixed.shape == image.shape and (mixed == np.asarray(detail.shuffle(image, seed=1))).all()
    assert (mixed != np.asarray(detail.shuffle(image, seed=2))).any() and (mixed != image).any()
    shares = mixed.reshape(-1, 3) / (200, 100, 50)  # colours are the picture's, or between two of them
    assert np.ptp(shares, axis=1).max() < 0.02 and shares.min() == 0 and shares.max() == 1
    assert (np.asarray(detail.shuffle(NOISE[:1, :1])) == NOISE[0, 0]).all()


def test_a_palette_of_squares():
    image = np.repeat(np.repeat(NOISE[:3, :4], 64, axis=0), 64, axis=1)
    found = np.asarray(detail.color(image)).reshape(3, 64, 4, 64, 3)
    assert (found == found[:, :1, :, :1]).all()
    assert (found[:, 0, :, 0] == NOISE[:3, :4]).all()  # bicubic samples lie inside of squares of one colour
    assert detail.color(NOISE[:5, :5]).size == (5, 5)


def test_a_square_is_a_bicubic_sample_of_its_middle():
    """Of four pixels each way, as OpenCV weighs them halfway between two (a = -3/4); no mean of the square."""
    image = np.random.default_rng(1).integers(0, 256, (128, 192, 3), np.uint8)
    near, far = 0.59375, -0.09375
    weights = np.array([far, near, near, far])
    middles = image.reshape(2, 64, 3, 64, 3)[:, 30:34, :, 30:34].astype(np.float64)
    expected = np.clip(np.einsum("iyjxc,y,x->ijc", middles, weights, weights), 0, 255)
    assert abs(np.asarray(detail.color(image))[::64, ::64] - expected).max() < 1


# Depth and normals -----------


def test_near_is_white():
    near = make_maps.depth()
    share = (near - near.min()) / (near.max() - near.min())
    light = array(depth.depth(near))
    assert (light == (share * 255).astype(np.uint8)).all() and light.flat[near.argmax()] == 255
    far = -near
    for convention in ("zoe", "leres"):
        light = array(depth.depth(far, convention=convention))
        assert light.flat[far.argmin()] == 255 and light.flat[far.argmax()] == 0
        assert (np.diff(light.ravel()[np.argsort(far.ravel())].astype(int)) <= 0).all()


def test_zoe_and_leres():
    far = make_maps.depth() + 100
    near, most = np.percentile(far, 2), np.percentile(far, 85)
    light = np.clip(1 - (far - near) / (most - near), 0, 1)
    assert (array(depth.depth(far, convention="zoe")) == np.floor(light * 255)).all()
    assert (array(depth.depth(far, convention="zoe", gamma=2.2)) == np.floor(light**2.2 * 255)).all()
    share = (far - far.min()) / (far.max() - far.min())
    assert abs(array(depth.depth(far, convention="leres")) - 255 * (1 - share)).max() < 0.51


def test_depth_of_pictures_and_sizes():
    deep = Image.fromarray(np.linspace(0, 60000, 600).reshape(20, 30).astype(np.uint16))
    assert len(np.unique(array(depth.depth(deep)))) == 256  # of 16 bits: in 8 of them it has fewer
    assert depth.depth(deep, size=(64, 96)).size == (96, 64)
    assert not array(depth.depth(np.full((4, 5), 7.0))).any()
    mostly = np.full((20, 20), 5.0)
    mostly[0, 0] = 9
    assert array(depth.depth(mostly, convention="zoe"))[0, :2].tolist() == [0, 255]


def test_normals_look_left_up_and_front():
    y, x = np.mgrid[:20, :30].astype(np.float32)
    to = {"left": x * 100, "right": -x * 100, "up": y * 100, "down": -y * 100, "front": 0 * x}
    colours = {way: np.asarray(normals.normal(values))[10, 15].tolist() for way, values in to.items()}
    assert colours["front"] == [127, 127, 255]
    assert [colours[way][0] for way in ("left", "right")] == [254, 0] and colours["left"][1] == 127
    assert [colours[way][1] for way in ("up", "down")] == [254, 0] and colours["up"][0] == 127


def test_normals_by_opencv():
    values = make_maps.depth()
    slopes = [cv2.Sobel(values, cv2.CV_32F, 1 - i, i, ksize=3).astype(np.float64) for i in (0, 1)]
    vectors = np.stack([*slopes, np.full(values.shape, 2 * np.pi)], axis=-1)
    made = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)) * 127.5 + 127.5
    assert abs(np.asarray(normals.normal(values)) - np.floor(made)).max() <= 1
    share = (values - values.min()) / np.ptp(values)
    vectors[share < 0.3, :2] = 0
    made = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)) * 127.5 + 127.5
    midas = np.asarray(normals.normal(values, style="midas", background=0.3))
    assert abs(midas[..., ::-1] - np.floor(made)).max() <= 1 and (midas[share < 0.3] == (255, 127, 127)).all()


def test_a_larger_z_is_flatter():
    steep, flat = (np.asarray(normals.normal(make_maps.depth(), z=z)).astype(int) for z in (1.0, 1000.0))
    assert abs(flat[..., :2] - 127).mean() < 20 < 60 < abs(steep[..., :2] - 127).mean()


# Segmentation -----------


def test_the_palette():
    """The published one: 150 classes, of which road and skyscraper share a grey."""
    assert segmentation.PALETTE[:5].tolist() == [
        [120, 120, 120],
        [180, 120, 120],
        [6, 230, 230],
        [80, 50, 50],
        [4, 200, 3],
    ]
    assert len(segmentation.PALETTE) == len(set(segmentation.NAMES)) == 150
    assert len({tuple(one) for one in segmentation.PALETTE.tolist()}) == 149
    known = {0: "wall", 2: "sky", 6: "road", 12: "person", 48: "skyscraper", 149: "flag"}
    assert {i: segmentation.NAMES[i] for i in known} == known


def test_classes_and_back():
    labels = np.arange(150).reshape(10, 15)
    colours = segmentation.segmentation(labels)
    back = segmentation.classes(colours)
    assert (back == np.where(labels == 48, 6, labels)).all()
    off = np.clip(np.asarray(colours).astype(int) + np.random.default_rng(0).integers(-1, 2, (10, 15, 3)), 0, 255)
    assert (segmentation.classes(off.astype(np.uint8)) == back).mean() > 0.95
    assert (np.asarray(segmentation.segmentation(np.full((2, 2), 255))) == 0).all()
    saved = Image.fromarray(labels.astype(np.uint8))
    assert (np.asarray(segmentation.segmentation(saved)) == np.asarray(colours)).all()


# Inpainting -----------


def test_what_is_made_anew_is_minus_one():
    mask = make_maps.soft_edges()
    made = inpaint.inpaint(PICTURE, mask)
    hole = mask > 127
    assert made.dtype == np.float32 and made.shape == PICTURE.shape and 0.01 < hole.mean() < 0.5
    assert (made[hole] == -1).all() and np.array_equal(made[~hole], PICTURE[~hole].astype(np.float32) / 255)
    whole = inpaint.inpaint(PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8))
    assert (whole == -1).all()


# The table, and what is taken -----------


@pytest.mark.parametrize("name", maps.MAPS)
def test_every_map_by_its_name(name):
    image, options = LOOKED_AT.get(name, (PICTURE, {}))
    made = maps.make(name, image, **options)
    if name == "inpaint":
        assert isinstance(made, np.ndarray)
    else:
        assert isinstance(made, Image.Image) and made.mode == "RGB"


@pytest.mark.parametrize("name", [name for name in maps.MAPS if name not in LOOKED_AT])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_all_modes(name, mode, tmp_path):
    """Converted as `read_image` does, whatever the picture comes as."""
    deep = NOISE[..., 0].astype(np.uint16) * 257
    image = Image.fromarray(deep) if mode == "I;16" else Image.fromarray(NOISE).convert(mode)
    path = tmp_path / "picture.tif"
    image.save(path)
    assert maps.make(name, path).tobytes() == maps.make(name, image).tobytes()


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([name for name in maps.MAPS if name not in LOOKED_AT]), st.integers(1, 9), st.integers(1, 9))
def test_pictures_of_a_few_pixels(name, height, width):
    assert maps.make(name, NOISE[:height, :width]).size == (width, height)


@pytest.mark.parametrize(
    "name, image, options, message",
    [
        ("cany", PICTURE, {}, "map 'cany' is unknown; nearest: 'canny'; known: canny, scribble"),
        (3, PICTURE, {}, "map 3 is unknown"),
        ("canny", PICTURE, {"hight": 3}, "no option 'hight'; nearest: 'high'; known: low, high"),
        ("invert", PICTURE, {"low": 3}, "'invert' has no option 'low', nor any other"),
        ("inpaint", PICTURE, {}, "'inpaint' needs mask="),
        ("canny", PICTURE, {"low": "3"}, "low must be a number from 0 to 65535, not '3'"),
        ("canny", PICTURE, {"high": float("nan")}, "high must be a number"),
        ("canny", PICTURE, {"low": 300}, "low=300 is above high=200"),
        ("canny", PICTURE, {"detect_resolution": 63}, "detect_resolution must be a whole number in 64"),
        ("canny", PICTURE[:1], {"detect_resolution": 4096}, r"makes 1048576 x 4096 of this picture of 256 x 1"),
        ("canny", PICTURE / 255, {}, r"image is an array of float64 \[192, 256, 3\]; it must be uint8"),
        ("grey", np.zeros((1, 20000), np.uint8), {}, None),
        ("invert", "nowhere.png", {}, "there is no such picture"),
        ("threshold", np.zeros((1, 20000), np.uint8), {}, "longer than 16384 on a side"),
        ("threshold", PICTURE, {"level": 256}, "level must be a number from 0 to 255"),
        ("recolor", PICTURE, {"by": "luminanc"}, "by='luminanc' is unknown; nearest: 'luminance'"),
        ("recolor", PICTURE, {"gamma": 0}, "gamma must be"),
        ("tile", PICTURE, {"factor": 0.5}, "factor must be a number from 1 to 64"),
        ("blur", PICTURE, {"sigma": 0}, "sigma must be"),
        ("shuffle", PICTURE, {"seed": -1}, "seed must be a whole number"),
        ("scribble_xdog", PICTURE, {"threshold": 600}, "threshold must be"),
        ("lines", PICTURE, {"shortest": -1}, "shortest must be"),
        ("depth", PICTURE.astype(np.float32), {}, r"depth must be a picture or an array of numbers \[H, W\]"),
        ("depth", np.full((3, 3), np.nan), {}, "no finite numbers"),
        ("depth", make_maps.depth(), {"convention": "zo"}, "convention='zo' is unknown; nearest: 'zoe'"),
        ("depth", make_maps.depth(), {"gamma": 2.2}, "gamma=2.2 is for convention"),
        ("depth", make_maps.depth(), {"size": 512}, r"size must be \(height, width\)"),
        ("depth", make_maps.depth(), {"size": (512, 0)}, "size's width must be a whole number"),
        ("depth", make_maps.depth(), {"size": (16384, 16384)}, "16384 x 16384 pixels"),
        ("normal", make_maps.depth(), {"style": "base"}, "style='base' is unknown; nearest: 'bae'"),
        ("normal", make_maps.depth(), {"background": 0.4}, "background=0.4 is for style"),
        ("normal", make_maps.depth(), {"z": 0}, "z must be"),
        ("segmentation", np.array([[0, 150]]), {}, "a label is 150; classes count from 0"),
        ("segmentation", np.array([[-1]]), {}, "a label is -1"),
        ("segmentation", np.zeros((2, 2)), {}, r"labels must be whole numbers \[H, W\].*not float64\[2, 2\]"),
        ("segmentation", Image.fromarray(PICTURE), {}, "a picture of mode RGB; one that is coloured already"),
        ("inpaint", PICTURE, {"mask": NOISE[..., 0]}, "mask is 90 x 70 and the picture 256 x 192"),
        ("inpaint", PICTURE, {"mask": np.zeros((192, 256), np.uint8)}, "black all over"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(name, image, options, message):
    if message is None:  # what OpenCV does not make has no limit of its own
        assert maps.make(name, image, **options).size == (20000, 1)
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message) as told:
        maps.make(name, image, **options)
    assert "\n" not in str(told.value)


def test_without_opencv(monkeypatch):
    """What NumPy and PIL make is made; the others name the extra."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name, (image, options) in {"grey": (PICTURE, {}), "tile": (PICTURE, {}), **LOOKED_AT}.items():
        if name != "openpose":
            maps.make(name, image, **options)
    for name in ("canny", "scribble", "scribble_hed", "scribble_xdog", "lineart_standard", "lines", "recolor", "blur",
                 "shuffle", "color", "openpose"):  # fmt: skip
        image, options = LOOKED_AT.get(name, (PICTURE, {}))
        with pytest.raises(ValueError, match=rf"'{name}' is made by OpenCV.*pip install 'sdjax\[control\]'"):
            maps.make(name, image, **options)


def test_opencv_is_not_imported_before_it_is_used():
    code = "import sys, sdjax; from sdjax.images import maps; print('cv2' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "False", ran.stderr
