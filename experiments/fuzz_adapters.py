"""Damaged adapters by the thousand: every one must be read right or be refused in words.

    python -m experiments.fuzz_adapters --cases=10000 --out=fuzz.md               # about 10 minutes on 2 cores

Small adapters (`fuzz_adapter_files`: every dialect, every kind, PEFT's folder, words, a hypernetwork) are mutated, one
file each, in the ways of `fuzz_mutations` and a few of their own, then loaded, bound to a small model and saved in
another dialect. Expected of each: one message of ours that names the file; or deltas that do to a random weight what
the file's bytes say, by formulas written out here and names read from the base. Anything else is a fault, as in
`fuzz_checkpoints`.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from experiments import _cli
from experiments.fuzz_adapter_files import ALPHA, STYLES, Means, make, means, trees
from experiments.fuzz_checkpoints import define_flags, run
from experiments.fuzz_door import Wrong, make_case
from experiments.fuzz_mutations import (
    DTYPES,
    KINDS,
    Tensor,
    disturbed,
    edit,
    edit_header,
    edit_json,
    edit_tensors,
    files,
    take_apart,
    tensors_of,
)

SCALE = 0.7
LARGEST = 1e37  # of numbers that float32 can be asked to multiply
ENDS = (
    ".lora_up.weight", ".lora_down.weight", ".lora_A.weight", ".lora_B.weight", ".hada_w1_a", ".lokr_w1", ".diff",
    ".oft_blocks", ".on_input", ".w_norm",
)  # fmt: skip
PEFT_KEYS = ("r", "lora_alpha", "alpha_pattern", "use_rslora", "peft_type", "init_lora_weights", "x")
Arrays = dict[str, np.ndarray]


# ---------------------------------------------------------------------- mutations of their own


def _words(rng: Random, tensors: dict[str, Tensor], name: str) -> None:
    """A name of another module, of another dialect, or with a letter wrong; in place of the own or beside it."""
    other, at = rng.choice(sorted(tensors)), rng.randrange(len(name))
    module, _, word = name.partition(".")
    new = rng.choice(
        [
            f"{module}.{other.partition('.')[2]}", f"{other.partition('.')[0]}.{word}", name[:at] + name[at + 1 :],
            name[:at] + rng.choice("abz019_. ") + name[at:], name.replace("lora_unet_", "lora_te_"),
            name.replace("text_model", ""), name.replace("unet.", ""), name.replace("lora_down", "lora_A"),
            name.replace("_", "."), name.replace(".lora_A", ".lora_A.default"), f"bundle_emb.cat.{word}",
            name.replace("te_", "te1_"), name.replace("te1_", "te2_"), f"{module}.{rng.choice(WORDS)}",
        ]
    )  # fmt: skip
    tensors[new] = tensors[name] if rng.random() < 0.3 else tensors.pop(name)


WORDS = (
    "alpha", "scale", "dora_scale", "diff", "diff_b", "w_norm", "weight", "on_input", "oft_blocks", "oft_diag", "bias",
    "lora_mid.weight", "lokr_w1", "hada_w1_a", "set_weight", "reshape_weight", "lora_magnitude_vector", "a1.weight",
)  # fmt: skip


def _numbers(rng: Random, tensors: dict[str, Tensor], name: str) -> None:
    """Another single number beside a module's tensors, or in the place of one of them."""
    module = name.partition(".lora_")[0].partition(".alpha")[0]
    value = rng.choice((0.0, -1.0, 1.0, 0.5, 1e30, np.inf, np.nan, 3.0))
    shape = rng.choice(([], [1], [1, 1], [2], [0]))
    dtype = rng.choice(("F32", "F16", "I64", "BOOL", "F64"))
    with np.errstate(all="ignore"):
        array = np.full(shape, value).astype(DTYPES[dtype])
    tensors[f"{module}.{rng.choice(('alpha', 'scale', 'on_input', 'dora_scale'))}"] = dtype, shape, array.tobytes()


def _said(rng: Random, header: dict[str, Any], _: bytes) -> Any:
    """What the metadata says, of PEFT's config and else."""
    said = {"unet.lora_alpha": ALPHA, "unet.alpha_pattern": {"attn1.to_q": 2.0}, "text_encoder.use_rslora": True}
    text = json.dumps(disturbed(rng, said)) if rng.random() < 0.7 else rng.choice(("", "[", "null", "1", "{" * 10**5))
    keys = ("ss_base_model_version", "ss_v2", "ss_output_name", "sshs_model_hash", "modelspec.architecture")
    own = {"lora_adapter_metadata": text, rng.choice(keys): rng.choice(("", "sdxl_base_v1-0", "True", "x" * 20_000))}
    return header | {"__metadata__": own}


