"""What `fuzz_checkpoints` does to a checkpoint: one mutation of one file, by a random generator.

`KINDS` are the mutations by name. Each takes the generator and a path, a folder in the diffusers layout or a
.safetensors file, and changes what lies there. A safetensors file is taken apart and put together here by hand, since
the library would refuse to write most of what is wanted.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.diffusion.noise import Settings

Mutation = Callable[[Random, Path], None]
Tensor = tuple[str, list[int], bytes]  # dtype as safetensors spells it, shape, bytes
DTYPES = {
    "F16": np.float16, "F32": np.float32, "BF16": jnp.bfloat16, "F64": np.float64, "I8": np.int8, "U8": np.uint8,
    "I16": np.int16, "U16": np.uint16, "I64": np.int64, "BOOL": np.bool_,
    "F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2,
}  # fmt: skip
NETWORK_KEYS = sorted(
    {field.name for config in (ClipTextConfig, UNetConfig, VaeConfig) for field in fields(config)}
    | {"transformer_layers_per_block", "reverse_transformer_layers_per_block", "attention_head_dim", "architectures"}
    | {"resnet_time_scale_shift", "dropout", "conv_in_kernel", "latents_mean", "time_embedding_type"}
)
SCHEDULER_KEYS = sorted({field.name for field in fields(Settings)} | {"_use_default_values", "_class_name"})
DEEP: Any = json.loads("[" * 500 + "]" * 500)
EVIL: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 10**6, 10**9, 2**31, 2**63, 2**64, 10**30, 0.5, 1.0, -1e308, 1e308, math.nan,
    math.inf, "", "x", "1", "..", "../unet/config.json", "/etc/passwd", "a\0b", "\x1b[2J", "\ud800", "²", "x" * 20_000,
    [], {}, [None], [[]], [1], [1, 2, 3], [8, 16], ["x", "y"], [10**9] * 2, [2] * 40, {"a": 1}, {"content": 1}, DEEP,
)  # fmt: skip
FOREIGN = (
    "lora_unet_down_blocks_0.lora_up.weight", "control_model.x.weight", "double_blocks.0.img_attn.weight", "emb_params",
    "joint_blocks.0.x.weight", "v_pred", "ztsnr", "edm_mean", "scaled_fp8", "model_ema.decay",
    "vae.encoder.conv_in.weight",
    "first_stage_model.loss.x", "conditioner.embedders.0.transformer.x", "cond_stage_model.model.ln_final.weight",
    "model.diffusion_model.label_emb.0.0.weight", "model.diffusion_model.time_embed.cond_proj.weight",
    "model.diffusion_model.input_blocks.99.9.x.weight", "text_model.embeddings.position_ids", "embeddings.position_ids",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks." + "9" * 5000 + ".x", "a" * 100_000, "\x1b[2J", "", "٣",
)  # fmt: skip


# ---------------------------------------------------------------------- safetensors by hand


def take_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A sound file's header and data."""
    stop = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:stop]), content[stop:]


def put_together(header: Any, data: bytes) -> bytes:
    """A file with this header: bytes as they are, anything else as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensors_of(content: bytes) -> dict[str, Tensor]:
    """The tensors that a file's header tells of."""
    header, data = take_apart(content)
    ranges = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {n: (header[n]["dtype"], header[n]["shape"], data[start:stop]) for n, (start, stop) in ranges.items()}


def file_of(tensors: dict[str, Tensor]) -> bytes:
    """A sound file of these."""
    header, start = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(data)]}
        start += len(data)
    return put_together(header, b"".join(data for *_, data in tensors.values()))


# ---------------------------------------------------------------------- which file


def files(path: Path, pattern: str = "*") -> list[Path]:
    """The files of a checkpoint whose name fits; a single file is its own."""
    return sorted(p for p in path.rglob(pattern) if p.is_file()) if path.is_dir() else [path]


def edit(change: Callable[[Random, bytes], bytes], pattern: str = "*") -> Callable[[Random, Path], None]:
    """A mutation of the bytes of one file."""

    def mutate(rng: Random, path: Path) -> None:
        one = rng.choice(files(path, pattern))
        one.write_bytes(change(rng, one.read_bytes()))

    return mutate


def edit_header(change: Callable[[Random, dict[str, Any], bytes], Any]) -> Callable[[Random, Path], None]:
    """A mutation of one safetensors file's header, an object or raw bytes."""

    def whole(rng: Random, content: bytes) -> bytes:
        header, data = take_apart(content)
        return put_together(change(rng, header, data), data)

    return edit(whole, "*.safetensors")


