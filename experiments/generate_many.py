r"""Thousands of prompts, over all devices and hosts.

    python -m experiments.generate_many --prompts_file=prompts.txt --out=pictures

The file has a prompt a line; empty lines are left out. One named *.jsonl has an object a line, {"prompt": ..} and, if
it likes, arguments of its own: negative_prompt, sampler, steps, schedule, guidance_scale. Picture i, from 0, is number
i of the seed and lies in --out under its number, so that a run that was killed goes on when the command is given again:
what is there is not made twice, and what it makes is what the first run would have made. --out then also holds
manifest.jsonl, an object a picture: index, prompt, file, settings. A folder that was begun with other settings is left
alone, and the difference named.

On two hosts, one command each; --process_index=1 on the second. Both write into --out, one folder or one on each host:

    python -m experiments.generate_many --prompts_file=prompts.txt --out=/shared/pictures \
        --coordinator=10.0.0.1:1234 --processes=2 --process_index=0

If a process dies, the others make their share, say whose is missing and end with status 2; the same commands make the
rest. --devices is for each process; XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates eight on a CPU.

Run time: that of the pictures; the first batch compiles. Expected: a line a batch, and at the end as
"20 pictures made in 8.1 s, 2.9 a second after the first batch; 20 of 20 are in pictures".
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli

# Flags that say which pictures are made; the others say how.
SETTINGS = (
    "model", "variant", "dtype", "negative_prompt", "steps", "sampler", "schedule", "guidance_scale", "seed",
    "height", "width",
)  # fmt: skip
OPENING = ("model", "variant", "dtype")
OWN = ("negative_prompt", "sampler", "steps", "schedule", "guidance_scale")  # what a line may say for itself


def define_flags() -> None:
    """Called for the program only: who imports this file may name flags of their own as they like."""
    flags.DEFINE_string("prompts_file", None, "A prompt a line, or *.jsonl.", required=True)
    flags.DEFINE_string("out", None, "Folder for the pictures, new or begun.", required=True)
    flags.DEFINE_string("model", None, "A folder, a file, a Hub id; default: the shapes model.")
    flags.DEFINE_string("variant", None, "Which weights where there are several files, as fp16.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "What the networks compute in.")
    flags.DEFINE_string("negative_prompt", None, "What to steer away from.")
    flags.DEFINE_integer("steps", 20, "Steps of the sampler.", lower_bound=1)
    flags.DEFINE_string("sampler", "dpmpp_2m", "By name: ddim, pndm, euler, dpmpp_2m ...")
    flags.DEFINE_string("schedule", None, "By name: leading, trailing, karras ...; default: the model's own.")
    flags.DEFINE_float("guidance_scale", None, "Pull of the prompt, 1 for none; default: the model's own.")
    flags.DEFINE_integer("seed", 0, "Picture i is the i-th of this seed.", lower_bound=0)
    flags.DEFINE_integer("height", None, "Pixels; default: the model's own.", lower_bound=1)
    flags.DEFINE_integer("width", None, "Pixels; default: the model's own.", lower_bound=1)
    flags.DEFINE_integer("batch", 4, "Pictures on each device at once.", lower_bound=1)
    flags.DEFINE_integer("devices", None, "Of this process; default: all.", lower_bound=1)
    flags.DEFINE_string("coordinator", None, "host:port of process 0, where there are several processes.")
    flags.DEFINE_integer("processes", 1, "How many there are.", lower_bound=1)
    flags.DEFINE_integer("process_index", 0, "Which of them this is, from 0.", lower_bound=0)
    flags.DEFINE_float("join_timeout", 300.0, "Seconds for all processes to come.", lower_bound=1.0)
    flags.DEFINE_string("compilation_cache", "on", "on (in the user's cache folder), off, or a folder.")


def read_lines(path: str) -> list[dict[str, Any]]:
    """What is asked of each picture. Raises ValueError naming the line, OSError."""
    try:
        text = Path(path).read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"--prompts_file={path} is no UTF-8 text") from None
    except OSError as error:
        raise OSError(f"--prompts_file={path} cannot be read ({error.strerror})") from None
    numbered = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not numbered:
        raise ValueError(f"--prompts_file={path} holds no prompt; write one a line")
    if not path.endswith(".jsonl"):
        return [{"prompt": line} for _, line in numbered]
    return [_object(line, f"--prompts_file={path}, line {i}") for i, line in numbered]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise ValueError(f'{where}: write an object with a prompt, as {{"prompt": "a red circle", "steps": 30}}')
    unknown = sorted(found.keys() - {"prompt", *OWN})
    if unknown:
        raise ValueError(f"{where}: {unknown[0]!r} is no argument of its own that a line can have: {', '.join(OWN)}")
    return found


def batches(missing: Sequence[int], size: int) -> Iterator[range]:
    """Neighbours among the missing numbers, up to `size` at once."""
    begin = 0
    for i, number in enumerate(missing):
        if i + 1 == len(missing) or missing[i + 1] != number + 1 or i + 1 - begin == size:
            yield range(missing[begin], number + 1)
            begin = i + 1


def arguments(record: Any, numbers: Sequence[int]) -> dict[str, Any]:
    """What `generate` is given for these pictures: a list where any line of the file speaks for itself."""
    lines = [record.lines[number] for number in numbers]
    made: dict[str, Any] = {name: record.settings[name] for name in SETTINGS if name not in OPENING}
    if any(line.keys() != {"prompt"} for line in record.lines):
        made |= {name: [line.get(name, made[name]) for line in lines] for name in OWN}
    return made | {"prompt": [line["prompt"] for line in lines]}


def main(values: Any) -> None:
    """Meets the other processes, makes this one's share, writes the manifest. `values` has a flag an attribute."""
    lines = read_lines(values.prompts_file)
    import sdjax  # takes seconds with JAX behind it, which a wrong flag should not cost
    from experiments._record import Record
    from sdjax import hosts, parallel

    record = Record(Path(values.out), {name: getattr(values, name) for name in SETTINGS}, lines)
    record.begin()
    if values.process_index == 0:
        record.sweep()
    met = hosts.join(values.coordinator, values.processes, values.process_index, values.join_timeout)
    devices = parallel.local(values.devices)
    cache = {"on": True, "off": False}.get(values.compilation_cache, values.compilation_cache)
    sd = sdjax.load(values.model, dtype=values.dtype, variant=values.variant, compilation_cache=cache)
    sd = parallel.spread(sd, devices) if len(devices) > 1 else sd
    make_share(sd, record, record.missing(met.share(len(lines))), values.batch * len(devices))
    lost = met.finish()
    record.write_manifest()
    missing = len(record.missing(range(len(lines))))
    print(f"{len(lines) - missing} of {len(lines)} are in {record.folder}", flush=True)
    if lost:
        who = ", ".join(map(str, lost))
        raise ConnectionError(
            f"process {who} ended before its pictures were made; give the same commands again for the {missing} missing"
        )


def make_share(sd: Any, record: Any, numbers: Sequence[int], size: int) -> None:
    """Makes the pictures of these numbers, so many at once, and prints how fast."""
    begun = after = time.perf_counter()
    first = made = 0
    for batch in batches(numbers, size):
        # A smaller batch would be another program: it is filled up with its last prompt, and those pictures are left.
        full = [min(number, batch[-1]) for number in range(batch[0], batch[0] + size)]
        out = sd.generate(**arguments(record, full), first_image=batch[0], progress=False)
        for number, image in zip(batch, out.images, strict=False):
            record.keep(number, image)
        made += len(batch)
        if not first:
            first, after = made, time.perf_counter()
        print(f"{made} of {len(numbers)}: {batch[0]:05d} to {batch[-1]:05d}", flush=True)
    now = time.perf_counter()
    rate = f", {(made - first) / (now - after):.2f} a second after the first batch" if made > first else ""
    print(f"{made} pictures made in {now - begun:.1f} s{rate}", flush=True)


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
