"""Makes tensors/networks.txt.gz: names and shapes of every tensor of the published checkpoints' networks.

The networks are diffusers' and transformers' own, built from the configs in `config.presets` without any memory for
their weights (torch's meta device). One section a network: a line `# preset/component ...` with all that have this
very list, then `name shape` a line, in the files' order. Needs torch; run: python tests/golden/make_tensors.py
"""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjax.config.presets import ALIKE, PRESETS

PATH = Path(__file__).parent / "tensors" / "networks.txt.gz"
Shapes = dict[str, tuple[int, ...]]


def network(config: Mapping[str, Any]) -> Any:
    """The peer's network of a config.json, on the meta device."""
    import diffusers
    import torch
    import transformers

    with torch.device("meta"):
        if "_class_name" in config:
            return getattr(diffusers, config["_class_name"]).from_config(dict(config))
        kind = getattr(transformers, config["architectures"][0])
        return kind(transformers.CLIPTextConfig(**config))


def shapes(config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of its parameters, as a file holds them."""
    return {name: tuple(tensor.shape) for name, tensor in sorted(network(config).named_parameters())}


def read(path: Path = PATH) -> dict[str, Shapes]:
    """What a file of this form says, by "preset/component"; tensors in its order."""
    found: dict[str, Shapes] = {}
    for section in gzip.decompress(path.read_bytes()).decode().split("# ")[1:]:
        names, *lines = section.splitlines()
        pairs = (line.split(" ") for line in lines)
        listed = {name: tuple(map(int, shape.split(","))) for name, shape in pairs}
        found |= dict.fromkeys(names.split(" "), listed)
    return found


def main() -> None:
    """Write the file."""
    sections: dict[str, list[str]] = {}
    for preset, facts in (PRESETS | ALIKE).items():
        for component, config in facts.configs.items():
            body = "".join(f"{name} {','.join(map(str, shape))}\n" for name, shape in shapes(config).items())
            sections.setdefault(body, []).append(f"{preset}/{component}")
    text = "".join(f"# {' '.join(names)}\n{body}" for body, names in sections.items())
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