def edit_tensors(change: Callable[[Random, dict[str, Tensor], str], Any]) -> Callable[[Random, Path], None]:
    """A mutation of one tensor, after which the file is sound again."""

    def whole(rng: Random, content: bytes) -> bytes:
        tensors = tensors_of(content)
        change(rng, tensors, rng.choice(sorted(tensors)))
        return file_of(tensors)

    return edit(whole, "*.safetensors")


def edit_json(pattern: str, keys: Sequence[str] = ()) -> Callable[[Random, Path], None]:
    """A mutation of one value of a JSON file, or one of `keys` added."""

    def whole(rng: Random, content: bytes) -> bytes:
        found = json.loads(content)
        if keys and rng.random() < 0.5:
            found[rng.choice(keys)] = rng.choice(EVIL)
        else:
            found = disturbed(rng, found)
        return json.dumps(found).encode()

    return edit(whole, pattern)


# ---------------------------------------------------------------------- the mutations


def disturbed(rng: Random, value: Any) -> Any:
    """The JSON value with one node replaced, removed, renamed, doubled, wrapped or counted otherwise."""
    nodes = list(_nodes(value))
    if not nodes or rng.random() < 0.01:
        return rng.choice(EVIL)
    holder, key = rng.choice(nodes)
    old = holder[key]
    match rng.randrange(8):
        case 0 | 1 | 2 | 3:
            holder[key] = rng.choice(EVIL)
        case 4:
            del holder[key]
        case 5:
            holder[key] = rng.choice((str(old), [old], {"x": old}, [old, old]))
        case 6 if isinstance(old, int | float):
            holder[key] = rng.choice((-old, old + 1, old - 1, 2 * old, old / 2, float(old)))
        case _:
            other, name = rng.choice(nodes)
            holder[key] = json.loads(json.dumps(other[name]))  # a copy: it may hold this very place
    return value


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(items):
        yield value, key
        yield from _nodes(one)


def _bytes(rng: Random, content: bytes, stop: int | None = None) -> bytes:
    """Flipped, cut, grown, zeroed or spliced somewhere before `stop`."""
    at = rng.randrange(min(len(content), stop or len(content)) or 1)
    length = min(1 << rng.randrange(12), len(content))
    match rng.randrange(6):
        case 0 | 1 if content:
            return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        case 2:
            return content[:at]
        case 3:
            return content + rng.randbytes(length)
        case 4:
            return content[:at] + bytes(length) + content[at + length :]
    start = rng.randrange(len(content) or 1)
    return content[:at] + content[start : start + length] + content[at + rng.choice((0, length)) :]


def _header_bytes(rng: Random, content: bytes) -> bytes:
    return _bytes(rng, content, 8 + int.from_bytes(content[:8], "little"))


def _length(rng: Random, content: bytes) -> bytes:
    n, size = int.from_bytes(content[:8], "little"), len(content)
    wrong = (0, 1, 2, n - 1, n + 1, n + 8, n - 8, size, size - 8, size - 7, 10**8, 2**31, 2**32 + n, 2**63, 2**64 - 1)
    return rng.choice(wrong).to_bytes(8, "little") + content[8:]


def _ranges(rng: Random, header: dict[str, Any], data: bytes) -> Any:
    """One tensor's bytes elsewhere, some of it kept consistent with its shape."""
    name, other = rng.sample([name for name in header if name != "__metadata__"], 2)
    start, stop = header[name]["data_offsets"]
    header[name]["data_offsets"] = rng.choice(
        [
            header[other]["data_offsets"], [stop, start], [start - 2, stop], [start, stop + 2], [start + 2, stop + 2],
            [-stop, -start], [2**63, 2**63 + stop - start], [2**64, 2**64 + stop - start], [start], [start, stop, stop],
            [float(start), float(stop)], [len(data), len(data) + stop - start], [str(start), str(stop)], [start, start],
            {"0": start, "1": stop}, [None, stop], [True, stop],
        ]
    )  # fmt: skip
    if rng.random() < 0.3:
        header[name]["shape"] = rng.choice([[2**32, 2**32], [2**63, 2], [0], [-1, -2], [10**30], [(stop - start) / 2]])
    return header


