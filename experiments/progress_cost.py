"""What the progress bar costs: the same run with it and without, in turns.

    python -m experiments.progress_cost

Prints the ratio of the medians of 30 runs each of the shapes model, 20 steps. The bar splits the scan into segments,
so it costs a dispatch per update and nothing inside the loop. About 30 s on 2 cores; expected: under 1.01.
"""

import os
import statistics
import time
from typing import Any

from absl import flags

from experiments import _cli


def main(values: Any) -> None:
    """Times both in turns and prints the ratio."""
    import sdjax

    sd = sdjax.load(values.model)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # the bar draws, but not over our own line
        for n in range(values.repeats + 1):
            for shown in (True, False) if n % 2 else (False, True):
                begun = time.perf_counter()
                sd.generate("a large red circle", steps=values.steps, decode=False, progress=shown)
                if n:  # the first round compiles
                    seconds[shown].append(time.perf_counter() - begun)
    bar, plain = (statistics.median(seconds[shown]) for shown in (True, False))
    print(f"with the bar {bar:.4f} s, without {plain:.4f} s, ratio {bar / plain:.4f}")


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Checkpoint; the shipped one by default.")
    flags.DEFINE_integer("steps", 20, "Sampler steps.", lower_bound=1)
    flags.DEFINE_integer("repeats", 30, "Runs of each kind.", lower_bound=1)
    _cli.run(lambda: main(flags.FLAGS))
