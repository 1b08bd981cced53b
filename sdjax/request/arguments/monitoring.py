"""How a run is followed: what is kept of its steps, who is called, and where it ends early."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdjax.core.limits import MOST_COUNT
from sdjax.core.short import short
from sdjax.request import checks
from sdjax.request.arguments.topic import NEVER, UNUSUAL, Flag, Topic, argument


@dataclass(frozen=True, eq=False, repr=False)
class Monitoring(Topic):
    """See `generate`."""

    show_steps: bool | int | Sequence[int] | None = argument(None, told=NEVER)
    callback: Callable[[Any], Any] | None = argument(None, told=NEVER, raw=True)
    stop_after: int | None = argument(None, int, span=(1, MOST_COUNT), told=UNUSUAL)
    decode: bool = argument(True, told=NEVER)
    progress: bool | None = argument(
        None, told=NEVER, flag=Flag("A progress bar; default: where standard error is a terminal.", kind=bool)
    )

    def check_switches(self) -> None:
        """Raises ValueError unless decode, progress and callback are what their names say."""
        for name, choices in {"decode": (True, False), "progress": (True, False, None)}.items():
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool | None) or value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, not {short(value)}")
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"callback must be a function, which is called with a Preview, not {short(self.callback)}")

    def check_stop(self) -> None:
        """Raises ValueError unless stop_after is a whole number, or None."""
        if self.stop_after is not None:
            checks.check_count(self.stop_after, 1, "stop_after")

    def wanted(self, count: int) -> tuple[int, ...]:
        """Which of `count` evaluations are to be kept: none, all, a number of them evenly spread, or a list.

        Raises ValueError.
        """
        value = self.show_steps
        if value is None or value is False:
            return ()
        if value is True:
            return tuple(range(count))
        if isinstance(value, int | np.integer):
            if value < 1:
                raise ValueError(f"show_steps must be at least 1, or a list of evaluations, not {value}")
            return tuple(np.unique(np.linspace(0, count - 1, min(int(value), count)).round().astype(int)).tolist())
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(type(one) is int for one in value):
            raise ValueError(f"show_steps must be True, a number or a list of evaluations from 0, not {value!r}")
        wrong = [one for one in value if not 0 <= one < count]
        if wrong:
            raise ValueError(f"show_steps has {wrong[0]}, and this run has the evaluations 0 to {count - 1}")
        return tuple(sorted(set(value)))
