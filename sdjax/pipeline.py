"""StableDiffusion: a checkpoint in memory, and the way from a prompt to a picture.

    tokens -> context -> [ plan -> table -> scan ] -> latents -> pixels

Everything that computes is a pure function in `programs`; this file checks what was asked, calls them in order and
keeps the record that lets the same picture be made again.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image
from tqdm import tqdm

from sdjax import asking, checks, conditions, picture, programs, request
from sdjax.conditions import ClipSkip, EncodeRow, Encoding, Pull, TextEncoder, Texts
from sdjax.config import UNetConfig, VaeConfig
from sdjax.diffusion import scan
from sdjax.diffusion.plan import Plan, padded_length
from sdjax.diffusion.plan import plan as make_plan
from sdjax.diffusion.samplers import Sampler
from sdjax.diffusion.table import Linear, Table
from sdjax.micro import MicroConditions
from sdjax.nn.unet import Added, Conditions, guidance_embedding
from sdjax.text.prompts import MAX_CHUNKS, check_style
from sdjax.text.tokens import Tokenizer
from sdjax.weights import Layout, save_folder

SamplerLike = str | Sampler | Callable[..., Linear]
Options = Mapping[str, Any]
Size = Sequence[int] | Sequence[Sequence[int]]

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
      encoders: the text encoders' configs with their tokenizers, by component. SDXL has two, its refiner the second.
      unet, vae: the networks' configs. scheduler: scheduler_config.json as a dict.
      params: {"text_encoder", "text_encoder_2", "unet", "vae"}, those there are: nested dicts of arrays, in the
        checkpoint's own dtypes, or all in float32 where that is what the networks compute in.
      dtype: what the networks compute in; norms, softmax and latents are float32 whatever it is.
      guidance_scale: the checkpoint's default.
      zero_empty: whether a negative prompt of None is all zeros (SDXL base) rather than the empty text.
    """

    name: str
    encoders: Mapping[str, TextEncoder]
    unet: UNetConfig
    vae: VaeConfig
    scheduler: Mapping[str, Any]
    params: dict[str, Any]
    dtype: DTypeLike = jnp.float32
    guidance_scale: float = 7.5
    zero_empty: bool = False
    layouts: Mapping[str, Layout] = field(default_factory=dict, repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def tokenizer(self) -> Tokenizer:
        """The first text encoder's."""
        return next(iter(self.encoders.values())).tokenizer

    @property
    def xl(self) -> bool:
        """Whether this is an SDXL: its U-Net also takes pooled text and sizes."""
        return self.unet.addition_embed_type == "text_time"

    @property
    def time_ids(self) -> int:
        """How many numbers the U-Net takes: 6 for SDXL, 5 for its refiner, else 0."""
        if not self.xl:
            return 0
        pooled = list(self.encoders.values())[-1].config.projection_dim or 0
        width = self.unet.addition_time_embed_dim or 1
        return ((self.unet.projection_class_embeddings_input_dim or pooled) - pooled) // width

    # ------------------------------------------------------------------ the parts, each usable alone

    def encode_prompt(
        self, prompts: Sequence[str], *, prompt_style: str = "plain", clip_skip: int | str | None = None
    ) -> jax.Array:
        """A list of prompts -> what the U-Net attends to, float32 `b l d`.

        prompt_style, clip_skip: see `generate`. Where one prompt is longer than the others, these end in empty
        pieces, as in A1111. Raises ValueError for an empty list.
        """
        return jnp.asarray(self._encoded(prompts, prompt_style, clip_skip)[0])

    def conditions(
        self, prompts: Sequence[str], *, prompt_style: str = "plain", clip_skip: int | str | None = None, **sizes: Any
    ) -> Conditions:
        """A list of prompts -> all that the U-Net is told beside x and t, for `predict`.

        sizes: original_size, crop, target_size, aesthetic_score as in `generate`; SDXL's are those of the native
        size where not given. Raises ValueError.
        """
        MicroConditions.check_names(sizes)
        states, pooled = self._encoded(prompts, prompt_style, clip_skip)
        micro = MicroConditions.read(sizes, len(prompts), self.time_ids)
        native = self.unet.sample_size * self.vae.factor
        ids = micro.time_ids(native, native, len(prompts), self.time_ids)[1] if self.xl else None
        return Conditions(jnp.asarray(states), None if ids is None else Added(jnp.asarray(pooled), jnp.asarray(ids)))

    def predict(self, x_t: jax.Array, t: jax.Array | float, context: jax.Array | Conditions) -> jax.Array:
        """The U-Net's raw prediction: x_t `b h w c` at its own scale, t `b` or one -> `b h w c`.

        context: `b l d` from `encode_prompt`, or what `conditions` gives, which SDXL needs.
        """
        x_t = jnp.asarray(x_t, jnp.float32)
        steps = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x_t.shape[:1])
        given = context if isinstance(context, Conditions) else Conditions(jnp.asarray(context))
        if self.xl and given.added is None:
            raise ValueError("SDXL's U-Net also takes pooled text and sizes: pass what sd.conditions([...]) gives")
        return programs.predict(self.unet, self.dtype, self._ready["unet"], x_t, steps, given)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents `b h w c` at the U-Net's scale -> pixels `b H W 3`, float32 in [-1, 1]."""
        return programs.decode(self.vae, self._vae_dtype, self._ready["vae"], jnp.asarray(latents, jnp.float32))

    def encode(self, pixels: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Pixels `b H W 3` in [-1, 1] -> latents `b h w c` at the U-Net's scale.

        A draw from the VAE's posterior, image i by fold_in(key, i); its mean where key is None.
        """
        pixels = jnp.asarray(pixels, jnp.float32)
        for name, size in zip(("height", "width"), pixels.shape[1:3], strict=True):
            checks.check_size(size, size, self.vae.factor, name)
        keys = None if key is None else scan.keys_per_image(key, pixels.shape[0])
        return programs.encode(self.vae, self._vae_dtype, self._ready["vae"], pixels, keys)

    def plan(self, sampler: SamplerLike, steps: int | None, schedule: str | None = None, **options: Any) -> Plan:
        """The sampler's plan under this checkpoint's scheduler config, as diffusers' pipelines would run it.

        They overrule a config in two places: latents are never clipped, and steps_offset is 1, but not for SDXL.
        options: see `sdjax.plan`.
        """
        config = {**self.scheduler, "clip_sample": False} | ({} if self.xl else {"steps_offset": 1})
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
        negative_prompt: str | Sequence[str] | None = None,
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
        noise_source: str = "jax",
        prompt_style: str = "plain",
        clip_skip: int | str | None = None,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        original_size: Size | None = None,
        crop: Size | None = None,
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crop: Size | None = None,
        negative_target_size: Size | None = None,
        aesthetic_score: float | Sequence[float] | None = None,
        negative_aesthetic_score: float | Sequence[float] | None = None,
        refiner: "StableDiffusion | None" = None,
        refiner_start: float = 0.8,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        decode: bool = True,
        progress: bool | None = None,
    ) -> Output:
        """Makes pictures.

        Args:
          prompt: one, or a list. negative_prompt: what to steer away from; one, or one per prompt. None is the empty
            text, and for SDXL base no text at all: embeddings of zeros.
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
          latents: starting noise, unit Gaussian [b, h/8, w/8, c], in place of the seeds' own; with denoising_start
            the latents to go on from, as `Output.latents` has them.
          eta: share of fresh noise, for samplers that have it; None is the sampler's default.
          preset, sampler_options: further arguments of `sdjax.plan`: whose conventions, and {name: value}.
          noise_source: "jax", or whose noise a seed means: "torch_cpu", "torch_cuda". See `torch_noise`.
          prompt_style: "plain" (no syntax, one piece of 77 tokens, as diffusers), "a1111" or "comfy": weights, long
            prompts and, in a1111, BREAK, AND, editing and alternation as they have them. See `text.prompts`.
          clip_skip: layers of the text encoder to leave out, as "diffusers:1", "a1111:2" or "comfy:-2"; a number alone
            counts as the prompt_style does. See `conditions.ClipSkip`.
          prompt_2, negative_prompt_2: SDXL: another text for the second encoder.
          original_size, crop, target_size, negative_*: SDXL: (height, width) or (top, left), or one per picture.
            aesthetic_score, negative_aesthetic_score: its refiner. See `micro`.
          refiner: another StableDiffusion that takes the latents over for the last 1 - refiner_start of the run.
          denoising_start, denoising_end: run only a piece of the schedule; see `sdjax.plan`.
          decode: False leaves the pictures in latent space.
          progress: a bar; None shows one where standard error is a terminal.
          All of the sampler's and the guidance's arguments may be lists with one entry per picture.

        Raises:
          ValueError: anything out of range, named with its remedy, before anything is compiled.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        asked, refined = asking.stages(self, given)
        final = self._sample(asked, progress)
        if refiner is not None and refined is not None:
            final = refiner._sample(replace(refined, latents=np.asarray(final)), progress)
        pixels = picture.to_uint8(np.asarray(self.decode(final))) if decode else None
        settings = request.settings(given, asked, refined)
        images = [] if pixels is None else [self._image(asked, settings, i, pixels[i]) for i in range(len(pixels))]
        return Output(np.asarray(final), pixels, settings, images)

    def _sample(self, asked: request.Request, progress: bool | None) -> jax.Array:
        """The final latents `b h w c` of what was asked."""
        # Two sizes of table in practice (64 and 128 evaluations), and padding after any of them.
        rows, needed = padded_length(asked.plan.rows - 1) + SEGMENT_ROWS, asked.plan.rows
        table, guidance = asked.plan.table(rows - 1), asked.guidance(rows - 1)
        carry = self._begin(asked, table)
        encoding, pulls = self._encoding(asked.style, asked.clip_skip), asked.answered
        bar = tqdm(total=_evaluations(table), disable=None if progress is None else not progress, leave=False)
        with bar:
            for start, stop, texts in conditions.pieces(pulls, asked.plans, needed):
                told = self._conditions(asked, pulls, texts, encoding)
                for first in range(start, stop, needed if bar.disable else SEGMENT_ROWS):
                    last = stop if bar.disable else min(first + SEGMENT_ROWS, stop)
                    part = table.only(first, rows if last == needed else last)
                    carry = programs.advance(self.unet, self.dtype, carry, part, self._ready["unet"], told, guidance)
                    self._show(bar, carry, part)
        return scan.result(carry)

    def _begin(self, asked: request.Request, table: Table) -> scan.Carry:
        factor = self.vae.factor
        shape = (asked.height // factor, asked.width // factor, self.unet.in_channels)
        noise = asked.noise(shape)
        if noise is not None:
            start = noise[0] if asked.latents is None else asked.latents
            # As many draws as rows, so that plans with more or fewer are one program.
            draws = np.zeros((len(table), *start.shape), np.float32)
            draws[: len(noise[1])] = noise[1]
            return programs.begin_with(start, draws, table)
        if asked.latents is not None:
            return programs.begin_from(asked.latents, asked.keys(), table)
        return programs.begin(shape, asked.keys(), table)

    def _conditions(
        self,
        asked: request.Request,
        pulls: Sequence[Sequence[Pull]],
        texts: Sequence[Sequence[Texts]],
        encoding: Encoding,
    ) -> Conditions:
        """What the U-Net is told for each pull on every picture, the first pull on all of them first."""
        states, pooled, ids = [], [], []
        for k in range(len(pulls[0])):
            for i, own in enumerate(pulls):
                made, summary = encoding(texts[i][k], own[k].negative)
                states.append(0 * made[:1] if own[k].zero else made)
                pooled.append(0 * summary if own[k].zero else summary)
                if asked.time_ids is not None:
                    ids.append(asked.time_ids[0 if own[k].negative else 1][i])
        pieces, count = conditions.in_pieces(states, MAX_CHUNKS)
        context = programs.hoist(self.dtype, self._ready["unet"], pieces, count)
        added = Added(jnp.asarray(np.stack(pooled)), jnp.asarray(np.stack(ids))) if ids else None
        features = self.unet.time_cond_proj_dim
        scale = guidance_embedding(jnp.asarray(asked.guidance_scales), features) if features else None
        return Conditions(context, added, scale)

    def _encoded(self, texts: Sequence[str], style: str, clip_skip: int | str | None) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states `b l d` and pooled states `b d` of a list of texts."""
        if isinstance(texts, str):
            raise ValueError(f"prompts must be a list of strings, not the one string {texts!r}; write [{texts!r}]")
        check_style(style)
        encoding = self._encoding(style, ClipSkip.read(clip_skip, style))
        listed = checks.texts(texts, "prompts")
        made = [encoding(dict.fromkeys(self.encoders, text)) for text in listed]
        most = max(len(states) for states, _ in made)
        rows = [states for states, _ in made]
        if any(len(states) < most for states in rows):
            empty = encoding(dict.fromkeys(self.encoders, ""))[0]
            rows = [np.concatenate([states, *[empty] * (most - len(states))]) for states in rows]
        return np.stack([row.reshape(-1, row.shape[-1]) for row in rows]), np.stack([pooled for _, pooled in made])

    def _encoding(self, style: str, clip_skip: ClipSkip) -> Encoding:
        return Encoding(self.encoders, self._encode_row(), self.xl, style, clip_skip)

    def _encode_row(self) -> EncodeRow:
        """Runs a text encoder on a row of ids; remembers, for one call of `generate`, what it has run on."""

        @functools.cache
        def encode(component: str, ids: tuple[int, ...], depth: int) -> tuple[np.ndarray, np.ndarray]:
            config, row = self.encoders[component].config, jnp.asarray(ids, jnp.int32)
            made = programs.encode_text(
                config, self.dtype, not self.xl, self._ready[component], row, jnp.asarray(depth)
            )
            return np.asarray(made[0]), np.asarray(made[1])

        return encode

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
        """float32 where an SDXL VAE's config says that its decoder overflows in float16; SD 1 and 2 do not ask."""
        return jnp.float32 if self.xl and self.vae.force_upcast and self.dtype == jnp.float16 else self.dtype


def _evaluations(table: Table) -> int:
    """Rows in which the network runs, for one picture or more."""
    return int(np.reshape(table.evaluate, (len(table), -1)).any(1).sum())
