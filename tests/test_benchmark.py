"""The benchmark without torch: our side of each row, the processes that take turns, the tables, the user's mistakes."""

import json
from types import SimpleNamespace

import pytest

from experiments import gpu_flags
from experiments.benchmark import __main__ as program
from experiments.benchmark import floor, memory, ours, report, table, turns
from experiments.benchmark.subject import Job, native_size
from experiments.benchmark.worker import Failed, Worker

FLAGS = {"suite": None, "family": "shapes", "size": 32, "batch": 1, "steps": 1, "rows": ["unet_step"]}
FLAGS |= {"repeats": 1, "limit": 100, "out": None, "table": None}


def side(median: float, peak: float, **more) -> dict:
    return {"median": median, "times": [median], "cold": 2 * median, "warm": None, "peak": peak, "share": 0.5, **more}


def entry(sides: dict) -> dict:
    asked = {"row": "picture", "family": "sd15", "size": 512, "batch": 1, "steps": 20, "in_turns": True}
    return {**asked, "sides": sides, **turns.ratios(sides)}


SIDES = {
    "sdjax": side(3.0, 4.0, warm=3.5),
    "eager": side(5.0, 2.0),
    "channels_last": side(4.0, 5.0),
    "openvino": side(2.0, 1.0),
    "compiled": {"failed": "a worker stopped | with status 1"},
}


def test_a_job_survives_the_way_to_another_process():
    job = Job("picture", "sdxl", 1024, batch=8, steps=30, dtype="bfloat16")
    assert Job.read(job.dump()) == job
    assert (native_size("sd21"), native_size("sdxl"), native_size("shapes")) == (768, 1024, 128)


def test_a_picture_of_ours():
    job = Job("picture", "shapes", 32, batch=2, steps=1)
    made = ours.call(job)()
    assert [one.size for one in made] == [(32, 32)] * 2


def test_steps_of_ours_run_again_and_again():
    call = ours.steps(Job("unet_step", "shapes", 32, batch=2), 2)
    first = call()
    assert first.shape == (2, 4, 4, 4) and (call() == first).all()


@pytest.mark.parametrize("family", ["sd15", "vega"])
def test_sdxl_alone_is_told_sizes(family):
    from experiments.benchmark.subject import pooled_and_ids

    told = pooled_and_ids(Job("unet_step", family, 512, batch=3))
    assert (told is None) == (family == "sd15")
    assert told is None or [one.shape for one in told] == [(6, 1280), (6, 6)]


def test_a_worker_answers_and_ends(tmp_path):
    job = Job("matmul", "none", 64)
    with turns.workers(job, ["sdjax"], tmp_path, 100) as started:
        worker = started["sdjax"]
        assert worker.ready() > 0 and worker.time() > 0 and worker.time() > 0
        assert 2**20 < worker.peak() < 2**34
    assert worker.process.returncode is not None


def test_a_worker_that_fails_says_why(tmp_path):
    command = ["experiments.benchmark.worker", "sdjax", '{"row": "unet_step", "nonsense": 1}']
    with Worker(command, tmp_path / "errors", {}) as worker, pytest.raises(Failed, match="nonsense"):
        worker.ready()


def test_a_worker_that_takes_too_long_is_ended(tmp_path):
    command = ["experiments.benchmark.worker", "sdjax", Job("matmul", "none", 64).dump()]
    with Worker(command, tmp_path / "errors", {}, 0.01) as worker, pytest.raises(Failed, match="status -9"):
        worker.ready()


def test_ratios_are_to_the_fastest_of_diffusers():
    found = turns.ratios(SIDES)
    assert found["best"] == "channels_last" and found["ratio"] == 0.75 and found["memory_ratio"] == 0.8
    assert found["ratios"]["openvino"] == 1.5 and "compiled" not in found["ratios"]
    assert turns.ratios({"sdjax": {"failed": ""}, "eager": side(1.0, 1.0)}) == {"ratios": {}}
    assert "best" not in turns.ratios({"sdjax": side(1.0, 1.0), "eager": {"failed": ""}})


