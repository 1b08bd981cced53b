"""The command line: what it prints, and how it treats mistakes."""

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sdjax
from experiments import _cli, generate
from sdjax import checks, picture

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.generate", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_prompt_becomes_a_picture(tiny_checkpoint, tmp_path):
    ran = run(
        f"--model={tiny_checkpoint}",
        "--prompt=a red circle",
        "--prompt=a blue square",
        "--steps=2",
        "--seed=5",
        "--sampler=ddim",
        "--eta=0.5",
        f"--out={tmp_path / 'new'}",
        f"--compilation_cache={tmp_path / 'cache'}",
        "--num_images=2",
        "--height=8",
        "--width=16",
        "--negative_prompt=green",
        "--guidance_scale=3",
        "--guidance_schedule=interval:0.2:0.8",
        "--guidance_rescale=0.5",
        "--schedule=karras",
        "--sampler_option=rho=5",
    )
    assert ran.returncode == 0, ran.stderr
    paths = [Path(line) for line in ran.stdout.splitlines()]
    assert [path.name for path in paths] == [f"0000{i}.png" for i in range(4)]
    assert list((tmp_path / "cache").iterdir())
    assert picture.read_settings(paths[3]) == {
        "prompt": "a blue square",
        "negative_prompt": "green",
        "steps": 2,
        "sampler": "ddim",
        "schedule": "karras",
        "preset": None,
        "eta": 0.5,
        "sampler_options": {"rho": 5},
        "guidance_scale": 3.0,
        "guidance_schedule": "interval:0.2:0.8",
        "guidance_rescale": 0.5,
        "seed": 5,
        "num_images": 1,
        "first_image": 3,
        "height": 8,
        "width": 16,
    }


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--prompt=a", "--step=3"], "Unknown command line flag 'step'. Did you mean: steps"),
        (["--prompt=a", "--steps=0"], "--steps=0: 0 is not a positive integer"),
        (["--prompt=a", "--dtype=int8"], "--dtype=int8: value should be one of <float32|bfloat16|float16>"),
        (["--prompt", "a", "red", "circle"], "'red' belongs to no flag; put a value with spaces in quotes"),
        ([], "--prompt must have a value"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, message):
    ran = run(*arguments)
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.startswith("generate: ") and message in ran.stderr and ran.stderr.count("\n") == 1


def test_help():
    ran = run("--helpshort")
    assert ran.returncode == 0 and ran.stderr == ""
    for words in (
        "python -m experiments.generate --prompt=",
        *(f"--{name}:" for name in ("prompt", "steps", "out")),
    ):
        assert words in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 110


# In this process, with a model that is none ------------------------------------------------------


class Stub:
    """Records what it is asked; makes one black picture, or calls `instead`."""

    def __init__(self, instead=None):
        self.instead, self.loaded, self.asked = instead, [], []

    def load(self, source, **options):
        self.loaded.append((source, options))
        return self

    def generate(self, prompt, **arguments):
        self.asked.append((prompt, arguments))
        if self.instead:
            self.instead()
        own = {"prompt": prompt[0], "guidance_scale": 1.0, "height": 8, "width": 8}
        return SimpleNamespace(images=[picture.make(np.zeros((8, 8, 3), np.uint8), arguments | own, model="stub")])


def call(monkeypatch, stub, out, **changed):
    monkeypatch.setattr(sdjax, "load", stub.load)
    values = {
        "prompt": ["a cat"],
        "negative_prompt": "",
        "model": None,
        "variant": None,
        "dtype": "float32",
        "steps": 4,
        "sampler": "euler",
        "schedule": None,
        "preset": None,
        "eta": None,
        "sampler_option": [],
        "guidance_scale": None,
        "guidance_schedule": None,
        "guidance_rescale": 0.0,
        "seed": 0,
        "num_images": 1,
        "height": None,
        "width": None,
        "out": str(out),
        "compilation_cache": "on",
        "progress": None,
        "prompt_style": "plain",
        "noise_source": "jax",
        "refiner_start": 0.8,
        **dict.fromkeys(("clip_skip", "prompt_2", "negative_prompt_2", "vae", "refiner", "prediction_type")),
        **dict.fromkeys(("aesthetic_score", "negative_aesthetic_score", *generate.SIZES)),
    }
    _cli.guarded(lambda: generate.main(SimpleNamespace(**values | changed)), "generate")