PLAIN = [
    "bytes of any file", "bytes of a header", "length of a header", "values of a header", "byte ranges",
    "text of a header", "names of tensors", "shapes of tensors", "dtypes of tensors", "numbers in tensors",
    "tensors of something else", "100,000 tensors", "100,000 tensors, one twice", "another thing than a file",
]  # fmt: skip
OWN = {
    "names of modules": edit_tensors(_words),
    "single numbers": edit_tensors(_numbers),
    "metadata": edit_header(_said),
    "PEFT's config": edit_json("adapter_config.json", PEFT_KEYS),
    "nothing": edit(lambda rng, content: content),
}
ALL = {name: KINDS[name] for name in PLAIN} | OWN


# ---------------------------------------------------------------------- opened and judged


class AdapterDoor:
    """Opens adapters as a user would, and checks what came out. One a process."""

    make_case = staticmethod(partial(make_case, kinds=ALL, only={"PEFT's config": ("folder",)}))

    def __init__(self, bases: Path) -> None:
        self.bases = bases
        self.means = {base.name: means(base.name) for base in bases.iterdir()}
        trees()

    def open(self, path: Path) -> Any:
        """The adapter, and what it is bound to; None for a file that changes no weights."""
        import sdjax
        from sdjax.adapters.adapter import Adapter

        found = sdjax.load_adapter(path)
        repr(found)
        if not isinstance(found, Adapter):
            return found, None, None
        tree = trees()[STYLES[path.name][1] if path.name in STYLES else "sd"]
        bound = found.bind(tree)
        again = path.with_name("again.safetensors")
        found.save(again, "kohya", model=tree)
        return found, bound, sdjax.load_adapter(again).bind(tree)

    def check(self, path: Path, opened: Any) -> None:
        """Raises Wrong unless all is as the file's bytes say, read by hand."""
        found, bound, again = opened
        (file,) = files(path, "*.safetensors")
        held = tensors_of(file.read_bytes())
        if found.tensors.keys() != held.keys():
            raise Wrong(f"tensors differ: {sorted(found.tensors.keys() ^ held.keys())[:4]}")
        for name, (_, shape, data) in held.items():
            array = found.tensors[name]
            if list(array.shape) != shape or array.tobytes() != data:
                raise Wrong(f"{name} is not what its bytes are")
        if bound is None:
            return
        arrays = {name: numbers(tensor) for name, tensor in held.items()}
        modules = by_module(arrays, self.means[path.name], found.embeddings)
        if (got := {(c, p) for c in bound for p in bound[c]}) != modules.keys():
            raise Wrong(f"other modules: {sorted(got ^ modules.keys())[:4]}")
        rng = np.random.default_rng(0)
        alphas = config_alphas(path, file)
        for (component, module), own in modules.items():
            for leaf, delta in bound[component][module].items():
                weight = rng.standard_normal(shape_for(delta, own, component, module, path.name)) + 3
                right = by_hand(own, leaf, weight, alphas(component, module, own))
                if max(np.abs(one).max(initial=0.0) for one in own.values()) > LARGEST:
                    continue
                for one in (delta, again[component][module][leaf]):
                    got_weight = one.apply(weight.astype(np.float32), SCALE)
                    size = max(float(np.abs(right).max()), 1e-30)
                    if not np.abs(got_weight - right).max() <= 2e-3 * size:
                        raise Wrong(f"{component}.{module}.{leaf} is not what its tensors say")


def numbers(tensor: Tensor) -> np.ndarray:
    """A tensor by hand, in float64."""
    dtype, shape, data = tensor
    return np.frombuffer(data, DTYPES[dtype]).astype(np.float64).reshape(shape)


def by_module(arrays: Arrays, means: Means, embeddings: Mapping[str, Any]) -> dict[tuple[str, str], Arrays]:
    """The tensors of each module, by kohya's words; one renamed stands for the one that is missing."""
    owners = {
        name.removesuffix(ending): place for name, place in means.items() for ending in ENDS if name.endswith(ending)
    }
    missing = [name for name in means if name not in arrays]
    unknown = [name for name in arrays if name not in means and not name.startswith("bundle_emb.")]
    found: dict[tuple[str, str], Arrays] = {}
    for name, array in arrays.items():
        module, _, word = name.rpartition(".")
        if name in means:
            component, path, word = means[name]
        elif module in owners:
            component, path, _ = owners[module]
        elif name in unknown and len(unknown) == len(missing) == 1:
            component, path, word = means[missing[0]]
        elif name.startswith("bundle_emb.") and embeddings:
            continue
        else:
            raise Wrong(f"{name} was read, and means nothing that is known here")
        found.setdefault((component, path), {})[word] = array
    return found


