r"""What a TPU's own compiler says of a family's programs. No TPU is needed: it compiles for one, and nothing is run.

    python -m venv tpu; tpu/bin/pip install '.[tpu]'                # an environment of its own, with libtpu
    tpu/bin/python -m experiments.tpu --rows=sdxl:1024:1            # the parts, for a v6e; a quarter of an hour
    tpu/bin/python -m experiments.tpu --rows=sdxl:1024:1 --what=programs --sharded=1,4      # whole, an hour
    tpu/bin/python -m experiments.tpu --out=docs/tpu.json           # all that is in the documentation, a night

A row is a family, a size in pixels and a batch, in bfloat16, guided (the U-Net sees every picture twice). `parts`
compiles each distinct part of its networks once and adds up; `programs` compiles the whole sampling step, the decoder
and the text encoders, which says what memory they take, and over several chips (parameters cut, as
`sdjax.parallel.shard` cuts them) what they exchange. Pictures spread over chips (`parallel.spread`) run the program of
one chip on each and exchange nothing.

Every time here is the compiler's estimate, never measured; `hlo` says what of. What was compiled once is kept in
--cache, so that a run that was stopped goes on where it was.
"""

import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli, _programs
from experiments.tpu.chips import CHIPS

ROWS = ["sd15:512:1", "sd21:768:1", "sdxl:1024:1", "sdxl_refiner:1024:1"]
STEPS = 20
# Before JAX looks for a TPU here: there is none to ask or to lock, and several processes may compile.
WITHOUT_A_TPU = {
    **{"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
    **{"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v6e-4", "TPU_MIN_LOG_LEVEL": "3"},
}
HEAD = (
    "network",
    "part",
    "times",
    "GFLOP",
    "ms",
    "all, ms",
    "of the peak",
    "optimal, ms",
    "scratch, MiB",
    "compiled, s",
)


def define_flags() -> None:
    """Called for the program only."""
    flags.DEFINE_list("rows", ROWS, "Of family:size:batch each.")
    flags.DEFINE_multi_enum("chips", ["v6e"], list(CHIPS), "Which kinds.")
    flags.DEFINE_multi_enum("what", ["parts"], ["parts", "programs"], "What is compiled.")
    flags.DEFINE_string("only", "", "parts: those alone in whose names this regular expression is found.")
    flags.DEFINE_list("sharded", ["1"], "programs: over how many chips of 1, 4 and 8 the parameters are cut.")
    flags.DEFINE_string("cache", "runs/tpu", "Where estimates are kept.")
    flags.DEFINE_integer("jobs", 2, "How many are compiled at once.", lower_bound=1)
    flags.DEFINE_string("out", None, "A JSON file.")


def main(values: Any) -> None:
    """Prints a table for each row, chip and what, as soon as it is known, then writes them all."""
    rows = [_programs.check_row(row) for row in values.rows]
    counts = [_count(text) for text in values.sharded]
    _check_expression(values.only)
    os.environ |= WITHOUT_A_TPU
    from experiments.tpu.estimates import mesh

    for chip in values.chips:
        mesh(chip)  # says what is missing, before anything takes long
    told = []
    for row in rows:
        for chip in values.chips:
            if "parts" in values.what:
                told.append(_parts(row, chip, values))
            for count in counts if "programs" in values.what else ():
                told.append(_whole(row, chip, count, values))
    if values.out:
        from sdjax.core.files import write

        write(json.dumps(told, indent=1).encode(), Path(values.out), "the compiler's estimates")


def _count(text: str) -> int:
    """A number of chips. Raises ValueError."""
    if text not in ("1", "4", "8"):
        raise ValueError(f"--sharded: a slice has 1, 4 or 8 chips, not {text!r}")
    return int(text)


def _check_expression(text: str) -> None:
    """Raises ValueError where it is none."""
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"--only: {text!r} is no regular expression: {error}") from None


def _parts(row: tuple[str, int, int], chip: str, values: Any) -> dict[str, Any]:
    """All distinct parts of a row, and their sums."""

    from experiments.tpu.estimates import alone, lowered, mesh
    from experiments.tpu.operations import operations
    from experiments.tpu.parts import parts
    from sdjax.core.devices import tracing_for

    with tracing_for("tpu"):
        found = [part for part in parts(*row, "bfloat16") if re.search(values.only, part.what)]
        counts = [operations(part, *part.arrays) for part in found]
    where = mesh(chip)
    programs = (lowered(partial(alone, part, where)) for part in found)
    cells = [
        {"network": part.network, "part": part.what, "times": part.times, "whole": part.whole, "operations": count}
        for part, count in zip(found, counts, strict=True)
    ]
    _print_head(row, chip, "parts")
    _estimates(cells, programs, chip, values)
    return {**_named(row, chip), "parts": cells, **({} if values.only else _sums(cells, row, chip))}


