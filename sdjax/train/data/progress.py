"""Progress: a line every few seconds while a data set is gone through, with how long the rest will take."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

SECONDS = 10.0  # between two lines

Report = Callable[[str], None]  # takes a line


@dataclass
class Progress:
    """Of `total` things; report: where the lines go, None for nowhere."""

    total: int
    report: Report | None
    begun: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def __call__(self, done: int, what: str) -> bool:
        """Says how many of all are done, as "3 of 40 `what`", where it is time to; returns whether it is."""
        now = time.monotonic()
        if now - self.told <= SECONDS:
            return False
        self.told = now
        if self.report:
            left = (now - self.begun) / max(done, 1) * (self.total - done) / 60
            self.report(f"{done} of {self.total} {what}, {left:.1f} min left")
        return True
