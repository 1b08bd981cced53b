"""What `tests/test_parallel.py` asserts, on 8 simulated devices; the flag for them must be set before JAX starts.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.parallel_checks checkpoint xl_checkpoint

prints one JSON object, {name: what was found}. Differences are the largest between latents on one device and on many,
by the largest latent where that is above 1.
"""

import inspect
import json
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from PIL import Image

import sdjax
from sdjax import parallel
from sdjax.runtime import programs, spread
from tests import control_nets
from tests.adapters import whole_lora, written
from tests.image_prompts import write_image_prompt

PROMPTS = ["a red circle", "a blue square", "a large green circle", "an above", "a small red square below a circle"]
QUICK = dict(steps=5, progress=False, negative_prompt="green")
LANES = dict(
    sampler=["euler", "dpmpp_2m", "euler_ancestral", "heun", "ddim"],
    steps=[3, 5, 4, 2, 6],
    guidance_scale=[1.5, 2.0, 3.0, 7.5, 5.0],
)


def painted(left: int) -> Image.Image:
    mask = Image.new("L", (16, 16))
    mask.paste(255, (left, 0, 16, 16))
    return mask


def apart(one, many) -> float:
    return float(np.abs(one - many).max() / max(1.0, np.abs(one).max()))


class Guarded(spread.Spread):
    """A run in which nothing may move between host and devices, or between devices, but what is placed."""

    def run(self, program, *arguments):
        with jax.transfer_guard("disallow") if program is programs.run_rows else nullcontext():
            return super().run(program, *arguments)


