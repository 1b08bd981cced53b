"""The training loop: it learns, it resumes exactly, it stops at a NaN, it refuses another run's folder.

    python -m tests.test_train FOLDER STEPS SECONDS

is a run of its own, for the tests that kill one or need several devices: STEPS steps of at least SECONDS each, then
prints the averaged kernel.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.train.averages import Decay, PowerFunction, reconstruct
from sdjax.train.checkpoint import Retention
from sdjax.train.interrupt import Interrupted
from sdjax.train.loop import Diverged, averaged, fit, newest_step, restore, settings_of
from sdjax.train.optimisers import Optimiser
from sdjax.train.rates import Constant, WarmupStableDecay
from sdjax.train.state import TrainState
from sdjax.train.step import make_plain_step
from sdjax.train.watches import Every, Snapshots, all_of

ROOT = Path(__file__).parent.parent


def loss(params, batch, key):
    noise = 0.01 * jax.random.normal(key, batch.shape)
    return jnp.mean(jnp.square(batch @ params["layer"]["kernel"] + params["layer"]["bias"] - 2 * batch - 1 + noise))


PARAMS = {"layer": {"kernel": np.zeros((3, 3), np.float32), "bias": np.zeros(3, np.float32)}}


def average(state: TrainState) -> dict:
    return state.averages["decay_0.9"]


def batch(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((16, 3)).astype(np.float32)


def run(folder, steps: int, *, kind: str = "muon", batches=batch, total: int = 40, **given) -> TrainState:
    step = make_plain_step(loss, Optimiser(kind), [Decay(0.9)])
    return fit(
        folder, step.begin(PARAMS), step, batches,
        WarmupStableDecay(0.05, total, 2 * total // 5, warmup=5),
        steps=steps, seed=0, settings={"kind": kind},
        **{"every": 10, "save_seconds": 0, "report": lambda line: None} | given,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_it_learns(tmp_path, kind):
    state = run(tmp_path, 200, kind=kind, total=200, save_seconds=100)
    assert float(loss(average(state), batch(10**6), jax.random.key(1))) < 0.2
    assert int(state.step) == 200


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    whole = run(tmp_path / "whole", 40)
    run(tmp_path / "broken", 20)
    resumed = run(tmp_path / "broken", 40)
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_restore_gives_the_saved_state(tmp_path):
    state = run(tmp_path, 20)
    blank = jax.tree.map(jnp.zeros_like, state)
    for ours, theirs in zip(jax.tree.leaves(restore(tmp_path, blank)), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, averaged(tmp_path, PARAMS), jax.device_get(average(state)))
    with pytest.raises(FileNotFoundError, match="no checkpoint there"):
        restore(tmp_path / "empty", blank)


def test_a_nan_stops_and_keeps_the_last_good_state(tmp_path):
    def poisoned(n: int) -> np.ndarray:
        return batch(n) * (np.nan if n >= 25 else 1)

    with pytest.raises(Diverged, match="at step 26; last good state: step 25"):
        run(tmp_path, 40, batches=poisoned)
    with pytest.raises(Diverged, match="at step 26; last good state: step 25"):  # though read after 30 alone
        run(tmp_path, 40, batches=poisoned, save_seconds=100)
    assert int(run(tmp_path, 30).step) == 30


def test_a_nan_before_anything_was_saved(tmp_path):
    with pytest.raises(Diverged, match="at step 1; nothing saved yet"):
        run(tmp_path, 40, batches=lambda n: batch(n) * np.nan, save_seconds=100)


def test_another_runs_folder_is_refused(tmp_path):
    run(tmp_path, 10)
    with pytest.raises(ValueError, match="other settings \\(kind\\)"):
        run(tmp_path, 20, kind="adamw")


def test_a_run_that_made_no_step_may_be_asked_for_otherwise(tmp_path):
    with pytest.raises(Diverged):
        run(tmp_path, 10, batches=lambda n: batch(n) * np.nan, save_seconds=100)
    assert int(run(tmp_path, 2, kind="adamw").step) == 2
    assert settings_of(tmp_path)["kind"] == "adamw"


def test_a_state_of_another_configuration_is_refused(tmp_path):
    run(tmp_path, 10)
    step = make_plain_step(loss, Optimiser("muon"), [Decay(0.9)])
    other = step.begin({"layer": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}})
    what = r"another configuration: averages/decay_0.9/layer/kernel is float32\[4, 3\] here, and float32\[3, 3\] there"
    with pytest.raises(ValueError, match=what):
        restore(tmp_path, other)


def test_damaged_settings_are_named(tmp_path):
    run(tmp_path, 10)
    assert settings_of(tmp_path) == {"kind": "muon"}
    for text in ('{"kind": "mu', "[]", "null", "[" * 100_000):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(ValueError, match="settings.json is damaged"):
            run(tmp_path, 20)
    with pytest.raises(FileNotFoundError, match="no run there"):
        settings_of(tmp_path / "empty")


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_taken(tmp_path):
    whole, said = run(tmp_path / "whole", 40), []
    run(tmp_path / "run", 20)
    for path in (tmp_path / "run" / "checkpoints" / "step_20").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-10])
    (tmp_path / "run" / "checkpoints" / "step_30.orbax-checkpoint-tmp").mkdir()  # and one half-written
    (tmp_path / "run" / "checkpoints" / "99").mkdir()  # and what is none
    resumed = run(tmp_path / "run", 40, report=said.append)
    assert "the state after 20 steps is damaged, put aside as damaged_20" in said[0]
    assert (tmp_path / "run" / "damaged_20").is_dir() and newest_step(tmp_path / "run") == 40
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    """What orbax raises on a real one: a ValueError of tensorstore's."""
    run(tmp_path, 10)

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']")

    with monkeypatch.context() as patched:
        patched.setattr("orbax.checkpoint.AsyncCheckpointer.save", full)
        with pytest.raises(OSError, match=f"{tmp_path}: the disk is full; what has been saved stays"):
            run(tmp_path, 20)
        patched.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
        with pytest.raises(OSError, match=f"{tmp_path}: a checkpoint takes 1.1 MB, and 0.0 MB are free"):
            run(tmp_path, 20)
    assert int(run(tmp_path, 20).step) == 20


