"""A solver becomes a matrix: the tape that records it, and the arrays the device runs.

Every solver in scope is linear in the starting noise x_T, the clean latents D_j that the network predicted,
and fresh Gaussian draws n_k. So it runs once, on the host, in float64, on *symbolic linear forms*: `Linear`
is a vector of weights over [x_T, D_0, D_1, .., n_0, n_1, ..], and adding or scaling forms adds or scales
vectors. Each time the solver asks for a prediction, the tape writes down a row:
    x_i = W[i, 0] x_T + sum_{j < i} W[i, 1 + j] D_j + sum_k W[i, 1 + n + k] n_k                         (1)
    D_i = c_skip_i x_i + c_out_i network(x_i, t_i)                                                     (2)
and hands back a new form that is one unit of D_i. The last row of W is the result. The device runs (1) and
(2) and never learns which solver it was.

Under guidance the network also answers without the prompt, and a solver may ask for the clean latents U_i that this
answer means, by the same c_skip and c_out; they are columns of their own beside the D_j of (1):
    U_i = c_skip_i x_i + c_out_i unguided(x_i, t_i)                                                    (3)
That is all a solver needs that takes its noise from the unguided prediction (CFG++: Chung et al. 2024,
arXiv:2406.08070). Tables of solvers that do not ask have no such columns.

A row may also bring nothing from the network: it then fills column j with x_i held within a bound, the one thing
here that is not linear, or with nothing, where a solver needs two draws between two evaluations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import jax
import numpy as np

from sdjax.core import short
from sdjax.diffusion import brownian
from sdjax.diffusion.noise import Level
from sdjax.diffusion.prediction import check_prediction, coefficients

Array = Any  # NumPy on the host, a jax.Array inside jit


def _refuse(operation: str) -> Callable[..., NoReturn]:
    """A method that says which operation of a solver is not linear."""

    def refuse(*_: Any) -> NoReturn:
        raise ValueError(
            f"a solver must be linear: {operation}; latents, predictions and draws may be added, and multiplied or "
            "divided by plain numbers"
        )

    return refuse


def _what(value: Any) -> str:
    """A value that cannot be combined with latents, in words."""
    return "latents" if isinstance(value, Linear) else f"{short.short(value)} ({type(value).__name__})"


class Linear:
    """A linear form over the tape's columns, with + and -, and * and / by a number; else a ValueError."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def __add__(self, other: "Linear") -> "Linear":
        if not isinstance(other, Linear):
            if _is_number(other) and other == 0:  # so that sum() works
                return self
            _refuse(f"it adds {_what(other)} to latents")()
        size = max(len(self.weights), len(other.weights))
        return Linear(_padded(self.weights, size) + _padded(other.weights, size))

    def __mul__(self, factor: float) -> "Linear":
        if not _is_number(factor):
            _refuse(f"it multiplies latents by {_what(factor)}")()
        return Linear(self.weights * float(factor))

    def __truediv__(self, divisor: float) -> "Linear":
        if not _is_number(divisor):
            _refuse(f"it divides latents by {_what(divisor)}")()
        return Linear(self.weights / float(divisor))

    def __neg__(self) -> "Linear":
        return self * -1.0

    def __sub__(self, other: "Linear") -> "Linear":
        return self + (-other)

    def __rsub__(self, other: "Linear") -> "Linear":
        return (-self) + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **_: Any) -> "Linear":
        """NumPy asks here: for number * form and its like, where the form stands second, and for np.sin(form)."""
        if method == "__call__" and inputs[1:] == (self,):
            if ufunc is np.multiply:
                return self * inputs[0]
            if ufunc is np.add or ufunc is np.subtract:
                return (self if ufunc is np.add else -self) + inputs[0]
        return _refuse(f"it takes np.{ufunc.__name__} of latents")()

    __pow__ = _refuse("it takes a power of latents")
    __rpow__ = _refuse("it takes latents as an exponent")
    __rtruediv__ = _refuse("it divides by latents")
    __abs__ = _refuse("it takes the absolute value of latents")
    __float__ = _refuse("it makes a number of latents")
    __bool__ = _refuse("it decides by the value of latents")
    __round__ = _refuse("it rounds latents")
    __lt__ = __le__ = __gt__ = __ge__ = _refuse("it compares latents")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) or (isinstance(value, np.ndarray) and value.ndim == 0)


