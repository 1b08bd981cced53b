"""What is not finite: made once more in float32 where that mends it, else told in words.

float16 ends at 65,504. An activation beyond that is infinite, the norm after it divides infinity by infinity, and every
pixel is NaN, which would be a black picture. So whatever runs once for a text or a picture (text encoder, VAE, what
looks at a picture) runs once more in float32 where its answer is not finite: for those pictures alone, so that the
others keep their bits. The U-Net runs once a step, and is not run again: what it lost, its pictures are told to have
lost, with what most likely did it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.core.notice import notice
from sdjax.runtime import programs

if TYPE_CHECKING:
    from sdjax.pipeline import StableDiffusion

FARTHEST = 1e6  # latents have about unit variance; beyond this nothing is left of a picture, finite or not


def whole(sd: "StableDiffusion", component: str, run: Callable[[Any, DTypeLike, Any], Any]) -> Any:
    """`run(programs, dtype, params)` of a component; once more in float32 where that was narrower and not finite.

    Raises ValueError where it is not finite even so.
    """
    made = run(sd.programs, sd.dtype, sd.compute_params[component])
    if _finite(made):
        return made
    if sd.dtype != jnp.float32:
        made = run(programs, jnp.float32, programs.cast(jnp.float32, sd.params[component]))
    if not _finite(made):
        raise ValueError(f"{sd.name}: {component} gives NaN or infinity, even in float32: its parameters are damaged")
    return made


def by_picture(sd: "StableDiffusion", run: Callable[..., Any], *batch: Any) -> Any:
    """`run(programs, dtype, params, *batch)` of the VAE; those of the b pictures that are not finite in float32.

    batch: arrays `b ..`, or None. A picture that goes in with a NaN stays as it comes out.
    """
    made = run(sd.programs, sd.vae_dtype, sd.compute_params["vae"], *batch)
    if isinstance(made, jax.core.Tracer) or sd.vae_dtype == jnp.float32:
        return made
    given = [one for one in batch if one is not None]
    lost = sorted(set(broken(made)) - {i for one in given for i in broken(one)})
    if not lost:
        return made
    wide, mended = programs.cast(jnp.float32, sd.params["vae"]), np.array(made)
    for i in lost:  # one by one: one program for any number of them, and none depends on the others
        own = [None if one is None else one[i : i + 1] for one in batch]
        mended[i] = np.asarray(run(programs, jnp.float32, wide, *own))[0]
    return jnp.asarray(mended)


def broken(batch: Any, most: float = np.inf) -> list[int]:
    """Which of `b ..` hold a NaN, or a number of `most` or more."""
    inside = np.abs(np.asarray(batch)) < most
    return np.flatnonzero(~inside.reshape(len(inside), -1).all(1)).tolist()


# ---------------------------------------------------------------------- in words


def tell(lost: Mapping[int, str]) -> None:
    """One warning for all the pictures that are lost."""
    reasons: dict[str, list[int]] = {}
    for i in sorted(lost):
        reasons.setdefault(lost[i], []).append(i)
    if reasons:
        each = "; ".join(f"{_numbered(pictures)}: {reason}" for reason, pictures in reasons.items())
        notice(f"lost to NaN or infinity, and black where it is NaN: {each}")


def _numbered(pictures: Sequence[int]) -> str:
    """In words: picture 0; pictures 1, 2 and 5."""
    *first, last = map(str, pictures)
    return f"pictures {', '.join(first)} and {last}" if first else f"picture {last}"


def _finite(made: Any) -> bool:
    """Whether all numbers of a tree are; of what is still being traced nobody can tell."""
    leaves = jax.tree.leaves(made)
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) or all(np.isfinite(leaf).all() for leaf in leaves)
