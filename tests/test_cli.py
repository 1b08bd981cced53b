"""The command line: what it prints, and how it treats mistakes."""

import gc
import io
import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags

import sdjax
from experiments import _arguments, _cli, _control, _steps, generate
from sdjax.metadata import picture
from sdjax.request import checks
from sdjax.request.arguments.arguments import DECLARED
from sdjax.request.arguments.topic import GIVEN

ROOT = Path(__file__).parents[1]
OTHERS = (
    "sampler_options",
    "refiner",
    "show_steps",
    "callback",
    "image",
    "mask",
    "depth",
    "regions",
    "adapters",
    "control",
    "image_prompt",
    "embeddings",
)


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
    assert sdjax.read_settings(paths[3]) == {
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
        (["--prompt=a", "--cfg_scale=3"], "Unknown command line flag 'cfg_scale'. Did you mean: guidance_scale"),
        (["--prompt=a", "--steps=0"], "--steps=0: 0 is not a positive integer"),
        (["--prompt=a", "--dtype=int8"], "--dtype=int8: value should be one of <float32|bfloat16|float16>"),
        (["--prompt", "a", "red", "circle"], "'red' belongs to no flag; put a value with spaces in quotes"),
        ([], "prompt is missing: shapes is told by text what to show"),
        (["--prompt=a", "--grow=right:8"], "--grow makes room around --image"),
        (["--prompt=a", "--ramp=3"], "--ramp belongs to --grow"),
        (["--prompt=a", "--image=nowhere.png"], "--image: nowhere.png: there is no such picture"),
        (["--prompt=a", "--region_prompt=b"], "they go in pairs"),
        (["--prompt=a", "--strength=0.5"], "strength= belongs to a picture"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, message):
    ran = run(*arguments)
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.startswith("generate: ") and message in ran.stderr and ran.stderr.count("\n") == 1


def test_flags_that_must_be_given_are_named():
    asked = flags.FlagValues()
    for name in ("source", "target"):
        flags.DEFINE_string(name, None, "", asked)
    flags.mark_flags_as_required(["source", "target"], asked)
    with pytest.raises(flags.IllegalFlagValueError) as told:
        asked(["convert"])
    assert _cli._told(told.value) == "--source and --target must be given"


def test_every_program_treats_its_user_alike():
    """All of them go by `_cli.run`, but for the benchmark's worker, which the benchmark starts."""
    programs = [
        path for path in (ROOT / "experiments").rglob("*.py") if '\nif __name__ == "__main__":' in path.read_text()
    ]
    assert len(programs) > 25
    assert [path.stem for path in programs if "_cli.run(" not in path.read_text()] == ["worker"]


def test_help():
    ran = run("--helpshort")
    assert ran.returncode == 0 and ran.stderr == ""
    for words in (
        "python -m experiments.generate --prompt=",
        *(
            f"--{name}:"
            for name in ("prompt", "steps", "out", "image", "mask", "grow", "strength", "show_steps", "depth")
        ),
    ):
        assert words in ran.stdout
    assert "--verbosity" not in ran.stdout and "--pdb" not in ran.stdout  # absl's own
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
        kept = {
            name: value for name, value in arguments.items() if name != "callback" and DECLARED[name].told != GIVEN
        } | own
        image = picture.make(np.zeros((8, 8, 3), np.uint8), kept, model="stub")
        return SimpleNamespace(images=[image], steps=())


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
        "adapter": [],
        "control": [],
        "image_prompt": [],
        "adapters_folder": None,
        "embedding": [],
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
        "show_steps": "none",
        "preview_decoder": "vae",
        **dict.fromkeys(("clip_skip", "prompt_2", "negative_prompt_2", "vae", "refiner", "prediction_type")),
        **dict.fromkeys(("aesthetic_score", "negative_aesthetic_score", *_arguments.PAIRS)),
        **dict.fromkeys(
            ("image", "mask", "depth", "grow", "strength", "mask_crop", "image_guidance_scale", "noise_level")
        ),
        **{"mask_blur": 0.0, "noise_level": None, "ramp": 0, "region_prompt": [], "region_mask": []},
    }
    _cli.guarded(lambda: generate.main(SimpleNamespace(**values | changed)), "generate")