def test_the_table(tmp_path):
    found = {"device": "2 CPU cores", "versions": "jax 1", "ceilings": {"sdjax": 4e11}, "rows": [entry(SIDES)]}
    report.write(str(tmp_path / "it.json"), found)
    text = table.markdown(report.read(str(tmp_path / "it.json")))
    assert "sdjax 0.4" in text
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert lines[0] == "| sd15 512², batch 1: picture, 20 steps | sdjax | 3 |  | 6 | 3.5 | 4.00 | 50% |"
    assert "**0.75**, memory 0.80" in lines[2] and "a worker stopped   with status 1" in lines[4]
    assert {line.count("|") for line in lines} == {9}


def test_who_takes_part():
    step, whole = Job("unet_step", "sd15", 512), Job("picture", "sd15", 512)
    assert program.sides(step, True, []) == ["sdjax", "channels_last", "compiled"]
    assert program.sides(step, False, [])[:3] == ["sdjax", "eager", "channels_last"]
    assert program.sides(whole, False, []) == ["sdjax", "eager", "channels_last"]
    earlier = [{"row": "unet_step", "family": "sd15", "best": "eager"}]
    assert program.sides(whole, False, earlier) == ["sdjax", "eager"]


def test_one_side_after_the_other_where_memory_is_short(monkeypatch):
    job = Job("unet_step", "sdxl", 1024)
    monkeypatch.setattr(memory, "free", lambda: 24 * 2**30)
    assert turns.fits(job, 1) and not turns.fits(job, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 33}, "--size must be a multiple of 8"),
        ({"rows": ["picture", "sketch"]}, "--rows: sketch is unknown"),
        ({"rows": []}, "--rows: nothing"),
        ({"out": "/nowhere/at/all.json"}, "--out=/nowhere/at/all.json: there is no folder /nowhere/at"),
        ({"table": "/nowhere.json"}, "--table=/nowhere.json is no file"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(ValueError, match=message):
        program.main(SimpleNamespace(**FLAGS | given))


def test_useful_operations_of_a_product():
    assert floor.useful(Job("matmul", "none", 100)) == 2e6


def test_a_setting_counts_where_it_exceeds_the_noise():
    assert gpu_flags.verdict(0.9, 0.05) == "keep"
    assert gpu_flags.verdict(0.96, 0.05) == "drop: no difference"
    assert gpu_flags.verdict(1.2, 0.0) == "drop: slower"
    assert gpu_flags.verdict(1.2, None) == "not judged: one baseline"


def test_the_table_of_settings():
    def row(name: str, **more) -> dict:
        return {"name": name, "flags": "" if "baseline" in name else "--a", "predicted": "less", **more}

    rows = [
        row("baseline", step=0.010, first=9.0),
        row("fast", step=0.008, first=9.0),
        row("broken", failed="no such flag"),
    ]
    found = {
        "device": "a GPU",
        "versions": "jax 1",
        "job": "it",
        "settings": [*rows, row("baseline again", step=0.0101, first=1.0)],
    }
    lines = gpu_flags.markdown(found).splitlines()
    assert "noise 1.0%" in lines[0]
    assert "0.800" in lines[5] and "keep" in lines[5] and "no such flag" in lines[6]


def test_each_setting_changes_one_thing():
    baselines = [one for one in gpu_flags.SETTINGS if one.name.startswith("baseline")]
    others = [one for one in gpu_flags.SETTINGS if one not in baselines]
    assert gpu_flags.SETTINGS[0] in baselines and len(baselines) == 2
    for one in others:
        assert sum([one.flags != "", one.attention != "own", one.dtype != ""]) == 1 and one.predicted
    json.dumps([one.__dict__ for one in others])
