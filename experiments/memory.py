r"""Peak memory by family, size and batch, read from the compiled programs: by shapes alone, no weight is made.

    python -m experiments.memory --out=memory.json               # 20 minutes on 2 busy cores, 3 GiB
    python -m experiments.memory --rows=vae:2048:1,vae:4096:1    # the autoencoder of Stable Diffusion 1.5 alone

Every program is compiled for the device that this process has, and XLA says what it holds at once: arguments, results
and temporaries. In GiB: the weights of all networks, in the dtype that they compute in; what one evaluation with
guidance, decoding and encoding hold beside the weights; and the peak, all weights and the largest of the rest (the text
encoders' is small, and is held before any of these). On a CPU pictures go through the U-Net one by one, so that a batch
adds little, and 16-bit programs hold float32 copies of what they multiply; on a GPU neither is so.
Expected: Stable Diffusion 1.5 at 512 x 512 in float32 under 5 GiB; decoding 2048 x 2048 in about twice, not four
times, the memory of 1024 x 1024, its large levels being cut into tiles.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli, _programs
from sdjax.core.files import write

ROWS = ["sd15:512:1", "sd15:512:8", "sd15:768:1", "sd21:768:1", "sdxl:1024:1", "vae:1024:1", "vae:2048:1", "vae:4096:1"]
DTYPES = ["float32", "bfloat16"]
PROGRAMS = ("text", "U-Net step", "decode", "encode")
HEAD = f"| family | size | batch | dtype | weights | {' | '.join(PROGRAMS)} | peak |\n|{'---|' * 9}"


def main(values: Any) -> None:
    """Prints a line of the table as soon as it is known, then writes them all."""
    rows = [_programs.check_row(row, [_programs.VAE]) for row in values.rows]
    measured = []
    print(HEAD)
    for family, size, batch in rows:
        for dtype in values.dtypes:
            one = measure(family, size, batch, dtype)
            measured.append({"family": family, "size": size, "batch": batch, "dtype": dtype, **one})
            cells = [f"{one[name] / 2**30:.2f}" if name in one else "" for name in ("weights", *PROGRAMS, "peak")]
            print(f"| {family} | {size} | {batch} | {dtype} | {' | '.join(cells)} |", flush=True)
    if values.out:
        write(json.dumps(measured, indent=1).encode(), Path(values.out), "what was measured")


def measure(family: str, size: int, batch: int, dtype: str) -> dict[str, int]:
    """Bytes, by column."""
    found = {}
    for name, call in _programs.calls(family, size, batch, dtype).items():
        told = call.lower().compile().memory_analysis()
        results = told.output_size_in_bytes - told.alias_size_in_bytes  # the state is written in its own place
        found[name] = _bytes(call.inputs) + results + told.temp_size_in_bytes
    weights = _bytes(_programs.parameters(_programs.networks(family), dtype))
    return {"weights": weights, **found, "peak": weights + max(found.values())}


def _bytes(arrays: Any) -> int:
    import jax

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


if __name__ == "__main__":
    flags.DEFINE_list("rows", ROWS, "Of family:size:batch each.")
    flags.DEFINE_multi_enum("dtypes", DTYPES, DTYPES, "What the networks are held and compute in.")
    flags.DEFINE_string("out", None, "A JSON file.")
    _cli.run(lambda: main(flags.FLAGS))