def _text(rng: Random, header: dict[str, Any], _: bytes) -> bytes:
    """Header texts that a JSON library would not write."""
    text, name = json.dumps(header), rng.choice(sorted(header))
    entry = json.dumps(header[name])
    quoted = json.dumps(name)
    return rng.choice(
        [
            lambda: text.replace(quoted, f"{quoted}:{entry},{quoted}", 1).encode(),
            lambda: text.replace(quoted, quoted[:-1] + '\\ud800"', 1).encode(),
            lambda: text.replace(quoted, quoted[:-1] + '\\u0000"', 1).encode(),
            lambda: text.replace(quoted, quoted[:-1] + '\udcff"', 1).encode("utf-8", "surrogateescape"),
            lambda: text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32", "utf-16-le"))),
            lambda: text.replace('"shape":', '"shape":[1],"shape":', 1).encode(),
            lambda: text.replace('"dtype":', f'"extra":{"[" * 10**5 + "]" * 10**5},"dtype":', 1).encode(),
            lambda: text.replace('"dtype":', f'"extra":{json.dumps(DEEP[0])},"dtype":', 1).encode(),
            lambda: text.replace('"dtype":', f'"extra":{json.dumps(rng.choice(EVIL))},"dtype":', 1).encode(),
            lambda: text.replace('"dtype":', f'"extra":{"9" * 5000},"dtype":', 1).encode(),
            lambda: json.dumps({"__metadata__": rng.choice(EVIL)} | header).encode(),
            lambda: json.dumps(header | {"__metadata__": rng.choice(EVIL)}).encode(),
            lambda: json.dumps(header | {"__metadata__": {"format": rng.choice(EVIL)}}).encode(),
            lambda: (text + " " * 10**6).encode(),
            lambda: (" " * 8 + text).encode(),
            lambda: b"{}",
            lambda: rng.choice((b"[]", b"null", b"1", b'""', b"{", b'{"a":1}', b'{"a":{}}', b'{"__metadata__":{}}')),
        ]
    )()  # fmt: skip


def _names(rng: Random, tensors: dict[str, Tensor], name: str) -> None:
    """Dropped, renamed, doubled, swapped."""
    other, tensor = rng.choice(sorted(tensors)), tensors[name]
    words = name.split(".")
    at = rng.randrange(len(words))
    renamed = rng.choice(
        [
            name.upper(), name + ".", "." + name, name[:-1], name.replace(".", "_"), name + " ", "model." + name,
            ".".join([*words[:at], rng.choice(("0", "1", "99", "x", "", "weight", words[0])), *words[at + 1 :]]),
            name.replace("text_model.", ""), name.replace("to_q", "query"), name.replace("model.diffusion_model.", ""),
            name.replace("first_stage_model.", "vae."), rng.choice(FOREIGN),
        ]
    )  # fmt: skip
    match rng.randrange(4):
        case 0:
            del tensors[name]
        case 1:
            tensors[renamed] = tensors.pop(name)
        case 2:
            tensors[renamed] = tensor
        case 3:
            tensors[name], tensors[other] = tensors[other], tensor


