"""Exported programs: a new process makes the same picture without tracing, and says what it cannot use and why."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import sdjax
from sdjax.runtime.executor import Compiled
from sdjax.runtime.exported import compiled_into
from tests import control_nets
from tests.adapters import whole_lora, written
from tests.checkpoints import UNET, make_checkpoint
from tests.image_prompts import write_image_prompt

ROOT = Path(__file__).parents[1]
PROMPT = "a red circle above a blue square"
ASKED = {"progress": False, "steps": 3}

# A new process: makes pictures by exported programs, and counts how often a network is traced.
CHILD = """
import json, sys, warnings
import jax, numpy as np, sdjax
from sdjax.nn import clip, unet, vae
traced, events, (model, folder, out) = [], {}, sys.argv[1:]
for network, method in ((unet.UNet, "__call__"), (vae.Layers, "__call__"), (clip.ClipTextEncoder, "__call__")):
    def noted(self, *args, _own=getattr(network, method), **kwargs):
        traced.append(type(self).__name__)
        return _own(self, *args, **kwargs)
    setattr(network, method, noted)
jax.monitoring.register_event_listener(lambda name, **_: events.update({name: events.get(name, 0) + 1}))
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    sd = sdjax.load(model, exported=folder)
    traced.clear()  # by load, for the parameters' shapes
    for number, more in enumerate(json.loads(sys.stdin.read())):
        made = sd.generate(**more)
        np.save(f"{out}/{number}.npy", made.latents)
        np.save(f"{out}/{number}-pixels.npy", made.pixels)
said = [str(one.message) for one in warned if one.category is UserWarning]
print(json.dumps({"traced": traced, "said": said, "cache": jax.config.jax_compilation_cache_dir}))
"""

CALLS = [
    {"prompt": PROMPT, "sampler": "euler_ancestral", "steps": 3, "seed": 5, "guidance_scale": 3.0, "progress": False},
    {"prompt": "a large circle", "sampler": "heun", "steps": 9, "show_steps": True, "progress": False},
    {"prompt": PROMPT, "image": "picture.png", "strength": 0.5, "progress": False},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def sd(model):
    return sdjax.load(model, compilation_cache=False)


@pytest.fixture(scope="module")
def folder(sd, tmp_path_factory):
    """The programs of a tiny checkpoint, for one size with guidance; tests must leave them as they are."""
    return sdjax.export(sd, tmp_path_factory.mktemp("exported") / "programs", sizes=[(16, 16)])


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the programs, to damage."""
    return Path(shutil.copytree(folder, tmp_path / "programs"))


