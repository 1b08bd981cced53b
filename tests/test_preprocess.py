"""The command line of control maps: what it writes, and how it treats mistakes."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from absl import flags
from PIL import Image

import sdjax
from experiments import preprocess
from sdjax.images import maps
from sdjax.images.maps import keypoints
from tests.golden import make_maps

ROOT = Path(__file__).parents[1]
BODY = make_maps.poses()[0]["body"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.preprocess", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def values(**given: Any) -> SimpleNamespace:
    """The flags, of which these are given."""
    names = (*preprocess.OPTIONS, "image", "keypoints", "estimator")
    return SimpleNamespace(**dict.fromkeys(names) | given)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, a mask and a pose."""
    for i, name in enumerate(("one", "two")):
        Image.fromarray(make_maps.image()[:, :: 1 - 2 * i]).save(tmp_path / f"{name}.png")
    Image.fromarray(make_maps.soft_edges()).save(tmp_path / "mask.png")
    numbers = [float(one) for x, y in BODY for one in ((0, 0, 0) if np.isnan(x) else (x, y, 1))]
    pose = {"people": [{keypoints.BODY: numbers}], "canvas_width": 512, "canvas_height": 512}
    (tmp_path / "pose.json").write_text(json.dumps(pose), "utf-8")
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_map(folder):
    out = folder / "canny.png"
    ran = run("--map=canny", f"--image={folder / 'one.png'}", f"--out={out}", "--low=50", "--high=300.5",
              "--detect_resolution=128")  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{out}\n", "")
    wanted = maps.make("canny", make_maps.image(), low=50, high=300.5, detect_resolution=128)
    assert Image.open(out).tobytes() == wanted.tobytes()


def test_several_pictures_and_a_folder(folder, capsys):
    there = folder / "new" / "maps"
    preprocess.main(values(map="grey", image=[str(folder / f"{one}.png") for one in ("one", "two")], out=str(there)))
    assert capsys.readouterr().out.split() == [str(there / "one.png"), str(there / "two.png")]
    assert Image.open(there / "two.png").tobytes() == maps.make("grey", folder / "two.png").tobytes()


def test_a_skeleton_and_an_inpainting_map(folder):
    preprocess.main(values(map="openpose", keypoints=[str(folder / "pose.json")], size=["256", "384"], style="original",
                           out=str(folder / "pose.png")))  # fmt: skip
    wanted = maps.make("openpose", BODY * (0.75, 0.5), size=(256, 384), style="original")
    assert Image.open(folder / "pose.png").tobytes() == wanted.tobytes()
    image, mask = str(folder / "one.png"), str(folder / "mask.png")
    preprocess.main(values(map="inpaint", image=[image], mask=mask, out=str(folder / "map.npy")))
    made = np.load(folder / "map.npy", allow_pickle=False)
    assert np.array_equal(made, maps.make("inpaint", image, mask=mask)) and made.min() == -1


def test_depth_that_a_model_estimates(folder, monkeypatch):
    """The estimate, of its own size, becomes a map of the picture's."""
    seen = []
    estimate = np.add.outer(np.arange(24.0), np.arange(32.0)).astype(np.float32)
    model = SimpleNamespace(estimate_depth=lambda image: seen.append(image) or estimate)
    monkeypatch.setattr(sdjax, "load", lambda name: model if name == "sd2-depth" else None)
    out = folder / "depth.png"
    preprocess.main(values(map="depth", image=[str(folder / "one.png")], estimator="sd2-depth", out=str(out)))
    assert seen[0].tobytes() == make_maps.image().tobytes()
    assert Image.open(out).tobytes() == maps.make("depth", estimate, size=(192, 256)).tobytes()


def test_every_option_has_a_flag():
    """One of the same name, and none for what no map has."""
    taken = {name for one in maps.MAPS.values() for name in list(inspect.signature(one).parameters)[1:]}
    assert taken == set(preprocess.OPTIONS)
    code = "from absl import flags; from experiments import preprocess; preprocess.define_flags(); print(*flags.FLAGS)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert taken <= set(ran.stdout.split()), ran.stderr


