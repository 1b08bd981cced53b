"""Many devices: a batch spread over them, a picture's two halves, or parameters too large for one.

    sd8 = parallel.spread(sd)                            each device its share of the pictures
    sd2 = parallel.spread(sd, devices=2, halves=True)    each picture's guided half on one, its unguided on another
    big = parallel.shard(sd, devices=4)                  every device its share of the channels

All three are a `StableDiffusion` like any other: the same checkpoint, whose networks run elsewhere. `spread` puts a
copy of the U-Net and the VAE on every device, once. Data stays where it is computed with from the run's first step to
its last: no step moves a number between host and devices, and none between devices but for `halves`, where two of them
exchange their answers, one latent `b h w c` a step. Text encoders and what estimates depth run on the first device
alone; see `runtime.spread`.

`shard` cuts every parameter along its output channels and leaves it to XLA what has to be exchanged for that, at every
layer; it pays only where the parameters do not fit otherwise.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from sdjax.core.devices import Devices, local
from sdjax.pipeline import StableDiffusion
from sdjax.runtime.executor import Sharded
from sdjax.runtime.spread import Spread

COPIED = ("unet", "vae")  # what runs on every device; the others run once a text, or once a picture


def spread(
    sd: StableDiffusion, devices: int | Sequence[jax.Device] | None = None, *, halves: bool = False
) -> StableDiffusion:
    """`sd` on several of this process's devices: the first so many, these, or all.

    halves: two devices for each picture, one for either half of its guidance.

    Raises ValueError where there are fewer devices, an odd number for halves, or the parameters do not fit on one.
    """
    chosen = local(devices)
    if halves and len(chosen) % 2:
        raise ValueError(f"halves=True takes devices in pairs, and there are {len(chosen)}; name an even number")
    check_memory(sd, chosen, cut=False)
    networks = sd.networks
    executor = Spread(chosen, halves)
    params = {**networks.params, **{name: executor.place(networks.params[name]) for name in COPIED}}
    return replace(sd, networks=replace(networks, params=params, executor=executor))


def shard(sd: StableDiffusion, devices: int | Sequence[jax.Device] | None = None) -> StableDiffusion:
    """`sd` with its parameters cut over devices, along the output channels where these divide by their number.

    One that is too large for a device is loaded `with jax.default_device(jax.devices("cpu")[0])` and cut from there.

    Raises ValueError where there are fewer devices, or the parameters do not fit even so.
    """
    chosen = local(devices)
    check_memory(sd, chosen, cut=True)
    executor = Sharded(chosen)
    return replace(sd, networks=replace(sd.networks, params=executor.place(sd.networks.params), executor=executor))


def check_memory(sd: StableDiffusion, devices: Devices, *, cut: bool) -> None:
    """Raises ValueError, with what would fit, where a device cannot hold the parameters. A CPU does not say."""
    limits = [stats["bytes_limit"] for one in devices if (stats := one.memory_stats()) and "bytes_limit" in stats]
    if not limits:
        return
    limit, itemsize = min(limits), np.dtype(sd.dtype).itemsize
    leaves = jax.tree.leaves(sd.networks.params)
    needs = {size: sum(leaf.size * size for leaf in leaves) for size in (itemsize, 2)}
    mine = needs[itemsize] / (len(devices) if cut else 1)
    if mine <= limit:
        return
    would = [f"dtype='bfloat16' takes {_gib(needs[2])}"] if itemsize > 2 and needs[2] <= limit else []
    would.append(f"parallel.shard cuts them over {-(-needs[itemsize] // limit)} devices or more")
    raise ValueError(
        f"{sd.name}: its parameters take {_gib(mine)} of each device, which has {_gib(limit)}; {'; '.join(would)}"
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
