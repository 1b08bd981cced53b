"""The progress bar of a run, which says so while programs are compiled and does not count that as the pace."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from sdjax.core.jit import tracing

COMPILING = "{desc}: {n_fmt}/{total_fmt}"  # no pace, and no guess at the end


class Bar:
    """tqdm's bar of `total` evaluations. shown: None is where standard error is a terminal."""

    def __init__(self, total: int, shown: bool | None) -> None:
        self._tqdm = tqdm(total=total, disable=None if shown is None else not shown, leave=False)
        self._compiling = False

    @property
    def hidden(self) -> bool:
        """Whether there is none."""
        return bool(self._tqdm.disable)

    @contextmanager
    def shown(self) -> Iterator["Bar"]:
        """Within it the bar is there."""
        told = tracing.set(self.compile)
        try:
            with self._tqdm:
                yield self
        finally:
            tracing.reset(told)

    def compile(self) -> None:
        """A program is being compiled: for these settings of a model and a size once, and for all others not again."""
        if not self.hidden and not self._compiling:
            self._compiling, self._tqdm.bar_format = True, COMPILING
            self._tqdm.set_description_str("compiling, once")

    def reach(self, done: int) -> None:
        """So many evaluations are made. What was made while compiling does not count for the pace."""
        bar = self._tqdm
        if not self._compiling:
            bar.update(done - bar.n)
            return
        self._compiling, bar.bar_format = False, None
        bar.unpause()
        bar.initial = bar.n = bar.last_print_n = done
        bar.set_description_str("")