class Checks:
    """Each method without an underscore is a check of its own, in order."""

    def __init__(self, folder: str, xl_folder: str) -> None:
        self._xl_folder = xl_folder
        self._unet = json.loads((Path(folder) / "unet/config.json").read_text())
        self._sd = sdjax.load(folder, compilation_cache=False)
        self._many = parallel.spread(self._sd)
        self._one = self._sd.generate(PROMPTS, **QUICK)

    def _both(self, **given):
        asked = {**QUICK, **given}
        return self._sd.generate(PROMPTS, **asked), self._many.generate(PROMPTS, **asked)

    def five_pictures(self):
        made = self._many.generate(PROMPTS, **QUICK)
        grey = np.abs(made.pixels.astype(int) - self._one.pixels).max()
        return apart(self._one.latents, made.latents), int(grey), len(made.images)

    def one_picture(self):
        return apart(self._one.latents[:1], self._many.generate(PROMPTS[:1], **QUICK).latents)

    def lanes(self):
        """Two pictures a device, each on a plan of its own: whole ones, and in halves."""
        asked = {**QUICK, **LANES}
        alone = self._sd.generate(PROMPTS, **asked).latents
        for halves in (False, True):
            many = parallel.spread(self._sd, 6 if halves else 3, halves=halves)
            yield apart(alone, many.generate(PROMPTS, **asked).latents)

    def from_pictures(self):
        rng = np.random.default_rng(0)
        images = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in PROMPTS]
        masks = [painted(left) for left in (2, 4, 6, 8, 10)]
        one, many = self._both(image=images, mask=masks, strength=0.7)
        return apart(one.latents, many.latents)

    def regions(self):
        one, many = self._both(regions=[("a blue square", painted(8))])
        return apart(one.latents, many.latents)

    def worn(self):
        """Each picture its own adapters: on five devices, in halves, and cut over four."""
        lora = whole_lora(self._sd.params, 4, convolutions=True)
        with tempfile.TemporaryDirectory() as folder:
            adapter = sdjax.load_adapter(written(Path(folder) / "style.safetensors", lora))
            asked = {**QUICK, "adapters": [(adapter, [0.8, 0.0, 1.0, -0.5, 0.3])]}
            alone = self._sd.generate(PROMPTS, **asked).latents
            yield 1e-9 if apart(alone, self._one.latents) > 1e-3 else 1.0
            pairs, cut = parallel.spread(self._sd, 4, halves=True), parallel.shard(self._sd, 4)
            for other in (self._many, pairs, cut):
                yield apart(alone, other.generate(PROMPTS, **asked).latents)

    def steered(self):
        """Each picture by its own map and picture: on five devices, in halves, and cut over four."""
        rng = np.random.default_rng(1)
        maps = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in PROMPTS]
        with tempfile.TemporaryDirectory() as name:
            config = control_nets.controlnet_config(self._unet, self._sd.vae.factor)
            net = sdjax.load_controlnet(control_nets.write_net(Path(name) / "net", config))
            ip = sdjax.load_image_prompt(write_image_prompt(Path(name) / "ip", self._sd.params["unet"]))
            asked = {**QUICK, "control": [sdjax.Control(net, maps, [0.5, 0.0, 1.0, -0.5, 0.3], end=[1, 1, 0.5, 1, 1])]}
            asked |= {"image_prompt": [(ip, maps, [0.5, 0.3, 0.0, 1.0, 0.7])]}
            alone = self._sd.generate(PROMPTS, **asked).latents
            yield 1e-9 if apart(alone, self._one.latents) > 1e-3 else 1.0
            pairs, cut = parallel.spread(self._sd, 4, halves=True), parallel.shard(self._sd, 4)
            for other in (self._many, pairs, cut):
                yield apart(alone, other.generate(PROMPTS, **asked).latents)

    def noise_of_torch(self):
        one, many = self._both(noise_source="torch_cpu", sampler="euler_ancestral")
        return apart(one.latents, many.latents)

    def steps_and_a_stop(self):
        seen = []
        asked = dict(show_steps=True, sampler="euler_ancestral", callback=lambda step: seen.append(step.number) or True)
        one, many = self._both(**asked, stop_after=3)
        shown = max(apart(a.denoised, b.denoised) for a, b in zip(one.steps, many.steps, strict=True))
        return apart(one.latents, many.latents), shown, len(many.steps), seen

    def refined(self):
        asked = {**QUICK, "refiner_start": 0.5}
        alone = self._sd.generate(PROMPTS, **asked, refiner=self._sd).latents
        return apart(alone, self._many.generate(PROMPTS, **asked, refiner=self._many).latents)

    def added_conditions_without_guidance(self):
        sd = sdjax.load(self._xl_folder, compilation_cache=False)
        asked = dict(QUICK, crop=[(i, 2 * i) for i in range(5)], guidance_scale=1.0)
        return apart(sd.generate(PROMPTS, **asked).latents, parallel.spread(sd).generate(PROMPTS, **asked).latents)

    def parts_alone(self):
        x, context = self._one.latents, self._sd.encode_prompt(PROMPTS)
        predicted = apart(self._sd.predict(x, 500, context), self._many.predict(x, 500, context))
        key = jax.random.key(0)
        pixels = np.asarray(self._sd.decode(x))
        return predicted, apart(self._sd.encode(pixels, key), self._many.encode(pixels, key))

    def compilations(self):
        """Programs compiled when everything but the sizes changes."""
        compiled = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
        )
        jax.jit(lambda x: x * 3 + 1)(2.0)  # the count counts
        counted = len(compiled)
        self._many.generate(PROMPTS, "a red circle", steps=9, sampler="unipc", seed=5, guidance_scale=4, progress=False)
        self._many.generate(PROMPTS[::-1], None, steps=17, sampler="ddpm", schedule="trailing", progress=False)
        return counted, len(compiled) - counted

    def transfers(self):
        """Inside the loop: none; and the guard sees parameters that are not on the devices."""
        many = replace(self._many.networks, executor=Guarded(self._many.networks.executor.devices))
        apart_by = apart(self._one.latents, replace(self._many, networks=many).generate(PROMPTS, **QUICK).latents)
        elsewhere = replace(self._many, networks=replace(many, params=self._sd.networks.params))
        return apart_by, self._message(elsewhere.generate, PROMPTS, **QUICK)

    def copies(self):
        """One buffer a device, that of the first the checkpoint's own."""
        mine = jax.tree.leaves(self._many.networks.params["unet"])
        first = [leaf.addressable_data(0).unsafe_buffer_pointer() for leaf in mine]
        own = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(self._sd.networks.params["unet"])]
        return len(mine[0].addressable_shards), first == own

    def sharded(self):
        big = parallel.shard(self._sd, 4)
        held = sum(leaf.addressable_data(0).size for leaf in jax.tree.leaves(big.networks.params["unet"]))
        whole = sum(leaf.size for leaf in jax.tree.leaves(big.networks.params["unet"]))
        return apart(self._one.latents, big.generate(PROMPTS, **QUICK).latents), held / whole

    def messages(self):
        pair = parallel.spread(self._sd, 2, halves=True)
        said = {
            "too_few": self._message(parallel.spread, self._sd, 9),
            "none": self._message(parallel.shard, self._sd, 0),
            "odd": self._message(parallel.spread, self._sd, 3, halves=True),
            "no_guidance": self._message(pair.generate, PROMPTS[:1], **QUICK, guidance_scale=1.0),
            "parts": self._message(pair.generate, PROMPTS[:1], **QUICK, regions=[("a circle", painted(8))]),
        }
        for cut in (False, True):
            small = tuple(SimpleNamespace(memory_stats=lambda: {"bytes_limit": 10_000}) for _ in range(2))
            said[f"memory_{cut}"] = self._message(parallel.check_memory, self._sd, small, cut=cut)
        return said

    def _message(self, call, *arguments, **given) -> str:
        try:
            call(*arguments, **given)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""


def main() -> None:
    checks, found = Checks(*sys.argv[1:]), {}
    for name in [name for name in vars(Checks) if not name.startswith("_")]:
        begun = time.process_time()
        try:
            value = getattr(checks, name)()
            found[name] = list(value) if inspect.isgenerator(value) else value
        except Exception:
            found[name] = traceback.format_exc()
        print(f"{name}: {found[name]}, {time.process_time() - begun:.1f} s of CPU time", file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
