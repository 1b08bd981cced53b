"""Distances of sets of pictures against known values, files of statistics, resizing, paired tests."""

import io
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from sdjax.config import ClipVisionConfig
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.train.evaluation.features import ClipFeatures
from sdjax.train.evaluation.frechet import frechet_distance
from sdjax.train.evaluation.kernel import kernel_distance, mmd
from sdjax.train.evaluation.neighbours import precision_recall
from sdjax.train.evaluation.paired import bootstrap, mcnemar
from sdjax.train.evaluation.resizing import RESIZERS, resized
from sdjax.train.evaluation.scores import choices, clip_scores
from sdjax.train.evaluation.statistics import Statistics


def normal(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize("n, wanted", [(200, 11.2), (1000, 2.14), (5000, 0.44)])
def test_two_samples_of_one_gaussian(n, wanted):
    """TRAINING.md, section 11: the distance's bias, which falls as 1/n."""
    found = [frechet_distance(Statistics.of(normal(n, 64, i)), Statistics.of(normal(n, 64, i + 100))) for i in range(3)]
    assert abs(np.mean(found) / wanted - 1) < 0.06


def test_gaussians_whose_distance_is_known():
    """Diagonal covariances: |mu|^2 + sum (s_1 - s_2)^2; and the same turned, where nothing is diagonal."""
    rng = np.random.default_rng(0)
    mean, first, second = rng.standard_normal(8), rng.uniform(0, 2, 8), rng.uniform(0, 2, 8)
    wanted = mean @ mean + ((first - second) ** 2).sum()
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    for q in (np.eye(8), turn):
        one, other = (Statistics(m, q @ np.diag(s**2) @ q.T) for m, s in ((q @ mean, first), (np.zeros(8), second)))
        assert abs(frechet_distance(one, other) - wanted) < 1e-9
        assert frechet_distance(one, one) < 1e-9


def test_fewer_pictures_than_features_are_no_trouble():
    one, other = Statistics.of(normal(10, 64)), Statistics.of(normal(10, 64, 1) + 1)
    assert np.isfinite(frechet_distance(one, other)) and frechet_distance(one, one) < 1e-6
    with pytest.raises(ValueError, match="of 64 and of 32 numbers: they are of two different networks"):
        frechet_distance(one, Statistics.of(normal(10, 32)))


def test_statistics_files(tmp_path):
    made = Statistics.of(normal(50, 6).astype(np.float32))
    again = Statistics.read(made.save(tmp_path / "a" / "real.npz"))
    np.testing.assert_array_equal(again.covariance, made.covariance)
    assert again.count == 50 and frechet_distance(again, made) < 1e-12
    np.savez(tmp_path / "theirs.npz", mu=made.mean, sigma=made.covariance)  # as pytorch-fid writes it
    assert Statistics.read(tmp_path / "theirs.npz").count is None


class Evil:
    def __reduce__(self):
        return print, ("opened",)


WRONG = {
    "a pickle": lambda: {"mu": np.array([Evil()], object), "sigma": np.eye(1)},
    "no sigma": lambda: {"mu": np.zeros(3)},
    "not square": lambda: {"mu": np.zeros(3), "sigma": np.zeros((3, 2))},
    "another width": lambda: {"mu": np.zeros(3), "sigma": np.eye(4)},
    "whole numbers": lambda: {"mu": np.zeros(3, int), "sigma": np.eye(3)},
    "NaN": lambda: {"mu": np.full(3, np.nan), "sigma": np.eye(3)},
}


@pytest.mark.parametrize("name", list(WRONG))
def test_files_that_are_no_statistics(tmp_path, name, capsys):
    path = tmp_path / "wrong.npz"
    np.savez(path, **WRONG[name]())
    with pytest.raises(ValueError, match="wrong.npz"):
        Statistics.read(path)
    assert "opened" not in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"\x80\x04K\x01."])
def test_files_that_are_no_archives(tmp_path, data):
    (tmp_path / "wrong.npz").write_bytes(data)
    with pytest.raises(ValueError, match="wrong.npz is no file of statistics"):
        Statistics.read(tmp_path / "wrong.npz")
    with pytest.raises(FileNotFoundError, match="no such file of statistics"):
        Statistics.read(tmp_path / "missing.npz")


def test_a_cut_archive(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.zeros(3), sigma=np.eye(3))
    (tmp_path / "cut.npz").write_bytes(buffer.getvalue()[:-40])
    assert not zipfile.is_zipfile(tmp_path / "cut.npz")
    with pytest.raises(ValueError, match="cut.npz is no file of statistics"):
        Statistics.read(tmp_path / "cut.npz")


def test_features_must_be_finite_and_two():
    features = normal(5, 3)
    features[3, 1] = np.nan
    with pytest.raises(ValueError, match="the features of 1 pictures are not finite, the first of them number 3"):
        Statistics.of(features)
    with pytest.raises(ValueError, match="two pictures at least"):
        Statistics.of(features[:1])


