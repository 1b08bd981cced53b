"""What a ControlNet costs: a guided U-Net step with one beside it, against diffusers' in the same run.

    python -m experiments.control_cost                       # about 15 minutes on 2 cores, 14 GiB
    python -m experiments.control_cost --peer=False          # without diffusers, 9 GiB

Random weights of Stable Diffusion 1.5's size. Four steps run in turns, and each turn gives ratios: ours with a
ControlNet, ours with one whose scale is 0 in this row (outside its start and end), ours without any, and diffusers'
with one. What is made once a run (the map's features, keys and values of the text) is outside of our step, as it is in
a run; diffusers makes it again at every step.

Expected at 512 x 512 on a CPU: ours / diffusers at most 0.95, and a row that does not want the net costs what a step
without it does.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments import _cli
from sdjax.config.controlnet import config_beside
from sdjax.config.presets import PRESETS

Step = Callable[[], Any]
WIDTHS = [16, 32, 96, 256]  # of the convolutions over the map, in every published ControlNet


def our_steps(unet: dict[str, Any], size: int) -> dict[str, Step]:
    """A guided step of one picture: with a ControlNet, with one that the row does not want, and without."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sdjax.config import UNetConfig
    from sdjax.config.controlnet import ControlNetConfig
    from sdjax.nn.conditioning import Chunks, Conditions, Guide
    from sdjax.nn.shapes import expected_network, expected_params
    from sdjax.runtime import programs
    from sdjax.runtime.control.controlled import Controlled
    from sdjax.runtime.control.networks import network_of
    from sdjax.runtime.denoisers import denoiser_of

    config, own = UNetConfig.from_dict(unet), ControlNetConfig.from_dict(config_beside(unet, WIDTHS))
    rng = np.random.default_rng(0)

    def drawn(leaf: Any) -> Any:
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * 0.02)

    params = jax.tree.map(drawn, expected_params({"unet": config})["unet"])
    net, beside = network_of(own, jnp.float32), jax.tree.map(drawn, expected_network(own))
    side, plain = size // 8, denoiser_of(config, jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, side, side, 4), np.float32))
    text = Chunks({}, rng.standard_normal((2, 1, 77, config.cross_attention_dim), np.float32), np.ones(2, np.int32))
    features = jnp.concatenate([programs.look(net, beside, rng.random((1, 1, size, size, 3), np.float32))] * 2)

    def step(denoiser: Any, tree: Any, guides: tuple[Guide, ...]) -> Step:
        made = programs.precompute_kv(denoiser, tree, Conditions(text))
        texts = [guide.text for guide in made.control]
        control = tuple(Guide(one.features, one.scale, {}, None, keys) for one, keys in zip(guides, texts, strict=True))
        told = Conditions(made.context, control=control)
        rows = denoiser.per_row(tree, jnp.full((1,), 500.0), told)
        row = jax.tree.map(lambda a: jnp.broadcast_to(a[0], (2, *a.shape[2:])), rows)
        return lambda: jax.block_until_ready(programs.predict(denoiser, tree, x, row, told))

    controlled, both = Controlled(plain, (net,)), {"unet": params, "control": (beside,)}
    scales = {name: jnp.full((2, 1, own.outputs), scale) for name, scale in (("with", 1.0), ("skipped", 0.0))}
    steps = {name: step(controlled, both, (Guide(features, scale),)) for name, scale in scales.items()}
    return steps | {"without": step(plain, params, ())}


def their_step(unet: dict[str, Any], size: int) -> Step:
    """The same of diffusers, with a ControlNet."""
    import diffusers
    import torch

    torch.manual_seed(0)
    kept = {name: value for name, value in unet.items() if not name.startswith("_")}
    model: Any = diffusers.UNet2DConditionModel(**kept)
    own = {name: value for name, value in config_beside(unet, WIDTHS).items() if not name.startswith("_")}
    net: Any = diffusers.ControlNetModel(**own)
    model.eval()
    net.eval()
    x, picture = torch.randn(2, 4, size // 8, size // 8), torch.rand(2, 3, size, size)
    text, time_ = torch.randn(2, 77, unet["cross_attention_dim"]), torch.tensor(500)

    @torch.no_grad()
    def step() -> Any:
        down, middle = net(x, time_, text, controlnet_cond=picture, conditioning_scale=1.0, return_dict=False)
        return model(
            x, time_, text, down_block_additional_residuals=down, mid_block_additional_residual=middle,
            return_dict=False,
        )  # fmt: skip

    return step


def main(values: Any) -> None:
    """Prints each step's time as it comes, and the medians of the ratios."""
    unet = dict(PRESETS["sd15"].configs["unet"])
    steps = our_steps(unet, values.size)
    if values.peer:
        steps["diffusers"] = their_step(unet, values.size)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(values.repeats + 1):
        for name, run in steps.items():
            begun = time.perf_counter()
            run()
            if turn:  # the first compiles
                times[name].append(time.perf_counter() - begun)
                print(f"{name}: {times[name][-1]:.2f} s", flush=True)
    pairs = [("with", "without"), ("skipped", "without")] + ([("with", "diffusers")] if values.peer else [])
    for one, other in pairs:
        ratios = sorted(a / b for a, b in zip(times[one], times[other], strict=True))
        print(f"{one} / {other} = {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    flags.DEFINE_integer("size", 512, "Pixels of a side.", lower_bound=64)
    flags.DEFINE_integer("repeats", 5, "Turns.", lower_bound=1)
    flags.DEFINE_boolean("peer", True, "Whether diffusers runs too.")
    _cli.run(lambda: main(flags.FLAGS))
