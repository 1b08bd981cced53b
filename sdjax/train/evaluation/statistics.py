"""Statistics of features: the mean and the covariance of n vectors, float64, and the .npz files that hold them.

    mu = (1/n) sum_i f_i,        sigma = 1/(n-1) sum_i (f_i - mu)(f_i - mu)^T                                  (1)

A file is pytorch-fid's: arrays `mu` [d] and `sigma` [d, d], float64, uncompressed. Ours has `count` besides, n, since
the distance of two samples of one distribution falls as 1/n and only those of equal n compare; others read past it.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sdjax.core.files import write

LARGEST = 1 << 14  # of d; Inception's is 2048


@dataclass(frozen=True, eq=False)
class Statistics:
    """Equation 1. mean: float64 `d`. covariance: float64 `d d`. count: n, None where a file does not say."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    @classmethod
    def of(cls, features: np.ndarray) -> "Statistics":
        """Of features `n d`. Raises ValueError for fewer than two, and for NaN."""
        check(features)
        wide = np.asarray(features, np.float64)
        return cls(wide.mean(0), np.cov(wide, rowvar=False).reshape(wide.shape[1], -1), len(wide))

    def save(self, path: str | Path) -> Path:
        """Writes the file, whole or not at all. Raises OSError."""
        buffer = io.BytesIO()
        more: dict[str, Any] = {} if self.count is None else {"count": self.count}
        np.savez(buffer, mu=self.mean, sigma=self.covariance, **more)
        return write(buffer.getbuffer(), Path(path), "the statistics")

    @classmethod
    def read(cls, path: str | Path) -> "Statistics":
        """Of such a file; no pickle in it is opened. Raises ValueError for any that is none, FileNotFoundError."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file of statistics")
        try:
            with np.load(path, allow_pickle=False) as file:
                mean, covariance = (file[name] for name in ("mu", "sigma"))
                count = int(file["count"]) if "count" in file else None
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise ValueError(f"{path} is no file of statistics, an .npz with mu and sigma ({error})") from None
        _check_shapes(path, mean, covariance)
        return cls(mean.astype(np.float64), covariance.astype(np.float64), count)


def check(features: np.ndarray) -> None:
    """Raises ValueError for what is no `n d`, has fewer than two rows, or numbers that are none."""
    if np.ndim(features) != 2 or len(features) < 2:
        raise ValueError(f"features must be of two pictures at least, n x d; these are {list(np.shape(features))}")
    if not np.isfinite(features).all():
        rows = np.flatnonzero(~np.isfinite(features).all(1))
        raise ValueError(f"the features of {len(rows)} pictures are not finite, the first of them number {rows[0]}")


def _check_shapes(path: Path, mean: np.ndarray, covariance: np.ndarray) -> None:
    right = mean.ndim == 1 and 1 <= len(mean) <= LARGEST and covariance.shape == (len(mean), len(mean))
    if not right or mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        found = f"mu {mean.dtype} {list(mean.shape)}, sigma {covariance.dtype} {list(covariance.shape)}"
        raise ValueError(f"{path}: mu must be [d] and sigma [d, d], of floating point; they are {found}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path}: mu or sigma has numbers that are not finite; make the file anew")
