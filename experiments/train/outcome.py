"""What a run leaves: files that other programs open, and pictures made with them, on the way and at the end."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import sdjax
from experiments.train import processes
from experiments.train.material import Material
from experiments.train.model import Model
from experiments.train.recipes import Learner
from sdjax.core.tree import Params
from sdjax.images import sheet as sheets
from sdjax.train.losses.denoising import Denoising
from sdjax.train.mesh import fetched
from sdjax.train.methods.method import Written
from sdjax.train.validation import band_losses, band_metrics

COUNT = 8  # pictures of the loss at fixed noise
PICTURES, MODEL = "pictures", "model"


@dataclass(frozen=True, eq=False)
class Outcome:
    """Of one run. params: what takes part and does not learn, by component."""

    values: Any
    model: Model
    learner: Learner
    material: Material
    params: Mapping[str, Any]
    report: Callable[[str], None]

    def write(self, trainable: Params, folder: Path) -> Path:
        """Writes what has been learnt, whole or not at all, and returns where. Raises CheckpointError."""
        trainable = jax.device_get(trainable)
        method = self.learner.method
        if isinstance(method, Written):
            return method.write(trainable, self.params, folder, self.metadata())
        self._trained(trainable).save(folder / MODEL)
        return folder / MODEL

    def metadata(self) -> dict[str, str]:
        """What a file says of its training, in kohya's words."""
        values, out = self.values, Path(self.values.out)
        told = {
            "ss_output_name": out.name,
            "ss_sd_model_name": self.model.sd.name,
            "ss_steps": str(values.steps),
            "ss_learning_rate": f"{values.learning_rate:g}",
            "ss_optimizer": values.optimiser,
            "ss_batch_size_per_device": str(values.batch),
            "ss_seed": str(values.seed),
            "ss_training_comment": "sdjax, experiments/train",
        }
        told["sdjax.data"] = json.dumps(self.material.fingerprint)
        if values.zero_terminal_snr:
            told["ss_zero_terminal_snr"] = "True"
        words = self._new_words()
        return told | ({"sdjax.words": json.dumps(words)} if words else {})

    def _new_words(self) -> list[str]:
        """What it teaches a model whose words are few: --trigger, and the words of captions that it did not know."""
        known = [one.grammar for one in self.model.sd.encoders.values() if one.grammar]
        found = (word for one in known for text in self.material.captions for word in one.unknown(text))
        return [*dict.fromkeys([self.values.trigger] if self.values.trigger else []), *dict.fromkeys(found)]

    def watch(self, done: int, trainable: Params) -> dict[str, float]:
        """The loss at fixed noise, by bands of timesteps, and pictures of --validation_prompts."""
        trainable = fetched(trainable)
        if not processes.first():
            return {}
        if self.values.validation_prompts:
            self.paint(trainable, done)
        return self.validation(trainable)

    def validation(self, trainable: Params) -> dict[str, float]:
        """The loss at fixed noise; nothing where the objective is none of denoising."""
        objective, batch = self.learner.objective, self._fixed
        if not isinstance(objective, Denoising) or batch is None:
            return {}
        joined = self.learner.method.join(trainable, self.params)
        losses = _bands(objective, joined, batch)
        return {name: float(value) for name, value in band_metrics(losses, batch).items()}

    def paint(self, trainable: Params, done: int) -> Path | None:
        """Pictures of --validation_prompts, of the same noise every time: a sheet in the run's folder."""
        prompts = [one.strip() for one in (self.values.validation_prompts or "").split("|") if one.strip()]
        if not prompts:
            return None
        path = Path(self.values.out) / PICTURES / f"{done:06d}.png"
        pictures = self._pictures(trainable, prompts)
        captions = [sheets.wrapped(prompt, one.width) for prompt, one in zip(prompts, pictures, strict=True)]
        path.parent.mkdir(parents=True, exist_ok=True)
        sheets.sheet(pictures, captions, min(4, len(prompts))).save(path)
        self.report(f"step {done}: {path}")
        return path

    def _pictures(self, trainable: Params, prompts: list[str]) -> list[Image.Image]:
        sd, more = self._shown(trainable, len(prompts))
        made = [
            sd.generate(
                prompt, seed=i, steps=self.values.validation_steps, **{name: each[i] for name, each in more.items()}
            )
            for i, prompt in enumerate(prompts)
        ]
        return [one.images[0] for one in made]

    def _shown(self, trainable: Params, count: int) -> tuple[sdjax.StableDiffusion, dict[str, list[Any]]]:
        """A model, and what `generate` takes beside each of so many prompts, to use what has been learnt."""
        name, sd = self.values.method, self.model.with_params(self.model.sd.params)
        if not isinstance(self.learner.method, Written):
            return self._trained(trainable), {}
        file = self.write(trainable, Path(self.values.out) / PICTURES)
        if name == "textual_inversion":
            return sd, {"embeddings": [{self.values.word: str(file)}] * count}
        if name == "controlnet":
            net, shown = sdjax.load_controlnet(file), self.material.fixed(count)
            maps = [] if shown is None else [_uint8(one) for one in shown["map"]]
            return sd, {"control": [[(net, maps[i % len(maps)])] for i in range(count)]}
        if name == "ip_adapter":
            prompt = sdjax.load_image_prompt(file, image_encoder=self.values.image_encoder)
            shown = self.material.pictures_of(count)  # type: ignore[attr-defined]
            return sd, {"image_prompt": [[(prompt, shown[i % len(shown)], 1.0)] for i in range(count)]}
        few: dict[str, list[Any]] = {"sampler": ["lcm"] * count, "guidance_scale": [1.0] * count}
        return sd.with_adapters([(sdjax.load_adapter(file), 1.0)]), few if name == "lcm" else {}

    def _trained(self, trainable: Params) -> sdjax.StableDiffusion:
        return self.model.with_params(self.learner.method.join(trainable, self.model.sd.params))

    @cached_property
    def _fixed(self) -> dict[str, Any] | None:
        return self.material.fixed(COUNT)


@partial(jax.jit, static_argnums=0)
def _bands(objective: Denoising, params: Any, batch: Any) -> jax.Array:
    return band_losses(objective, params, batch, jax.random.key(0))


def _uint8(picture: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(picture * 255), np.uint8)