def _padded(weights: np.ndarray, size: int) -> np.ndarray:
    return np.pad(weights, (0, size - len(weights)))


@dataclass(frozen=True)
class Bound:
    """How predicted clean latents are held within limits; by default not at all.

    Attributes:
      limit: every element lies within [-limit, limit].
      ratio: 0, or for dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487, section 2.3) the share of an
        image's elements, 0 .. 1, that lie within [-s, s], 1 <= s <= limit; then s becomes the new 1.
    """

    limit: float = math.inf
    ratio: float = 0.0


FREE = Bound()


@dataclass(frozen=True)
class Draw:
    """A Gaussian draw, by its number. start, stop: leaves of the image's Brownian path, or -1 if it is not of it."""

    number: int = -1
    start: int = -1
    stop: int = -1


NONE = Draw()


@dataclass(frozen=True)
class Row:
    """One row. `level`: where x is, says the solver. `draw`: the draw that comes in with it."""

    form: Linear
    level: Level
    c_skip: float = 0.0
    c_out: float = 0.0
    evaluate: bool = False
    bound: Bound = FREE
    draw: Draw = NONE


class Tape:
    """Records a solver. Columns come in the order in which they are asked for; `Plan` sorts them.

    Attributes:
      x_T: the starting noise as a form, at the network's own (variance-preserving) scale on the first level.
      prediction: the network's prediction type.
      rows: one `Row` per denoise or clip so far.
      columns: "x", "D", "U" or "n" per column.
      unguided_rows: the row of each "U".
      bound: what `clip` holds its argument within.
      inexact: why this solver does not reproduce a constant prediction, or "": then the plan asserts that it
        does.
    """

    def __init__(self, prediction: str, init: float = 1.0, inexact: str = "", bound: Bound = FREE) -> None:
        self.prediction = check_prediction(prediction)
        self.rows: list[Row] = []
        self.columns = ["x"]
        self.unguided_rows: list[int] = []
        self.inexact = inexact
        self.bound = bound
        self._pending = NONE
        self._used = 0  # leaf up to which the Brownian path has been drawn
        self.x_T = Linear(np.array([float(init)]))

    def denoise(self, x: Linear, level: Level) -> Linear:
        """D, the clean latents predicted from `x`, which lies at `level` on the variance-preserving scale."""
        c_skip, c_out = coefficients(self.prediction, level)
        return self._row(Row(x, level, c_skip, c_out, evaluate=True))

    def unguided(self, denoised: Linear) -> Linear:
        """U, the clean latents predicted without the prompt, of the evaluation that gave `denoised`.

        Without guidance it is `denoised` again. Raises ValueError for what `denoise` did not give.
        """
        row = self._evaluated(denoised)
        if row in self.unguided_rows:
            columns = [i for i, kind in enumerate(self.columns) if kind == "U"]
            return self._unit(columns[self.unguided_rows.index(row)])
        self.unguided_rows.append(row)
        return self._column("U")

    def raw(self, denoised: Linear, x: Linear, level: Level) -> Linear:
        """The network's own output, given the `denoised` or `unguided` that came of it at `x` and `level`."""
        c_skip, c_out = coefficients(self.prediction, level)
        return (denoised - c_skip * x) / c_out

    def draw(self, here: Level | None = None, there: Level | None = None) -> Linear:
        """A unit Gaussian, independent of all before.

        Between two levels: the noise that a step from `here` to the cleaner `there` renews, a piece of the image's
        Brownian path, so that another step count sees the same path. Fresh without levels, and where the path has
        been used up to `there` already (a level visited twice).
        """
        if self._pending is not NONE:  # each row brings in one draw, so a second one needs a row of its own
            self._row(Row(Linear(np.zeros(1)), self.rows[-1].level if self.rows else Level(1.0, 0.0, 0.0)))
        start = stop = -1
        if here is not None and there is not None:
            begin, end = brownian.span(here, there)
            if max(begin, self._used) < end:
                start, stop = max(begin, self._used), end
                self._used = end
        self._pending = Draw(self.columns.count("n"), start, stop)
        return self._column("n")

    def clip(self, x: Linear) -> Linear:
        """`x` held within the tape's bound; `x` itself where there is none."""
        if self.bound == FREE:
            return x
        return self._row(Row(x, self.rows[-1].level, c_skip=1.0, bound=self.bound))

    def finish(self, x: Linear, level: Level) -> list[Row]:
        """All rows, the result `x` at `level` last."""
        if not isinstance(x, Linear):
            raise ValueError(f"a solver must return its last latents, not {_what(x)}")
        if not self.rows:
            raise ValueError("a solver must ask the network at least once: tape.denoise(x, level)")
        return [*self.rows, Row(x, level, draw=self._pending)]

    def _row(self, row: Row) -> Linear:
        if not isinstance(row.form, Linear):
            raise ValueError(f"a solver must show the network latents, not {_what(row.form)}")
        self.rows.append(Row(**{**vars(row), "draw": self._pending}))
        self._pending = NONE
        return self._column("D")

    def _evaluated(self, denoised: Any) -> int:
        """The row that gave this form, which must be one of `denoise`."""
        predictions = [i for i, kind in enumerate(self.columns) if kind == "D"]
        for row, column in enumerate(predictions):
            same = isinstance(denoised, Linear) and np.array_equal(denoised.weights, self._unit(column).weights)
            if same and self.rows[row].evaluate:
                return row
        raise ValueError(f"tape.unguided takes what tape.denoise gave, as it gave it, not {_what(denoised)}")

    def _column(self, kind: str) -> Linear:
        self.columns.append(kind)
        return self._unit(len(self.columns) - 1)

    def _unit(self, column: int) -> Linear:
        return Linear(np.eye(1, column + 1, column)[0])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Table:
    """A plan padded to a fixed number of rows r: the arrays that a compiled sampler takes as data.

    The leading axis of every field is the row, so a segment is `table.rows(start, stop)`. Padded rows repeat
    the result row. A later axis b may follow in every field but `slot` (last in the weights), one plan per
    image.
    """

    slot: Array  # int32 [r], the row's own number
    timestep: Array  # [r], what the network is told, 0 .. T-1, may be fractional
    x_weight: Array  # [r], weight of x_T
    d_weights: Array  # [r, r], weights of the predictions by slot
    n_weights: Array  # [r, r], weights of the draws, by the slot of the row that brought each in
    alpha: Array  # [r], the level of x_i = alpha_i x0 + sigma_i e; clean at the result of a run that ends there,
    sigma: Array  # [r], whatever noise its schedule leaves in
    c_skip: Array  # [r], equation 2
    c_out: Array  # [r], equation 2
    clip: Array  # [r], bound on D, infinite where there is none
    ratio: Array  # [r], quantile of dynamic thresholding, 0 where there is none
    evaluate: Array  # bool [r], whether the network runs
    draw: Array  # int32 [r], number of the Gaussian draw that comes in with the row, or -1
    start: Array  # int32 [r], leaves of the Brownian path between which that draw lies; -1 for a fresh one
    stop: Array  # int32 [r]
    u_weights: Array | None = None  # [r, r], weights of the unguided predictions by slot; None where none is asked for

    __repr__ = short.fields

    def rows(self, start: int, stop: int) -> "Table":
        """Rows start .. stop - 1 of the table."""
        return jax.tree.map(lambda a: a[start:stop], self)

    def only(self, start: int, stop: int) -> "Table":
        """The same table, NumPy, in which all but the rows start .. stop - 1 are idle.

        An idle row runs nothing and changes no prediction: it writes zeros to the last row's slot, which must be
        padding. So a run goes in pieces without another program; the last one has to come to the table's end.
        """
        kept = (np.arange(len(self)) >= start) & (np.arange(len(self)) < stop)

        def kept_or(value: float, field: Array) -> np.ndarray:
            field = np.asarray(field)
            return np.where(kept.reshape(-1, *[1] * (field.ndim - 1)), field, np.asarray(value, field.dtype))

        idle = {"slot": len(self) - 1, "evaluate": False, "clip": np.inf, "ratio": 0.0}
        idle |= dict.fromkeys(("x_weight", "d_weights", "n_weights", "c_skip", "c_out"), 0.0)
        idle |= {} if self.u_weights is None else {"u_weights": 0.0}
        return replace(self, **{name: kept_or(value, getattr(self, name)) for name, value in idle.items()})

    def __len__(self) -> int:
        return len(self.slot)


def batch_axes(table: Table) -> list[int | None]:
    """The axis of the pictures in each leaf of a table, where each has a plan of its own; None where all have one."""
    each = np.ndim(table.timestep) == 2
    return [-1 if each and np.ndim(leaf) > 1 else None for leaf in jax.tree.leaves(table)]
