"""Networks: a model that can run. What it is (ModelSpec), its parameters, and what runs its programs (Executor).

Everything that sampling needs of a model, and nothing of how a user asks for it.

A narrow dtype may not hold what a network computes (see `finite`). So whatever runs once for a text or a picture (text
encoder, VAE, what looks at a picture) runs once more in float32 where its answer is not finite: for those pictures
alone, so that the others keep their bits. The U-Net runs once a step, and is not run again.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.adapters.hypernetwork import Hypernetwork
from sdjax.adapters.hypernetwork import attach as preceded
from sdjax.adapters.image_prompt import ImagePromptAdapter
from sdjax.adapters.slots import Slots
from sdjax.adapters.slots import attach as slotted
from sdjax.core.jit import Program
from sdjax.core.tree import Params
from sdjax.images.processor import Processor
from sdjax.images.read import ImageLike, read_image
from sdjax.model import finite
from sdjax.model.beside import Steerer, bind
from sdjax.model.spec import ModelSpec
from sdjax.nn.clip import NewWords
from sdjax.nn.denoiser import Steerable
from sdjax.nn.worn import Strengths, wearing
from sdjax.runtime import programs
from sdjax.runtime.control.controlled import Controlled
from sdjax.runtime.denoisers import denoiser_of
from sdjax.runtime.executor import Compiled, Executor


@dataclass(frozen=True, eq=False)
class Networks:
    """A model that can run.

    Attributes:
      spec: what it is.
      stored: {"text_encoder", "text_encoder_2", "unet", "vae" ..}, those there are: nested dicts of arrays as the
        checkpoint has them, on the host where the networks compute in something narrower.
      params: the same in the dtypes that the networks compute in, on their devices.
      dtype: what the networks compute in; norms, softmax and latents are float32 whatever it is.
      executor: what runs their programs.
    """

    spec: ModelSpec
    stored: Mapping[str, Any]
    params: Mapping[str, Any]
    dtype: DTypeLike = jnp.float32
    executor: Executor = Compiled()
    _worn: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _beside: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _encoders: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        stored: Mapping[str, Any],
        dtype: DTypeLike = jnp.float32,
        executor: Executor | None = None,
    ) -> "Networks":
        """With parameters cast to what they are used in: once here, and not at every step."""
        return cls(spec, {}, {}, dtype, executor or Compiled()).with_stored(stored)

    def with_stored(self, stored: Mapping[str, Any]) -> "Networks":
        """The same networks with other parameters: those that are new are cast, those that are not stay as they are."""
        known = {
            name: {id(leaf): own for leaf, own in zip(*map(jax.tree.leaves, (tree, self.params[name])), strict=True)}
            for name, tree in self.stored.items()
        }
        params = {}
        for name, tree in stored.items():
            leaves, structure = jax.tree.flatten(tree)
            kept = known.get(name, {})
            new = iter(programs.cast(self.dtype_of(name), [leaf for leaf in leaves if id(leaf) not in kept]))
            cast = [kept[id(leaf)] if id(leaf) in kept else next(new) for leaf in leaves]
            params[name] = jax.tree.unflatten(structure, cast)
        return replace(self, stored=stored, params=params)

    def wearing(self, slots: Mapping[str, Slots], hypernetworks: Sequence[Hypernetwork], key: Hashable) -> "Networks":
        """The same networks with adapters beside their kernels, whose strengths are each picture's.

        slots: of low-rank ones, by component. key: equal for equal adapters, for which the last are kept.
        """
        if self._worn.get("key") != key:
            self._worn.clear()  # before others take memory
            self._worn.update(key=key, networks=self._dressed(slots, hypernetworks))
        return self._worn["networks"]

    def preceded(self, hypernetworks: Sequence[tuple[Hypernetwork, float]]) -> "Networks":
        """The same networks with hypernetworks of these strengths, in float32 whatever they compute in, for good."""
        if not hypernetworks:
            return self
        nets, scales = zip(*hypernetworks, strict=True)
        params, stored = ({**own, "unet": preceded(own["unet"], nets, scales)} for own in (self.params, self.stored))
        return replace(self, params=params, stored=stored)

    def beside(self, adapters: Sequence[Steerer]) -> tuple[Controlled, Params]:
        """The U-Net with networks beside it that steer it, and the parameters of all; those of the last are kept."""
        key = tuple(adapters)
        if self._beside.get("key") != key:
            self._beside.clear()  # before others take memory
            bound = [bind(one, self.spec, self.stored["unet"], self.dtype) for one in adapters]
            params = tuple(self.executor.place(programs.cast(self.dtype, own)) for _, own in bound)
            self._beside.update(key=key, networks=tuple(network for network, _ in bound), params=params)
        beside = Controlled(self.denoiser, self._beside["networks"])
        return beside, {"unet": self.params["unet"], "control": self._beside["params"]}

    def encode_prompt_image(self, adapter: ImagePromptAdapter, image: ImageLike | None) -> np.ndarray:
        """The tokens `m d` that an adapter makes of a picture, or of none. Raises ValueError where not finite."""
        encoder = adapter.encoder
        pixels = None if image is None else jnp.asarray(Processor.from_dict(encoder.preprocessor)(read_image(image)))
        stored = {"image_encoder": encoder.params, "image_proj": adapter.params["image_proj"]}

        def run(executor: Executor, dtype: DTypeLike, params: Any) -> Any:
            return executor.run(programs.encode_prompt_image, encoder.config, adapter.config, dtype, params, pixels)

        if self._encoders.get("key") is not adapter:
            self._encoders.clear()
            self._encoders.update(key=adapter, params=programs.cast(self.dtype, stored))
        return np.asarray(self._once_more(run, self.dtype, self._encoders["params"], stored, adapter.name))

    def _dressed(self, slots: Mapping[str, Slots], hypernetworks: Sequence[Hypernetwork]) -> "Networks":
        params, stored = dict(self.params), dict(self.stored)
        for name, own in slots.items():
            beside = own.beside(self.params[name], self.dtype)
            placed = self.executor.place(beside) if name == "unet" else jax.tree.map(jnp.asarray, beside)
            params[name] = slotted(self.params[name], placed)
            stored[name] = slotted(self.stored[name], placed)
        if hypernetworks:
            params["unet"] = preceded(params["unet"], hypernetworks)
        return replace(self, params=params, stored=stored)

    @property
    def denoiser(self) -> Steerable:
        """What predicts: static and hashable, for the programs that run it."""
        return denoiser_of(self.spec.unet, self.dtype)

    def dtype_of(self, component: str) -> DTypeLike:
        """What one of the networks computes in: the VAE of some families needs more than the others."""
        spec = self.spec
        return spec.family.vae_dtype(spec.vae, self.dtype) if component == "vae" else self.dtype

    # ------------------------------------------------------------------ what runs once for a text or a picture

    def encode_row(
        self,
        component: str,
        ids: tuple[int, ...],
        depth: int,
        new: NewWords | None = None,
        worn: Strengths | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """A text encoder on one row of ids: (hidden states `l d`, pooled `d`); see `programs.encode_text`.

        new: vectors in place of some ids. worn: how strongly this text's picture wears what stands beside the encoder's
        kernels.
        """
        config, row = self.spec.encoders[component].config, np.asarray(ids, np.int32)
        normed = self.spec.family.final_norm

        def run(executor: Executor, dtype: DTypeLike, params: Any) -> Any:
            own = wearing(params, worn)
            return executor.run(programs.encode_text, config, dtype, normed, own, row, np.int32(depth), new)

        states, pooled = self._whole(component, run)
        return np.asarray(states), np.asarray(pooled)

    def encode_image(self, image: ImageLike) -> jax.Array:
        """See `StableDiffusion.encode_image`."""
        made = self._seen(programs.encode_image, "image_encoder", image, "models for image variations have one")
        return made[None, None]

    def estimate_depth(self, image: ImageLike) -> np.ndarray:
        """See `StableDiffusion.estimate_depth`."""
        made = self._seen(programs.estimate_depth, "depth_estimator", image, "Stable Diffusion 2 depth has one")
        return np.asarray(made)

    def _seen(self, program: Program, component: str, image: ImageLike, whose: str) -> Any:
        """What a network that looks at pictures gives for one. Raises ValueError where the checkpoint has none."""
        tower = getattr(self.spec, component)
        if tower is None:
            raise ValueError(f"{self.spec.name} has no {component}; {whose}")
        pixels, config = jnp.asarray(tower.processor(read_image(image))), tower.config
        return self._whole(component, lambda on, *how: on.run(program, config, *how, pixels))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents `b h w c` at the U-Net's scale -> pixels `b H W 3` in [-1, 1], float32."""
        return self._by_picture(lambda on, *how: on.run(programs.decode, self.spec.vae, *how), latents)

    def encode(self, pixels: Any, noise: jax.Array | None) -> jax.Array:
        """Pixels `b H W 3` -> latents: a draw by unit `noise`, or the mean. Raises ValueError where not finite."""
        pixels = jnp.asarray(pixels)
        made = self._by_picture(lambda on, *how: on.run(programs.encode, self.spec.vae, *how), pixels, noise)
        if not isinstance(made, jax.core.Tracer) and finite.broken(made):
            raise ValueError(
                f"the VAE of {self.spec.name} encodes this picture as NaN or infinity, even in float32: load the model "
                "with another vae=, or look whether the pixels are numbers in [-1, 1]"
            )
        return made

    # ------------------------------------------------------------------ and once more in float32

    def _whole(self, component: str, run: Callable[[Executor, DTypeLike, Any], Any]) -> Any:
        """`run(executor, dtype, params)` of a component; once more in float32 where that was narrower and not finite.

        Raises ValueError where it is not finite even so.
        """
        dtype, name = self.dtype_of(component), f"{self.spec.name}: {component}"
        return self._once_more(run, dtype, self.params[component], self.stored[component], name)

    def _once_more(
        self, run: Callable[[Executor, DTypeLike, Any], Any], dtype: DTypeLike, params: Any, stored: Any, name: str
    ) -> Any:
        made = run(self.executor, dtype, params)
        if finite.finite(made):
            return made
        if dtype != jnp.float32:
            made = run(Compiled(), jnp.float32, programs.cast(jnp.float32, stored))
        if not finite.finite(made):
            raise ValueError(f"{name} gives NaN or infinity, even in float32: its parameters are damaged")
        return made

    def _by_picture(self, run: Callable[..., Any], *batch: Any) -> Any:
        """`run(executor, dtype, params, *batch)` of the VAE; those of the b pictures that are not finite in float32.

        batch: arrays `b ..`, or None. A picture that goes in with a NaN stays as it comes out.
        """
        dtype = self.dtype_of("vae")
        made = run(self.executor, dtype, self.params["vae"], *batch)
        if isinstance(made, jax.core.Tracer) or dtype == jnp.float32:
            return made
        given = [one for one in batch if one is not None]
        lost = sorted(set(finite.broken(made)) - {i for one in given for i in finite.broken(one)})
        if not lost:
            return made
        wide, mended = programs.cast(jnp.float32, self.stored["vae"]), np.array(made)
        for i in lost:  # one by one: one program for any number of them, and none depends on the others
            own = [None if one is None else one[i : i + 1] for one in batch]
            mended[i] = np.asarray(run(Compiled(), jnp.float32, wide, *own))[0]
        return jnp.asarray(mended)
