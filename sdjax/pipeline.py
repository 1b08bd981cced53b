"""StableDiffusion: a checkpoint in memory, and the way from a prompt to a picture.

    tokens -> context -> [ plan -> table -> scan ] -> latents -> pixels

Everything that computes is a pure function in `programs`; this file checks what was asked, calls them in order and
keeps the record that lets the same picture be made again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image
from tqdm import tqdm

from sdjax import cache, picture, programs, request
from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.diffusion import scan
from sdjax.diffusion.guidance import GuidanceSchedule
from sdjax.diffusion.plan import Plan, padded_length
from sdjax.diffusion.plan import plan as make_plan
from sdjax.diffusion.samplers import Sampler
from sdjax.diffusion.table import Linear, Table
from sdjax.text.tokens import Tokenizer
from sdjax.weights import Layout, read_component, read_index, read_json, resolve, save_folder, side_files

SamplerLike = str | Sampler | Callable[..., Linear]
Options = Mapping[str, Any]

SHAPES = Path(__file__).parent / "assets" / "shapes"

# Rows of the table between two updates of the progress bar. An update is a call of its own: on a CPU it costs a
# millisecond beside 80 of a small model's rows, and 0.3 s of fresh scratch memory beside 40 s of SD 1.5's.
SEGMENT_ROWS = 8


@dataclass(frozen=True, eq=False)
class Output:
    """What `generate` gives for b pictures.

    Attributes:
      latents: float32 `b h w c`, final, at the U-Net's scale.
      pixels: uint8 `b H W 3`, or None where `decode=False`.
      settings: the arguments of `generate` that make the same pictures again.
      images: PIL images; saved as PNG, each carries its own settings.
    """

    latents: np.ndarray
    pixels: np.ndarray | None
    settings: dict[str, Any]
    images: list[Image.Image]


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """A loaded checkpoint. Immutable: `dataclasses.replace(sd, params=...)` is another one.

    Attributes:
      name: where it came from, as the pictures' metadata names it.
      text, unet, vae: the networks' configs. scheduler: scheduler_config.json as a dict.
      tokenizer: prompts to token ids.
      params: {"text_encoder", "unet", "vae"}, nested dicts of arrays, in the checkpoint's own dtypes.
      dtype: what the networks compute in; norms, softmax and latents are float32 whatever it is.
      guidance_scale: the checkpoint's default.
    """

    name: str
    text: ClipTextConfig
    unet: UNetConfig
    vae: VaeConfig
    scheduler: Mapping[str, Any]
    tokenizer: Tokenizer
    params: dict[str, Any]
    dtype: DTypeLike = jnp.float32
    guidance_scale: float = 7.5
    layouts: Mapping[str, Layout] = field(default_factory=dict, repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    # ------------------------------------------------------------------ the parts, each usable alone

    def encode_prompt(self, prompts: Sequence[str]) -> jax.Array:
        """A list of prompts -> what the U-Net attends to, float32 `b l d`. Raises ValueError for an empty list."""
        ids = jnp.asarray(self.tokenizer.tokens(prompts))
        return programs.encode_text(self.text, self.dtype, self._ready["text_encoder"], ids)

    def predict(self, x_t: jax.Array, t: jax.Array | float, context: jax.Array) -> jax.Array:
        """The U-Net's raw prediction: x_t `b h w c` at its own scale, t `b` or one, context `b l d` -> `b h w c`."""
        x_t = jnp.asarray(x_t, jnp.float32)
        steps = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x_t.shape[:1])
        return programs.predict(self.unet, self.dtype, self._ready["unet"], x_t, steps, jnp.asarray(context))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents `b h w c` at the U-Net's scale -> pixels `b H W 3`, float32 in [-1, 1]."""
        return programs.decode(self.vae, self._vae_dtype, self._ready["vae"], jnp.asarray(latents, jnp.float32))

    def encode(self, pixels: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Pixels `b H W 3` in [-1, 1] -> latents `b h w c` at the U-Net's scale.

        A draw from the VAE's posterior, image i by fold_in(key, i); its mean where key is None.
        """
        pixels = jnp.asarray(pixels, jnp.float32)
        for name, size in zip(("height", "width"), pixels.shape[1:3], strict=True):
            request.check_size(size, size, self.vae.factor, name)
        keys = None if key is None else scan.keys_per_image(key, pixels.shape[0])
        return programs.encode(self.vae, self._vae_dtype, self._ready["vae"], pixels, keys)

    def plan(self, sampler: SamplerLike, steps: int | None, schedule: str | None = None, **options: Any) -> Plan:
        """The sampler's plan under this checkpoint's scheduler config, as diffusers' pipelines would run it.

        They overrule a config in two places: latents are never clipped, and steps_offset is 1. options: see
        `sdjax.plan`.
        """
        config = {**self.scheduler, "clip_sample": False, "steps_offset": 1}
        return make_plan(sampler, steps, config, schedule, **options)

    def save(self, folder: str | Path) -> None:
        """Writes the checkpoint to `folder` in the diffusers layout: tensor for tensor what was loaded.

        Raises CheckpointError where the folder holds something else or the disk does not take it.
        """
        components = {name: (self.params[name], self.layouts[name]) for name in self.params}
        save_folder(folder, components, self.files)

    # ------------------------------------------------------------------ from prompt to picture

    def generate(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        steps: int | None | Sequence[int | None] = 20,
        sampler: SamplerLike | Sequence[SamplerLike] = "dpmpp_2m",
        schedule: str | None | Sequence[str | None] = None,
        guidance_scale: float | Sequence[float] | None = None,
        guidance_schedule: str | None | Sequence[str | None] = None,
        guidance_rescale: float | Sequence[float] = 0.0,
        seed: int | Sequence[int] = 0,
        num_images: int = 1,
        height: int | None = None,
        width: int | None = None,
        latents: Any = None,
        eta: float | None | Sequence[float | None] = None,
        preset: str | None | Sequence[str | None] = None,
        sampler_options: Options | None | Sequence[Options | None] = None,
        first_image: int = 0,
        decode: bool = True,
        progress: bool | None = None,
    ) -> Output:
        """Makes pictures.

        Args:
          prompt: one, or a list. negative_prompt: what to steer away from; one, or one per prompt.
          steps: 1 to the scheduler's training steps; None where `sampler_options` hold the levels.
          sampler, schedule: by name; None is the checkpoint's schedule. A solver of your own may be given as a
            function; the settings then hold no more than its name.
          guidance_scale: 1 or less is no guidance, None the checkpoint's default.
          guidance_schedule: where it acts, as "interval:0.2:0.8", "noise_interval:0.28:5.42", "linear", "cosine"; None
            is everywhere. See `guidance.GuidanceSchedule`.
          guidance_rescale: 0 to 1, how much of the spread that guidance adds is taken back (Lin et al. 2023).
          seed: one (picture i then has number first_image + i under it), or one per picture (each number first_image).
          num_images: pictures of each prompt.
          height, width: pixels, multiples of the VAE's factor (8); default the checkpoint's own size.
          latents: starting noise, unit Gaussian [b, h/8, w/8, c], in place of the seeds' own.
          eta: share of fresh noise, for samplers that have it; None is the sampler's default.
          preset, sampler_options: further arguments of `sdjax.plan`: whose conventions, and {name: value}.
          decode: False leaves the pictures in latent space.
          progress: a bar; None shows one where standard error is a terminal.
          All of the sampler's and the guidance's arguments may be lists with one entry per picture.

        Raises:
          ValueError: anything out of range, named with its remedy, before anything is compiled.
        """
        planning: dict[str, Any] = {"sampler": sampler, "steps": steps, "schedule": schedule, "preset": preset}
        planning |= {"eta": eta, "sampler_options": sampler_options}
        guidance = (guidance_scale, guidance_schedule, guidance_rescale)
        asked = self._request(
            prompt, negative_prompt, planning, guidance, seed, num_images, height, width, latents, first_image
        )
        final = self._sample(asked, progress)
        pixels = picture.to_uint8(np.asarray(self.decode(final))) if decode else None
        settings = {
            "prompt": list(asked.prompts[::num_images]),
            "negative_prompt": list(asked.negative_prompts[::num_images]),
            **request.planning_settings(planning, asked.plans),
            "guidance_scale": request.as_given(guidance_scale, asked.guidance_scales.tolist()),
            "guidance_schedule": request.as_given(guidance_schedule, [str(one) for one in asked.guidance_schedules]),
            "guidance_rescale": request.as_given(guidance_rescale, asked.guidance_rescales.tolist()),
            "seed": request.as_given(seed, list(asked.seeds)),
            "num_images": num_images,
            "height": asked.height,
            "width": asked.width,
            "first_image": first_image,
            **({} if latents is None else {"latents": "given"}),
        }
        images = [] if pixels is None else [self._image(asked, settings, i, pixels[i]) for i in range(len(pixels))]
        return Output(np.asarray(final), pixels, settings, images)

    def _request(
        self, prompt: Any, negative_prompt: Any, planning: Mapping[str, Any], guidance: tuple[Any, Any, Any], seed: Any,
        num_images: int, height: Any, width: Any, latents: Any, first_image: int,
    ) -> request.Request:  # fmt: skip
        prompts = request.texts(prompt, "prompt")
        request.check_count(num_images, 1, "num_images")
        request.check_count(first_image, 0, "first_image")
        negatives = request.spread(request.texts(negative_prompt, "negative_prompt"), len(prompts), "negative_prompt")
        count = len(prompts) * num_images
        native = self.unet.sample_size * self.vae.factor
        height = request.check_size(height, native, self.vae.factor, "height")
        width = request.check_size(width, native, self.vae.factor, "width")
        if latents is not None:
            shape = (count, height // self.vae.factor, width // self.vae.factor, self.unet.in_channels)
            latents = request.check_latents(latents, shape)
        scale, schedule, rescale = guidance
        scale = self.guidance_scale if scale is None else scale
        many = request.is_list(seed)
        return request.Request(
            prompts=tuple(text for text in prompts for _ in range(num_images)),
            negative_prompts=tuple(text for text in negatives for _ in range(num_images)),
            seeds=tuple(request.check_seeds(seed, count)),
            numbers=tuple(first_image if many else first_image + i for i in range(count)),
            guidance_scales=request.check_scales(scale, count),
            guidance_schedules=tuple(map(GuidanceSchedule.read, request.spread(schedule, count, "guidance_schedule"))),
            guidance_rescales=request.check_rescales(rescale, count),
            height=height,
            width=width,
            plans=request.check_plans(self.plan, planning, count),
            latents=latents,
        )

    def _sample(self, asked: request.Request, progress: bool | None) -> jax.Array:
        """The final latents `b h w c` of what was asked."""
        # Two sizes of table in practice (64 and 128 evaluations), a whole number of segments each.
        rows = padded_length(asked.plan.rows - 1) + SEGMENT_ROWS
        table = asked.plan.table(rows - 1)
        if asked.latents is None:
            factor = self.vae.factor
            shape = (asked.height // factor, asked.width // factor, self.unet.in_channels)
            carry = programs.begin(shape, asked.keys(), table)
        else:
            carry = programs.begin_from(asked.latents, asked.keys(), table)
        prompts = (*asked.negative_prompts, *asked.prompts) if asked.guided else asked.prompts
        context = programs.hoist(self.dtype, self._ready["unet"], self.encode_prompt(prompts))
        guidance = asked.guidance(rows - 1)
        bar = tqdm(total=_evaluations(table), disable=None if progress is None else not progress, leave=False)
        with bar:
            segment = rows if bar.disable else SEGMENT_ROWS
            for start in range(0, asked.plan.rows, segment):
                part = table.rows(start, start + segment)
                guided = None if guidance is None else guidance.rows(start, start + segment)
                carry = programs.advance(self.unet, self.dtype, carry, part, self._ready["unet"], context, guided)
                self._show(bar, carry, part)
        return scan.result(carry)

    def _show(self, bar: tqdm, carry: scan.Carry, part: Table) -> None:
        if not bar.disable:
            jax.block_until_ready(carry.x)
            bar.update(_evaluations(part))

    def _image(self, asked: request.Request, settings: dict[str, Any], i: int, pixels: np.ndarray) -> Image.Image:
        return picture.make(pixels, asked.alone(settings, i), model=self.name)

    # ------------------------------------------------------------------ what follows from the parameters

    @cached_property
    def _ready(self) -> dict[str, Any]:
        """The parameters in the dtype they are used in: cast once here and not at every step."""
        dtypes = {"vae": self._vae_dtype}
        return {name: programs.cast(dtypes.get(name, self.dtype), tree) for name, tree in self.params.items()}

    @property
    def _vae_dtype(self) -> DTypeLike:
        """float32 where the VAE's config says that its decoder overflows in float16 (SDXL)."""
        return jnp.float32 if self.vae.force_upcast and self.dtype == jnp.float16 else self.dtype


def _evaluations(table: Table) -> int:
    """Rows in which the network runs, for one picture or more."""
    return int(np.reshape(table.evaluate, (len(table), -1)).any(1).sum())


def load(
    source: str | Path | None = None,
    *,
    dtype: DTypeLike = "float32",
    variant: str | None = None,
    revision: str = "main",
    compilation_cache: bool | str | Path = True,
) -> StableDiffusion:
    """A checkpoint in the diffusers layout, ready to generate.

    Args:
      source: a folder, or a Hub id (`owner/name`); None is the shapes model shipped with this package.
      dtype: what the networks compute in: float32, bfloat16 (TPUs, GPUs) or float16.
      variant: which files where there are several, as "fp16" for `*.fp16.safetensors`. revision: of a Hub id.
      compilation_cache: keep compiled programs for later processes: True, False, or a folder.

    Raises:
      CheckpointError: anything wrong with the files. ConfigError: a network this package does not have.
      ValueError: an unknown dtype.
    """
    compute = _check_dtype(dtype)
    folder = resolve(SHAPES if source is None else source, variant=variant, revision=revision)
    index = read_index(folder)
    configs = {name: read_json(folder / name / "config.json") for name in ("text_encoder", "unet", "vae")}
    text = ClipTextConfig.from_dict(configs["text_encoder"])
    unet, vae = UNetConfig.from_dict(configs["unet"]), VaeConfig.from_dict(configs["vae"])
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    if compilation_cache is not False:
        cache.enable(None if compilation_cache is True else compilation_cache)
    params, layouts = {}, {}
    for name, expected in programs.expected_params(text, unet, vae).items():
        params[name], layouts[name] = read_component(folder / name, expected, variant=variant)
    return StableDiffusion(
        name="shapes" if source is None else Path(str(source)).name or str(source),
        text=text,
        unet=unet,
        vae=vae,
        scheduler=scheduler,
        tokenizer=tokenizer,
        params=params,
        dtype=compute,
        guidance_scale=float(read_json(folder / "model_index.json").get("_guidance_scale", 7.5)),
        layouts=layouts,
        files=side_files(index),
    )


def _check_dtype(dtype: DTypeLike) -> DTypeLike:
    known = ("float32", "bfloat16", "float16")
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in known:
        raise ValueError(f"dtype must be one of {', '.join(known)}, not {name!r}")
    return jnp.dtype(name)
