"""`experiments.train_vae`, `train_clip` and `evaluate`: a user's mistakes in a line each, and a run of all three."""

import subprocess
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

import sdjax
from experiments.shapes import world
from sdjax.train.evaluation.statistics import Statistics
from tests.served import Server


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    with Server("experiments.train_vae", "experiments.train_clip", "experiments.evaluate") as server:
        yield lambda program, *flags: server.run(f"experiments.{program}", *flags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 pictures of the shapes world at 64 x 64, with captions."""
    made = tmp_path_factory.mktemp("pictures")
    for i, (picture, caption) in enumerate(zip(*world.dataset(3, 0, 24), strict=True)):
        Image.fromarray(picture).resize((64, 64)).save(made / f"{i:02}.png")
        (made / f"{i:02}.txt").write_text(caption)
    return made


MISTAKES = {
    "nothing to begin with": ("train_vae", ["--data={}", "--out={}/run"], "--start or --config must be given"),
    "a decoder of nothing": (
        "train_vae",
        ["--data={}", "--out={}/run", "--part=decoder", "--config=sdjax/assets/shapes/vae/config.json"],
        "--part=decoder needs --start",
    ),
    "a crop that does not fit": (
        "train_vae", ["--data={}", "--out={}/run", "--start=shapes", "--size=60"], "--size=60 is no multiple of 8",
    ),
    "too few pictures": (
        "train_clip", ["--data={}", "--out={}/run", "--size=32"], "--held_out=16 of 24 pictures leaves too few",
    ),
    "no network": ("evaluate", ["--pictures={}", "--real={}"], "give --clip or --inception, one of them"),
    "statistics that are none": (
        "evaluate", ["--pictures={}", "--real={}/00.npz", "--clip=nowhere"], "00.npz: there is no such file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes(run, folder, name):
    program, flags, said = MISTAKES[name]
    done = run(program, *(flag.replace("{}", str(folder)) for flag in flags))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "run").exists()


@pytest.mark.ci
def test_all_three(run, folder, tmp_path):
    """A CLIP, the features of which judge pictures, and are a VAE's perceptual term; a run resumed is the same run."""
    small = ["--size=32", "--width=32", "--layers=1", "--embedding=8", "--batch=4", "--held_out=4"]
    trained = run("train_clip", f"--data={folder}", f"--out={tmp_path}/clip", "--steps=3", *small)
    assert trained.returncode == 0 and "nearest to their own caption" in trained.stdout, trained.stderr
    clip = f"--clip={tmp_path}/clip/clip"
    flags = [f"--data={folder}", clip, "--start=shapes", "--size=32", "--batch=4", "--held_out=4", "--steps=3"]
    published = ["--loss=published", "--adversarial_from=1", "--discriminator_width=8"]
    for out in ("vae", "vae", "other"):  # the second time nothing is left to do
        done = run("train_vae", f"--out={tmp_path}/{out}", *flags, *published)
        assert done.returncode == 0 and "after: PSNR" in done.stdout, done.stderr
    first, second = (sdjax.load(vae=tmp_path / out) for out in ("vae", "other"))
    assert first.vae.scaling_factor == second.vae.scaling_factor != sdjax.load().vae.scaling_factor
    pixels = np.zeros((1, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(first.encode(pixels), second.encode(pixels))
    refused = run("train_vae", f"--out={tmp_path}/vae", *flags, "--part=decoder")
    assert refused.returncode == 2 and "other settings" in refused.stderr

    kept = run("evaluate", f"--real={folder}", clip, f"--save_statistics={tmp_path}/real.npz")
    assert kept.returncode == 0 and Statistics.read(tmp_path / "real.npz").count == 24, kept.stderr
    judged = run("evaluate", f"--pictures={folder}", f"--real={tmp_path}/real.npz", clip)
    assert "Frechet distance      0.0000  (24 and 24 pictures)" in judged.stdout, judged.stderr
    tokenizer = "--tokenizer=sdjax/assets/shapes/tokenizer"
    both = run("evaluate", f"--pictures={folder}", f"--real={folder}", clip, "--subsets=2", tokenizer)
    assert "precision, recall     1.0000, 1.0000" in both.stdout and "CLIP score" in both.stdout, both.stderr
