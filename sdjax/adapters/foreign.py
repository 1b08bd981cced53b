"""What a file is that holds no adapter of weights, in words: the files that people keep in one folder with them."""

import re
from itertools import islice
from typing import NoReturn

from sdjax.core.errors import CheckpointError, listing, shown
from sdjax.weights import identify
from sdjax.weights.files import Header

_NOT_YET = "which is not read yet: it adds to a network and is no change of its weights"
_CONTROLS = "which steers a model and is no change of its weights: sdjax.load_controlnet reads it"
_OTHER = "which is not supported: this package has Stable Diffusion 1.x, 2.x and XL"
_NAMES = (
    (r"lora_controlnet", f"a Control-LoRA, {_CONTROLS}"),
    (r"(control_model|controlnet_cond_embedding|input_hint_block|zero_convs)\..*", f"a ControlNet, {_CONTROLS}"),
    (r"controlnet_(cond_embedding|down_blocks|mid_block)\..*", f"a ControlNet, {_CONTROLS}"),
    (r"lllite_.*", f"a ControlNet-LLLite, {_CONTROLS}"),
    (r"(image_proj|image_proj_model|ip_adapter)\..*", "an IP-Adapter: sdjax.load_image_prompt reads it"),
    (r"(id_encoder|lora_weights)\..*", f"PhotoMaker, {_NOT_YET}"),
    (r"(adapter\.)?body\.\d+\.(body|block1|in_conv|resnets)\..*", f"a T2I-Adapter, {_CONTROLS}"),
    (r"adapter\.(conv_in|unshuffle).*", f"a T2I-Adapter, {_CONTROLS}"),
    (r".*(motion_modules?|temporal_transformer)[._].*", f"an adapter of a video model's motion, {_OTHER}"),
    (r"(.*[._])?(double_blocks|single_blocks|single_transformer_blocks)[._]\d+.*", f"an adapter for Flux, {_OTHER}"),
    (r"(.*[._])?joint_blocks[._]\d+.*", f"an adapter for Stable Diffusion 3, {_OTHER}"),
    (r"(lora_)?(transformer|prior)[._].*", f"an adapter for another architecture, {_OTHER}"),
)  # fmt: skip
_LOOKED_AT = 2000  # names of a file that has many: all of its kind are like them
_CHECKPOINT = (
    r"(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\..*",
    r"((unet|vae)\.)?(down_blocks|mid_block|up_blocks|encoder|decoder)\..*\.(weight|bias)",
)


def what_it_is(header: Header) -> str | None:
    """What a file is whose tensors' names are known from elsewhere; None for others."""
    names = list(islice(header.tensors, _LOOKED_AT))
    return next((what for pattern, what in _NAMES if any(re.fullmatch(pattern, name) for name in names)), None)


def is_checkpoint(header: Header) -> bool:
    """Whether a file holds a model, or a part of one."""
    return any(re.fullmatch(pattern, name) for pattern in _CHECKPOINT for name in header.tensors)


def refuse(header: Header) -> NoReturn:
    """Raises CheckpointError for a file that holds no adapter, saying what it is."""
    if what := what_it_is(header):
        raise CheckpointError(f"{header.path} is {what}")
    if is_checkpoint(header):
        raise CheckpointError(
            f"{header.path} is a checkpoint, or a part of one, and no adapter: open it with sdjax.load"
        )
    if (what := identify.foreign(header)) and "load_adapter" not in what:
        raise CheckpointError(f"{header.path} is {what}")
    names = sorted(map(shown, header.tensors))
    raise CheckpointError(
        f"{header.path} is no adapter that is known: one names a model's modules, as "
        f"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight; this one holds:{listing(names)}"
    )