@pytest.mark.parametrize("cache,told", [("on", True), ("off", False), ("/x", "/x")])
def test_flags_go_where_they_belong(monkeypatch, tmp_path, capsys, cache, told):
    stub = Stub()
    call(
        monkeypatch,
        stub,
        tmp_path,
        model="m",
        dtype="bfloat16",
        variant="fp16",
        compilation_cache=cache,
        seed=9,
    )
    opening = {"dtype": "bfloat16", "variant": "fp16", "compilation_cache": told}
    assert stub.loaded == [("m", {**opening, "prediction_type": None, "vae": None})]
    [(prompt, arguments)] = stub.asked
    assert (
        prompt == ["a cat"]
        and {*arguments} == {*generate.ARGUMENTS, "sampler_options", "refiner"}
        and arguments["seed"] == 9
    )
    assert capsys.readouterr().out == f"{tmp_path / '00000.png'}\n"
    assert json.loads(picture.Image.open(tmp_path / "00000.png").info["sdjax"])["model"] == "stub"


def test_sampler_options_are_names_and_values():
    assert generate.sampler_options([]) is None
    given = ["s_churn=20", "solver_type=heun", "sigmas=[5.0, 1, 0]", "lower_order_final=false"]
    want = {"s_churn": 20, "solver_type": "heun", "sigmas": [5.0, 1, 0], "lower_order_final": False}
    assert generate.sampler_options(given) == want
    with pytest.raises(ValueError, match="--sampler_option=s_churn: write name=value"):
        generate.sampler_options(["s_churn"])


def failing(monkeypatch, capsys, stub, out, status) -> str:
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, stub, out)
    assert stopped.value.code == status
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("generate: ") and told.err.count("\n") == 1
    return told.err


def test_an_unwritable_folder_is_told_before_anything_is_loaded(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    stub = Stub()
    assert "cannot be written" in failing(monkeypatch, capsys, stub, tmp_path / "file" / "out", 2)
    assert not stub.loaded


def test_a_mistake_that_generate_finds_is_one_line(monkeypatch, tmp_path, capsys):
    stub = Stub(lambda: checks.check_size(9, 8, 8, "height"))
    told = failing(monkeypatch, capsys, stub, tmp_path / "out", 2)
    assert "height must be a multiple of 8, not 9" in told and not (tmp_path / "out").exists()


def test_a_missing_model_is_one_line(monkeypatch, tmp_path, capsys):
    load = sdjax.load
    stub = Stub(lambda: load("no/such/model/here"))
    assert "no/such/model/here" in failing(monkeypatch, capsys, stub, tmp_path, 2)


def test_stopping_is_one_line(monkeypatch, tmp_path, capsys):
    def stop():
        raise KeyboardInterrupt

    assert failing(monkeypatch, capsys, Stub(stop), tmp_path / "out", 130) == "generate: stopped\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", [lambda: json.loads("{"), lambda: 1 // 0, lambda: json.load(io.StringIO())])
def test_our_own_faults_keep_their_traceback(monkeypatch, tmp_path, fault):
    with pytest.raises((ValueError, ZeroDivisionError)):
        call(monkeypatch, Stub(fault), tmp_path)


def test_a_warning_is_one_line(monkeypatch, tmp_path, capsys):
    call(monkeypatch, Stub(lambda: warnings.warn("cut: 'red'", stacklevel=1)), tmp_path)
    assert capsys.readouterr().err == "generate: cut: 'red'\n"