def _shapes(rng: Random, tensors: dict[str, Tensor], name: str) -> None:
    dtype, shape, data = tensors[name]
    count = math.prod(shape)
    new = rng.choice(
        [
            shape[::-1], [count], [count, 1], [1] * 7 + [count], [*shape, 1, 1], [1, *shape], [0], [0, *shape], [],
            [shape[0] + 1, *shape[1:]], [2 * shape[0], *shape[1:]], [*shape[:-1], max(1, shape[-1] // 2)],
            [3 * shape[0]],
        ]
    )  # fmt: skip
    size = len(data) // (count or 1)
    tensors[name] = dtype, new, (data * 4)[: math.prod(new) * size]


def _dtypes(rng: Random, tensors: dict[str, Tensor], name: str) -> None:
    """All tensors or one: its numbers in another dtype, or its bytes under another dtype's name."""
    dtype = rng.choice(sorted(DTYPES))
    for one in tensors if rng.random() < 0.3 else [name]:
        own, shape, data = tensors[one]
        if rng.random() < 0.5:
            numbers = np.frombuffer(data, DTYPES[own]).astype(np.float32).astype(DTYPES[dtype])
            tensors[one] = dtype, shape, numbers.tobytes()
        else:
            tensors[one] = rng.choice((dtype, "F4", "F6_E2M3", "C64", "f16", "")), shape, data


def _values(rng: Random, tensors: dict[str, Tensor], name: str) -> None:
    dtype, shape, data = tensors[name]
    numbers = np.frombuffer(data, DTYPES[dtype]).copy()
    if numbers.size:
        with np.errstate(all="ignore"):  # of whole numbers, there is none that is infinite
            value = np.array(rng.choice((np.nan, np.inf, -np.inf, 0.0, -0.0, 6e-8))).astype(numbers.dtype)
        numbers[rng.randrange(numbers.size)] = value
    tensors[name] = dtype, shape, rng.randbytes(len(data)) if rng.random() < 0.2 else numbers.tobytes()


def _foreign(rng: Random, tensors: dict[str, Tensor], name: str) -> None:
    """Tensors of something else beside, or in place of, the own."""
    if rng.random() < 0.3:
        tensors.clear()
    for one in rng.sample(FOREIGN, rng.choice((1, 1, 2, 5))):
        shape = rng.choice(([], [0], [8], [1, 768], [40, 4, 3, 3], [16, 16]))
        tensors[one] = "F16", shape, rng.randbytes(2 * math.prod(shape))


def _many(rng: Random, tensors: dict[str, Tensor], name: str) -> None:
    """A hundred thousand tensors more, with names like the file's own; now and then one is missing as well."""
    stem = rng.choice((name, "x", "model.diffusion_model.", "lora_unet_", "text_model.encoder.layers.", "a" * 60))
    if rng.random() < 0.5:
        del tensors[name]
    tensors |= {f"{stem}{i}": ("F16", [0], b"") for i in range(100_000)}


def _many_twice(_: Random, header: dict[str, Any], __: bytes) -> bytes:
    """A name told twice, after a hundred thousand others."""
    many = {f"a{i}": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    last = '"z":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}'
    return f"{json.dumps(many | header)[:-1]},{last},{last}}}".encode()


def _index(rng: Random, path: Path) -> None:
    """What the index of shards may say, and where its shards may be."""
    index = rng.choice(files(path, "*.index.json"))
    found = json.loads(index.read_text())
    tensor, shard = rng.choice(sorted(found["weight_map"].items()))
    match rng.randrange(5):
        case 0:
            elsewhere = [
                f"{start}{shard}" for start in ("../", "/", "C:", "x/", "./", "a" * 300, "\ud800", "none", "\0")
            ]
            found["weight_map"][tensor] = rng.choice([*elsewhere, index.name, *EVIL])
        case 1:
            (index.parent / shard).unlink()
        case 2:
            outside = path.parent / "outside.safetensors"
            shutil.move(index.parent / shard, outside)
            (index.parent / shard).symlink_to(outside)
        case 3:
            shutil.copy(index.parent / shard, index.parent / "diffusion_pytorch_model.safetensors")
        case _:
            found = disturbed(rng, found)
    index.write_text(json.dumps(found))


def _things(rng: Random, path: Path) -> None:
    """Something else where a file should be: nothing, a folder, a pipe, a device, a link in a circle, a pickle."""
    one = rng.choice(files(path))
    one.unlink()
    match rng.randrange(9):
        case 0:
            one.write_bytes(b"")
        case 1:
            one.mkdir()
        case 2:
            os.mkfifo(one)
        case 3:
            one.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev", "/proc/self/mem")))
        case 4:
            one.symlink_to(one)
        case 5:
            one.write_bytes(
                rng.choice((b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x80\x04\x95", b"\x80\x05\x95")) + bytes(100)
            )
        case 6:
            with open(one, "wb") as file:  # takes no disk
                file.truncate(1 << 30)
        case 7:
            one.write_bytes(rng.choice((b"{", b"null", b"\xff\xfe", b"[" * 10**5, b"1" * 10**4, b'{"a":' * 10**4)))


KINDS: dict[str, Mutation] = {
    "bytes of any file": edit(_bytes),
    "bytes of a header": edit(_header_bytes, "*.safetensors"),
    "length of a header": edit(_length, "*.safetensors"),
    "values of a header": edit_header(lambda rng, header, _: disturbed(rng, header)),
    "byte ranges": edit_header(_ranges),
    "text of a header": edit_header(_text),
    "names of tensors": edit_tensors(_names),
    "shapes of tensors": edit_tensors(_shapes),
    "dtypes of tensors": edit_tensors(_dtypes),
    "numbers in tensors": edit_tensors(_values),
    "tensors of something else": edit_tensors(_foreign),
    "100,000 tensors": edit_tensors(_many),
    "100,000 tensors, one twice": edit_header(_many_twice),
    "another thing than a file": _things,
    "index of shards": _index,
    "a network's config.json": edit_json("config.json", NETWORK_KEYS),
    "model_index.json": edit_json("model_index.json", ("_guidance_scale", "force_zeros_for_empty_prompt", "x")),
    "scheduler_config.json": edit_json("scheduler_config.json", SCHEDULER_KEYS),
    "tokenizer's JSON": lambda rng, path: edit_json("*.json")(rng, path / "tokenizer"),
}  # fmt: skip
# The bases that a kind is for, where not for all.
ONLY = {
    **{kind: ("shards", "folder") for kind in KINDS if "json" in kind.lower()},
    "index of shards": ("shards",),
}
WEIGHTS = {"a network's config.json": 5.0, "100,000 tensors": 0.1, "100,000 tensors, one twice": 0.05}  # others 1 or so
