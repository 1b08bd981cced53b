"""`python -m experiments.train`: what it refuses, in one line each, before anything is learnt; and runs of it."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import sdjax
from tests.served import Server

ROOT = Path(__file__).parents[1]
SMALL = ["--batch=2", "--report_every=1", "--learning_rate=1e-3"]


@pytest.fixture(scope="module")
def train() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    with Server("experiments.train.__main__") as server:
        yield partial(server.run, "experiments.train")


def picture(number: int, size: int = 80) -> Image.Image:
    pixels = np.full((size, size, 3), 255, np.uint8)
    pixels[10 + number : 50 + number, 20:60] = (200, 40 * (number % 5), 30)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four pictures with their captions."""
    made = tmp_path / "pictures"
    made.mkdir()
    for i in range(4):
        picture(i).save(made / f"{i}.png")
        (made / f"{i}.txt").write_text("a red square")
    return made


def refused(ran: subprocess.CompletedProcess[str]) -> str:
    """The one line of a user's mistake."""
    assert ran.returncode == 2, ran.stdout + ran.stderr
    (line,) = [one for one in ran.stderr.splitlines() if one.startswith("train: ")][-1:]
    assert "Traceback" not in ran.stderr
    return line


# ---------------------------------------------------------------------- what it refuses

MISTAKES = {
    "no method": ([], "--method is missing"),
    "no data": (["--method=lora", "--out=run"], "--method=lora needs --data"),
    "unknown method": (["--method=lorra"], "lorra"),
    "no maps": (["--method=controlnet", "--out=run", "--data=x"], "--method=controlnet needs --maps"),
    "a rate below 0": (
        ["--method=lora", "--out=run", "--data=x", "--learning_rate=-1"],
        "learning rate must be above 0",
    ),
    "no such folder": (["--method=lora", "--out=run", "--data=nowhere"], "nowhere: there is nothing there"),
    "a layer that is none": (["--method=lora", "--out=run", "--data=x", "--layers=atention"], "nearest: 'attention'"),
    "a weighting of another prediction": (["--method=lora", "--out=run", "--data=x", "--weighting=p2"], "p2"),
    "a process too many": (
        ["--method=lora", "--out=run", "--data=x", "--distributed=localhost:1,2,2"],
        "of 2 processes the last is 1",
    ),
    "a batch that does not divide": (
        ["--method=lora", "--data=x", "--out=x", "--batch=3", "--accumulate=2"],
        "a batch of 3 cannot be shared by 1 devices in 2 pieces; give a multiple of 2",
    ),
    "a file in the folder's place": (["--method=lora", "--data=x", "--out=README.md"], "--out=README.md is a file"),
    "no look at all": (["--method=lora", "--data=x", "--out=x", "--validate_every=-1"], "--validate_every"),
    "an error that lcm has not": (
        ["--method=lcm", "--data=x", "--out=x", "--error=smooth_l1"],
        "--error=smooth_l1 is not of lcm",
    ),
    "a flag of another method": (
        ["--method=lcm", "--out=run", "--data=x", "--text_layers=attention"],
        "--method=lcm does not look at --text_layers; those that do: lora, dora, loha, lokr, reward",
    ),
    "a reward that is none": (["--method=reward", "--out=run", "--prompts=x", "--reward=red"], "colour:R,G,B"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(train, name, tmp_path):
    flags, told = MISTAKES[name]
    assert told in refused(train(*flags))


def test_a_config_is_read_and_never_run(train, folder, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("'''mine'''\nmethod = 'lora'\nrankk = 4\n")
    assert "there is no flag 'rankk'; nearest: 'rank'" in refused(train(f"--config={path}"))
    path.write_text("import os\n")
    assert "line 1: only lines of `name = value` are read" in refused(train(f"--config={path}"))
    path.write_text("rank = __import__('os')\n")
    assert "rank must be a plain value" in refused(train(f"--config={path}"))
    path.write_text("rank = 'four'\n")
    assert "rank = 'four'" in refused(train(f"--config={path}"))
    other = tmp_path / "mine.json"
    other.write_text("[1]")
    assert "must hold an object" in refused(train(f"--config={other}"))


def test_a_word_that_is_in_no_caption(train, folder, tmp_path):
    flags = ["--method=textual_inversion", "--word=bloop", "--word_start=red", f"--data={folder}"]
    assert "--word=bloop stands in none of the captions" in refused(train(*flags, f"--out={tmp_path / 'run'}"))


def test_a_folder_without_pictures_or_captions(train, folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    flags = ["--method=lora", f"--out={tmp_path / 'run'}"]
    assert "holds no pictures" in refused(train(*flags, f"--data={empty}"))
    (folder / "2.txt").unlink()
    assert "1 of 4 pictures have no caption" in refused(train(*flags, f"--data={folder}"))


# ---------------------------------------------------------------------- runs


@pytest.mark.ci
def test_a_run_leaves_an_adapter_and_goes_on_where_it_was(train, tiny_checkpoint, folder, tmp_path):
    """A corrupt JPEG, one of 10 pixels are listed; CMYK is read. Then other settings are refused."""
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    picture(0, 80).resize((10, 10)).save(folder / "tiny.png")
    picture(1).convert("CMYK").save(folder / "cmyk.jpg")
    for name in ("bad", "tiny", "cmyk"):
        (folder / f"{name}.txt").write_text("a red square")
    out = tmp_path / "run"
    model = f"--model={tiny_checkpoint}"
    flags = [*SMALL, model, "--method=lora", f"--data={folder}", f"--out={out}", "--rank=2"]

    ran = train(*flags, "--steps=2", "--dry_run")
    assert ran.returncode == 0, ran.stderr
    assert "5 pictures, 2 rejects" in ran.stdout and "s a step" in ran.stdout and "MB" in ran.stdout
    assert (out / "data.png").exists() and not (out / "adapter.safetensors").exists()
    rejects = (out / "data_rejects.txt").read_text()
    assert "bad.jpg" in rejects and "tiny.png" in rejects and "10 x 10 is too small" in rejects

    ran = train(*flags, "--steps=2")
    assert ran.returncode == 0, ran.stderr
    ran = train(*flags, "--steps=4")  # at a constant rate a run may be made longer
    assert ran.returncode == 0, ran.stderr
    assert "step 3/4" in ran.stdout and "step 1/4" not in ran.stdout
    assert "2 steps are done; it goes on to 4" in ran.stdout
    lines = (out / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "1", "2", "3", "4"]

    adapter = sdjax.load_adapter(out / "adapter.safetensors")
    assert adapter.metadata["ss_steps"] == "4"
    sd = sdjax.load(tiny_checkpoint)
    worn = sd.generate("a red circle", steps=2, seed=0, decode=False, adapters=[(adapter, 1.0)]).latents
    assert np.abs(worn - sd.generate("a red circle", steps=2, seed=0, decode=False).latents).max() > 1e-6
    assert "other settings (rank)" in refused(train(*flags[:-1], "--rank=3", "--steps=4"))


RUNS = {
    "full": ([], "model"),
    "text_encoder": ([], "model"),
    "dreambooth": (["--class_data={data}", "--prior=0.5"], "model"),
    "dora": (["--rank=2", "--text_layers=attention"], "adapter.safetensors"),
    "loha": (["--rank=2"], "adapter.safetensors"),
    "lokr": (["--rank=2", "--layers=transformers"], "adapter.safetensors"),
    "textual_inversion": (["--word=bloop", "--word_start=red,blue+green"], "adapter.safetensors"),
    "hypernetwork": ([], "adapter.safetensors"),
    "controlnet": (["--maps={data}", "--control_widths=4,8"], "controlnet"),
    "ip_adapter": (["--image_encoder={encoder}"], "ip_adapter.safetensors"),
    "lcm": (["--rank=2", "--solver_steps=20", "--error=huber", "--huber_c=0.001"], "adapter.safetensors"),
    "dpo": (["--rank=2", "--rejected={data}"], "adapter.safetensors"),
    "reward": (
        ["--rank=2", "--reward=colour:200,30,30", "--sampler_steps=3", "--guidance_scale=2"],
        "adapter.safetensors",
    ),
}


@pytest.mark.ci
@pytest.mark.parametrize("method", RUNS)
def test_every_method_runs_and_what_it_leaves_opens(train, method, tiny_checkpoint, folder, tmp_path):
    flags, left = RUNS[method]
    out, encoder = tmp_path / "run", ROOT / "sdjax/assets/control/image_encoder"
    for path in folder.glob("*.txt"):
        path.write_text("a bloop square" if method == "textual_inversion" else "a red square")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    data = [f"--prompts={prompts}"] if method == "reward" else [f"--data={folder}"]
    own = [flag.format(data=folder, encoder=encoder) for flag in flags]
    shown = (
        []
        if method == "reward"
        else ["--validate_every=2", "--validation_prompts=a red circle", "--validation_steps=2"]
    )
    asked = [f"--model={tiny_checkpoint}", f"--method={method}", f"--out={out}", "--steps=2", "--ema=0.5"]
    ran = train(*SMALL, *data, *own, *shown, *asked)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "written: " in ran.stdout and (out / left).exists()
    opened = {
        "model": lambda path: sdjax.load(path).generate("a red circle", steps=2, decode=False),
        "controlnet": sdjax.load_controlnet,
        "ip_adapter.safetensors": lambda path: sdjax.load_image_prompt(path, image_encoder=encoder),
    }
    assert opened.get(left, sdjax.load_adapter)(out / left)
    last = dict(zip(*[line.split(",") for line in (out / "metrics.csv").read_text().splitlines()[::2]], strict=True))
    assert np.isfinite(float(last["loss"])) and int(last["step"]) == 2
    if shown:
        assert (out / "pictures/000002.png").exists()
        assert method in ("lcm", "dpo") or float(last["validation"]) > 0


@pytest.mark.ci
def test_two_processes_make_the_run_of_one(train, tiny_checkpoint, folder, tmp_path):
    flags = [f"--model={tiny_checkpoint}", "--method=lora", "--rank=2", f"--data={folder}", f"--class_data={folder}"]
    flags += [*SMALL[1:], "--preserve", "--batch=4", "--steps=3"]
    assert train(*flags, f"--out={tmp_path / 'one'}").returncode == 0
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments.train", *flags, f"--out={tmp_path / 'two'}"]
    pair = [
        subprocess.Popen([*command, f"--distributed={address},2,{i}"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for i in (1, 0)
    ]
    second, first = (process.communicate(timeout=400)[0] for process in pair)
    assert [process.returncode for process in pair] == [0, 0]
    assert "step 3/3" in first and "written: " in first and "step" not in second
    one, two = (np.loadtxt(tmp_path / name / "metrics.csv", delimiter=",", skiprows=1) for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-5)
    one, two = (load_file(tmp_path / name / "adapter.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()


@pytest.mark.ci
def test_a_run_that_diverges_says_where(train, tiny_checkpoint, folder, tmp_path):
    flags = [
        *SMALL[:-1],
        f"--model={tiny_checkpoint}",
        "--learning_rate=1e30",
        "--clip=0",
        "--optimiser=lion",
        "--steps=6",
    ]
    ran = train(*flags, "--method=full", f"--data={folder}", f"--out={tmp_path / 'run'}")
    line = refused(ran)
    assert "at step" in line and "a rate too high" in line


def test_settings_of_a_config_are_flags(train, folder, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"method": "lora", "data": str(folder), "rank": 0}))
    assert "rank = 0" in refused(train(f"--config={path}", f"--out={tmp_path / 'run'}"))
