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
import optax
import pytest
from optax import contrib

from sdjax.train import loop
from sdjax.train.loop import Diverged, fit, newest_step, restore, settings_of
from sdjax.train.state import TrainState, WarmupStableDecay, make_optimiser, make_step

ROOT = Path(__file__).parent.parent


def loss(params, batch, key):
    noise = 0.01 * jax.random.normal(key, batch.shape)
    return jnp.mean(jnp.square(batch @ params["layer"]["kernel"] + params["layer"]["bias"] - 2 * batch - 1 + noise))


def batch(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((16, 3)).astype(np.float32)


def run(folder, steps: int, *, kind: str = "muon", batches=batch, total: int = 40, **given) -> TrainState:
    params = {"layer": {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}}
    optimiser = make_optimiser(kind)
    state = TrainState.create(params, optimiser)
    step = make_step(loss, optimiser, ema_decay=0.9)
    return fit(
        folder, state, step, batches,
        WarmupStableDecay(0.05, total, 2 * total // 5, warmup=5),
        steps=steps, seed=0, settings={"kind": kind},
        **{"every": 10, "save_seconds": 0, "report": lambda line: None} | given,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_it_learns(tmp_path, kind):
    state = run(tmp_path, 200, kind=kind, total=200)
    assert float(loss(state.average, batch(10**6), jax.random.key(1))) < 0.2
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
    np.testing.assert_array_equal(restore(tmp_path, blank).average["layer"]["kernel"], state.average["layer"]["kernel"])
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


def test_a_state_of_another_configuration_is_refused(tmp_path):
    run(tmp_path, 10)
    other = TrainState.create({"layer": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}, make_optimiser("muon"))
    with pytest.raises(ValueError, match="the state after 10 steps is damaged, or of another configuration"):
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
    for path in (tmp_path / "run" / "checkpoints" / "20").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-10])
    (tmp_path / "run" / "checkpoints" / "30.orbax-checkpoint-tmp").mkdir()  # and one half-written
    resumed = run(tmp_path / "run", 40, report=said.append)
    assert "the state after 20 steps is damaged, put aside as damaged_20" in said[0]
    assert (tmp_path / "run" / "damaged_20").is_dir() and newest_step(tmp_path / "run") == 40
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_orbax_notes_beside_a_state_may_be_damaged(tmp_path):
    """A flipped bit in a key: orbax reads these of all states before any, and would open none of them."""
    whole, said = run(tmp_path / "whole", 5, save_seconds=0), []
    run(tmp_path / "run", 4, save_seconds=0)
    for step in ("3", "4"):
        path = tmp_path / "run" / "checkpoints" / step / "_CHECKPOINT_METADATA"
        path.write_bytes(path.read_bytes().replace(b"init_timestamp", b"init_timestam`"))
    with pytest.raises(ValueError, match="the state after 4 steps is damaged"):
        restore(tmp_path / "run", whole)
    resumed = run(tmp_path / "run", 5, save_seconds=0, report=said.append)
    assert [line.partition(" is damaged")[0][-7:] for line in said[:2]] == ["4 steps", "3 steps"]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["4", "5"]
    for mine, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def flipped(path: Path, at: int, bit: int) -> bytes:
    """Flips one bit of a file, and returns what it was."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[at] ^= 1 << bit
    path.write_bytes(changed)
    return before


def test_no_flipped_bit_is_restored(tmp_path):
    """CASES.md B 03: bits all over a state's files; each is refused, or is none of the numbers'."""
    state = run(tmp_path, 20)
    saved = jax.tree.leaves(state)
    blank = jax.tree.map(jnp.zeros_like, state)
    rng, refused = np.random.default_rng(0), 0
    files = [path for path in sorted((tmp_path / "checkpoints" / "20").rglob("*")) if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    for path in [*files, *[largest] * 12]:
        before = flipped(path, int(rng.integers(path.stat().st_size)), int(rng.integers(8)))
        try:
            for ours, theirs in zip(jax.tree.leaves(restore(tmp_path, blank)), saved, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        except ValueError as error:
            assert "the state after 20 steps is damaged" in str(error)
            refused += 1
        path.write_bytes(before)
    assert refused >= 12


def test_a_state_of_other_numbers_is_put_aside(tmp_path, monkeypatch):
    """What orbax reads without complaint, and what is no longer what was saved."""
    whole, said, digest = run(tmp_path / "whole", 5), [], loop._digest
    (tmp_path / "run" / "damaged_4").mkdir(parents=True)  # of an earlier time
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_digest", lambda state: digest(state) if int(state.step) != 4 else "another")
        run(tmp_path / "run", 4)
    resumed = run(tmp_path / "run", 5, report=said.append)
    assert "the state after 4 steps is damaged, put aside as damaged_4_2 (its numbers are not those" in said[0]
    assert len(said) == 1 + 1  # and the line of the last step
    for mine, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    """What orbax raises on a real one: a ValueError of tensorstore's."""
    run(tmp_path, 10)

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']")

    with monkeypatch.context() as patched:
        patched.setattr("orbax.checkpoint.CheckpointManager.save", full)
        with pytest.raises(OSError, match=f"{tmp_path}: the disk is full; what has been saved stays"):
            run(tmp_path, 20)
        patched.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
        with pytest.raises(OSError, match=f"{tmp_path}: a checkpoint takes 0.0 MB, and 0.0 MB are free"):
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


def test_the_rate_rises_stays_and_falls():
    assert [WarmupStableDecay(0.5, 40, 10, warmup=5)(n) for n in (0, 1, 5, 30, 35, 39)] == [
        0,
        0.1,
        0.5,
        0.5,
        0.25,
        0.05,
    ]
    assert WarmupStableDecay(0.5, 40, 0, warmup=5)(10**6) == 0.5


def test_muon_on_stacks_equals_muon_on_each_kernel():
    """Two kernels of one size, one of another, and what is no kernel."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 4, 8), "b": (36, 8), "c": (8, 36)}
    gradient = {
        name: {"kernel": jnp.asarray(rng.standard_normal(shape), jnp.float32)} for name, shape in shapes.items()
    }
    gradient["a"]["bias"] = jnp.ones(8)
    stacked = make_optimiser("muon")
    got, _ = stacked.update(gradient, stacked.init(gradient), gradient)
    norm = optax.tree.norm(gradient)
    for name, shape in shapes.items():
        matrix = (gradient[name]["kernel"] / norm).reshape(-1, shape[-1])
        alone = contrib.muon(1.0)
        want, _ = alone.update(matrix, alone.init(matrix), matrix)
        np.testing.assert_allclose(got[name]["kernel"].reshape(matrix.shape), want, atol=1e-5)
    np.testing.assert_allclose(got["a"]["bias"], -0.1, rtol=1e-3)  # Adam's first update is the sign


def test_unknown_optimiser():
    with pytest.raises(ValueError, match="known: adamw, muon"):
        make_optimiser("sgd")


if __name__ == "__main__":
    _, FOLDER, STEPS, SECONDS = sys.argv

    def slowly(n: int) -> np.ndarray:
        time.sleep(float(SECONDS))
        return batch(n)

    print(json.dumps(run(FOLDER, int(STEPS), batches=slowly, total=60).average["layer"]["kernel"].tolist()))
