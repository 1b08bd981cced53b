"""Training: teach a model, on your own pictures, by any method, on one device or many.

    python -m experiments.train --method=lora --data=pictures --out=runs/mine --steps=500
    python -m experiments.train --method=lora --data=pictures --out=runs/mine --steps=500 --dry_run
    python -m experiments.train --config=mine.py

A folder of pictures, each with its caption in a .txt file of the same name, is enough. --dry_run says how much memory
and time it takes, and writes a sheet of what the model will see. Killed or stopped, the same command goes on where the
run was. What is left: `adapter.safetensors` (or what the method calls it; a whole `model` for full training) in the
run's folder, with metrics.csv, the states, the pictures of --validation_prompts and the list of rejects.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import _cli
from experiments.train import material, memory, options, processes
from experiments.train.model import Model
from experiments.train.outcome import Outcome
from experiments.train.recipes import RECIPES, Learner, Recipe
from sdjax.core.keys import key
from sdjax.core.tree import Params
from sdjax.train.averages import Average, Decay, PowerFunction
from sdjax.train.checkpoint import Retention
from sdjax.train.data.ahead import Ahead
from sdjax.train.loop import fit
from sdjax.train.mesh import check_divides, device_mesh
from sdjax.train.metrics import Csv, Recorder, TensorBoard
from sdjax.train.optimisers import Optimiser
from sdjax.train.rates import make_rate
from sdjax.train.state import TrainState
from sdjax.train.step import Step, make_step
from sdjax.train.watches import Every, Snapshots, Watch, all_of

FLAGS = flags.FLAGS


def say(line: str) -> None:
    """Prints a line, once however many processes there are."""
    if processes.first():
        print(line, flush=True)


def main() -> None:
    options.read_config()
    options.check()
    recipe = RECIPES[FLAGS.method]
    check_flags(recipe)
    processes.join(FLAGS.distributed)
    if FLAGS.learning_rate is None:
        FLAGS["learning_rate"].value = recipe.rate
    check_divides(device_mesh(FLAGS.fsdp), FLAGS.batch, FLAGS.accumulate)
    rate = make_rate(FLAGS.rate, FLAGS.learning_rate, FLAGS.steps, FLAGS.warmup)
    optimiser, averages = make_optimiser(), make_averages()
    model = Model.of(FLAGS)
    learner = recipe.make(FLAGS, model)
    read = partial(material.read, FLAGS, model, learner.tokens, learner.texts_learn, say)
    data = learner.sees(processes.one_first(read))
    say("\n".join(data.summary()))
    params = taking_part(model, learner, data)
    step, begin = prepared(learner, params, optimiser, averages)
    if FLAGS.dry_run:
        memory.show(data.sheet(), Path(FLAGS.out), say)
        memory.tell(step, begin, batch_of(learner, data)(0), FLAGS, say)
        return
    outcome = Outcome(FLAGS, model, learner, data, params, say)
    with Ahead(batch_of(learner, data)) as batch:
        state = fit(
            FLAGS.out,
            begin,
            step,
            batch,
            rate,
            steps=FLAGS.steps,
            seed=FLAGS.seed,
            settings=options.settings() | {"pictures": data.fingerprint},
            every=FLAGS.report_every,
            save_seconds=FLAGS.save_seconds,
            limit_seconds=FLAGS.limit,
            retention=Retention(newest=FLAGS.keep_newest, best=1 if FLAGS.validate_every else 0, metric="validation"),
            recorders=recorders(),
            watch=watching(outcome, optimiser, averages),
            report=say,
        )
    if int(state.step) < FLAGS.steps:
        say(f"stopped after {int(state.step)} of {FLAGS.steps} steps; the same command goes on")
        return
    learnt = step.evaluated(state)
    if not processes.first():
        return
    say(f"written: {outcome.write(learnt, Path(FLAGS.out))}")
    if not FLAGS.validate_every or FLAGS.steps % FLAGS.validate_every:  # else the last look has painted these
        outcome.paint(learnt, FLAGS.steps)


def check_flags(recipe: Recipe) -> None:
    """Raises ValueError for a flag that the method cannot do without, or that other methods alone look at."""
    special = {name for one in RECIPES.values() for name in one.reads}
    for name in sorted(special - {*recipe.reads}):
        if FLAGS[name].value != FLAGS[name].default:
            readers = ", ".join(method for method, one in RECIPES.items() if name in one.reads)
            raise ValueError(f"--method={FLAGS.method} does not look at --{name}; those that do: {readers}")
    for name in recipe.needs:
        if not getattr(FLAGS, name):
            raise ValueError(
                f"--method={FLAGS.method} needs --{name}: {FLAGS[name].help.removeprefix(f'{FLAGS.method}: ')}"
            )
    if FLAGS.preserve and not FLAGS.class_data:
        raise ValueError("--preserve needs --class_data: pictures of what is to stay as it is")


def make_optimiser() -> Optimiser:
    """What the flags say of it. Raises ValueError."""
    return Optimiser(FLAGS.optimiser, weight_decay=FLAGS.weight_decay, clip=FLAGS.clip or None)


def make_averages() -> tuple[Average, ...]:
    """What the flags say of them; the first is what is written. Raises ValueError."""
    first: tuple[Average, ...] = () if FLAGS.ema is None else (Decay(FLAGS.ema),)
    return first + tuple(PowerFunction(float(width)) for width in FLAGS.power_ema)


def taking_part(model: Model, learner: Learner, data: material.Material) -> dict[str, Any]:
    """The parameters that a step reads: a network whose answers are made beforehand is not in its memory."""
    latents, texts = data.cached
    left_out = ["vae"] * (latents and not learner.decodes)
    left_out += [tower.component for tower in model.architecture.texts if texts]
    own = {name: tree for name, tree in model.params.items() if name not in left_out}
    before = {"reference": {name: own[name] for name in own if name != "vae"}} if FLAGS.preserve else {}
    return own | before | learner.more(own)


def prepared(
    learner: Learner, params: dict[str, Any], optimiser: Optimiser, averages: tuple[Average, ...]
) -> tuple[Step, TrainState]:
    """The step, and the state before the first."""
    begun: Params = learner.method.start(params, key(FLAGS.seed))
    say(f"{sum(leaf.size for leaf in jax.tree.leaves(begun)):,} numbers learn")
    mesh = device_mesh(FLAGS.fsdp)
    step = make_step(
        learner.objective, learner.method, begun, params, optimiser, averages, accumulate=FLAGS.accumulate, mesh=mesh
    )
    return step, step.begin(begun)


def batch_of(learner: Learner, data: material.Material) -> Callable[[int], dict[str, Any]]:
    """The batch of a step, with what stands for no text where the loss asks for it."""
    if not learner.unprompted:
        return data.batch
    empty = data.unprompted(FLAGS.batch // processes.share()[1])
    return lambda step: data.batch(step) | {"unprompted": empty}


def recorders() -> list[Recorder]:
    """Where the numbers of the run go."""
    out = Path(FLAGS.out)
    return [Csv(out / "metrics.csv"), *([TensorBoard(out / "tensorboard")] if FLAGS.tensorboard else [])]


def watching(outcome: Outcome, optimiser: Optimiser, averages: tuple[Average, ...]) -> Watch:
    """Now and then a look at what has been learnt, and snapshots of averages of which others can be made."""
    if not FLAGS.validate_every:
        return all_of()
    wide = tuple(one for one in averages if isinstance(one, PowerFunction))
    look = Every(FLAGS.validate_every, optimiser, outcome.watch)
    return all_of(look, Snapshots(FLAGS.validate_every, FLAGS.out, wide))


if __name__ == "__main__":
    _cli.run(main, partial(options.define, tuple(RECIPES)))
