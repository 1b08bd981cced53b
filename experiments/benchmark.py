"""sdjax against diffusers on this machine: ratios of time, taken in turns in one run.

    python -m experiments.benchmark            # SD 1.5 at 512 x 512, about 4 minutes on 2 cores
    python -m experiments.benchmark --family=sd21 --size=768 --rows=unet_step --out=sd21.json

Each side runs in a process of its own, so that its peak memory is its own, and waits for its turn, so that only one
computes at a time: ours, theirs, ours, theirs ... The ratio is median over median. diffusers runs as it comes
(PyTorch eager, float32) in both of torch's memory layouts, and the faster one counts. On a GPU: bfloat16, and
torch.compile in its slowest-to-compile mode. Weights are random, of the published shapes; nothing is loaded.

Rows: `unet_step`, one sampling step with guidance, the network on 2 x batch latents; `vae_decode`; `text_encoder`,
2 x batch prompts. `first` is the first call, with our compilation (cold: no cache) or theirs; `peak` the process.
Expected on 2 idle cores of an AMD EPYC (Zen 5): unet_step 5.5 s against 8.0, ratio 0.68; peak 4.6 GiB against 4.2.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import _cli
from sdjax.presets import PRESETS

ROWS = ("unet_step", "vae_decode", "text_encoder")
LAYOUTS = ("contiguous_format", "channels_last")  # torch's names
FAMILIES = ("sd15", "sd21", "sdxl")
Call = Callable[[], Any]


def define_flags() -> None:
    flags.DEFINE_enum("family", "sd15", FAMILIES, "Which published configs.")
    flags.DEFINE_integer("size", None, "Height and width in pixels; default: the family's own.", lower_bound=8)
    flags.DEFINE_integer("batch", 1, "Pictures at once.", lower_bound=1)
    flags.DEFINE_list("rows", ["unet_step"], f"Which of {', '.join(ROWS)}.")
    flags.DEFINE_integer("repeats", 5, "Timed calls of each side.", lower_bound=1)
    flags.DEFINE_string("out", None, "A JSON file for the table.")
    flags.DEFINE_string("worker", None, "Used by the program itself: sdjax or a memory layout of torch.")


def pooled_and_ids(family: str, size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """What SDXL's U-Net also takes for both halves, float32 `b d` and `b 6`; empty for the others."""
    if family != "sdxl":
        return np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
    pooled = np.random.default_rng(1).standard_normal((2 * batch, 1280), np.float32)
    return pooled, np.tile(np.array([size, size, 0, 0, size, size], np.float32), (2 * batch, 1))


# ---------------------------------------------------------------------- ours


