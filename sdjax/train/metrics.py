"""Metrics: where the numbers of a run go beside its terminal. Each step's go once, however often a run was resumed.

A recorder is begun with the number of steps done, from which on it is told of every step, in order. What it has of
later steps, those after the checkpoint that a killed run went back to, it forgets first.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sdjax.core.files import write

Row = Mapping[str, float]


class Recorder(Protocol):
    """Told by `fit` in its first process."""

    def begin(self, done: int) -> None:
        """Before the first step, of which `done` were done before."""

    def record(self, step: int, row: Row) -> None:
        """The metrics of the step that was the `step`-th."""

    def flush(self) -> None:
        """Before a checkpoint is written."""

    def end(self) -> None:
        """After the last step, or what stopped the run."""


class Csv:
    """A table with a row for each step and a column for each metric, empty where a step has none.

    A metric that comes later than the first step gets its column then: the file is written anew.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._columns, self._rows = Path(path), ["step"], list[dict[str, Any]]()

    def begin(self, done: int) -> None:
        """See Recorder. Raises ValueError where the file is no such table; OSError where it cannot be written."""
        self._rows = []
        if self.path.exists():
            before = [row for row in self._read() if int(row["step"]) <= done]
            self._rewrite(before)

    def record(self, step: int, row: Row) -> None:
        """See Recorder."""
        self._rows.append({"step": step, **row})

    def flush(self) -> None:
        """See Recorder."""
        if not self._rows:
            return
        new = [name for row in self._rows for name in row if name not in self._columns]
        if new or not self.path.exists():
            self._columns += dict.fromkeys(new)
            self._rewrite([*(self._read() if self.path.exists() else ()), *self._rows])
        else:
            with open(self.path, "a", newline="") as file:
                self._writer(file).writerows(self._rows)
        self._rows = []

    def end(self) -> None:
        """See Recorder."""
        self.flush()

    def _read(self) -> list[dict[str, Any]]:
        with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        names = list(reader.fieldnames or ())
        whole = [row for row in rows if None not in row and None not in row.values()]  # the last may be half-written
        if names[:1] != ["step"] or not all(row["step"].isdigit() for row in whole):
            raise ValueError(f"{self.path} is no table of a run's metrics; move it away")
        self._columns += [name for name in names if name not in self._columns]
        return whole

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(rows)
        write(text.getvalue().encode(), self.path, "the metrics")

    def _writer(self, file: Any) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n")


class TensorBoard:
    """Event files for TensorBoard, by tensorboardX, which the extra `tensorboard` brings."""

    def __init__(self, folder: str | Path) -> None:
        try:
            import tensorboardX  # noqa: F401
        except ImportError:
            raise ValueError("TensorBoard's files need tensorboardX: pip install 'sdjax[tensorboard]'") from None
        self.folder = Path(folder)
        self._writer: Any = None

    def begin(self, done: int) -> None:
        """See Recorder; TensorBoard itself leaves out what it has of steps from `purge_step` on."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=done + 1)

    def record(self, step: int, row: Row) -> None:
        """See Recorder."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """See Recorder."""
        self._writer.flush()

    def end(self) -> None:
        """See Recorder; what its thread has not written by then, it writes."""
        self._writer.close()