def contents(folder):
    """Every file of a folder, with what it holds."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(copied, change):
    """Lets `change` work on the manifest of a copy."""
    manifest = json.loads((copied / "manifest.json").read_text())
    change(manifest)
    (copied / "manifest.json").write_text(json.dumps(manifest))


def opened(model, folder):
    return sdjax.load(model, exported=folder, compilation_cache=False)


def test_a_new_process_makes_the_same_pictures_and_traces_nothing(model, sd, folder, tmp_path):
    calls = json.loads(json.dumps(CALLS).replace("picture.png", str(tmp_path / "picture.png")))
    sd.generate("a red circle", **ASKED).images[0].save(tmp_path / "picture.png")
    command = [sys.executable, "-c", CHILD, str(model), str(folder), str(tmp_path)]
    compiled = contents(folder)
    alone = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    alone["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    ran = subprocess.run(command, cwd=ROOT, input=json.dumps(calls), capture_output=True, text=True, env=alone)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["traced"] == [] and told["said"] == []
    assert contents(folder) == compiled  # by use nothing is written there, not even when it was
    own = Path(told["cache"])
    assert own.parent == tmp_path / "cache" / "sdjax" / "exported"
    mine = {path.name for path in own.glob("jit_call-*-cache")}
    assert mine == {path.name for path in (folder / "compiled").glob("jit_call-*-cache")} != set()  # nothing anew
    for number, call in enumerate(calls):
        mine = sd.generate(**call)
        assert np.array_equal(np.load(tmp_path / f"{number}.npy"), mine.latents), call
        assert np.array_equal(np.load(tmp_path / f"{number}-pixels.npy"), mine.pixels), call


def test_a_call_that_was_not_exported_is_compiled_and_said_once(model, sd, folder):
    other = opened(model, folder)
    with pytest.warns(
        UserWarning, match=r"no program 'run_rows' .* exported for 16 x 16 in batches of 1, guidance True"
    ) as said:
        made = other.generate(PROMPT, guidance_scale=1.0, **ASKED)
    assert {one.filename for one in said} == {__file__}
    assert np.array_equal(made.latents, sd.generate(PROMPT, guidance_scale=1.0, **ASKED).latents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.generate(PROMPT, guidance_scale=1.0, **ASKED)


def test_worn_adapters_run_by_exported_programs(model, sd, tmp_path):
    """Of the adapters that were named, and of others of as many ranks; nothing is compiled."""
    files = [written(tmp_path / f"{rank}.safetensors", whole_lora(sd.params, rank)) for rank in (4, 9)]
    folder = sdjax.export(sd, tmp_path / "programs", sizes=[(16, 16)], adapters=[(files[0], 1)])
    other = opened(model, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in files:
            made = other.generate(PROMPT, adapters=[(file, 0.7)], **ASKED)
            assert np.array_equal(made.latents, sd.generate(PROMPT, adapters=[(file, 0.7)], **ASKED).latents)
        assert np.array_equal(other.generate(PROMPT, **ASKED).latents, sd.generate(PROMPT, **ASKED).latents)


def test_what_steers_runs_by_exported_programs(model, sd, tmp_path):
    """Of the nets that were named; their maps and strengths are data."""
    config = control_nets.controlnet_config(UNET, sd.vae.factor)
    net = sdjax.load_controlnet(control_nets.write_net(tmp_path / "net", config))
    ip = sdjax.load_image_prompt(write_image_prompt(tmp_path / "ip", sd.params["unet"]))
    one, two = (np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8) for i in range(2))
    asked = {"control": [(net, one)], "image_prompt": [(ip, one)]}
    other = opened(model, sdjax.export(sd, tmp_path / "programs", sizes=[(16, 16)], **asked))
    asked = ASKED | {"control": sdjax.Control(net, two, 0.3, end=0.7), "image_prompt": [(ip, two, 0.6)]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = other.generate(PROMPT, **asked).latents
        assert np.array_equal(made, sd.generate(PROMPT, **asked).latents)
        assert np.array_equal(other.generate(PROMPT, **ASKED).latents, sd.generate(PROMPT, **ASKED).latents)


def test_an_interval_runs_by_the_same_program(model, sd, folder):
    """That which evaluates everything everywhere: what `sd` leaves out is a matter of rounding."""
    other, asked = opened(model, folder), ASKED | {"steps": 4, "guidance_schedule": "interval:0.3:0.7"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = other.generate(PROMPT, **asked).latents
    want = sd.generate(PROMPT, **asked).latents
    assert np.abs(made - want).max() <= 1e-5 * np.abs(want).max()


def test_what_no_picture_goes_through_is_the_modules_own(model, folder):
    sd = opened(model, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.predict(np.zeros((1, 8, 8, 4), np.float32), 500, sd.encode_prompt([PROMPT]))


@pytest.mark.parametrize("key", ["jaxlib", "jax", "sdjax", "device"])
def test_another_version_or_device_is_a_warning_and_compiles(model, copied, key):
    changed(copied, lambda manifest: manifest["made_by"].update({key: "another"}))
    with pytest.warns(UserWarning, match=f"is of {key} another and not .*: its programs are not used"):
        assert opened(model, copied).networks.executor == Compiled()


def test_another_model_is_refused(copied, folder, tmp_path):
    other = make_checkpoint(tmp_path / "other", unet={"norm_num_groups": 2})
    with pytest.raises(ValueError, match="exported from tiny in float32, which is another model"):
        opened(other, folder)
    with pytest.raises(ValueError, match="another model or dtype"):
        sdjax.load(other, dtype="bfloat16", exported=folder)


def first(manifest):
    return next(iter(manifest["programs"].values()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(format=3), "its format is 3, and this sdjax knows 2"),
        (lambda m: m.pop("format"), "'format' is no int"),
        (lambda m: m.update(programs=[1]), "'programs' is no dict"),
        (lambda m: m["programs"].update(more=3), "'file' is no str"),
        (lambda m: first(m).update(file="../../somewhere"), "leads out of the folder"),
        (lambda m: first(m).update(file="/etc/passwd"), "leads out of the folder"),
        (lambda m: first(m).update(file=".."), "cannot be read"),
        (lambda m: first(m).update(file="gone.bin"), "gone.bin cannot be read"),
        (lambda m: first(m).update(sha256="0" * 64), "truncated or changed"),
        (lambda m: m.pop("compiled"), "'compiled' is no dict"),
        (lambda m: m["compiled"].popitem(), "is no entry that was exported"),
        (lambda m: m["compiled"].update({"gone-cache": "0" * 64}), "gone-cache cannot be read"),
        (lambda m: m["compiled"].update({"../manifest.json": "0" * 64}), "leads out of the folder"),
        (lambda m: m["compiled"].update(dict.fromkeys(m["compiled"], 1)), "is no str"),
    ],
)
def test_a_damaged_manifest_is_said(model, copied, change, says):
    changed(copied, change)
    with pytest.raises(ValueError, match=says):
        opened(model, copied)


def test_what_is_no_model_is_told(tmp_path):
    with pytest.raises(ValueError, match="export takes a loaded model, as sdjax.load.. gives one, not 'shapes'"):
        sdjax.export("shapes", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_damaged_folder_is_said(model, copied, tmp_path):
    with pytest.raises(ValueError, match="holds no exported programs"):
        opened(model, tmp_path / "nowhere")
    file = next(copied.glob("run_rows-*.bin"))
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match="truncated or changed"):
        opened(model, copied)
    for text in ("{", "[]", "\udcff"):
        (copied / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match="is damaged"):
            opened(model, copied)


@pytest.mark.parametrize("what", ["exchanged", "damaged", "added", "a pipe"])
def test_another_compiled_entry_is_refused(model, copied, what):
    """CASES.md B 04: machine code that was not exported does not run."""
    one, other = sorted((copied / "compiled").glob("*-cache"))[:2]
    if what == "exchanged":
        one.write_bytes(other.read_bytes())
    elif what == "damaged":
        one.write_bytes(one.read_bytes()[:-1] + b"x")
    elif what == "added":
        (copied / "compiled" / "jit_other-1234-cache").write_bytes(one.read_bytes())
    else:
        one.unlink()
        os.mkfifo(one)
    with pytest.raises(ValueError, match="-cache (is not the file that was exported|is no entry|cannot be read)"):
        opened(model, copied)


def test_compiled_entries_are_copied_to_a_folder_of_their_own(model, copied, tmp_path):
    """What the user's folder holds already and was damaged is written anew; what was exchanged since is refused."""
    found = opened(model, copied).networks.executor
    (copied / "compiled" / "something-atime").write_bytes(b"1")
    own = compiled_into(found, tmp_path)
    assert own.parent == tmp_path / "exported"
    expected = {path.name: path.read_bytes() for path in (copied / "compiled").glob("*-cache")}
    assert {path.name: path.read_bytes() for path in own.iterdir()} == expected
    next(own.iterdir()).write_bytes(b"")
    assert compiled_into(found, tmp_path) == own
    assert {path.name: path.read_bytes() for path in own.iterdir()} == expected
    next((copied / "compiled").glob("*-cache")).write_bytes(b"another")
    with pytest.raises(ValueError, match="is not the file that was exported"):
        compiled_into(found, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sizes": []}, "sizes must be a list with at least one entry"),
        ({"sizes": [16]}, "sizes must be .height, width. each"),
        ({"sizes": [(16, 17)]}, "sizes: width must be a multiple of 2"),
        ({"batches": (0,)}, "batches: each must be a whole number >= 1"),
        ({"guidance": ("yes",)}, "guidance must hold True"),
        ({"guidance": True}, "guidance must be a list"),
    ],
)
def test_what_cannot_be_exported_is_said_first(sd, tmp_path, arguments, says):
    with pytest.raises(ValueError, match=says):
        sdjax.export(sd, tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_something_else_is_never_replaced(sd, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        sdjax.export(sd, tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        sdjax.export(sd, tmp_path / "mine.txt")
    (tmp_path / "manifest.json").write_text("{}")  # of another program
    with pytest.raises(ValueError, match="holds other files"):
        sdjax.export(sd, tmp_path)
