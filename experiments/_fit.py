"""A method and an objective put through the loop, for the programs here that train a network of their own.

One place for what these have in common: the flags of a run, its state, its settings, and what comes of it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags

from sdjax.core.keys import key
from sdjax.core.tree import Params
from sdjax.train.averages import Decay
from sdjax.train.data.ahead import Ahead
from sdjax.train.data.scan import Dataset
from sdjax.train.loop import fit
from sdjax.train.methods.method import Method
from sdjax.train.objective import Objective
from sdjax.train.optimisers import Optimiser
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.step import make_step

FLAGS = flags.FLAGS


def define_flags(steps: int, batch: int, rate: float, optimisers: Mapping[str, Optimiser]) -> None:
    """Those of a run, with a program's defaults; the first of the optimisers is the usual one."""
    flags.DEFINE_string("data", None, "Pictures: a folder, or shards or parquet files in one.", required=True)
    flags.DEFINE_string("out", None, "Folder of the run; started again, it goes on where it was.", required=True)
    flags.DEFINE_integer("steps", steps, "Optimiser steps.", lower_bound=1)
    flags.DEFINE_integer("batch", batch, "Pictures per step.", lower_bound=1)
    flags.DEFINE_integer("accumulate", 1, "Pieces in which a batch is taken, for less memory.", lower_bound=1)
    flags.DEFINE_float("learning_rate", rate, "Peak rate.", lower_bound=0.0)
    flags.DEFINE_enum("optimiser", next(iter(optimisers)), list(optimisers), "The optimiser.")
    flags.DEFINE_float("ema", 0.998, "Decay of the averaged parameters, which are what is written.", 0.0, 0.999999)
    flags.DEFINE_integer("held_out", 16, "Pictures that are not trained on, to measure by.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the data's order, the parameters and the noise.", lower_bound=0)


def parted(dataset: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """(to train on, held out): `count` pictures spread evenly over the listing are held out. Raises ValueError."""
    items = dataset.items
    if len(items) < 2 * count:
        raise ValueError(
            f"--held_out={count} of {len(items)} pictures leaves too few to train on; give more pictures, or hold out "
            f"{len(items) // 2} at most"
        )
    chosen = {i * len(items) // count for i in range(count)}
    kept = tuple(one for i, one in enumerate(items) if i not in chosen)
    return Dataset(kept, dataset.rejects), Dataset(tuple(items[i] for i in sorted(chosen)))


def told(dataset: Dataset) -> None:
    """Prints how many pictures there are; what was not taken is listed in the run's folder."""
    print(f"{len(dataset.items)} pictures, {len(dataset.rejects)} rejects", flush=True)
    if dataset.rejects:
        path = Path(FLAGS.out) / "rejects.txt"
        dataset.write_rejects(path)
        print(f"  the rejects, with the reason of each: {path}", flush=True)


def trained(
    method: Method,
    objective: Objective,
    params: Mapping[str, Any],
    batch: Callable[[int], Any],
    optimiser: Optimiser,
    settings: Mapping[str, Any],
) -> Params:
    """What has been learnt, averaged, on the host, as `method.join` takes it. Raises as `fit` does."""
    learning = method.start(params, key(FLAGS.seed))
    averages = [Decay(FLAGS.ema)]
    step = make_step(objective, method, learning, params, optimiser, averages, accumulate=FLAGS.accumulate)
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(learning)):,} parameters learn", flush=True)
    with Ahead(batch) as ahead:
        state = fit(
            FLAGS.out,
            step.begin(learning),
            step,
            ahead,
            WarmupStableDecay(FLAGS.learning_rate, FLAGS.steps, FLAGS.steps // 3, min(100, FLAGS.steps // 10 + 1)),
            steps=FLAGS.steps,
            seed=FLAGS.seed,
            settings=dict(settings),
            report=partial(print, flush=True),
        )
    return step.evaluated(state)


def settings(program: str, dataset: Dataset) -> dict[str, Any]:
    """What a run was asked to be: the program's flags, but for where it goes, and what the data is."""
    named = {one.name: one.value for one in FLAGS.get_key_flags_for_module(program)}
    return {name: value for name, value in named.items() if name != "out"} | {"data": dataset.fingerprint}
