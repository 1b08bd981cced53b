"""Checkpoints: by path, whole or not at all, what is damaged is noticed and named, what stays and what goes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.train.checkpoint import Checkpoints, Damaged, Retention, flat, opened, resumed, saved_steps
from sdjax.train.fingerprints import fingerprints
from sdjax.train.optimisers import Optimiser
from sdjax.train.state import TrainState


def tree(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "layer": {"kernel": rng.standard_normal((40, 30)).astype(np.float32), "bias": np.zeros(30, np.float32)},
        "low": {"mid.block": jnp.asarray(rng.standard_normal((2, 8)), jnp.bfloat16), "count": np.int32(seed)},
    }


def state_of(seed: int) -> dict:
    return jax.tree.map(jnp.asarray, tree(seed))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with states after 1, 2 and 3 steps; the newest two stay."""
    with opened(tmp_path) as checkpoints:
        for n in (1, 2, 3):
            checkpoints.save(n, state_of(n), {"seed": 7, "settings": {"kind": "tiny"}}, {"loss": 1.0 / n})
    return tmp_path


def read(folder: Path, step: int, like: dict | None = None) -> dict:
    with opened(folder) as checkpoints:
        return checkpoints.read(step, state_of(0) if like is None else like)


def same(ours: dict, theirs: dict) -> None:
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)


def test_a_state_comes_back_with_what_stands_beside_it(run):
    assert saved_steps(run / "checkpoints") == [2, 3]
    same(read(run, 3), state_of(3))
    with opened(run) as checkpoints:
        about = checkpoints.about(3)
    assert about["step"] == 3 and about["seed"] == 7 and about["settings"] == {"kind": "tiny"}
    assert about["versions"]["jax"] == jax.__version__ and about["metrics"] == {"loss": pytest.approx(1 / 3)}
    assert about["leaves"]["layer/kernel"]["shape"] == [40, 30]


def test_a_part_of_a_state_comes_back_alone(run):
    with opened(run) as checkpoints:
        same(checkpoints.read(3, state_of(0)["layer"], "layer/"), state_of(3)["layer"])


def test_two_optimisers_of_equal_shapes_are_not_taken_for_each_other(tmp_path):
    """Lion's one moment and Adam's first are of the same shapes, and so are Adam's second and schedule-free's."""
    params = {"layer": {"kernel": jnp.ones((3, 3))}}
    states = {kind: TrainState.create(params, Optimiser(kind)) for kind in ("adamw", "schedule_free", "prodigy")}
    for kind, state in states.items():
        with opened(tmp_path / kind) as checkpoints:
            checkpoints.save(1, state, {}, {})
        for other, wanted in states.items():
            if other != kind:
                with pytest.raises(ValueError, match="another configuration: optimiser_state/.* is no leaf here"):
                    read(tmp_path / kind, 1, wanted)
        same(read(tmp_path / kind, 1, state), state)


@pytest.mark.parametrize(
    "changed, told",
    [
        (
            {"layer": {"kernel": jnp.ones((40, 31)), "bias": jnp.ones(30)}},
            r"kernel is float32\[40, 31\] here, and float",
        ),
        ({"layer": {"kernel": jnp.ones((40, 30)), "bias": jnp.ones(30), "scale": jnp.ones(3)}}, "no such leaf"),
        ({"layer": {"kernel": jnp.ones((40, 30))}}, "layer/bias is no leaf here"),
    ],
)
def test_a_state_of_another_shape_is_refused_and_stays_where_it_is(run, changed, told):
    with opened(run) as checkpoints, pytest.raises(ValueError, match=told):
        resumed(checkpoints, state_of(0) | changed, print)
    assert saved_steps(run / "checkpoints") == [2, 3]


# ---------------------------------------------------------------------- damage


def flipped(path: Path, at: int, bit: int = 0) -> bytes:
    """Flips one bit of a file, and returns what it was."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[at] ^= 1 << bit
    path.write_bytes(changed)
    return before


def files(run: Path) -> list[Path]:
    return [path for path in sorted((run / "checkpoints" / "step_3").rglob("*")) if path.is_file()]


def test_no_flipped_bit_is_restored(run):
    """CASES.md B 03: bits in every kind of file; each is refused as damaged, or is none of the numbers'."""
    rng, refused = np.random.default_rng(0), set()
    for path in files(run):
        for _ in range(6):
            before = flipped(path, int(rng.integers(len(path.read_bytes()))), int(rng.integers(8)))
            try:
                same(read(run, 3), state_of(3))
            except Damaged as error:
                refused.add(path)
                assert "step_3" in str(error)
            path.write_bytes(before)
    kinds = {path.parent.name if path.parent.name == "d" else path.name for path in refused}
    assert {"d", "manifest.ocdbt", "metadata", "_METADATA"} <= kinds
    same(read(run, 3), state_of(3))