def _whole(row: tuple[str, int, int], chip: str, count: int, values: Any) -> dict[str, Any]:
    """All programs of a row, with parameters cut over `count` chips."""
    from experiments.tpu.estimates import cut, lowered, mesh, whole
    from experiments.tpu.operations import operations
    from sdjax.core.devices import tracing_for

    where = mesh(chip, count)
    with tracing_for("tpu"):
        calls = _programs.calls(*row, "bfloat16")
        counts = {name: operations(call.function, *call.arrays) / count for name, call in calls.items()}
        calls = {
            name: call.placed(partial(cut, chips=where), partial(whole, chips=where)) for name, call in calls.items()
        }
    programs = (lowered(call.lower) for call in calls.values())
    cells = [
        {"network": name, "part": "whole", "times": 1, "whole": True, "operations": counts[name]} for name in calls
    ]
    _print_head(row, chip, f"programs, parameters over {count}")
    _estimates(cells, programs, chip, values)
    return {**_named(row, chip), "sharded": count, "programs": cells, **_memory(cells, row, chip, count)}


def _named(row: tuple[str, int, int], chip: str) -> dict[str, Any]:
    return {**dict(zip(("family", "size", "batch"), row, strict=True)), "chip": chip}


def _print_head(row: tuple[str, int, int], chip: str, what: str) -> None:
    family, size, batch = row
    print(f"\n{family}, {size} x {size}, batch {batch}, bfloat16, one {chip}: the compiler's estimate; {what}\n")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")


def _estimates(cells: list[dict[str, Any]], programs: Iterable[Any], chip: str, values: Any) -> None:
    """Adds to each cell what the compiler says of its program, and prints it; at most --jobs are in the making."""
    from experiments.tpu.estimates import estimate

    waiting: list[tuple[dict[str, Any], Future[Any]]] = []
    with ThreadPoolExecutor(values.jobs) as pool:
        for cell, program in zip(cells, programs, strict=True):
            waiting.append((cell, pool.submit(estimate, program, chip, Path(values.cache))))
            while len(waiting) > values.jobs:
                _settle(*waiting.pop(0), chip)
        for one in waiting:
            _settle(*one, chip)


def _settle(cell: dict[str, Any], found: Future[Any], chip: str) -> None:
    from experiments.tpu.estimates import Refused

    try:
        made = found.result()
    except Refused as refused:
        cell["refused"] = str(refused)
        print(f"| {cell['network']} | {cell['part']} | {cell['times']} | refused: {refused} |", flush=True)
        return
    times, seconds = cell["times"], made.seconds(CHIPS[chip])
    cell |= {**asdict(made), "seconds": seconds}
    share = cell["operations"] / seconds / CHIPS[chip].peak if seconds else 0.0
    name = cell["part"] if cell["whole"] else f"– {cell['part']}"
    numbers = f"{cell['operations'] / 1e9:.1f} | {seconds * 1e3:.3f} | {times * seconds * 1e3:.2f} | {share:.0%}"
    optimal = f"{cell['optimal'] * 1e3:.3f}" if cell["optimal"] > 0 else "?"
    rest = f"{optimal} | {cell['scratch'] / 2**20:.0f} | {cell['compiled']:.0f}"
    print(f"| {cell['network']} | {name} | {times} | {numbers} | {rest} |", flush=True)


def _sums(cells: list[dict[str, Any]], row: tuple[str, int, int], chip: str) -> dict[str, Any]:
    """What the parts come to: seconds by network, of a picture, and pictures a second and chip; printed."""
    by_network: dict[str, float] = {}
    counts: dict[str, float] = {}
    for cell in cells:
        if cell["whole"] and "seconds" in cell:
            name = cell["network"]
            by_network[name] = by_network.get(name, 0.0) + cell["times"] * cell["seconds"]
            counts[name] = counts.get(name, 0.0) + cell["times"] * cell["operations"]
    batch, texts = row[2], 2  # with its negative
    batch_seconds = sum(
        seconds * {"U-Net step": STEPS, "decode": batch}.get(name, texts * batch)
        for name, seconds in by_network.items()
    )
    print()
    for name, seconds in by_network.items():
        share = counts[name] / seconds / CHIPS[chip].peak
        print(f"{name}: {seconds * 1e3:.2f} ms, {counts[name] / 1e12:.2f} TFLOP, {share:.0%} of the peak")
    rate = batch / batch_seconds
    print(f"{STEPS} steps, text and decoding: {batch_seconds:.3f} s, {rate:.3f} pictures a second and chip")
    return {"networks": by_network, "seconds": batch_seconds, "pictures_a_second": rate}


def _memory(cells: list[dict[str, Any]], row: tuple[str, int, int], chip: str, count: int) -> dict[str, Any]:
    """What a chip holds at most: all weights, and the largest of what a program has beside its own; printed."""
    import jax

    params = _programs.parameters(_programs.networks(row[0]), "bfloat16")
    weights = sum(leaf.size * 2 for leaf in jax.tree.leaves(params)) // count
    known = [cell for cell in cells if "scratch" in cell]
    most = max(cell["scratch"] + cell["results"] for cell in known)
    peak, memory = weights + most, CHIPS[chip].memory
    fits = f"{'fits' if peak < memory else 'does not fit'} in the {memory / 2**30:.0f} of a {chip}"
    print(f"\nweights {weights / 2**30:.2f} GiB, beside them at most {most / 2**30:.2f}: {fits}")
    for cell in known:
        if cell["sent"]:
            sent = ", ".join(f"{kind} {size / 1e6:.0f}" for kind, size in cell["sent"].items())
            print(f"{cell['network']}: results of collectives in MB: {sent}")
    return {"weights": weights, "peak": peak}


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
