r"""Thousands of prompts, over all devices, by as many processes as there are.

    python -m experiments.generate_many --prompts_file=prompts.txt --out=pictures

The file has a prompt a line; empty lines are left out. One named *.jsonl has an object a line, {"prompt": ..} and, if
it likes, arguments of its own: negative_prompt, sampler, steps, schedule, guidance_scale. Wrong lines are all named
before the first picture. Picture i, from 0, is number i of the seed and lies in --out under its number, so that a run
that was killed goes on when the command is given again: what is there is not made twice, and what it makes is what the
first run would have made. --out then also holds manifest.jsonl, an object a picture: index, prompt, file, settings. A
folder that was begun with other settings, or is being filled with others, is left alone, and the difference named; but
lines whose pictures are missing may be mended, and more may be added, while nobody is at work.

Any number of processes, on one host or many, take part by the same command and an --out that all of them see. None has
to know of the others: each claims as many lines as it makes at once by files in --out, and the lines of one that dies
are made by the rest (see _claims.py). So it is started as everything is, and needs no flags, no address and no port:

    srun python -m experiments.generate_many ...                 Slurm, also sbatch --array
    an Indexed Job whose pods mount --out                        Kubernetes
    gcloud compute tpus tpu-vm ssh NAME --worker=all --command=...       a TPU pod

The number that these tell a process is what it is called in messages, and where it begins among the lines. Each uses
all devices that it sees, of its own host; where several run on one, let each see its own (srun --gpus-per-task=1, or
CUDA_VISIBLE_DEVICES), or name --devices. They are not one program: what spans hosts as one, with its arrays cut over
all their devices, is for `jax.distributed.initialize()`, which finds the same clusters by itself.
XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates eight devices on a CPU.

Run time: that of the pictures; the first batch compiles. Expected: a line a batch, and at the end as
"20 pictures made in 8.1 s, 2.9 a second after the first batch; 20 of 20 are in pictures".
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _claims, _cli, _prompts
from experiments._prompts import OWN

# Flags that say which pictures are made; the others say how.
OPENING = ("model", "variant", "dtype")
ARGUMENTS = (*OWN, "seed", "height", "width")
SETTINGS = (*OPENING, *ARGUMENTS)
AT_ONCE = 256  # lines that are planned together
WAIT = 0.3  # seconds between two looks at what others are making


def define_flags() -> None:
    """Called for the program only: who imports this file may name flags of their own as they like."""
    from experiments import _arguments  # with JAX behind it, which takes seconds

    flags.DEFINE_string("prompts_file", None, "A prompt a line, or *.jsonl.", required=True)
    flags.DEFINE_string("out", None, "Folder for the pictures, new or begun; one for all processes.", required=True)
    flags.DEFINE_string("model", None, "A folder, a file, a Hub id; default: the shapes model.")
    flags.DEFINE_string("variant", None, "Which weights where there are several files, as fp16.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "What the networks compute in.")
    _arguments.define_flags(ARGUMENTS)
    flags.DEFINE_integer("batch", 4, "Pictures on each device at once.", lower_bound=1)
    flags.DEFINE_integer("devices", None, "Of this process; default: all.", lower_bound=1)
    flags.DEFINE_string("compilation_cache", "on", "on (in the user's cache folder), off, or a folder.")


def arguments(record: Any, numbers: Sequence[int], scale: float | None = None) -> dict[str, Any]:
    """What `generate` is given for these pictures: a list where any line of the file speaks for itself.

    scale: the model's own guidance scale, where neither a line nor a flag has one.
    """
    lines = [record.lines[number] for number in numbers]
    made: dict[str, Any] = {name: record.settings[name] for name in ARGUMENTS}
    if any(line.keys() != {"prompt"} for line in record.lines):
        made |= {name: [line.get(name, made[name]) for line in lines] for name in OWN}
        made["guidance_scale"] = [scale if one is None else one for one in made["guidance_scale"]]
    return made | {"prompt": [line["prompt"] for line in lines]}


def check(sd: Any, record: Any, numbers: Sequence[int], places: Sequence[str]) -> None:
    """Plans what these pictures need, and computes nothing. Raises ValueError naming every line that is wrong.

    places: where each picture's line is, for messages.
    """
    from experiments._record import Record

    _plan(sd, Record(record.folder, record.settings, [{"prompt": ""}]), [0])  # a wrong flag is no line's fault
    distinct = {json.dumps(record.lines[number], sort_keys=True): number for number in reversed(numbers)}
    several = sorted(distinct.values())
    wrong: dict[str, str] = {}
    for begin in range(0, len(several), AT_ONCE):
        some = several[begin : begin + AT_ONCE]
        if _fault(sd, record, some):
            wrong |= {places[number]: fault for number in some if (fault := _fault(sd, record, [number]))}
    if wrong:
        raise ValueError(_prompts.named(wrong))


def _fault(sd: Any, record: Any, numbers: Sequence[int]) -> str:
    try:
        _plan(sd, record, numbers)
    except ValueError as error:
        return str(error)
    return ""


def _plan(sd: Any, record: Any, numbers: Sequence[int]) -> None:
    """Everything of `generate` that comes before the first network. Raises ValueError."""
    from sdjax.request import build
    from sdjax.request.arguments.arguments import Arguments

    build.request(sd.spec, Arguments.of(arguments(record, numbers, sd.guidance_scale)))


def main(values: Any) -> None:
    """Takes part until all pictures are there, and writes the manifest. `values` has a flag an attribute."""
    from experiments._record import Record
    from sdjax.core import files

    if not values.out:  # of a shell variable that is not set; Path would take it for the folder one is in
        raise ValueError("--out is empty; name a folder for the pictures")
    lines = _prompts.read(values.prompts_file)
    record = Record(Path(values.out), {name: getattr(values, name) for name in SETTINGS}, list(lines.values()))
    files.check_writable(record.folder)
    name, rank = _claims.whoami(os.environ)
    with _claims.Claims(record.folder, name) as claims:
        record.begin(claims)
        if missing := record.missing():
            sd, devices = opened(values)
            print(f"{name}: {len(missing)} of {len(lines)} pictures are missing; on {devices} devices", flush=True)
            check(sd, record, missing, [f"--prompts_file={values.prompts_file}, line {i}" for i in lines])
            make(sd, record, claims, values.batch * devices, rank)
        record.write_manifest()
    print(f"{len(lines) - len(record.missing())} of {len(lines)} are in {record.folder}", flush=True)


def opened(values: Any) -> tuple[Any, int]:
    """The model, over this process's devices, and how many those are."""
    import sdjax
    from sdjax import parallel
    from sdjax.core.devices import local

    devices = local(values.devices)
    cache = {"on": True, "off": False}.get(values.compilation_cache, values.compilation_cache)
    sd = sdjax.load(values.model, dtype=values.dtype, variant=values.variant, compilation_cache=cache)
    return parallel.spread(sd, devices) if len(devices) > 1 else sd, len(devices)