def ours(row: str, family: str, size: int, batch: int) -> Call:
    """A call that computes `row` once with sdjax and waits for it."""
    import jax
    import jax.numpy as jnp

    from sdjax import config, programs
    from sdjax.diffusion.guidance import Guidance
    from sdjax.diffusion.held import Held
    from sdjax.diffusion.plan import plan
    from sdjax.nn.unet import Added, Conditions

    configs = PRESETS[family].configs
    text, unet = config.ClipTextConfig.from_dict(configs["text_encoder"]), config.UNetConfig.from_dict(configs["unet"])
    vae = config.VaeConfig.from_dict(configs["vae"])
    networks: dict[str, programs.Config] = {"text_encoder": text, "unet": unet, "vae": vae}
    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    rng = np.random.default_rng(0)

    def weights(shape: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = max(1, int(np.prod(shape.shape[:-1])))
        return jnp.asarray(rng.standard_normal(shape.shape, np.float32) * fan_in**-0.5, dtype)

    part = {"unet_step": "unet", "vae_decode": "vae"}.get(row, row)
    params = jax.tree.map(weights, programs.expected_params({part: networks[part]})[part])
    latents = jnp.asarray(rng.standard_normal((batch, size // 8, size // 8, 4), np.float32))
    if row == "text_encoder":
        prompts = jnp.asarray(rng.integers(0, text.vocab_size, (2 * batch, 77)), jnp.int32)
        encode = partial(programs.encode_text, text, dtype, True, params, depth=jnp.asarray(1))
        return lambda: jax.block_until_ready([encode(ids) for ids in prompts])
    if row == "vae_decode":
        return lambda: programs.decode(vae, dtype, params, latents).block_until_ready()
    states = jnp.asarray(rng.standard_normal((2 * batch, 1, 77, unet.cross_attention_dim), np.float32))
    context = programs.hoist(dtype, params, states, jnp.ones(2 * batch, jnp.int32))
    pooled, ids = pooled_and_ids(family, size, batch)
    told = Conditions(context, Added(jnp.asarray(pooled), jnp.asarray(ids)) if len(pooled) else None)
    table = plan("dpmpp_2m", 50, PRESETS[family].scheduler).table()
    held, shares = Held.nothing(latents), np.array([[0.0], [1.0]], np.float32).repeat(batch, 1)
    rows, guidance = table.rows(0, 1), Guidance(jnp.full((1, batch), 7.5), jnp.zeros((1, batch)))

    def step() -> Any:
        # Every call is the first row of a run: the state is donated, so each has one of its own.
        carry = programs.begin(latents, held, shares, table, jax.random.split(jax.random.key(0), batch), None)
        return programs.advance(unet, dtype, carry, rows, params, told, guidance, held).x.block_until_ready()

    return step


# ---------------------------------------------------------------------- theirs


def theirs(row: str, family: str, size: int, batch: int, layout: str) -> Call:
    """A call that computes `row` once with diffusers in a memory layout of torch, and waits for it."""
    import diffusers
    import torch
    import transformers

    torch.set_grad_enabled(False)
    configs, cuda = PRESETS[family].configs, torch.cuda.is_available()
    where: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16} if cuda else {"dtype": torch.float32}

    def ready(module: Any) -> Any:
        module = module.eval().to(**where).to(memory_format=getattr(torch, layout))
        return torch.compile(module, mode="max-autotune", fullgraph=True) if cuda else module

    def finished(output: Any) -> Any:
        if cuda:
            torch.cuda.synchronize()
        return output

    if row == "text_encoder":
        text = ready(transformers.CLIPTextModel(transformers.CLIPTextConfig(**configs["text_encoder"])))
        ids = torch.randint(0, configs["text_encoder"]["vocab_size"], (2 * batch, 77), device=where.get("device"))
        return lambda: finished(text(ids).last_hidden_state)
    latents = torch.randn(batch, 4, size // 8, size // 8, **where)
    if row == "vae_decode":
        vae = diffusers.AutoencoderKL.from_config(configs["vae"])
        del vae.encoder
        vae.decoder = ready(vae.decoder)
        vae.post_quant_conv.to(**where)
        return lambda: finished(vae.decode(latents / vae.config.scaling_factor).sample)
    unet = ready(diffusers.UNet2DConditionModel.from_config(configs["unet"]))
    context = torch.randn(2 * batch, 77, configs["unet"]["cross_attention_dim"], **where)
    pooled, ids = (torch.from_numpy(one).to(**where) for one in pooled_and_ids(family, size, batch))
    more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}} if len(pooled) else {}

    def step() -> Any:
        scheduler = diffusers.DPMSolverMultistepScheduler.from_config(dict(PRESETS[family].scheduler))
        scheduler.set_timesteps(50)
        t = scheduler.timesteps[0]
        uncond, cond = unet(torch.cat([latents] * 2), t, encoder_hidden_states=context, **more).sample.chunk(2)
        return finished(scheduler.step(uncond + 7.5 * (cond - uncond), t, latents).prev_sample)

    return step


# ---------------------------------------------------------------------- taking turns


def work(values: Any) -> None:
    """A worker: one timed call for each line read, seconds out; the peak memory in bytes at the end of the input."""
    asked = (values.rows[0], values.family, values.size, values.batch)
    call = ours(*asked) if values.worker == "sdjax" else theirs(*asked, layout=values.worker)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        call()
        print(time.perf_counter() - start, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


class Worker:
    """One side in a process of its own."""

    def __init__(self, name: str, row: str, values: Any):
        command = [sys.executable, "-m", "experiments.benchmark", f"--worker={name}", f"--rows={row}"]
        command += [f"--{flag}={values[flag].value}" for flag in ("family", "size", "batch")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def _read(self) -> str:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"a worker stopped: {' '.join(map(str, self.process.args))}")  # type: ignore[arg-type]
        return line

    def time(self) -> float:
        """Seconds of one call."""
        print("go", file=self.process.stdin, flush=True)
        return float(self._read())

    def peak(self) -> float:
        """Bytes; the worker ends."""
        self.process.stdin.close()  # type: ignore[union-attr]
        return float(self._read())


def measure(row: str, values: Any) -> dict[str, Any]:
    """The table's entry for `row`."""
    workers = {name: Worker(name, row, values) for name in ("sdjax", *LAYOUTS)}
    first = {name: worker.time() for name, worker in workers.items()}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(values.repeats):
        for name, worker in workers.items():
            times[name].append(worker.time())
    median = {name: statistics.median(taken) for name, taken in times.items()}
    peak = {name: worker.peak() / 2**30 for name, worker in workers.items()}
    best = min(LAYOUTS, key=median.__getitem__)
    return {"ratio": median["sdjax"] / median[best], "layout": best, "median": median, "first": first, "peak": peak}


def main(values: Any) -> None:
    if values.size is None:
        values.size = 8 * PRESETS[values.family].configs["unet"]["sample_size"]
    if values.size % 8:
        raise ValueError(f"--size must be a multiple of 8, not {values.size}")
    unknown = sorted(set(values.rows) - set(ROWS))
    if unknown:
        raise ValueError(f"--rows: {unknown[0]!r} is unknown; known: {', '.join(ROWS)}")
    if values.worker:
        return work(values)
    table = {}
    for row in values.rows:
        table[row] = found = measure(row, values)
        best = found["layout"]
        print(
            f"{row}, {values.family}, {values.size} x {values.size}, batch {values.batch}: ratio {found['ratio']:.3f}"
        )
        for name in ("sdjax", best):
            figures = (found["median"][name], found["first"][name], found["peak"][name])
            print("  {:<17} {:8.3f} s   first {:7.2f} s   peak {:5.2f} GiB".format(name, *figures), flush=True)
    if values.out:
        Path(values.out).write_text(json.dumps({"device": device(), **table}, indent=2) + "\n")


def device() -> str:
    """What this ran on, in words."""
    import jax

    return f"{jax.devices()[0].device_kind}, jax {jax.__version__}"


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