def test_flags_are_defined_for_the_program_only():
    assert "detect_resolution" not in flags.FLAGS


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--map=cany", "--image=one.png", "--out=x.png"], "map 'cany' is unknown; nearest: 'canny'"),
        (["--image=one.png", "--out=x.png"], "--map must be given"),
        (["--map=canny", "--image=one.png"], "--out must be given"),
        (["--map=canny", "--image=one.png", "--out=x.png", "--lo=3"], "Unknown command line flag 'lo'"),
        (["--map=canny", "--image=one.png", "--out=x.png", "--low=a"], "--low=a"),
        (["--map=openpose", "--keypoints=mask.png", "--out=x.png"], "mask.png cannot be read"),
    ],
)
def test_a_wrong_flag_is_one_line(folder, arguments, message):
    arguments = [one.replace("one.png", str(folder / "one.png")).replace("mask.png", str(folder / "mask.png"))
                 .replace("x.png", str(folder / "x.png")) for one in arguments]  # fmt: skip
    before, ran = files(folder), run(*arguments)
    assert ran.returncode == 2 and ran.stdout == "" and files(folder) == before
    assert ran.stderr.startswith("preprocess: ") and message in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr


@pytest.mark.parametrize(
    "given, message",
    [
        ({"map": "canny", "image": ["one.png"], "seed": 3}, "'canny' has no option 'seed'"),
        ({"map": "canny", "image": ["one.png"], "clip": False}, "'canny' has no option 'clip'"),
        ({"map": "canny"}, "--image must be given: what canny looks at"),
        ({"map": "canny", "image": ["one.png", ""]}, "--image must be given"),
        ({"map": "canny", "image": ["one.png"], "keypoints": ["pose.json"]}, "--keypoints is not for canny"),
        ({"map": "openpose", "image": ["one.png"]}, "--image is not for openpose, which looks at --keypoints"),
        ({"map": "openpose"}, "--keypoints must be given"),
        ({"map": "openpose", "keypoints": ["pose.json"], "size": ["512"]}, r"size must be \(height, width\)"),
        ({"map": "openpose", "keypoints": ["pose.json"], "size": ["512", "b"]}, "--size: 'b' is no whole number"),
        ({"map": "openpose", "keypoints": ["pose.json"], "size": ["512", "0"]}, "size's width must be"),
        ({"map": "openpose", "keypoints": ["gone.json"]}, "gone.json is missing"),
        (
            {"map": "canny", "image": ["one.png"], "estimator": "x"},
            "--estimator is for depth and normal, not for canny",
        ),
        ({"map": "inpaint", "image": ["one.png"]}, "'inpaint' needs mask="),
        ({"map": "inpaint", "image": ["one.png"], "mask": "mask.png"}, r"x.png: this map holds -1.*written as .npy"),
        ({"map": "canny", "image": ["one.png"], "out": "x.jpg"}, "x.jpg: this map would lose its lines .* as .png"),
        ({"map": "canny", "image": ["one.png", "two.png"]}, "x.png: 2 maps need a folder"),
        ({"map": "canny", "image": ["one.png", "one.png"], "out": "new"}, "several maps would be .*one.png"),
        ({"map": "canny", "image": ["one.png"], "out": "one.png"}, "would lie on the picture .*one.png"),
        ({"map": "canny", "image": ["one.png"], "out": "."}, "would lie on the picture .*one.png"),
        ({"map": "canny", "image": ["one.png", "gone.png"], "out": "new"}, "gone.png: there is no such picture"),
        ({"map": "canny", "image": ["one.png", "pose.json"], "out": "new"}, "pose.json is not recognised as a picture"),
        ({"map": "canny", "image": ["one.png"], "out": "pose.json/new"}, "cannot be written"),
    ],
)
def test_mistakes_write_nothing(folder, given, message, monkeypatch):
    """Also those of the last of several pictures."""
    monkeypatch.chdir(folder)
    before = files(folder)
    with pytest.raises((ValueError, OSError), match=message):
        preprocess.main(values(**{"out": "x.png"} | given))
    assert files(folder) == before


def test_the_page_has_every_map_and_its_commands_are_right():
    """Each map stands in the table and has a command, whose flags there are and whose options are the map's own."""
    page = (ROOT / "docs" / "maps.md").read_text("utf-8")
    commands = [line.split()[3:] for line in page.splitlines() if line.startswith("python -m experiments.preprocess")]
    asked = [dict(one.removeprefix("--").split("=") for one in command) for command in commands]
    assert {one["map"] for one in asked} == set(maps.MAPS)
    assert all(f"| `{name}` |" in page for name in maps.MAPS)
    for one in asked:
        maps.check(one["map"], one.keys() - {"map", "image", "keypoints", "out", "estimator"})