def test_a_time_limit_saves_and_stops(tmp_path):
    assert int(run(tmp_path, 40, limit_seconds=0, save_seconds=100).step) == 1
    assert newest_step(tmp_path) == 1


def test_every_step_is_watched(tmp_path):
    seen = []
    run(tmp_path, 5, watch=lambda done, state: seen.append((done, int(state.step))))
    assert seen == [(n, n) for n in range(1, 6)]


def start(folder, steps: int, seconds: float, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.test_train", str(folder), str(steps), str(seconds)]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kernel(process: subprocess.Popen) -> np.ndarray:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return np.array(json.loads(out.splitlines()[-1]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_steps_end_and_ends_with_a_status_of_its_own(tmp_path, number):
    """And the signals' handlers are those from before; the run, started again, ends as one that was left alone."""
    whole, handler = run(tmp_path / "whole", 9), signal.getsignal(number)

    def batches(n: int) -> np.ndarray:
        if n == 4:
            signal.raise_signal(number)
        return batch(n)

    with pytest.raises(Interrupted, match=f"stopped by {number.name}, with its state saved") as caught:
        run(tmp_path / "run", 9, batches=batches, save_seconds=1000)
    assert caught.value.status == 75 and newest_step(tmp_path / "run") == 5
    assert signal.getsignal(number) is handler
    for ours, theirs in zip(jax.tree.leaves(run(tmp_path / "run", 9)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def batches(n: int) -> np.ndarray:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return batch(n)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 9, batches=batches)


def test_checkpoints_stay_by_their_step_and_their_metric(tmp_path):
    """`Every` gives the metric; steps that are multiples of `every` are saved whatever the clock says."""
    seen = []

    def validated(done: int, params: dict) -> dict:
        seen.append((done, float(params["layer"]["bias"][0])))
        return {"validation_loss": abs(done - 6)}

    watch = Every(3, Optimiser("adamw"), validated)
    retention = Retention(newest=1, every=6, best=1)
    state = run(tmp_path, 16, kind="adamw", watch=watch, retention=retention, save_seconds=1000)
    steps = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [6, 12, 16]
    assert [done for done, _ in seen] == [3, 6, 9, 12, 15] and int(state.step) == 16
    restored = restore(tmp_path, state)
    assert float(restored.averages["decay_0.9"]["layer"]["bias"][0]) != seen[-1][1] != 0


def test_snapshots_make_averages_of_other_widths(tmp_path):
    """Several watches at once; the snapshot of the last step is the state's average."""
    widths, seen = (PowerFunction(0.05), PowerFunction(0.1)), []
    step = make_plain_step(loss, Optimiser(), widths)
    watch = all_of(Snapshots(4, tmp_path, widths), Every(4, step.optimiser, lambda done, params: seen.append(done)))
    state = fit(
        tmp_path, step.begin(PARAMS), step, batch, Constant(0.05), steps=12, seed=0, settings={}, watch=watch,
        report=lambda line: None,
    )  # fmt: skip
    made = reconstruct(tmp_path, 0.05)["layer"]["kernel"]
    np.testing.assert_allclose(made, state.averages["width_0.05"]["layer"]["kernel"], rtol=1e-5, atol=1e-6)
    between = reconstruct(tmp_path, 0.08)["layer"]["kernel"]
    assert np.abs(between - made).max() > 1e-3 and seen == [4, 8, 12]


@pytest.mark.ci
def test_a_run_killed_again_and_again_equals_an_unbroken_one(tmp_path):
    whole = kernel(start(tmp_path / "whole", 60, 0))
    for wait in (0.0, 0.07, 0.4):
        process, before = start(tmp_path / "killed", 60, 0.02), _saved(tmp_path / "killed")
        while _saved(tmp_path / "killed") <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
    np.testing.assert_array_equal(kernel(start(tmp_path / "killed", 60, 0)), whole)


def _saved(folder: Path) -> int:
    try:
        return newest_step(folder)
    except FileNotFoundError:
        return 0


def test_several_devices_share_every_batch(tmp_path):
    one = kernel(start(tmp_path / "one", 20, 0))
    four = kernel(start(tmp_path / "four", 20, 0, XLA_FLAGS="--xla_force_host_platform_device_count=4"))
    np.testing.assert_allclose(four, one, rtol=1e-4, atol=1e-5)
    process = start(tmp_path / "three", 20, 0, XLA_FLAGS="--xla_force_host_platform_device_count=3")
    assert "a batch of 16 cannot be shared by 3 devices; give a multiple of 3" in process.communicate()[1]


if __name__ == "__main__":
    _, FOLDER, STEPS, SECONDS = sys.argv

    def slowly(n: int) -> np.ndarray:
        time.sleep(float(SECONDS))
        return batch(n)

    print(
        json.dumps(run(FOLDER, int(STEPS), batches=slowly, total=60).averages["decay_0.9"]["layer"]["kernel"].tolist())
    )
