"""generate_many: killed and gone on with, by two processes, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdjax
from experiments import generate_many
from experiments._record import Record
from tests.checkpoints import make_checkpoint
from tests.test_hosts import free_port
from tests.test_parallel import QUICKLY, SMALL

ROOT = Path(__file__).parents[1]
PROMPTS = ["a red circle", "a blue square", "an above", "a large green circle", "a small red square", "a", "below"]
STEPS = 3


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", unet=SMALL)


@pytest.fixture(scope="module")
def expected(tiny):
    """The pictures, made in one go."""
    made = sdjax.load(tiny, compilation_cache=False).generate(PROMPTS, steps=STEPS, seed=3, progress=False)
    return [np.asarray(image) for image in made.images]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(tiny, tmp_path, prompts, cache):
    """Starts a run, of two pictures at once."""

    def begin(*more: str, **environment: str) -> subprocess.Popen[str]:
        given = [f"--prompts_file={prompts}", f"--out={tmp_path / 'out'}", f"--model={tiny}"]
        given += [f"--compilation_cache={cache}", f"--steps={STEPS}", "--seed=3", "--batch=2", *more]
        command = [sys.executable, "-m", "experiments.generate_many", *given]
        own = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICKLY} | environment
        return subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


def kill_after(run: subprocess.Popen[str], path: Path) -> None:
    """SIGKILL as soon as there is a file."""
    until = time.monotonic() + 600
    while not path.exists() and time.monotonic() < until and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.communicate()


def there(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.png")}


def check_folder(folder: Path, expected: list[np.ndarray]) -> None:
    manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [(one["index"], one["prompt"], one["file"]) for one in manifest] == [
        (i, prompt, f"{i:05d}.png") for i, prompt in enumerate(PROMPTS)
    ]
    assert all(one["settings"]["first_image"] == i and one["settings"]["seed"] == 3 for i, one in enumerate(manifest))
    for i, pixels in enumerate(expected):
        made = np.asarray(Image.open(folder / f"{i:05d}.png"))
        assert np.abs(made.astype(int) - pixels).max() <= 1
    assert {path.name for path in folder.iterdir()} == {"begun.json", "manifest.jsonl", *there(folder)}


def test_killed_and_gone_on_with(start, tmp_path, expected):
    out, before = tmp_path / "out", {}
    for last in ("00001.png", "00004.png"):
        kill_after(start(), out / last)
        now = there(out)
        assert before.items() <= now.items() and last in now and len(now) < len(PROMPTS)
        before = now
    (out / ".0123.partial").write_bytes(b"half")  # as a kill in the middle of a write leaves it
    run = start("--devices=2", XLA_FLAGS=f"{QUICKLY} --xla_force_host_platform_device_count=2")
    printed, said = run.communicate()
    assert run.returncode == 0, said
    assert before.items() <= there(out).items()
    assert f"{len(PROMPTS) - len(before)} pictures made in" in printed and "7 of 7 are in" in printed
    check_folder(out, expected)


def test_two_processes_one_of_them_killed(start, tmp_path, expected):
    out = tmp_path / "out"
    met = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"]
    runs = [start(*met, f"--process_index={i}") for i in range(2)]
    kill_after(runs[1], out / "00004.png")  # the second's share is 3 to 6
    printed, said = runs[0].communicate(timeout=600)
    assert runs[0].returncode == 2 and "3 pictures made in" in printed
    assert (
        said.strip().splitlines()[-1].startswith("generate_many: process 1 ended before its pictures were made; give")
    )
    before = there(out)
    assert {"00000.png", "00001.png", "00002.png"} <= before.keys() and len(before) < len(PROMPTS)
    runs = [start(*met, f"--process_index={i}") for i in range(2)]
    ended = [run.communicate(timeout=600) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], ended
    assert "0 pictures made in" in ended[0][0] and f"{7 - len(before)} pictures made in" in ended[1][0]
    assert before.items() <= there(out).items()
    check_folder(out, expected)


def test_who_never_comes(start):
    port = free_port()
    run = start(f"--coordinator=127.0.0.1:{port}", "--processes=2", "--process_index=1", "--join_timeout=1")
    _, said = run.communicate(timeout=600)
    assert run.returncode == 2 and said.startswith(f"generate_many: 127.0.0.1:{port}: not joined within 1 s")
    assert len(said.splitlines()) == 1


# ---------------------------------------------------------------------- in this process


def test_batches_are_neighbours():
    missing = [0, 1, 2, 5, 6, 9]
    assert [list(batch) for batch in generate_many.batches(missing, 2)] == [[0, 1], [2], [5, 6], [9]]
    assert list(generate_many.batches([], 2)) == []


def test_lines_with_arguments_of_their_own(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a red circle", "steps": 5}\n\n{"prompt": "a"}\n')
    lines = generate_many.read_lines(str(path))
    settings = dict.fromkeys(generate_many.SETTINGS) | {"steps": 20, "sampler": "euler"}
    given = generate_many.arguments(Record(tmp_path, settings, lines), [0, 1, 1])
    assert given["prompt"] == ["a red circle", "a", "a"] and given["steps"] == [5, 20, 20]
    assert given["sampler"] == ["euler"] * 3 and "model" not in given


@pytest.mark.parametrize(
    "name,text,message",
    [
        ("none.txt", None, "none.txt cannot be read"),
        ("empty.txt", b"\n  \n", "empty.txt holds no prompt"),
        ("latin.txt", b"\xe9t\xe9", "latin.txt is no UTF-8 text"),
        ("a.jsonl", b'{"prompt": "a"}\nred', "a.jsonl, line 2: write an object with a prompt"),
        ("b.jsonl", b'{"prompt": "a", "seed": 1}', "b.jsonl, line 1: 'seed' is no argument of its own"),
    ],
)
def test_bad_prompts(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_bytes(text)
    with pytest.raises((ValueError, OSError), match=message):
        generate_many.read_lines(str(tmp_path / name))


@pytest.mark.parametrize(
    "settings,lines,message",
    [
        ({"steps": 4}, ["a", "b"], "--steps was 3 and is 4"),
        ({"steps": 3}, ["a", "c"], "picture 1 was .*b.* and is .*c"),
        ({"steps": 3}, ["a"], "had 2 prompts and has 1"),
    ],
)
def test_a_folder_of_other_settings(tmp_path, settings, lines, message):
    begun = Record(tmp_path, {"steps": 3}, [{"prompt": "a"}, {"prompt": "b"}])
    other = Record(tmp_path, settings, [{"prompt": line} for line in lines])
    other.begin()
    begun.begin()  # no picture was made yet
    begun.path(0).write_bytes(b"")
    begun.begin()
    with pytest.raises(ValueError, match=message):
        other.begin()


def test_folders_that_are_not_ours(tmp_path):
    record = Record(tmp_path, {"steps": 3}, [{"prompt": "a"}])
    record.path(0).write_bytes(b"")
    with pytest.raises(ValueError, match="holds pictures that this program did not make"):
        record.begin()
    (tmp_path / "begun.json").write_text("[]")
    with pytest.raises(ValueError, match="begun.json is not what this program writes"):
        record.begin()
    with pytest.raises(OSError, match="cannot be written"):
        Record(record.path(0) / "in", {}, []).begin()


@pytest.mark.parametrize(
    "flag,message",
    [("--batch=0", "batch"), ("--devices=0", "devices"), ("--processes=0", "processes"), ("--steps=x", "steps")],
)
def test_bad_flags(start, flag, message):
    run = start(flag)
    said = run.communicate(timeout=600)[1]
    assert run.returncode == 2 and message in said and len(said.splitlines()) == 1