def test_pictures_are_read_and_grown(monkeypatch, tmp_path):
    picture.Image.new("RGB", (16, 8), (200, 10, 10)).save(tmp_path / "in.png")
    picture.Image.new("L", (16, 8), 255).save(tmp_path / "left.png")
    stub, given = Stub(), {"image": [str(tmp_path / "in.png")], "grow": ["right:8", "top:4"], "ramp": 2}
    regions = {"region_prompt": ["a dog"], "region_mask": [str(tmp_path / "left.png")]}
    call(monkeypatch, stub, tmp_path / "out", **given, **regions)
    [(_, arguments)] = stub.asked
    [image], [mask], [(text, where)] = (arguments[name] for name in ("image", "mask", "regions"))
    assert image.size == mask.size == (24, 12) and (mask.getpixel((23, 11)), mask.getpixel((0, 11))) == (255, 0)
    assert text == "a dog" and where.size == (16, 8)


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
    assert prompt == ["a cat"] and {*arguments} == {*_arguments.PLAIN, *OTHERS} and arguments["seed"] == 9
    assert capsys.readouterr().out == f"{tmp_path / '00000.png'}\n"
    assert json.loads(picture.Image.open(tmp_path / "00000.png").info["sdjax"])["model"] == "stub"


def test_what_steers_is_two_paths_and_what_is_told_of_them():
    values = SimpleNamespace(control=["a.safetensors=b.png,scale=0.8,end=0.5", "c=d.png"], image_prompt=["e=f.png"])
    first, second = _control.arguments(values)["control"]
    assert (first.net, first.image, first.scale, first.end) == ("a.safetensors", "b.png", 0.8, 0.5)
    assert (second.net, second.image, second.scale) == ("c", "d.png", 1.0)
    (shown,) = _control.arguments(values)["image_prompt"]
    assert (shown.adapter, shown.image) == ("e", "f.png")
    assert _control.arguments(SimpleNamespace(control=[], image_prompt=[])) == {"control": None, "image_prompt": None}


@pytest.mark.parametrize(
    "given, message",
    [
        ("a.safetensors", "write two paths"),
        ("a=b.png,scale=much", "scale must be a number, not 'much'"),
        ("a=b.png,sacle=1", "'sacle=1' is none of its numbers and names; nearest: 'scale'"),
    ],
)
def test_what_steers_and_cannot_be_read(given, message):
    with pytest.raises(ValueError, match=message):
        _control.arguments(SimpleNamespace(control=[given], image_prompt=[]))


def test_adapters_are_paths_and_scales():
    assert generate.adapters([]) is None
    given = ["style.safetensors:0.8", "pose.safetensors", "hexagon:-1", r"C:\x.safetensors"]
    scales = [("style.safetensors", 0.8), ("pose.safetensors", 1.0), ("hexagon", -1.0), (r"C:\x.safetensors", 1.0)]
    assert generate.adapters(given) == scales


def test_embeddings_are_words_and_paths():
    assert generate.embeddings([]) is None
    assert generate.embeddings(["<cat>=a=b.safetensors", "dog=d"]) == {"<cat>": "a=b.safetensors", "dog": "d"}
    with pytest.raises(ValueError, match="--embedding=<cat>: write word=path"):
        generate.embeddings(["<cat>"])
    with pytest.raises(ValueError, match="the word 'a' is given twice"):
        generate.embeddings(["a=b", "a=c"])


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


# Seeing the steps, and Ctrl-C that keeps what is done ----------------------------------------------


@pytest.mark.parametrize(
    "text,value", [("none", None), ("all", True), ("5", 5), ("0,5,10", [0, 5, 10]), ("5,", [5]), ("0", 0)]
)
def test_show_steps_is_read(text, value):
    assert _steps.asked(text) == value and type(_steps.asked(text)) is type(value)


@pytest.mark.parametrize("text", ["", "some", "-1", "0,x", "1.5", "5,,"])
def test_show_steps_that_says_nothing_is_told(text):
    with pytest.raises(ValueError, match=f"--show_steps={text}: write none, all, a number of steps, or a list"):
        _steps.asked(text)


def test_a_strip_and_an_animation_lie_beside_each_picture(tiny_checkpoint, tmp_path):
    ran = run(
        f"--model={tiny_checkpoint}",
        "--prompt=a red circle",
        "--steps=4",
        "--num_images=2",
        "--height=16",
        "--width=16",
        "--show_steps=0,2,3",
        "--preview_decoder=linear",
        f"--out={tmp_path}",
    )
    assert ran.returncode == 0, ran.stderr
    names = ["00000.png", "00001.png", *(f"0000{i}_steps.{ending}" for i in (0, 1) for ending in ("png", "webp"))]
    assert [Path(line).name for line in ran.stdout.splitlines()] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for i in (0, 1):
        with picture.Image.open(tmp_path / f"0000{i}_steps.png") as image:
            assert image.width == 3 * (128 + 8) + 8
        with picture.Image.open(tmp_path / f"0000{i}_steps.webp") as image:
            assert image.n_frames == 3
    strips = [(tmp_path / f"0000{i}_steps.png").read_bytes() for i in (0, 1)]
    assert strips[0] != strips[1]


