"""`python -m experiments.convert`: from one layout into the other and back, and what it says to a wrong flag."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from experiments import convert
from sdjax.adapters.save import CHOICES
from sdjax.weights import CheckpointError, open_single_file, save_folder, save_single_file, single_file
from tests.adapters import SMALL as SMALL_LORA
from tests.adapters import kohya, written
from tests.checkpoints import make_checkpoint
from tests.single_files import SMALL, components
from tests.test_single_file import tensors_of
from tests.test_weights import same_folder

ROOT = Path(__file__).parents[1]
FLAGS = {
    "layout": None,
    "dtype": None,
    "variant": None,
    "vae": None,
    "prediction_type": None,
    "dialect": None,
    "model": None,
}


@pytest.fixture
def small(monkeypatch):
    """The program's own door, for the small families."""
    monkeypatch.setattr(single_file.open_single_file, "__kwdefaults__", {"presets": SMALL})
    monkeypatch.setattr("sdjax.config.presets.PRESETS", SMALL)


def run(source, target, **options) -> None:
    convert.main(SimpleNamespace(source=str(source), target=str(target), **(FLAGS | options)))


def test_a_folder_a_file_and_a_folder_again(small, tmp_path, capsys):
    preset = SMALL["sd15"]
    parts = components(preset, np.float16)
    save_single_file(tmp_path / "a.safetensors", preset.configs, parts, preset.scheduler)
    save_folder(tmp_path / "a", parts, open_single_file(tmp_path / "a.safetensors").files)
    run(tmp_path / "a", tmp_path / "b.safetensors")
    run(tmp_path / "b.safetensors", tmp_path / "b")
    assert tensors_of(tmp_path / "b.safetensors") == tensors_of(tmp_path / "a.safetensors")
    assert same_folder(tmp_path / "a", tmp_path / "b")
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "b")


def test_a_cast_and_another_vae(tmp_path):
    make_checkpoint(tmp_path / "a", dtype=np.float32)
    make_checkpoint(tmp_path / "b", dtype=np.float32, seed=1)
    run(tmp_path / "a", tmp_path / "out", dtype="float16", vae=str(tmp_path / "b"))
    name = "vae/diffusion_pytorch_model.safetensors"
    source, found = (safetensors.numpy.load_file(tmp_path / folder / name) for folder in ("b", "out"))
    for key, tensor in source.items():
        np.testing.assert_array_equal(found[key], tensor.astype(np.float16), strict=True)


@pytest.mark.parametrize(
    "changes,differs",
    [
        ({}, "unet.block_out_channels"),
        ({"vae": {"scaling_factor": 0.5}}, r"vae.scaling_factor 0.5 \(there 0.18215\)"),
        ({"unet": {"attention_head_dim": 4}}, r"unet.heads \(4, 4, 4, 4\)"),
    ],
)
def test_a_model_of_no_known_family_stays_a_folder(small, tmp_path, monkeypatch, changes, differs):
    """Nothing could open the file: it has no configs, and those of a family would be taken, of other pictures."""
    preset = SMALL["sd15"]
    if changes:
        parts = components(preset, np.float16)
        save_single_file(tmp_path / "a.safetensors", preset.configs, parts, preset.scheduler)
        run(tmp_path / "a.safetensors", tmp_path / "a")
    else:
        make_checkpoint(tmp_path / "a")
    for name, values in changes.items():
        path = tmp_path / "a" / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ValueError, match=rf"(?s)cannot be a single file.*{differs}.*Keep it as a folder"):
        run(tmp_path / "a", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_file_in_another_dtype_says_what_it_predicts(small, tmp_path):
    preset = SMALL["sd15"]
    parts = components(preset)
    save_single_file(tmp_path / "a.safetensors", preset.configs, parts, preset.scheduler)
    run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="bfloat16", prediction_type="v_prediction")
    assert {dtype for dtype, *_ in tensors_of(tmp_path / "b.safetensors").values()} == {"BF16"}
    with safe_open(tmp_path / "b.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt", "modelspec.prediction_type": "v"}


def test_numbers_too_large_for_the_dtype(tmp_path):
    make_checkpoint(tmp_path / "a", dtype=np.float32)
    path = tmp_path / "a" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["conv_in.bias"] += 1e6
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match="unet.conv_in.bias holds numbers that are too large for float16; bfloat16"):
        run(tmp_path / "a", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "target,layout,match",
    [
        ("out", "single_file", "a single file's name ends with .safetensors"),
        ("out.safetensors", "diffusers", "the diffusers layout is a folder"),
        ("there", "diffusers", "is a folder; for a file say --layout"),
    ],
)
def test_targets_that_do_not_fit_the_layout(tmp_path, target, layout, match):
    (tmp_path / "there").write_text("mine")
    with pytest.raises(ValueError, match=match):
        run(tmp_path, tmp_path / target, layout=layout)


def test_an_empty_target_is_not_the_folder_one_is_in():
    with pytest.raises(ValueError, match="--target is empty; name a new folder"):
        convert.check_target(Path(), "diffusers")


def test_what_is_there_stays_where_the_source_is_wrong(tmp_path):
    (tmp_path / "out.safetensors").write_bytes(b"mine")
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match="is a pickle"):
        run(tmp_path / "x.safetensors", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == b"mine"


def test_the_program_exits_2_with_one_line(tmp_path):
    lora = {"lora_unet_x.lora_up.weight": np.ones((2, 2), np.float32)}
    safetensors.numpy.save_file(lora, tmp_path / "lora.safetensors")
    flags = [f"--source={tmp_path / 'lora.safetensors'}", f"--target={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "experiments.convert"]
    done = subprocess.run([*command, *flags], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("convert: ") and "is a LoRA" in done.stderr
    assert not (tmp_path / "out").exists()


# Adapters -----------------------------------------------------------------


def test_an_adapter_from_one_dialect_to_another(tmp_path, capsys):
    source = written(tmp_path / "a.safetensors", kohya(SMALL_LORA))
    run(source, tmp_path / "b.safetensors", dialect="own")
    assert (tmp_path / "b.safetensors").read_bytes() == source.read_bytes()
    run(source, tmp_path / "c.safetensors", dialect="kohya-diffusers")
    assert tensors_of(tmp_path / "c.safetensors").keys() == tensors_of(source).keys()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "c.safetensors")


def test_an_adapter_for_a_custom_model(tmp_path):
    model = make_checkpoint(tmp_path / "model")
    source = written(tmp_path / "a.safetensors", kohya({next(iter(SMALL_LORA)): (8, 16)}))
    with pytest.raises(CheckpointError, match="give model="):
        run(source, tmp_path / "b.safetensors", dialect="peft")
    run(source, tmp_path / "b.safetensors", dialect="peft", model=str(model))
    assert any(name.endswith("attn2.to_k.lora_A.weight") for name in tensors_of(tmp_path / "b.safetensors"))


def test_flags_of_the_one_for_the_other(tmp_path):
    with pytest.raises(ValueError, match="--dtype is for checkpoints, and --dialect for adapters"):
        run(tmp_path, tmp_path, dialect="peft", dtype="float16")
    words = written(tmp_path / "a.safetensors", {"emb_params": np.ones((1, 768), np.float32)})
    with pytest.raises(ValueError, match="holds no LoRA or its like, but TextualInversion"):
        run(words, tmp_path / "b.safetensors", dialect="peft")


def test_the_dialects_are_those_of_the_package():
    assert set(convert.DIALECTS) == {"own", *CHOICES}