def test_a_damaged_leaf_is_named(run):
    """Its numbers as orbax keeps them, one changed; the file's own structure stays whole."""
    with opened(run) as checkpoints:
        told = checkpoints.about(3)
    mark = fingerprints({"layer/bias": jnp.zeros(30).at[4].set(1e-30)})["layer/bias"]
    assert told["leaves"]["layer/bias"]["fingerprint"] != mark
    _rewrite(run, lambda about: about["leaves"]["layer/bias"].update(fingerprint=mark))
    with pytest.raises(Damaged, match="layer/bias is not what was saved: its fingerprint is another"):
        read(run, 3)


def _rewrite(run: Path, change) -> None:
    """Changes what stands beside the state, with a SHA-256 that is right."""
    from sdjax.train import checkpoint

    path = run / "checkpoints" / "step_3" / "about" / "metadata"
    found = json.loads(path.read_text())
    change(found["told"])
    found["sha256"] = checkpoint._digest(found["told"])
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("kind", ["data", "manifest", "about", "gone", "empty"])
def test_what_is_damaged_is_put_aside_and_the_one_before_it_taken(run, kind):
    said, folder = [], run / "checkpoints" / "step_3"
    if kind in ("gone", "empty"):
        for path in files(run):
            path.unlink() if kind == "gone" else path.write_bytes(b"")
    else:
        names = {"data": "state/ocdbt.process_0/d/*", "manifest": "state/manifest.ocdbt", "about": "about/metadata"}
        for path in folder.glob(names[kind]):
            for at in range(0, path.stat().st_size, 16):
                flipped(path, at)
    with opened(run) as checkpoints:
        same(resumed(checkpoints, state_of(0), said.append), state_of(2))
    assert "the state after 3 steps is damaged, put aside as damaged_3" in said[0] and len(said) == 1
    assert (run / "damaged_3").is_dir() and saved_steps(run / "checkpoints") == [2]


def test_what_is_no_checkpoint_is_none(run):
    for name in ("9", "step_", "step_07", "step_x", "step_8.orbax-checkpoint-tmp", "step_²"):
        (run / "checkpoints" / name).mkdir()
    assert saved_steps(run / "checkpoints") == [2, 3]
    same(read(run, 3), state_of(3))


def test_the_same_step_may_be_damaged_twice(run):
    (run / "damaged_3").mkdir()
    with opened(run) as checkpoints:
        assert checkpoints.put_aside(3).name == "damaged_3_2"


def test_a_path_of_two_leaves_is_refused():
    with pytest.raises(ValueError, match="holds a slash"):
        flat({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


# ---------------------------------------------------------------------- fingerprints


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool", "int8"])
def test_a_fingerprint_is_of_every_bit_and_place(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 2, (5, 7)), dtype)
    (mark,) = fingerprints({"x": x}).values()
    assert len(mark) == 16 and int(mark, 16)
    others = [x.at[i, j].set((1 - x[i, j]).astype(dtype)) for i, j in np.ndindex(5, 7)]  # one number changed
    others += [x[::-1], x[:, ::-1], jnp.roll(x, 1)]  # or all at another place
    assert mark not in {fingerprints({"x": other})["x"] for other in others}


def test_a_fingerprint_is_equation_1():
    """Against the same sum in whole numbers of NumPy."""
    x = np.random.default_rng(1).standard_normal((3, 4, 5)).astype(np.float32)
    words, found = x.reshape(-1).view(np.uint32).astype(object), ""
    for salt in (0x9E3779B9, 0x85EBCA6B):
        total = 0
        for i, word in enumerate(words):
            m = (i + salt) % 2**32
            m = (m ^ m >> 16) * 0x7FEB352D % 2**32
            m = (m ^ m >> 15) * 0x846CA68B % 2**32 | 1
            total = (total + m * int(word)) % 2**32
        found += f"{total:08x}"
    assert fingerprints({"x": jnp.asarray(x)}) == {"x": found}


# ---------------------------------------------------------------------- what stays


def test_what_stays():
    saved = {n: {"validation_loss": abs(n - 4) + 0.0} for n in range(1, 10)} | {5: {}}
    assert Retention().kept(saved) == {8, 9}
    assert Retention(newest=1, every=3).kept(saved) == {3, 6, 9}
    assert Retention(newest=1, best=2).kept(saved) == {9, 4, 3}
    assert Retention(newest=3).kept({2: {}}) == {2}
    with pytest.raises(ValueError, match="at least the newest"):
        Retention(newest=0)


def test_the_best_stay_over_resumes(tmp_path):
    for part in ((1, 2, 3), (4, 5)):
        with opened(tmp_path, Retention(newest=1, best=1)) as checkpoints:
            for n in part:
                checkpoints.save(n, state_of(n), {}, {"validation_loss": abs(n - 2) + 0.5})
    assert saved_steps(tmp_path / "checkpoints") == [2, 5]
    assert isinstance(checkpoints, Checkpoints) and checkpoints.newest() == 5
