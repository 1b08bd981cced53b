"""Whether the code still makes the same pictures: latents, pixels, settings and messages of many calls, written down.

    python -m experiments.same_bits --out=/tmp/before.npz
    ... change the code ...
    python -m experiments.same_bits --out=/tmp/after.npz --against=/tmp/before.npz    # exit status 1 where they differ

A change that is to change nothing is proved by this on one machine: every array must be equal to the last bit. The
calls go through the models that come with sdjax, and every checkpoint in a folder of --models (of any family;
`tests/parity/families.py` makes small ones). --devices=8 simulates as many and runs the calls of `parallel`.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from experiments import _cli

Arrays = dict[str, np.ndarray]
RED, BLUE = "a red circle", "a blue square"
CLOSE = 1e-6  # of the largest value: what may be called rounding


def define_flags() -> None:
    flags.DEFINE_string("out", None, "The .npz that is written.", required=True)
    flags.DEFINE_string("against", None, "An .npz that an earlier run wrote, to be compared with.")
    flags.DEFINE_string("models", None, "A folder of checkpoints, one in each folder within.")
    flags.DEFINE_integer("devices", 1, "Devices to simulate; with more than one, the calls of `parallel`.")
    flags.DEFINE_string("only", "", "A pattern that the names of calls must match.")


# ---------------------------------------------------------------------- the calls


def picture(size: tuple[int, int]) -> np.ndarray:
    """A smooth picture of several colours, uint8 `H W 3`."""
    small = np.random.default_rng(5).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def spot(size: tuple[int, int]) -> np.ndarray:
    """A mask with a soft edge, uint8 `H W`."""
    mask = np.zeros(size, np.uint8)
    mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 255
    mask[size[0] // 2, size[1] // 4 : size[1] // 2] = 128
    return mask


def text_calls(size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Of a model that makes pictures of a text."""
    two = [RED, BLUE]
    left = np.zeros(size, np.uint8)
    left[:, : size[1] // 2] = 255
    return {
        **{
            f"sampler-{name}": dict(prompt=two, sampler=name, steps=5)
            for name in ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_sde", "ddpm", "heun", "unipc", "lms", "restart")
        },
        "unguided": dict(prompt=two, guidance_scale=1.0, steps=4),
        "lanes": dict(prompt=two, sampler=["euler_ancestral", "heun"], steps=[4, 6], guidance_scale=[1.0, 6.0]),
        "and": dict(prompt=[f"{RED} AND {BLUE} :0.5", BLUE], prompt_style="a1111", steps=4),
        "edits": dict(prompt="a [red:blue:0.5] (circle:1.3)", prompt_style="a1111", steps=6, sampler="heun"),
        "long": dict(prompt=" ".join([RED] * 12), prompt_style="comfy", steps=3),
        "regions": dict(prompt=RED, regions=[(BLUE, Image.fromarray(left))], steps=4),
        "interval": dict(prompt=two, guidance_schedule=["interval:0.2:0.6", "cosine"], guidance_rescale=0.5, steps=6),
        "interval-both": dict(prompt=two, guidance_schedule="interval:0.3:0.7", steps=6, sampler="euler"),
        "steps-shown": dict(prompt=two, show_steps=3, steps=5),
        "stopped": dict(prompt=two, stop_after=3, steps=6, sampler="dpmpp_2m"),
        "torch-noise": dict(prompt=two, noise_source="torch_cpu", sampler="euler_ancestral", steps=3),
        "karras": dict(prompt=RED, schedule="karras", preset="a1111", steps=5, num_images=2, first_image=3),
        "part": dict(prompt=RED, denoising_end=0.6, steps=6, decode=False),
        "negative": dict(prompt=two, negative_prompt=[BLUE, RED], clip_skip="diffusers:1", steps=3, seed=[7, 9]),
        "image": dict(prompt=two, image=picture(size), strength=[0.5, 1.0], steps=6),
        "mask": dict(prompt=two, image=picture(size), mask=spot(size), mask_blur=1, steps=4, sampler="dpmpp_sde"),
        "mask-crop": dict(prompt=RED, image=picture(size), mask=spot(size), mask_crop=4, steps=4, **_sides(size)),
    }


def _sides(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def calls(sd: Any, few: bool) -> dict[str, dict[str, Any]]:
    """What this model is asked for, by name; `few` leaves out most of what needs a text-to-image model."""
    side = sd.unet.sample_size * sd.vae.factor
    size, extra = (side, side), sd.unet.in_channels - sd.vae.latent_channels
    if not sd.encoders:
        return {"vary": dict(image=picture(size), steps=4)}
    if extra == 3:
        small = picture((sd.unet.sample_size, sd.unet.sample_size))
        return {"enlarge": dict(prompt=[RED, BLUE], image=small, noise_level=30, steps=4)}
    if extra == sd.vae.latent_channels:
        change = dict(prompt=[RED, BLUE], image=picture(size), image_guidance_scale=[1.2, 2.0], steps=4)
        return {"change": change, "change-unguided": change | {"guidance_scale": 1.0}}
    if extra == 1:
        given = np.linspace(0, 1, side * side, dtype=np.float32).reshape(side, side)
        told: dict[str, dict[str, Any]] = {"depth-given": dict(prompt=RED, depth=given, steps=4)}
        estimated = dict(prompt=[RED, BLUE], image=picture(size), steps=4)
        return told | ({"depth": estimated} if sd.depth_estimator else {})
    if extra:
        return {
            "inpaint": dict(prompt=[RED, BLUE], image=picture(size), mask=spot(size), steps=4),
            "inpaint-from": dict(prompt=RED, image=picture(size), mask=spot(size), strength=0.6, steps=5),
        }
    if sd.time_ids == 5:
        latents = np.random.default_rng(3).standard_normal((1, side // sd.vae.factor, side // sd.vae.factor, 4))
        start = latents.astype(np.float32)
        return {"refine": dict(prompt=RED, steps=6, latents=start, denoising_start=0.5, aesthetic_score=7.0)}
    chosen = text_calls(size)
    if few:
        chosen = {name: chosen[name] for name in ("sampler-euler_ancestral", "lanes", "and", "image", "negative")}
    if sd.time_ids == 6:
        sizes = dict(original_size=(64, 48), crop=(3, 5), negative_original_size=(8, 8), negative_target_size=(9, 9))
        chosen["sizes"] = dict(prompt=[RED, BLUE], prompt_2=["a ring", "a green ring"], steps=3, **sizes)
    if sd.unet.time_cond_proj_dim:
        chosen.pop("and")
    return chosen


WRONG: dict[str, dict[str, Any]] = {
    "steps": dict(prompt=RED, steps=0),
    "steps-text": dict(prompt=RED, steps="many"),
    "sampler": dict(prompt=RED, sampler="dpmpp2m"),
    "schedule": dict(prompt=RED, schedule="karas"),
    "scale": dict(prompt=RED, guidance_scale="high"),
    "scale-list": dict(prompt=[RED, BLUE], guidance_scale=[1.0, 2.0, 3.0]),
    "interval": dict(prompt=RED, guidance_schedule="intervall:0:1"),
    "rescale": dict(prompt=RED, guidance_rescale=2),
    "seed": dict(prompt=RED, seed=-1),
    "count": dict(prompt=RED, num_images=0),
    "height": dict(prompt=RED, height=51),
    "latents": dict(prompt=RED, latents=np.zeros((1, 2, 2, 4), np.float32)),
    "eta": dict(prompt=RED, sampler="ddim", eta="a"),
    "preset": dict(prompt=RED, preset="forge"),
    "option": dict(prompt=RED, sampler_options={"order": 2}),
    "source": dict(prompt=RED, noise_source="torch"),
    "style": dict(prompt=RED, prompt_style="a11"),
    "skip": dict(prompt=RED, clip_skip="a1111:99"),
    "second": dict(prompt=RED, prompt_2=BLUE),
    "size": dict(prompt=RED, original_size=(0, 3)),
    "score": dict(prompt=RED, aesthetic_score=6.0),
    "refiner": dict(prompt=RED, refiner="refiner"),
    "start": dict(prompt=RED, denoising_start=0.5),
    "end": dict(prompt=RED, denoising_end=1.5),
    "mask": dict(prompt=RED, mask=spot((64, 64))),
    "strength": dict(prompt=RED, strength=0.5),
    "noise-level": dict(prompt=RED, noise_level=3),
    "depth": dict(prompt=RED, depth=spot((64, 64))),
    "image-scale": dict(prompt=RED, image_guidance_scale=1.5),
    "regions": dict(prompt=RED, regions=[]),
    "show": dict(prompt=RED, steps=4, show_steps=[9]),
    "stop": dict(prompt=RED, stop_after=0),
    "callback": dict(prompt=RED, callback=3),
    "decode": dict(prompt=RED, decode="no"),
    "progress": dict(prompt=RED, progress="no"),
    "nothing": dict(),
    "unknown": dict(prompt=RED, num_inference_steps=20),
    "image-lost": dict(prompt=RED, image="/nowhere/picture.png"),
    "image-wrong": dict(prompt=RED, image=3),
}


# ---------------------------------------------------------------------- what they give


def made(sd: Any, given: dict[str, Any]) -> Arrays:
    """Everything that a call gives, or what it says in place of that."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            out = sd.generate(**{"seed": 3, "progress": False, **given})
        except (ValueError, TypeError, OSError) as error:
            return {"message": _text(f"{type(error).__name__}: {error}")}
    told: Arrays = {"latents": np.asarray(out.latents), "settings": _text(json.dumps(out.settings, sort_keys=True))}
    told["warned"] = _text("\n".join(sorted(str(one.message) for one in warned)))
    if out.pixels is not None:
        told["pixels"] = out.pixels
        told["written"] = _text("\n".join(f"{key}: {value}" for key, value in sorted(out.images[0].info.items())))
    for i, step in enumerate(out.steps):
        told[f"step-{i}"] = np.stack([step.latents, step.denoised])
    return told


def _text(text: str) -> np.ndarray:
    """A text as an array; where objects lie in memory is another matter in every process."""
    return np.array(re.sub(r"0x[0-9a-f]{6,}", "0x", text))


def parts(sd: Any) -> Arrays:
    """The public methods, each alone."""
    if not sd.encoders:
        return {}
    side, channels = sd.unet.sample_size, sd.unet.in_channels
    x = np.random.default_rng(1).standard_normal((2, side, side, channels)).astype(np.float32)
    told = {"prompts": np.asarray(sd.encode_prompt([RED, BLUE], clip_skip=1))}
    if sd.unet.num_class_embeds is None:
        told["predict"] = np.asarray(sd.predict(x, 301.5, sd.conditions([RED, BLUE])))
    z = x[..., : sd.vae.latent_channels]
    told["decode"] = np.asarray(sd.decode(z))
    told["encode"] = np.asarray(sd.encode(told["decode"]))
    with tempfile.TemporaryDirectory() as folder:
        sd.save(Path(folder) / "saved")
        files = sorted(path for path in (Path(folder) / "saved").rglob("*") if path.is_file())
        sums = [f"{one.relative_to(folder)} {hashlib.sha256(one.read_bytes()).hexdigest()}" for one in files]
    return told | {"saved": _text("\n".join(sums))}


def models(folder: str | None, **how: Any) -> Iterator[tuple[str, Any, bool]]:
    """Every model by name, and whether few calls will do."""
    import sdjax

    for name in ("shapes", "shapes-inpainting", "shapes-depth"):
        yield name, sdjax.load(name, **how), False
    for path in sorted(Path(folder).iterdir()) if folder else ():
        yield path.name, sdjax.load(path, **how), True


def collect(folder: str | None, only: str) -> Arrays:
    """Of one device."""
    found: Arrays = {}

    def add(name: str, make: Callable[[], Arrays]) -> None:
        if re.search(only, name):
            found.update({f"{name}/{key}": value for key, value in make().items()})
            print(name, flush=True)

    known = {}
    for name, sd, few in models(folder):
        known[name] = sd
        add(f"{name}/parts", partial(parts, sd))
        for call, given in calls(sd, few).items():
            add(f"{name}/{call}", partial(made, sd, given))
        if name in ("shapes", "sdxl", "variation"):
            for call, given in WRONG.items():
                add(f"{name}/wrong-{call}", partial(made, sd, given))
    if "refiner" in known:
        handed = dict(prompt=[RED, BLUE], refiner=known["refiner"], refiner_start=0.5, steps=6)
        add("sdxl/handed-on", lambda: made(known["sdxl"], handed))
        add("sdxl/handed-on-drawn", lambda: made(known["sdxl"], handed | {"sampler": "euler_ancestral"}))
    for dtype in ("bfloat16", "float16"):
        add(f"narrow/{dtype}", partial(_narrow, dtype))
    add("exported", _exported)
    return found


def _narrow(dtype: str) -> Arrays:
    import sdjax

    return made(sdjax.load(dtype=dtype), dict(prompt=[RED, BLUE], steps=3)) | parts(sdjax.load(dtype=dtype))


def _exported() -> Arrays:
    import sdjax

    with tempfile.TemporaryDirectory() as folder:
        sdjax.export(sdjax.load(), folder, batches=[2])
        names = sorted(re.sub(r"-[0-9a-f]{16}", "", path.name) for path in Path(folder).glob("*.bin"))
        sd = sdjax.load(exported=folder)
        return made(sd, dict(prompt=[RED, BLUE], steps=4)) | {"programs": _text("\n".join(names))}


def collect_many(folder: str | None, devices: int, only: str) -> Arrays:
    """Of several devices."""
    from sdjax import parallel

    found: Arrays = {}
    for name, sd, few in models(folder):
        if name in ("shapes", "shapes-depth", "sdxl", "pix2pix"):
            ways = {"spread": parallel.spread(sd, devices), "halves": parallel.spread(sd, 2, halves=True)}
            ways |= {"shard": parallel.shard(sd, devices)} if name == "shapes" else {}
            wanted = {
                one: given for one, given in calls(sd, few).items() if not one.startswith("sampler-") or "an" in one
            }
            for way, many in ways.items():
                for call, given in wanted.items():
                    if re.search(only, f"{way}/{name}/{call}"):
                        found |= {f"{way}/{name}/{call}/{key}": value for key, value in made(many, given).items()}
                        print(way, name, call, flush=True)
                found |= {f"{way}/{name}/parts/{key}": one for key, one in parts(many).items() if key != "saved"}
    return found


# ---------------------------------------------------------------------- compared


def compared(before: Arrays, after: Arrays) -> list[str]:
    """What differs, a line each."""
    told = [f"{name}: only in one of the two" for name in sorted({*before} ^ {*after})]
    for name in sorted({*before} & {*after}):
        one, other = before[name], after[name]
        if one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes():
            continue
        if one.shape != other.shape or not np.issubdtype(one.dtype, np.number):
            told.append(f"{name}:\n  {str(one)[:1200]}\n  {str(other)[:1200]}")
            continue
        most, scale = float(np.abs(np.subtract(other, one, dtype=np.float64)).max()), float(np.abs(one).max()) or 1.0
        told.append(
            f"{name}: differs by {most / scale:.1e} of the largest value{'' if most > CLOSE * scale else ', rounding'}"
        )
    return told


def main(values: Any) -> None:
    many = values.devices > 1
    if many:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={values.devices}"
    found = collect_many(values.models, values.devices, values.only) if many else collect(values.models, values.only)
    np.savez_compressed(values.out, **found)  # type: ignore[arg-type]
    if values.against is None:
        print(f"{len(found)} arrays written")
        return
    with np.load(values.against) as file:
        before = {name: file[name] for name in file.files if re.search(values.only, name)}
    told = compared(before, found)
    print("\n".join(told) or f"{len(found)} arrays are equal to the last bit")
    sys.exit(1 if told else 0)


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
