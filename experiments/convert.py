r"""A checkpoint from one layout into the other, an adapter from one dialect into another.

    python -m experiments.convert --source=model.safetensors --target=folder
    python -m experiments.convert --source=folder --target=model.safetensors --dtype=float16
    python -m experiments.convert --source=lora.safetensors --target=new.safetensors --dialect=kohya

The source is a folder in the diffusers layout, a .safetensors file in the original one, or a Hub id; the target's name
says which layout is written, or --layout does. Nothing is computed: without --dtype every weight keeps its bits, so
that there and back again gives the same tensors. What no picture needs (averaged weights, a safety checker) is left
behind, and said so.

With --dialect the source is an adapter (a LoRA and the like): a file, a folder of diffusers' or PEFT's, or a Hub id.
"kohya" is what A1111 and ComfyUI read, "peft" what diffusers does, "own" the names that it came in. One for a model of
your own needs that model, --model, to tell the paths of its modules.

Run time: that of reading and writing the file, about 10 s for Stable Diffusion 1.5 in float16, and as much memory as
the weights take.
"""

import warnings
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli

DIALECTS = ["own", "kohya", "kohya-sgm", "kohya-diffusers", "peft"]


def define_flags() -> None:
    """Called for the program only: who imports this file may name flags of their own as they like."""
    flags.DEFINE_string("source", None, "A folder, a .safetensors file or a Hub id.", required=True)
    flags.DEFINE_string("target", None, "The new folder, or the new .safetensors file.", required=True)
    flags.DEFINE_enum(
        "layout", None, ["diffusers", "single_file"], "What to write; default: as the target's name says."
    )
    flags.DEFINE_enum("dtype", None, ["float32", "float16", "bfloat16"], "What to store; default: as it is.")
    flags.DEFINE_string("variant", None, "Which weights of a folder where there are several, as fp16.")
    flags.DEFINE_string("vae", None, "Another autoencoder, a file or a folder, in place of the checkpoint's own.")
    flags.DEFINE_enum("dialect", None, DIALECTS, "Of an adapter: whose names its tensors are to bear.")
    flags.DEFINE_string("model", None, "Of an adapter for a custom model: that model's folder or file.")
    flags.DEFINE_string("prediction_type", None, "epsilon or v_prediction, where the checkpoint has it wrong.")


def main(values: Any) -> None:
    """Opens the source, reads it and writes the target, whose path is printed. `values` has a flag an attribute."""
    if values.dialect:
        convert_adapter(values)
        return
    layout = values.layout or ("single_file" if values.target.endswith(".safetensors") else "diffusers")
    check_target(Path(values.target), layout)
    import jax  # takes a second, which a wrong flag should not cost

    from sdjax import weights

    opened = weights.open_checkpoint(values.source, variant=values.variant, prediction_type=values.prediction_type)
    if values.vae:
        opened = weights.open_vae(values.vae, values.variant).into(opened)
    for note in opened.notes:
        warnings.warn(note, stacklevel=1)
    if layout == "single_file":
        check_family(opened.configs, values.source)
    with jax.default_device(jax.devices("cpu")[0]):
        components = {name: read(opened, name, tree, values.dtype) for name, tree in expected(opened.configs).items()}
    if layout == "single_file":
        weights.save_single_file(values.target, opened.configs, components, opened.scheduler)
    else:
        weights.save_folder(values.target, components, opened.files)
    print(values.target)


def convert_adapter(values: Any) -> None:
    """Opens an adapter, writes it in another dialect and prints the path. Raises ValueError for others' flags."""
    for name in ("layout", "dtype", "variant", "vae", "prediction_type"):
        if getattr(values, name):
            raise ValueError(f"--{name} is for checkpoints, and --dialect for adapters")
    import sdjax
    from sdjax.adapters.adapter import Adapter

    adapter = sdjax.load_adapter(values.source)
    if not isinstance(adapter, Adapter):
        raise ValueError(f"{values.source} holds no LoRA or its like, but {adapter!r}; --dialect is for those")
    model = sdjax.load(values.model, compilation_cache=False).params if values.model else None
    adapter.save(values.target, None if values.dialect == "own" else values.dialect, model=model)
    print(values.target)


def check_target(target: Path, layout: str) -> None:
    """Raises ValueError where the target's name and the layout do not go together, or it is the folder one is in."""
    if target == Path():  # of a shell variable that is not set
        raise ValueError("--target is empty; name a new folder, or a file that ends with .safetensors")
    named = target.suffix == ".safetensors"
    if layout == "single_file" and (not named or target.is_dir()):
        raise ValueError(f"--target={target}: a single file's name ends with .safetensors")
    if layout == "diffusers" and (named or target.is_file()):
        raise ValueError(f"--target={target}: the diffusers layout is a folder; for a file say --layout=single_file")


def check_family(configs: Any, source: str) -> None:
    """Raises ValueError where the file could not be opened again: it does not say its configs, its family has to."""
    from sdjax.config import read_networks
    from sdjax.config.presets import PRESETS
    from sdjax.core.errors import listing
    from sdjax.weights.families import unsaid

    if different := unsaid(read_networks(configs), PRESETS):
        raise ValueError(
            f"{source} cannot be a single file, which nothing could open: such a file is read by the configs of a "
            f"published family, and of the nearest this one differs in:{listing(different)}\n  Keep it as a folder "
            "(--layout=diffusers)"
        )


def expected(configs: Any) -> Any:
    """The shapes of all parameters by component, from what the config.json files say."""
    from sdjax import config
    from sdjax.nn.shapes import expected_params

    return expected_params(config.read_networks(configs))


def read(opened: Any, name: str, tree: Any, dtype: str | None) -> Any:
    """One component's parameters, in `dtype` where it is given, and how to save them."""
    params, layout = opened.read(name, tree)
    if dtype is None:
        return params, layout
    from sdjax.weights import default_layout

    params = cast(params, dtype, name)
    return params, default_layout(params, opened.configs[name])


def cast(tree: Any, dtype: str, where: str) -> Any:
    """The parameters in another dtype, on the host. Raises ValueError where one is too large for it."""
    import jax.numpy as jnp
    import numpy as np

    if isinstance(tree, dict):
        return {name: cast(leaf, dtype, f"{where}.{name}") for name, leaf in tree.items()}
    with np.errstate(over="ignore"):  # told as an error
        array = np.asarray(tree).astype(jnp.dtype(dtype))
    if not np.isfinite(array).all():
        raise ValueError(f"{where} holds numbers that are too large for {dtype}; bfloat16 has room for them")
    return array


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
