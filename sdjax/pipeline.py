"""StableDiffusion: a checkpoint in memory, and the way from a prompt to a picture.

    tokens -> context -> [ plan -> table -> scan ] -> latents -> pixels

Everything that computes is a pure function in `runtime.programs`. A call of `generate` is a checked request
(`request.build`), which is run (`sampling.run`); with the pictures goes the record that lets them be made again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image

from sdjax.adapters.adapter import Adapter
from sdjax.adapters.hypernetwork import Hypernetwork
from sdjax.adapters.merging import merge
from sdjax.adapters.scales import Scale
from sdjax.config import UNetConfig, VaeConfig
from sdjax.core import hints
from sdjax.core.short import short
from sdjax.diffusion import scan
from sdjax.diffusion.plan import Plan
from sdjax.images import show
from sdjax.images.pixels import to_uint8
from sdjax.images.read import ImageLike
from sdjax.metadata import picture
from sdjax.model import finite
from sdjax.model.image_towers import DepthEstimator, ImageEncoder
from sdjax.model.networks import Networks
from sdjax.model.spec import ModelSpec
from sdjax.model.text_encoder import ClipSkip, Encoding, TextEncoder
from sdjax.nn.conditioning import Added, Conditions
from sdjax.nn.hypernetwork import has_hypernetwork
from sdjax.request import build, checks, new_words
from sdjax.request.arguments.adapters import Adapters
from sdjax.request.arguments.arguments import Arguments
from sdjax.request.arguments.images import Pictures
from sdjax.request.arguments.sampling import Options, SamplerLike
from sdjax.request.arguments.size_conditioning import Size, SizeConditioning
from sdjax.request.control import Controls, ImagePrompts
from sdjax.request.prompting import warn_of_words
from sdjax.request.request import Request, described
from sdjax.request.worn import opened_pairs
from sdjax.runtime import programs
from sdjax.sampling import run
from sdjax.sampling.lost import lost_in_decoding, lost_in_run
from sdjax.sampling.preview import Preview, Viewer
from sdjax.sampling.trace import Callbacks, Sampled
from sdjax.text.prompts import check_style
from sdjax.text.tokens import Tokenizer
from sdjax.weights import Layout, save_folder

if TYPE_CHECKING:
    from sdjax.model.image_towers import DepthEstimator, ImageEncoder


@dataclass(frozen=True, eq=False, repr=False)
class Output:
    """What `generate` gives for b pictures: `out[0]` is the first, a PIL image, and `for image in out` goes over all.

    A notebook shows the pictures themselves, each with its prompt.

    Attributes:
      latents: float32 `b h w c`, final, at the U-Net's scale.
      pixels: uint8 `b H W 3`, or None where `decode=False`.
      settings: the arguments of `generate` that make the same pictures again.
      images: PIL images; saved as PNG, each carries its own settings.
      steps: those that `show_steps` asked for, as previews: each shows itself in a notebook.
    """

    latents: np.ndarray
    pixels: np.ndarray | None
    settings: dict[str, Any]
    images: list[Image.Image]
    steps: tuple[Preview, ...] = ()

    def __len__(self) -> int:
        """How many pictures, in latents or decoded."""
        return len(self.latents)

    @overload
    def __getitem__(self, which: int) -> Image.Image: ...
    @overload
    def __getitem__(self, which: slice) -> list[Image.Image]: ...
    def __getitem__(self, which: int | slice) -> Image.Image | list[Image.Image]:
        """Picture `which` from 0, or of a slice a list. Raises IndexError, and ValueError where none was decoded."""
        if isinstance(which, str):
            known = [one.name for one in fields(self)]
            told = f"out.{which} is a part" if which in known else hints.hint(which, hints.OUTPUT, known)
            raise TypeError(f"a result has its pictures by number and its parts by name: {told}")
        if isinstance(which, int | np.integer) and not -len(self) <= which < len(self):
            raise IndexError(f"picture {which} of {len(self)}: they are numbered from 0")
        return self._decoded()[which]

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self._decoded())

    def __repr__(self) -> str:
        """Of one line: how many, how large, how made."""
        return f"Output({described(self.settings, len(self), *([] if self.images else ['latents alone']))})"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: one picture with its settings, several as a sheet."""
        return show.png(self.images, show.captions(self.images))

    def _repr_html_(self) -> str | None:
        """The same, each picture with its prompt and seed below."""
        return show.html(self.images, show.captions(self.images))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raises AttributeError for a name that is not here, with what it is called here."""
            known = [one.name for one in fields(self)]
            told = "" if name.startswith("_") else f": {hints.hint(name, hints.OUTPUT, known)}"
            raise AttributeError(f"Output has no {name}{told}")

    def _decoded(self) -> list[Image.Image]:
        if not self.images and len(self):
            raise ValueError(
                "decode=False left these in latent space: out.latents; sd.decode(out.latents) gives pixels"
            )
        return self.images


@dataclass(frozen=True, eq=False, repr=False)
class StableDiffusion:
    """A loaded checkpoint. Immutable: `dataclasses.replace(sd, params=...)` is another one.

    Attributes:
      networks: what computes: the model's `spec`, its parameters in the dtype they are used in, and their executor.
      params: {"text_encoder", "text_encoder_2", "unet", "vae"}, those there are: nested dicts of arrays, in the
        checkpoint's own dtypes, or all in float32 where that is what the networks compute in. None is what the
        networks were made of; others are cast where they are new.
      layouts, files: what else the checkpoint's folder held, for `save`.

    What the checkpoint is stands in `spec`: name, encoders, unet, vae, scheduler .. which are attributes here, too.
    """

    networks: Networks
    params: Mapping[str, Any] = None  # type: ignore[assignment]
    layouts: Mapping[str, Layout] = field(default_factory=dict, repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.params is None:
            object.__setattr__(self, "params", self.networks.stored)
        elif self.params is not self.networks.stored:
            object.__setattr__(self, "networks", self.networks.with_stored(self.params))

    def __repr__(self) -> str:
        """Of one line: the name, the native size, what the U-Net predicts, the dtype."""
        side, predicts = self.spec.side, self.scheduler.get("prediction_type", "epsilon")
        return f"StableDiffusion({self.name!r}, {side}x{side}, {predicts}, {jnp.dtype(self.dtype).name})"

    if not TYPE_CHECKING:  # a checker of types knows better which names there are

        def __call__(self, *_: Any, **__: Any) -> NoReturn:
            """Raises TypeError: what makes pictures has a name."""
            raise TypeError(f"a model is not called itself: {hints.CALLED}")

        def __getattr__(self, name: str) -> Any:
            """Raises AttributeError for a name that is not here, with what it is called here."""
            if hasattr(type(self), name):  # there, and failed within: say how
                return object.__getattribute__(self, name)
            known = [one for one in (*dir(type(self)), *type(self).__dataclass_fields__) if not one.startswith("_")]
            told = "" if name.startswith("_") else f": {hints.hint(name, hints.MODEL, known)}"
            raise AttributeError(f"StableDiffusion has no {name}{told}")

    @property
    def spec(self) -> ModelSpec:
        """What the checkpoint is."""
        return self.networks.spec

    @property
    def name(self) -> str:
        """Where it came from, as the pictures' metadata names it."""
        return self.spec.name

    @property
    def encoders(self) -> Mapping[str, TextEncoder]:
        """The text encoders' configs with their tokenizers, by component."""
        return self.spec.encoders

    @property
    def unet(self) -> UNetConfig:
        """The U-Net's config."""
        return self.spec.unet

    @property
    def vae(self) -> VaeConfig:
        """The VAE's config."""
        return self.spec.vae

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """scheduler_config.json as a dict."""
        return self.spec.scheduler

    @property
    def guidance_scale(self) -> float:
        """The checkpoint's default."""
        return self.spec.guidance_scale

    @property
    def depth_estimator(self) -> DepthEstimator | None:
        """Of models that are shown a depth map."""
        return self.spec.depth_estimator

    @property
    def image_encoder(self) -> ImageEncoder | None:
        """Of models that are shown a picture in place of a text."""
        return self.spec.image_encoder

    @property
    def time_ids(self) -> int:
        """How many numbers the U-Net takes beside time and text: 6 for SDXL, 5 for its refiner, else 0."""
        return self.spec.time_ids

    @property
    def dtype(self) -> DTypeLike:
        """What the networks compute in; norms, softmax and latents are float32 whatever it is."""
        return self.networks.dtype

    @property
    def tokenizer(self) -> Tokenizer:
        """The first text encoder's. Raises ValueError where there is none."""
        self._check_text()
        return next(iter(self.encoders.values())).tokenizer

    # ------------------------------------------------------------------ the parts, each usable alone

    @hints.arguments(hints.ENCODE)
    def encode_prompt(
        self,
        prompts: Sequence[str],
        *,
        prompt_style: str = "plain",
        clip_skip: int | str | None = None,
        embeddings: Mapping[str, Any] | None = None,
    ) -> jax.Array:
        """A list of prompts -> what the U-Net attends to, float32 `b l d`.

        prompt_style, clip_skip, embeddings: see `generate`. Where one prompt is longer than the others, these end in
        empty pieces, as in A1111. Raises ValueError for an empty list.
        """
        return jnp.asarray(self._encoded(prompts, prompt_style, clip_skip, embeddings)[0])

    @hints.arguments(hints.ENCODE | hints.SIZES)
    def conditions(
        self,
        prompts: Sequence[str],
        *,
        prompt_style: str = "plain",
        clip_skip: int | str | None = None,
        embeddings: Mapping[str, Any] | None = None,
        **sizes: Any,
    ) -> Conditions:
        """A list of prompts -> all that the U-Net is told beside x and t, for `predict`.

        prompt_style, clip_skip, embeddings: see `generate`. sizes: original_size, crop, target_size, aesthetic_score
        as in `generate`; SDXL's are those of the native size where not given. Raises ValueError.
        """
        SizeConditioning.check_names(sizes)
        states, pooled = self._encoded(prompts, prompt_style, clip_skip, embeddings)
        micro = SizeConditioning(**sizes).checked(len(prompts), self.time_ids)
        native = self.spec.side
        ids = micro.time_ids(native, native, len(prompts), self.time_ids)[1] if self.time_ids else None
        return Conditions(jnp.asarray(states), None if ids is None else Added(jnp.asarray(pooled), jnp.asarray(ids)))

    @hints.arguments(hints.PREDICT)
    def predict(
        self,
        x_t: jax.Array,
        t: jax.Array | float,
        context: jax.Array | Conditions,
        *,
        params: Mapping[str, Any] | None = None,
    ) -> jax.Array:
        """The U-Net's raw prediction: x_t `b h w c` at its own scale, t `b` or one -> `b h w c`.

        context: `b l d` from `encode_prompt`, or what `conditions` gives, which SDXL needs.
        params: in place of the model's own, a tree as `sd.params["unet"]`: of a fine-tuned U-Net, or the one that a
            loss is differentiated by. Differentiable with respect to all of these.

        Raises ValueError for shapes that do not fit, in place of the network's own message.
        """
        x_t = checks.on_device(x_t, "x_t")
        given = self._conditions_of(x_t, context)
        t = checks.on_device(t, "t")
        checks.check_times(t.shape, len(x_t))
        unet = self.networks.params["unet"] if params is None else self._unet_params(params)
        t = jnp.broadcast_to(t, x_t.shape[:1])
        return self.networks.executor.run(programs.predict, self.networks.denoiser, unet, x_t, t, given)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents `b h w c` at the U-Net's scale -> pixels `b H W 3`, float32 in [-1, 1]. Raises ValueError.

        A picture that leaves the range of a narrower dtype is decoded in float32. Warns of those that are NaN.
        """
        pixels, lost = self._decoded(latents)
        finite.tell(lost)
        return pixels

    def _decoded(self, latents: Any) -> tuple[jax.Array, dict[int, str]]:
        """`decode`, and why pictures are NaN that are."""
        latents = checks.on_device(latents, "latents")
        checks.check_axes(latents.shape, self.vae.latent_channels, "latents")
        pixels = self.networks.decode(latents)
        traced = isinstance(pixels, jax.core.Tracer)
        return pixels, {} if traced else lost_in_decoding(self.spec, latents, pixels)

    def encode(self, pixels: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Pixels `b H W 3` in [-1, 1] -> latents `b h w c` at the U-Net's scale.

        A draw from the VAE's posterior, image i by fold_in(key, i); its mean where key is None. A picture that leaves
        the range of a narrower dtype is encoded in float32. Raises ValueError.
        """
        pixels = checks.pixels_on_device(pixels)
        checks.check_axes(pixels.shape, 3, "pixels", "b H W c")
        for name, size in zip(("height", "width"), pixels.shape[1:3], strict=True):
            checks.check_size(size, size, self.vae.factor, name)
        noise = None
        if key is not None:
            keys = scan.keys_per_image(key, pixels.shape[0])
            noise = self.networks.executor.run(programs.noise, self.spec.latent_shape(*pixels.shape[1:3]), None, keys)
        return self.networks.encode(pixels, noise)

    def encode_image(self, image: ImageLike) -> jax.Array:
        """A picture -> what the U-Net of an image-variation model attends to, float32 `1 1 d`, for `predict`.

        Raises ValueError where this checkpoint has no image encoder.
        """
        return self.networks.encode_image(image)

    def estimate_depth(self, image: ImageLike) -> np.ndarray:
        """A picture -> its inverse depth, float32 `H W` of the estimator's own size; larger is nearer.

        Raises ValueError where this checkpoint has no depth estimator.
        """
        return self.networks.estimate_depth(image)

    @hints.arguments(
        hints.PLAN | hints.OWN_PLAN, needs="sampler is a name (see sdjax.samplers()), steps how many, as 20"
    )
    def plan(self, sampler: SamplerLike, steps: int | None, schedule: str | None = None, **options: Any) -> Plan:
        """The sampler's plan under this checkpoint's scheduler config, as diffusers' pipelines would run it.

        They overrule a config in two places: latents are never clipped, and steps_offset is 1, but not for SDXL.
        A1111's Align Your Steps are this model's family's. options: see `sdjax.plan`.
        """
        return self.spec.plan(sampler, steps, schedule, **options)

    def save(self, folder: str | Path) -> None:
        """Writes the checkpoint to `folder` in the diffusers layout: tensor for tensor what was loaded.

        Raises CheckpointError where the folder holds something else or the disk does not take it, and ValueError for a
        model with a hypernetwork, which no checkpoint holds.
        """
        if has_hypernetwork(self.params["unet"]):
            raise ValueError(f"{self.name}: no checkpoint holds a hypernetwork; save the model without it")
        components = {name: (self.params[name], self.layouts[name]) for name in self.params}
        save_folder(folder, components, self.files)

    def with_adapters(self, adapters: Adapters) -> "StableDiffusion":
        """Another StableDiffusion, into whose parameters adapters are merged; this one stays as it is.

        adapters: [(adapter, scale), ..] in order, as `generate` takes them, but the same for all pictures and all of a
        run. Each changed parameter is computed in float32 from this model's own, and cast once; one that no adapter
        touches, or only with scale 0, is the same array. Hypernetworks then stand before its keys and values.

        Raises ValueError for an adapter of another model, or a scale that is no finite number.
        """
        given = [(one, Scale.read(value, one.name)) for one, value in opened_pairs(adapters)]
        for one, scale in given:
            if (scale.start, scale.end) != (0.0, 1.0):
                raise ValueError(f"adapter {one.name}: start and end are for generate(adapters=); a merge is for good")
        merged = [(one, scale.of(self.params["unet"]).factor) for one, scale in given if isinstance(one, Adapter)]
        params = merge(self.params, merged, dtype=self.networks.dtype)
        nets = [(one, scale.parts["unet"]) for one, scale in given if isinstance(one, Hypernetwork)]
        said = ", ".join(f"{one.name} ({one.short_hash}):{scale}" for one, scale in given)
        spec = replace(self.spec, name=f"{self.name} + {said}") if said else self.spec
        networks = replace(self.networks, spec=spec).with_stored(params)
        made = networks.preceded(nets)
        return replace(self, networks=made, params=made.stored)

    # ------------------------------------------------------------------ from prompt to picture

    @hints.arguments(hints.GENERATE)
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        steps: int | None | Sequence[int | None] = 20,
        sampler: SamplerLike | Sequence[SamplerLike] = "dpmpp_2m",
        schedule: str | None | Sequence[str | None] = None,
        guidance_scale: float | Sequence[float] | None = None,
        guidance_schedule: str | None | Sequence[str | None] = None,
        guidance_rescale: float | Sequence[float] = 0.0,
        seed: int | jax.Array | Sequence[int | jax.Array] = 0,
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
        embeddings: Mapping[str, Any] | None = None,
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
        image: Pictures = None,
        mask: Pictures = None,
        strength: float | Sequence[float] | None = None,
        mask_blur: float = 0,
        mask_crop: int | None = None,
        depth: Pictures = None,
        image_guidance_scale: float | Sequence[float] | None = None,
        noise_level: int | None = None,
        regions: Sequence[tuple[str, Any]] | None = None,
        adapters: Adapters = None,
        adapters_folder: str | Path | None = None,
        control: Controls = None,
        image_prompt: ImagePrompts = None,
        show_steps: bool | int | Sequence[int] | None = None,
        callback: Callable[[Preview], Any] | None = None,
        stop_after: int | None = None,
        decode: bool = True,
        progress: bool | None = None,
    ) -> Output:
        """Makes pictures.

        Args:
          prompt: one, or a list; None for a model that varies a picture.
          negative_prompt: what to steer away from; one, or one per prompt. None is the empty text, and for SDXL base
            no text at all: embeddings of zeros.
          steps: 1 to the scheduler's training steps; None where `sampler_options` hold the levels.
          sampler, schedule: by name; None is the checkpoint's schedule. A solver of your own may be given as a
            function; the settings then hold no more than its name.
          guidance_scale: 1 or less is no guidance, None the checkpoint's default.
          guidance_schedule: where it acts, as "interval:0.2:0.8", "noise_interval:0.28:5.42", "linear", "cosine"; None
            is everywhere. See `diffusion.guidance_schedule`.
          guidance_rescale: 0 to 1, how much of the spread that guidance adds is taken back (Lin et al. 2023).
          seed: one (picture i then has number first_image + i under it), or one per picture (each number first_image):
            a whole number from 0 to 2^64 - 1, or a jax key, which is such a number in two words (see `seeds`) and
            which the settings hold as that number. jax.random.key(3) is seed 3.
          num_images: pictures of each prompt.
          height, width: pixels, multiples of the VAE's factor (8); default `image`'s size, or the checkpoint's own.
          latents: starting noise, unit Gaussian [b, h/8, w/8, c], in place of the seeds' own; with denoising_start
            the latents to go on from, as `Output.latents` has them.
          eta: share of fresh noise, for samplers that have it; None is the sampler's default.
          preset, sampler_options: further arguments of `sdjax.plan`: whose conventions, and {name: value}. The presets
            "lcm", "tcd", "lightning" and "hyper" stand for the sampler, steps and guidance of such a LoRA: see
            `request.speed`.
          noise_source: "jax", or whose noise a seed means: "torch_cpu", "torch_cuda". See `torch_noise`.
          prompt_style: "plain" (no syntax, one piece of 77 tokens, as diffusers), "a1111" or "comfy": weights, long
            prompts and, in a1111, BREAK, AND, editing and alternation as they have them. See `text.prompts`.
          clip_skip: layers of the text encoder to leave out, as "diffusers:1", "a1111:2" or "comfy:-2"; a number alone
            counts as the prompt_style does. See `model.text_encoder.ClipSkip`.
          embeddings: {"<cat>": x, ..}: new words, each a textual inversion (`sdjax.load_adapter`) or its file. A plain
            prompt has the word anywhere, letter for letter; in a1111 the bare name is it, in comfy embedding:name.
          prompt_2, negative_prompt_2: SDXL: another text for the second encoder.
          original_size, crop, target_size, negative_*: SDXL: (height, width) or (top, left), or one per picture.
            aesthetic_score, negative_aesthetic_score: its refiner. See `request.arguments`.
          refiner: another StableDiffusion that takes the latents over for the last 1 - refiner_start of the run.
          denoising_start, denoising_end: run only a piece of the schedule; see `sdjax.plan`.
          image: what to begin from, to change, to enlarge or to vary, by the kind of model (`request.image_inputs`): a
            PIL image, a path, an array uint8 `H W 3`, or latents, floats `b h w c`; one, or one per picture.
          mask: a picture that is white where `image` is to be made anew; what is black stays as it is to the last bit.
          strength: 0 to 1, how much of the run is made from `image`: int(steps * strength) steps, or as many as the
            preset's program makes (see `a1111_comfy.begun`). At 1 it is the start from noise alone, at 0 the picture,
            encoded and decoded (A1111 still makes one step). Default 0.8, with a mask 1.
          mask_blur: radius in pixels. mask_crop: work on the masked region alone, with so many pixels around it, at
            height x width, and paste it back.
          depth: of a depth model, a map of what is near (light), in place of an estimate from `image`.
          image_guidance_scale: of InstructPix2Pix, the pull of `image`; 1.5. noise_level: of an upscaler; 20.
          regions: [(prompt, mask), ..]: what to show where the masks are white; `prompt` counts everywhere else.
          adapters: what the pictures wear: [(adapter, scale), ..], each as `sdjax.load_adapter` gives it, or a path.
            The scale is a number, a list with one for each picture, or a mapping: see `adapters.scales`. Which they
            are and how strong is data: nothing compiles again. Or a mapping by name, for tags as <lora:name:0.8> in
            prompts under prompt_style="a1111". adapters_folder: where such names are found as files.
          control: nets that look at a map and steer the picture: [(net, map), ..], each net as `sdjax.load_controlnet`
            gives it, or a path; or sdjax.Control(net, map, scale=, start=, end=, ..). Without `image`, height and width
            the pictures are as large as the first map. See `request.control`.
          image_prompt: pictures that are shown beside the prompt: [(adapter, picture, scale), ..], each adapter as
            `sdjax.load_image_prompt` gives it, or a path; or sdjax.ImagePrompt(..). What counts how strongly in both is
            data, by picture and step; compiled is which nets there are.
          show_steps: which evaluations are kept in `Output.steps`: True is all, a number so many, or a list from 0.
          callback: called with a `Preview` after every evaluation; False stops the run, and what is done is kept.
          stop_after: so many evaluations, a refiner's counted on: the result is the clean latents predicted last.
          decode: False leaves the pictures in latent space.
          progress: a bar; None shows one where standard error is a terminal.
          All of the sampler's and the guidance's arguments may be lists with one entry per picture.

        Warns of pictures that hold NaN or infinities, with what did it.

        Raises:
          ValueError: anything out of range, named with its remedy, before anything is compiled.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        return self.run(self.request(**given))

    @hints.arguments(hints.GENERATE, like=generate)
    def request(self, prompt: Any = None, negative_prompt: Any = None, **arguments: Any) -> Request:
        """What `generate` of these arguments makes, checked: nothing is run, and nothing compiled.

        Takes the arguments of `generate`, and raises what it raises. `run` makes the pictures, as often as it is asked.
        """
        given = Arguments.of({"prompt": prompt, "negative_prompt": negative_prompt, **arguments})
        made = build.request(self.spec, given)
        texts = [texts for own in made.branches for branch in own for texts in branch.texts]
        taught = frozenset() if made.outfits is None else made.outfits.taught
        warn_of_words(self.name, texts, self.encoders, made.style, made.new, taught)
        return made

    def run(self, request: Request) -> Output:
        """Makes the pictures of a request that this model checked.

        Raises ValueError for what is none, or was checked against another model.
        """
        if not isinstance(request, Request):
            raise ValueError(f"run takes what sd.request(prompt, ...) gives, not {short(request)}")
        if request.spec is not self.spec:
            raise ValueError(f"this request was made by {request.spec.name}; make another by request of {self.name}")
        made, lost = self._sampled(request)
        settings = request.settings | ({} if made.stopped is None else {"stop_after": made.stopped})
        pixels = None
        if request.arguments.monitoring.decode:
            decoded, undone = self._decoded(made.latents)
            pixels, lost = request.inputs.paste(to_uint8(np.asarray(decoded))), undone | lost
        finite.tell(lost)
        images = [
            picture.make(one, request.alone(settings, i), model=self.name)
            for i, one in enumerate(() if pixels is None else pixels)
        ]
        return Output(np.asarray(made.latents), pixels, settings, images, tuple(map(self.viewer.preview, made.steps)))

    def _sampled(self, request: Request) -> tuple[Sampled, dict[int, str]]:
        """The run, and a refiner's after it; and what was lost on the way, by picture, with what did it."""
        monitoring, after = request.arguments.monitoring, request.refiner
        call = monitoring.callback
        shown = None if call is None else lambda step: call(self.viewer.preview(step))
        callbacks = Callbacks(monitoring.progress, shown, monitoring.wanted, monitoring.stop_after)
        made = run.sample(self.networks, request, callbacks)
        lost = lost_in_run(self.networks, request, made.latents)
        if after is not None and made.stopped is None:
            rest = run.sample(after.networks, after.of(made.latents), callbacks.after(made.evaluations))
            made = made.then(rest)
            lost = lost_in_run(after.networks, after.request, made.latents) | lost
        return made, lost

    def _encoded(
        self, texts: Sequence[str], style: str, clip_skip: int | str | None, embeddings: Mapping[str, Any] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states `b l d` and pooled states `b d` of a list of texts."""
        if isinstance(texts, str):
            raise ValueError(f"prompts must be a list of strings, not the one string {texts!r}; write [{texts!r}]")
        self._check_text()
        check_style(style)
        skip = ClipSkip.read(clip_skip, style)
        new = new_words.of_model(self.spec, new_words.opened(embeddings, self.spec, style))
        encoding = Encoding(self.encoders, cache(self.networks.encode_row), self.spec.family, style, skip, new)
        listed = checks.texts(texts, "prompts")
        given = [dict.fromkeys(self.encoders, text) for text in listed]
        warn_of_words(self.name, given, self.encoders, style, new)
        new_words.warn_of_unused(self.spec, new, given, style)
        made = [encoding(one) for one in given]
        most = max(len(states) for states, _ in made)
        rows = [states for states, _ in made]
        if any(len(states) < most for states in rows):
            empty = encoding(dict.fromkeys(self.encoders, ""))[0]
            rows = [np.concatenate([states, *[empty] * (most - len(states))]) for states in rows]
        return np.stack([row.reshape(-1, row.shape[-1]) for row in rows]), np.stack([pooled for _, pooled in made])

    def _conditions_of(self, x_t: jax.Array, context: jax.Array | Conditions) -> Conditions:
        """What `predict` was given, checked against x_t. Raises ValueError."""
        given = context if isinstance(context, Conditions) else None
        beside = 0 if given is None or given.channels is None else given.channels.shape[-1]
        missing = self.unet.in_channels - beside - x_t.shape[-1] if x_t.ndim == 4 else 0
        if missing and x_t.shape[-1] == self.unet.out_channels:
            raise ValueError(
                f"{self.name} is shown {missing} channels beside the latents (a mask, a picture, depth): give them as "
                "dataclasses.replace(sd.conditions([...]), channels=...)"
            )
        checks.check_axes(x_t.shape, self.unet.in_channels - beside, "x_t")
        if given is None or hasattr(given.context, "shape"):
            states, shared = (context, True) if given is None else (given.context, given.added is None)
            checks.check_context(states, len(x_t), self.unet.cross_attention_dim, shared)
        given = given or Conditions(jnp.asarray(context))
        if self.time_ids and given.added is None:
            raise ValueError("SDXL's U-Net also takes pooled text and sizes: pass what sd.conditions([...]) gives")
        if self.unet.num_class_embeds is not None and given.class_labels is None:
            raise ValueError(
                f"{self.name} is told a noise level: give it as dataclasses.replace(sd.conditions([...]), "
                "class_labels=...), int32 [b]"
            )
        return given

    def _unet_params(self, params: Mapping[str, Any]) -> Any:
        """A tree of the U-Net's parameters in the dtype it computes in. Raises ValueError for another tree."""
        own = self.params["unet"]
        if not isinstance(params, Mapping) or set(params) != set(own):
            whole = isinstance(params, Mapping) and "unet" in params
            remedy = 'params["unet"] of what was given is one' if whole else 'as sd.params["unet"]'
            raise ValueError(f"params must be the tree of a U-Net's parameters: {remedy}")
        for name in own:  # of a FrozenDict the tree is another, and the leaves the same
            if len(jax.tree.leaves(params[name])) != len(jax.tree.leaves(own[name])):
                raise ValueError(
                    f"params[{name!r}] must hold what sd.params['unet'][{name!r}] does: tensors are missing"
                )
        return programs.cast(self.dtype, params)

    def _check_text(self) -> None:
        if not self.encoders:
            raise ValueError(f"{self.name} has no text encoder: it makes variations of a picture, `generate(image=)`")

    # ------------------------------------------------------------------ what follows from the parameters

    @cached_property
    def viewer(self) -> Viewer:
        """Both ways from latents to something to look at, the VAE's and a cheap one."""
        return Viewer(self.decode, self.encode, self.vae.factor)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha_t^2 of the training levels x_t = alpha_t x_0 + sqrt(1 - alpha_t^2) e, float64 [T], t from 0.

        The cumulative product of 1 - beta, as diffusers' schedulers have it under this name; the last is 0 where the
        checkpoint's scheduler config asks for zero terminal SNR.
        """
        return self.spec.alphas_cumprod