def test_a_step_that_is_none_is_one_line(tiny_checkpoint, tmp_path):
    ran = run(f"--model={tiny_checkpoint}", "--prompt=a", "--steps=2", "--show_steps=0,9", f"--out={tmp_path / 'out'}")
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "evaluations 0 to 1" in ran.stderr
    assert not (tmp_path / "out").exists()


class Interrupted(Stub):
    """A model whose run is interrupted; `evaluations` are those of which it asks its callback."""

    def __init__(self, times=1, evaluations=5):
        super().__init__()
        self.times, self.evaluations, self.done = times, evaluations, 0

    def generate(self, prompt, **arguments):
        for done in range(1, self.evaluations + 1):
            self.done = done
            if done == 2:
                for _ in range(self.times):
                    signal.raise_signal(signal.SIGINT)
            if arguments["callback"](None) is False:
                break
        return super().generate(prompt, **arguments)


def test_ctrl_c_keeps_what_is_done(monkeypatch, tmp_path, capfd):
    stub, before = Interrupted(), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, stub, tmp_path)
    told = capfd.readouterr()
    assert stopped.value.code == 130 and stub.done == 2 and signal.getsignal(signal.SIGINT) == before
    assert told.out == f"{tmp_path / '00000.png'}\n" and (tmp_path / "00000.png").exists()
    assert told.err == _steps.NOTE.decode() + "generate: stopped\n"


def test_ctrl_c_again_stops_at_once(monkeypatch, tmp_path, capfd):
    stub, before = Interrupted(times=2), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, stub, tmp_path / "out")
    assert stopped.value.code == 130 and signal.getsignal(signal.SIGINT) == before
    assert capfd.readouterr().out == "" and not (tmp_path / "out").exists()


def test_ctrl_c_in_a_real_run_saves_the_jump(tiny_checkpoint, tmp_path):
    """The process as it stands, stopped while 900 steps go on."""
    command = [sys.executable, "-m", "experiments.generate", f"--model={tiny_checkpoint}", "--prompt=a", "--steps=900"]
    options = ["--sampler=ddim", "--progress", "--show_steps=0,899", f"--out={tmp_path}", "--preview_decoder=linear"]
    with subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        seen = b""
        while b"/900" not in seen or b" 0/900" in seen[-40:]:  # the bar has moved
            seen += process.stderr.read1(4096)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.endswith(b"generate: stopped\n"), err
    names = [Path(line).name for line in out.decode().splitlines()]
    assert names == ["00000.png", "00000_steps.png", "00000_steps.webp"]
    assert 1 <= json.loads(picture.Image.open(tmp_path / names[0]).info["sdjax"])["settings"]["stop_after"] < 900
    with picture.Image.open(tmp_path / names[1]) as image:
        assert image.width == 128 + 2 * 8  # step 899 was not made


@pytest.mark.parametrize("fault", [lambda: json.loads("{"), lambda: 1 // 0, lambda: json.load(io.StringIO())])
def test_our_own_faults_keep_their_traceback(monkeypatch, tmp_path, fault):
    with pytest.raises((ValueError, ZeroDivisionError)):
        call(monkeypatch, Stub(fault), tmp_path)


def test_a_warning_is_one_line(monkeypatch, tmp_path, capsys):
    call(monkeypatch, Stub(lambda: warnings.warn("cut: 'red'", stacklevel=1)), tmp_path)
    assert capsys.readouterr().err == "generate: cut: 'red'\n"


def test_a_ctrl_c_within_the_garbage_collector_is_not_lost(capfd):
    """JAX's callback runs there, and Python drops what is raised in it."""
    struck = []

    def strike(phase: str, info: dict) -> None:
        if len(struck) < 3:  # twice more, as who presses it again
            struck.append(phase)
            signal.raise_signal(signal.SIGINT)

    def main() -> None:
        gc.callbacks.append(strike)
        try:
            gc.collect()
            time.sleep(10)
        finally:
            gc.callbacks.remove(strike)

    with pytest.raises(SystemExit) as ended:
        _cli.guarded(main, "generate")
    assert ended.value.code == 130 and struck and capfd.readouterr().err == "generate: stopped\n"


def test_a_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with pytest.raises(SystemExit) as ended:
        _cli.guarded(lambda: None, "generate")
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err == "generate: the folder that this was started in is gone; cd into one that is there\n"
    )
