"""The pictures of a call: how many, how large, and from whose noise each is made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from sdjax.core.limits import MOST_COUNT, MOST_PICTURES, MOST_SIDE
from sdjax.request import checks, seeds
from sdjax.request.arguments.topic import UNUSUAL, Flag, Topic, argument


@dataclass(frozen=True, eq=False, repr=False)
class Batch(Topic):
    """Seeds, numbers and sizes; see `generate`."""

    seed: int | jax.Array | Sequence[int | jax.Array] = argument(
        0, int, span=(0, 2**64 - 1), each="picture", flag=Flag("Picture i is the i-th of this seed.", least=0)
    )
    num_images: int = argument(1, int, span=(1, MOST_PICTURES), flag=Flag("Pictures of each prompt.", least=1))
    height: int | None = argument(
        None, int, span=(1, MOST_SIDE), flag=Flag("Pixels; default: the model's own.", least=1)
    )
    width: int | None = argument(
        None, int, span=(1, MOST_SIDE), flag=Flag("Pixels; default: the model's own.", least=1)
    )
    first_image: int = argument(0, int, span=(0, MOST_COUNT))
    noise_source: str = argument(
        "jax", str, told=UNUSUAL, flag=Flag("Whose noise a seed means: jax, torch_cpu or torch_cuda.")
    )

    @classmethod
    def plain(cls, name: str, value: Any) -> Any:
        """As for other arguments; a seed may be a jax key, and is then its whole number."""
        return seeds.plain(value) if name == "seed" else super().plain(name, value)

    def count(self, prompts: int) -> int:
        """How many pictures so many prompts make. Raises ValueError."""
        each = checks.check_count(self.num_images, 1, "num_images")
        return checks.check_pictures(prompts, each, checks.check_count(self.first_image, 0, "first_image"))

    def numbers(self, count: int) -> tuple[int, ...]:
        """Each picture's number under its seed."""
        many = checks.is_list(self.seed)
        return tuple(self.first_image if many else self.first_image + i for i in range(count))

    def checked(self, count: int, height: int, width: int) -> "Batch":
        """For `count` pictures of that size. Raises ValueError."""
        seed = checks.as_given(self.seed, seeds.check(self.seed, count))
        return replace(self, seed=seed, height=height, width=width)