def make(sd: Any, record: Any, claims: _claims.Claims, size: int, rank: int) -> None:
    """Makes pictures, so many at once, until none is missing, and prints how fast."""
    begun = after = time.perf_counter()
    first = made = 0
    start = _claims.first(rank, len(record.lines)) // size * size
    for batch in batches(record, claims, size, start):
        # A smaller batch would be another program: it is filled up with its last prompt, and those pictures are left.
        full = [min(number, batch[-1]) for number in range(batch[0], batch[0] + size)]
        out = sd.generate(**arguments(record, full, sd.guidance_scale), first_image=batch[0], progress=False)
        made += record.keep(batch, out.images[: len(batch)])
        if not first:
            first, after = made, time.perf_counter()
        print(f"{made} made: {batch[0]:05d} to {batch[-1]:05d}", flush=True)
    now = time.perf_counter()
    rate = f", {(made - first) / (now - after):.2f} a second after the first batch" if made > first else ""
    print(f"{made} pictures made in {now - begun:.1f} s{rate}", flush=True)


def batches(record: Any, claims: _claims.Claims, size: int, start: int) -> Iterator[range]:
    """Neighbours that are this process's to make, up to `size` at once, from `start` on; ends when none is missing."""
    waits = False
    while missing := record.missing():
        batch = claims.take(sorted(missing, key=lambda number: (number < start, number)), size)
        if not batch and not waits:
            print(f"waiting for {len(missing)} pictures that others are making", flush=True)
        waits = not batch
        if waits:
            time.sleep(WAIT)
        elif record.missing(batch):  # else made between the two looks
            yield batch
        claims.release(batch)


if __name__ == "__main__":
    _cli.run(lambda: main(flags.FLAGS), define_flags)