def test_the_kernel_distance_by_its_definition():
    x, y = normal(6, 4), normal(5, 4, 1) + 0.5
    total = 0.0
    for i in range(6):
        total += sum((x[i] @ x[j] / 4 + 1) ** 3 for j in range(6) if j != i) / 30
    for i in range(5):
        total += sum((y[i] @ y[j] / 4 + 1) ** 3 for j in range(5) if j != i) / 20
    total -= 2 * sum((a @ b / 4 + 1) ** 3 for a in x for b in y) / 30
    assert abs(mmd(x, y) - total) < 1e-12


def test_the_kernel_distance_has_no_bias():
    """Where the Frechet distance of so few is 11, its mean over samples of one distribution is 0."""
    found = [mmd(normal(100, 64, i), normal(100, 64, i + 1000)) for i in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    apart = kernel_distance(normal(300, 16), normal(200, 16, 1) + 0.5, subsets=20, size=1000)
    assert apart.size == 100 and apart.mean > 0.5
    assert apart.deviation > 0
    assert apart == kernel_distance(normal(300, 16), normal(200, 16, 1) + 0.5, subsets=20, size=1000)


def test_precision_and_recall():
    """Half of what is real, and nothing else; then something else."""
    real = np.concatenate([normal(300, 4), normal(300, 4, 1) + 50])
    half = precision_recall(real, normal(300, 4, 2))
    assert half.precision > 0.9 and 0.4 < half.recall < 0.55
    other = precision_recall(real, normal(300, 4, 3) - 50)
    assert other == (0, 0)
    with pytest.raises(ValueError, match="more than 3 pictures"):
        precision_recall(real, normal(3, 4))


@pytest.mark.parametrize(
    "b, c, wanted", [(0, 0, 1), (1, 1, 1), (10, 2, 0.03857421875), (5, 0, 0.0625), (59, 33, 0.008780930807)]
)
def test_mcnemar(b, c, wanted):
    """Twice the binomial tail: (10, 2) is 2 (1 + 12 + 66) / 2^12; (59, 33) is scipy's binomtest(33, 92)."""
    first = np.array([True] * b + [False] * c + [True, False])
    second = np.array([False] * b + [True] * c + [True, False])
    found = mcnemar(first, second)
    assert found[:2] == (b, c) and abs(found.p - wanted) < 1e-9
    with pytest.raises(ValueError, match="one value for each picture"):
        mcnemar(first, second[:-1])


def test_the_bootstrap_covers_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for i in range(200):
        prompt = rng.normal(0, 10, 60)  # what was asked makes most of the difference
        found = bootstrap(prompt + rng.normal(0.3, 1, 60), prompt + rng.normal(0, 1, 60), draws=400, seed=i)
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.98
    assert bootstrap(np.arange(50.0), np.arange(50.0) - 1).clear
    assert not bootstrap(rng.normal(size=50), rng.normal(size=50)).clear


@pytest.mark.parametrize("resizer", list(RESIZERS))
def test_resizers(resizer):
    """One colour stays; a picture of its own size stays; the three differ from each other."""
    rng = np.random.default_rng(0)
    flat, noise = np.full((1, 20, 31, 3), 77, np.uint8), rng.integers(0, 256, (2, 40, 40, 3), np.uint8)
    np.testing.assert_allclose(resized(flat, 13, resizer), 77, atol=1e-4)
    np.testing.assert_allclose(resized(noise, 40, resizer), noise, atol=1e-3)
    others = [resized(noise, 17, other) for other in RESIZERS if other != resizer]
    assert all(abs(resized(noise, 17, resizer) - other).mean() > 1 for other in others)
    with pytest.raises(ValueError, match="nearest: 'clean'"):
        resized(noise, 17, "cleen")


def test_tensorflows_resizing_is_the_published_one():
    """Twice as large: every second pixel is one of the picture's, the others lie between; the last stays."""
    row = np.array([0, 100, 40], np.uint8)
    picture = np.broadcast_to(row[None, None, :, None], (1, 3, 3, 3)).copy()
    np.testing.assert_allclose(resized(picture, 6, "tensorflow")[0, 0, :, 0], [0, 50, 100, 70, 40, 40])


def test_clip_features_do_not_depend_on_the_batch():
    sizes = dict(hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2)
    config = ClipVisionConfig.from_dict(sizes | dict(image_size=16, patch_size=8))
    params = ClipVisionEncoder(config).init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))["params"]
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (20, 24 + i, 3), np.uint8)) for i in range(5)]
    features = ClipFeatures(config, params)
    together = features(pictures, batch=5)
    assert together.shape == (5, 512)
    np.testing.assert_allclose(features(pictures, batch=2), together, atol=1e-5)
    with pytest.raises(ValueError, match="no pictures"):
        features([])


def test_scores():
    np.testing.assert_allclose(clip_scores(np.array([0.3, -0.2])), [30, 0])
    np.testing.assert_allclose(choices(np.array([20.0, 20.0 + np.log(3)])), [0.25, 0.75])
