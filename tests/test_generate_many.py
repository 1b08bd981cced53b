"""generate_many: killed and gone on with, by several processes, two runs at once, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import sdjax
from experiments import _prompts, generate_many
from experiments._claims import Claims
from experiments._record import Record
from sdjax.metadata import picture
from tests.checkpoints import make_checkpoint
from tests.test_claims import full
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
def sd(tiny):
    return sdjax.load(tiny, compilation_cache=False)


@pytest.fixture(scope="module")
def expected(sd):
    """The pictures, made in one go."""
    made = sd.generate(PROMPTS, steps=STEPS, seed=3, progress=False)
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


@pytest.mark.ci
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


@pytest.mark.ci
def test_two_processes_one_of_them_killed_and_a_stranger(start, tmp_path, expected):
    """The same command twice is one run, whose rest the second makes; another run has no business there."""
    out = tmp_path / "out"
    first = start(SLURM_PROCID="0")
    while not (out / "begun.json").exists() and first.poll() is None:
        time.sleep(0.005)
    runs = [start(SLURM_PROCID="1"), start("--guidance_scale=2")]
    kill_after(first, out / "00001.png")
    (printed, said), (_, refused) = (run.communicate(timeout=600) for run in runs)
    assert runs[0].returncode == 0 and "Slurm task 1, process " in printed and "7 of 7 are in" in printed, said
    assert runs[1].returncode == 2 and "--guidance_scale was None and is 2.0; choose another --out" in refused
    assert len(refused.splitlines()) == 1
    check_folder(out, expected)


@pytest.mark.ci
def test_ctrl_c_gives_its_claims_back(start, tmp_path):
    run = start()
    while not (tmp_path / "out/00001.png").exists() and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=600)[1]
    assert run.returncode == 130 and said == "generate_many: stopped\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"begun.json", *there(tmp_path / "out")}


# ---------------------------------------------------------------------- in this process


def run(sd: sdjax.pipeline.StableDiffusion, monkeypatch, prompts: Path, out: Path, **changed: object) -> None:
    """`main` with a model that is loaded already."""
    usual = dict.fromkeys(generate_many.SETTINGS) | {"steps": STEPS, "sampler": "dpmpp_2m", "seed": 3}
    monkeypatch.setattr(generate_many, "opened", lambda values: (sd, 1))
    given = usual | {"prompts_file": str(prompts), "out": str(out), "batch": 2} | changed
    generate_many.main(SimpleNamespace(**given))


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def entries(out: Path) -> list[dict]:
    return [json.loads(line)["settings"] for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_lines_with_arguments_of_their_own(sd, monkeypatch, tmp_path):
    """The docstring's own example, with no guidance scale but the model's own, and a file that is mended."""
    lines = [{"prompt": "a red circle", "steps": 2}, {"prompt": "a", "guidance_scale": 2}, {"prompt": "below"}]
    out = tmp_path / "out"
    wrong = [*lines[:2], {"prompt": "below", "sampler": "oiler"}, {"prompt": "a", "schedule": "carras"}]
    with pytest.raises(
        ValueError, match=r"line 3: sampler 'oiler' is unknown; nearest: euler.*line 4: schedule .*karras"
    ):
        run(sd, monkeypatch, write(tmp_path / "p.jsonl", *wrong), out)
    assert {path.name for path in out.iterdir()} == {"begun.json"}  # before the first picture
    run(sd, monkeypatch, write(tmp_path / "p.jsonl", *lines), out)
    first = there(out)
    run(sd, monkeypatch, write(tmp_path / "p.jsonl", *lines, {"prompt": "above"}), out)
    assert len(there(out)) == 4 and first.items() <= there(out).items()
    made = entries(out)
    assert [one["steps"] for one in made] == [2, 3, 3, 3]
    assert [one["guidance_scale"] for one in made] == [sd.guidance_scale, 2.0, sd.guidance_scale, sd.guidance_scale]
    with pytest.raises(ValueError, match="picture 1 was .*guidance_scale.* and is .*; choose another --out"):
        run(sd, monkeypatch, write(tmp_path / "p.jsonl", lines[0], {"prompt": "a"}, lines[2]), out)
    with pytest.raises(ValueError, match="picture 3 was .*above.* and is no longer asked for"):
        run(sd, monkeypatch, write(tmp_path / "p.jsonl", *lines), out)


def test_wrong_flags_are_no_lines_fault(sd, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="^sampler 'oiler' is unknown"):
        run(sd, monkeypatch, write(tmp_path / "p.txt", "a"), tmp_path / "out", sampler="oiler")


def record(folder: Path, *prompts: str, **settings: object) -> Record:
    return Record(folder, {"seed": 3, "steps": STEPS} | settings, [{"prompt": prompt} for prompt in prompts])


def draw(record: Record, number: int, **settings: object) -> Image.Image:
    told = {"prompt": record.lines[number]["prompt"], "first_image": number, "seed": 3, "steps": STEPS}
    told |= {"sampler": "ddim", "schedule": None, "guidance_scale": 7.1, "height": 8, "width": 8, "negative_prompt": ""}
    return picture.make(np.zeros((8, 8, 3), np.uint8), told | settings, model="tiny")


def begin(record: Record) -> None:
    with Claims(record.folder, "test") as claims:
        record.begin(claims)


def test_pictures_are_never_written_over(tmp_path):
    mine = record(tmp_path, "a", "b")
    begin(mine)
    assert mine.keep([0, 1], [draw(mine, 0), draw(mine, 1)]) == 2
    before = there(tmp_path)
    assert mine.keep([0, 1], [draw(mine, 0), draw(mine, 1)]) == 0 and there(tmp_path) == before
    assert mine.missing() == [] and mine.missing([1, 2]) == [2]


def test_a_file_that_others_tidied_away_is_written_again(tmp_path, monkeypatch):
    """Of a process that stood still between writing a picture and giving it its name, and was thought dead."""
    mine, link = record(tmp_path, "a", "b"), os.link
    begin(mine)

    def tidied(unfinished: Path, path: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        with Claims(tmp_path, "another") as other, other.lock():
            other.tidy()
        link(unfinished, path)

    monkeypatch.setattr(os, "link", tidied)
    assert mine.keep([0, 1], [draw(mine, 0), draw(mine, 1)]) == 2
    assert len(there(tmp_path)) == 2 and not list(tmp_path.glob(".*"))


def test_without_links(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_pictures_are_never_written_over(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk(tmp_path):
    mine = record(tmp_path, "a", "b")
    begin(mine)
    mine.keep([0], [draw(mine, 0)])
    before = there(tmp_path)
    with full(), pytest.raises(OSError, match=f"{tmp_path} cannot be written .*; make room and give the same command"):
        mine.keep([0, 1], [draw(mine, 0), draw(mine, 1)])
    with full(), pytest.raises(OSError, match=f"{tmp_path} cannot be written"):
        mine.write_manifest()
    assert there(tmp_path) == before and {path.name for path in tmp_path.iterdir()} == {"begun.json", "00000.png"}
    assert mine.keep([0, 1], [draw(mine, 0), draw(mine, 1)]) == 1


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"prompt": "b"}, "its prompt is .b. where .a. is asked for"),
        ({"first_image": 1}, "its first_image is 1 where 0 is asked for"),
        ({"seed": 4}, "its seed is 4 where 3"),
        ({"steps": 4}, "its steps is 4 where 3"),
        ({"guidance_scale": 2.0}, "its guidance_scale is 2.0 where 7.1"),
        (None, "cannot be read as a picture"),
        ("cut", "is cut off"),
    ],
)
def test_pictures_that_are_not_what_was_asked_for(tmp_path, changed, message):
    """Exchanged for another of ours, cut off, or no picture at all: named with the remedy, before others are made."""
    mine = record(tmp_path, "a", guidance_scale=7.1)
    begin(mine)
    if changed is None:
        mine.path(0).write_bytes(b"garbage")
    else:
        mine.keep([0], [draw(mine, 0, **({} if changed == "cut" else changed))])
    if changed == "cut":
        mine.path(0).write_bytes(mine.path(0).read_bytes()[:-20])
    for refused in (lambda: begin(mine), mine.write_manifest):
        with pytest.raises(ValueError, match=f"00000.png.*{message}.*; delete it, and the same command makes it anew"):
            refused()
    mine.path(0).unlink()
    begin(mine)
    mine.keep([0], [draw(mine, 0, guidance_scale=float(np.float32(7.1)))])
    begin(mine)


def test_a_process_that_stood_still_while_the_folder_was_begun_anew(tmp_path):
    mine = record(tmp_path, "a")
    begin(mine)
    begin(record(tmp_path, "b"))  # no picture was made, and nobody is at work
    with pytest.raises(ValueError, match="begun anew with other settings while this process stood still"):
        mine.keep([0], [draw(mine, 0)])
    assert not there(tmp_path)


def test_a_folder_that_is_emptied_while_pictures_are_made(tmp_path):
    mine = record(tmp_path, "a")
    begin(mine)
    (tmp_path / "begun.json").unlink()
    with pytest.raises(ValueError, match="begun.json is gone: the folder was removed, renamed or emptied"):
        mine.keep([0], [draw(mine, 0)])
    assert not there(tmp_path)


def test_two_runs_in_one_new_folder(tmp_path):
    mine, other = record(tmp_path, "a", "b"), record(tmp_path, "a", "c")
    with Claims(tmp_path, "the first") as first:
        mine.begin(first)
        begin(mine)  # the same run may be joined
        message = "is being filled by the first, .*: picture 1 was .*b.* and is .*c.*; choose another --out"
        with pytest.raises(ValueError, match=message):
            begin(other)
    begin(other)


# ---------------------------------------------------------------------- the file of prompts


@pytest.mark.parametrize(
    "name,data,asked",
    [
        ("a.txt", b"\xef\xbb\xbfa red circle\r\n\r\n \t\na\r\n", {1: "a red circle", 4: "a"}),
        ("b.txt", "a\u2028b\nc\x85d\x0be\x1cf".encode(), {1: "a\u2028b", 2: "c\x85d\x0be\x1cf"}),
        ("c.txt", "a\n\ufeffb".encode(), {1: "a", 2: "b"}),  # two files that were joined
        ("d.jsonl", b'\xef\xbb\xbf{"prompt": "a"}\r\n\n{"prompt": "b\xe2\x80\xa8c"}', {1: "a", 3: "b\u2028c"}),
        ("E.JSONL", b'{"prompt": ""}', {1: ""}),
    ],
)
def test_lines(tmp_path, name, data, asked):
    (tmp_path / name).write_bytes(data)
    assert _prompts.read(str(tmp_path / name)) == {number: {"prompt": prompt} for number, prompt in asked.items()}


@pytest.mark.parametrize(
    "name,data,message",
    [
        ("none.txt", None, "none.txt cannot be read"),
        ("empty.txt", b"\n  \n", "empty.txt holds no prompt"),
        ("bom.txt", b"\xef\xbb\xbf", "bom.txt holds no prompt"),
        ("latin.txt", b"a\n\xe9t\xe9", r"latin.txt is no UTF-8 text \(line 2\); save it as UTF-8"),
        ("wide.txt", "a red circle".encode("utf-16"), "wide.txt is UTF-16 text; save it as UTF-8"),
        ("wide.jsonl", '{"prompt": "a"}'.encode("utf-16-le"), "wide.jsonl is UTF-16 text; save it as UTF-8"),
        ("null.txt", b"a\nb\x00c", "null.txt, line 2: prompt holds a null character"),
        ("mac.txt", b"a\rb\r", "mac.txt, line 1: a carriage return within it"),
        ("object.txt", b'{"prompt": "a"}', r"object.txt, line 1: an object, as in files named \*.jsonl"),
        ("a.jsonl", b'{"prompt": "a"}\nred', "a.jsonl, line 2: write an object with a prompt"),
        ("b.jsonl", b'{"prompt": "a", "seed": 1}', "b.jsonl, line 1: 'seed' is no argument of its own"),
        ("c.jsonl", b'{"prompt": "a", "step": 1}', "c.jsonl, line 1: 'step' is no .*; nearest: 'steps'"),
        ("d.jsonl", b'{"prompt": "a", "prompt": "b"}', "d.jsonl, line 1: 'prompt' stands twice"),
        ("e.jsonl", b'{"prompt": "a\\ud800"}', "e.jsonl, line 1: prompt holds .* half of one"),
        ("f.jsonl", b"[" * 100_000, "f.jsonl, line 1: write an object"),
        ("wider.txt", "a".encode("utf-32"), "wider.txt is UTF-32 text"),
        (
            "long.txt",
            b"a\n" + b"a " * 25_000,
            r"long.txt, line 2: 50,0\d\d characters \(as JSON\) are more than the 50,000",
        ),
        (
            "long.jsonl",
            ('{"prompt": "a", "negative_prompt": "%s"}' % ("猫" * 10_000)).encode(),
            "long.jsonl, line 1: 60,0",
        ),
    ],
)
def test_bad_prompts(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises((ValueError, OSError), match=message):
        _prompts.read(str(tmp_path / name))


@pytest.mark.parametrize(
    "name,values",
    [
        ("prompt", [None, 5, ["a"]]),
        ("negative_prompt", [5, ["a"]]),
        ("steps", ["3", 3.0, True, None, 0, [3]]),
        ("sampler", [5, None, ["euler"], {}]),
        ("schedule", [5, {}]),
        ("guidance_scale", ["7", True, [7], float("nan"), float("inf"), 10**400]),
    ],
)
def test_wrong_values_are_all_named(tmp_path, name, values):
    lines = [{"prompt": "a"}] + [{"prompt": "a"} | {name: value} for value in values]
    path = write(tmp_path / "p.jsonl", *lines)
    with pytest.raises(ValueError) as found:
        _prompts.read(str(path))
    told = str(found.value).split("; ")
    assert all(one.startswith(f"--prompts_file={path}, line {i}: {name} must be ") for i, one in enumerate(told[:5], 2))
    assert told[5:] == (["and 1 lines more"] if len(values) == 6 else [])


def test_what_is_no_file_of_prompts(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match=f"--prompts_file={path} is no file but a pipe, a socket or a device"):
            _prompts.read(str(path))
    with pytest.raises(ValueError, match=f"--prompts_file={tmp_path} is a folder"):
        _prompts.read(str(tmp_path))
    with open(tmp_path / "large.txt", "wb") as file:
        file.truncate(_prompts.LARGEST + 1)  # which takes no room on the disk
    with pytest.raises(ValueError, match="has more than the 67,108,864 bytes that are read"):
        _prompts.read(str(tmp_path / "large.txt"))
    (tmp_path / "long.txt").write_bytes(b"\n" * (_prompts.MOST + 1))
    with pytest.raises(ValueError, match="has more than 1,000,000 lines; make several files"):
        _prompts.read(str(tmp_path / "long.txt"))


def test_folders_that_are_not_ours(tmp_path):
    mine = record(tmp_path, "a")
    mine.path(0).write_bytes(b"")
    with pytest.raises(ValueError, match="holds pictures that this program did not make"):
        begin(mine)
    for text in ("[]", "{", '{"settings": {}, "lines": [1]}'):
        (tmp_path / "begun.json").write_text(text)
        with pytest.raises(ValueError, match="begun.json is not what this program writes"):
            begin(mine)
    with pytest.raises(OSError, match="cannot be written"):
        begin(record(mine.path(0) / "in", "a"))


def test_an_empty_name_is_not_the_folder_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--out is empty; name a folder"):
        generate_many.main(SimpleNamespace(out="", prompts_file="p.txt"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flag,message",
    [("--batch=0", "batch"), ("--devices=0", "devices"), ("--steps=x", "steps"), ("--processes=2", "processes")],
)
def test_bad_flags(start, flag, message):
    run = start(flag)
    said = run.communicate(timeout=600)[1]
    assert run.returncode == 2 and message in said and len(said.splitlines()) == 1