def config_alphas(path: Path, file: Path) -> Any:
    """What PEFT's config or the metadata says, as a function of a module and its tensors; None where alpha is r."""
    if path.name != "folder":
        header, _ = take_apart(file.read_bytes())
        said = json.loads((header.get("__metadata__") or {}).get("lora_adapter_metadata", "{}"))
    elif not (path / "adapter_config.json").exists():
        said = {}
    else:
        config = json.loads((path / "adapter_config.json").read_text())
        said = {f"{component}.{key}": value for component in ("unet", "text_encoder") for key, value in config.items()}

    def of(component: str, module: str, own: Arrays) -> float | None:
        fields = {key.removeprefix(f"{component}."): v for key, v in said.items() if key.startswith(f"{component}.")}
        if not fields or "lora_down.weight" not in own:
            return None
        patterns = (fields.get("alpha_pattern") or {}).items()
        matching = [v for key, v in patterns if module == key.strip("^$") or module.endswith(f".{key.strip('$')}")]
        alpha = matching[0] if matching else fields.get("lora_alpha")
        root = len(own["lora_down.weight"]) ** 0.5 if fields.get("use_rslora") else 1.0
        return (8.0 if alpha is None else alpha) * root

    return of


def shape_for(delta: Any, own: Arrays, component: str, module: str, base: str) -> tuple[int, ...]:
    from experiments.fuzz_adapter_files import weight_shape

    leaf = "scale" if "norm" in module.rpartition(".")[2] else "kernel"
    shape = weight_shape(STYLES[base][1], component, module, leaf)
    try:
        delta.check(shape)
    except ValueError:
        return shape[:1]  # of a bias
    return shape


def by_hand(own: Arrays, leaf: str, weight: np.ndarray, said: float | None) -> np.ndarray:
    """A changed weight, or bias, from one module's tensors; said: alpha where they have none."""
    if leaf == "bias":
        return weight + SCALE * own["diff_b" if "diff_b" in own else "b_norm"].reshape(weight.shape)
    if "set_weight" in own:
        return own["set_weight"]
    for word in ("diff", "w_norm"):
        if word in own:
            return weight + SCALE * own[word].reshape(weight.shape)
    if "on_input" in own:
        axis = int(own["on_input"].reshape(()) != 0)
        lengths = own["weight"].reshape([-1 if one == axis else 1 for one in range(weight.ndim)])
        return weight * (1 + SCALE * lengths)
    if "oft_blocks" in own:
        return weight + SCALE * (turned(own, weight) - weight)
    difference = product(own, said).reshape(weight.shape)
    if "dora_scale" not in own:
        return weight + SCALE * difference
    moved = weight + difference
    lengths = own["dora_scale"]
    axes = (1,) if lengths.size == len(weight) else (0,)  # the weight of the base has other outputs than inputs
    norm = np.sqrt((moved**2).sum(axis=axes, keepdims=True))
    return weight + SCALE * (lengths.reshape(norm.shape) / norm * moved - weight)


def product(own: Arrays, said: float | None) -> np.ndarray:
    """alpha / r times the product, of LoRA, LoHa, LoKr."""
    alpha = float(own["alpha"].reshape(())) if "alpha" in own else said
    if "hada_w1_a" in own:
        rank = len(own["hada_w1_b"])
        found = (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])
    elif "lokr_w1" in own:
        rank = len(own["lokr_w2_b"])
        found = np.kron(own["lokr_w1"], own["lokr_w2_a"] @ own["lokr_w2_b"])
    else:
        rank = len(own["lora_down.weight"])
        found = own["lora_up.weight"].reshape(-1, rank) @ own["lora_down.weight"].reshape(rank, -1)
    strength = 1.0 if alpha is None else alpha / rank
    return found * (float(own["scale"].reshape(())) if "scale" in own else strength)


def turned(own: Arrays, weight: np.ndarray) -> np.ndarray:
    """A weight turned by OFT's blocks, or by the stages of BOFT's."""
    b = own["oft_blocks"]
    q, one = b - b.swapaxes(-1, -2), np.eye(b.shape[-1])
    limit = float(own["alpha"].reshape(())) * len(weight) if "alpha" in own else 0.0
    norm = float(np.sqrt((q**2).sum()))
    q = q * (limit / norm) if 0 < limit < norm else q
    rotation, rows, s = (one + q) @ np.linalg.inv(one - q), weight.reshape(len(weight), -1), b.shape[-1]
    if b.ndim == 3:
        found = np.einsum("kqp,kqi->kpi", rotation, rows.reshape(-1, s, rows.shape[1]))
    for j in range(len(b)) if b.ndim == 4 else ():
        stride, count = 2**j * (s // 2), rows.shape[1]
        mixed = rows.reshape(-1, 2, stride, count).swapaxes(1, 2).reshape(-1, s, count)
        mixed = np.einsum("kpq,kqi->kpi", rotation[j], mixed)
        found = rows = mixed.reshape(-1, stride, 2, count).swapaxes(1, 2).reshape(rows.shape)
    found = found.reshape(weight.shape)
    return found * own["rescale"].reshape(-1, *[1] * (weight.ndim - 1)) if "rescale" in own else found


if __name__ == "__main__":
    _cli.run(lambda: run(_cli.flags.FLAGS, "adapters", AdapterDoor, make), define_flags)
