"""What a safetensors file is, where it is no Stable Diffusion checkpoint in the original layout.

People keep models, LoRAs, embeddings and autoencoders in one folder under like names; tensors' names tell them apart.
"""

import re
from collections.abc import Iterable
from typing import NoReturn

from sdjax.core.errors import CheckpointError, listing
from sdjax.weights.files import Header
from sdjax.weights.spelling import AVERAGED, is_averaged

_ONLY = "which is not supported: this package has Stable Diffusion 1.x, 2.x and XL"
_STEERS = "it steers a model and is none; load the model it was made for"
_CONTROLS = "it steers a model and is none; load the model it was made for, and this with sdjax.load_controlnet"
_ORIGINAL = r"(model\.diffusion_model\.)?"

# What no Stable Diffusion checkpoint holds, whatever else is in the file: a name's pattern, what it means.
_FOREIGN = (
    (
        r"scaled_fp8|.*\.(scale_weight|weight_scale(_2)?|scale_input|input_scale)",
        "a model in scaled 8-bit numbers, which are not read yet; take its float16 or plain fp8 file",
    ),
    (
        r".*\.(SCB|weight_format|comfy_quant|q(weight|zeros)|(nested_)?(absmax|quant_map)|quant_state\..*|_(data|scale))",
        "a quantised model (bitsandbytes, GPTQ, quanto and the like), which is not read; take its float16 file",
    ),
    (
        r"lora_(unet|te\d?|transformer|prior)_.*"
        r"|.*\.(lora_(up|down|A|B|mid)|lora\.(up|down)|hada_w1_[ab]|lokr_w[12](_[ab])?|oft_(blocks|diag))(\..*)?",
        "a LoRA (or LyCORIS) file: it changes a model and is none; load the model it was made for, and this with "
        "sdjax.load_adapter",
    ),
    (
        r"(.*\.)?(control_model|controlnet_cond_embedding|input_hint_block|controlnet_.*_blocks?|zero_convs)\..*"
        r"|lora_controlnet",
        f"a ControlNet: {_CONTROLS}",
    ),
    (r"lllite_unet_.*", f"a ControlNet-LLLite: {_CONTROLS}"),
    (r"adapter\.(body|conv_in|unshuffle)\..*|body\.\d+\.(body\.\d+\.)?block1\..*", f"a T2I-Adapter: {_CONTROLS}"),
    (
        r"(image_proj|ip_adapter|image_proj_model)\..*",
        "an IP-Adapter: load a checkpoint, and this with sdjax.load_image_prompt",
    ),
    (
        r".*(motion_modules?|temporal_transformer|time_stack|time_mixer|temporal_attentions).*",
        f"a video model or a motion module (AnimateDiff, Stable Video Diffusion), {_ONLY}",
    ),
    (_ORIGINAL + r"(double_blocks|single_blocks|single_transformer_blocks)\.\d+\..*", f"a Flux model, {_ONLY}"),
    (_ORIGINAL + r"(joint_blocks\.\d+|context_embedder)\..*", f"a Stable Diffusion 3 model, {_ONLY}"),
    (
        _ORIGINAL + r"(net\.)?(blocks|layers|transformer_blocks|double_layers|double_stream_blocks|x_embedder)\..*",
        f"a diffusion transformer, {_ONLY}",
    ),
    (_ORIGINAL + r"(down_blocks\.\d+\.\d+\.channelwise|clip_txt_mapper)\..*", f"a Stable Cascade model, {_ONLY}"),
    (
        r".*embedders\.\d+\.open_clip\.model\.visual\..*|cc_projection\..*|embedder\.model\.visual\..*",
        f"a model told by a picture in place of text (unCLIP, Zero123, video), {_ONLY}",
    ),
    (r"edm_(mean|std)", "Playground 2.5, whose latents are scaled by channel, which is not supported yet"),
    (r"edm_vpred\.sigma_max", "an EDM model (CosXL), whose noise levels are not supported yet"),
)
_THEIR_UNET = r"unet\.(down_blocks|mid_block|up_blocks)\..*"
_VAE = r"(.*\.)?(encoder|decoder)\.(conv_in|mid|mid_block)\..*"
_TEXT = (
    r"((text_model\.)?(encoder\.layers\.\d+|embeddings\.token_embedding)|(.*\.)?transformer\.resblocks"
    r"|.*\.text_model\.encoder|encoder\.block\.\d+)\..*"
)
# What a checkpoint holds among other things, here without the rest.
_ALONE = (
    (
        _THEIR_UNET,
        "a whole pipeline or its U-Net by diffusers' names, in one file, which is not read: take the folder that "
        "`save_pretrained` writes, or the file in the original layout",
    ),
    (
        _VAE,
        "an autoencoder (VAE) alone: give it as vae= beside a checkpoint",
    ),
    (
        r"(.*\.)?input_blocks\..*",
        "a U-Net alone: it needs the text encoder and the VAE of a whole checkpoint",
    ),
    (
        r"(unet\.)?down_blocks\.\d+\.resnets\..*",
        "a U-Net alone, by diffusers' names: it belongs in a folder in the diffusers layout as "
        "unet/diffusion_pytorch_model.safetensors",
    ),
    (
        _TEXT,
        "a text encoder alone: it belongs in a folder in the diffusers layout as text_encoder/model.safetensors",
    ),
    (
        AVERAGED.pattern,
        "averaged weights alone, as a training run keeps them beside the plain ones: take the file that has both",
    ),
    (r"conv_first\..*|body\.\d+\.rdb1\..*|model\.1\.sub\..*", "a picture upscaler (ESRGAN), no diffusion model"),
)
_EMBEDDING = re.compile(r"emb_params|clip_[lg]|string_to_param(\..*)?|<.*>")
_WIDTHS = (768, 1024, 1280)


def foreign(header: Header) -> str | None:
    """What a file is that holds what no checkpoint of Stable Diffusion does; None for any other file."""
    return _first(_FOREIGN, header.tensors)


def refuse(header: Header) -> NoReturn:
    """Raises CheckpointError for a file that is not what was asked for, saying what it is."""
    if found := foreign(header) or embedding(header) or _without_u_net(header) or _first(_ALONE, header.tensors):
        raise CheckpointError(f"{header.path} is {found}")
    if not header.tensors:
        raise CheckpointError(f"{header.path} holds no tensors")
    raise CheckpointError(
        f"{header.path} is no checkpoint that is known: a single file holds a U-Net (model.diffusion_model.*), "
        f"a VAE (first_stage_model.*) and text encoders; this one holds:{listing(sorted(header.tensors))}"
    )


def embedding(header: Header) -> str | None:
    """A word learnt by textual inversion: one or two small tables as wide as a text encoder."""
    named = all(_EMBEDDING.fullmatch(name) for name in header.tensors)
    small = len(header.tensors) == 1 and all(
        len(e.shape) in (1, 2) and e.shape[-1] in _WIDTHS and _rows(e.shape) <= 75 for e in header.tensors.values()
    )
    if header.tensors and (named or small):
        return (
            "a textual-inversion embedding: it adds a word to a model's text encoder and is no model; "
            "sdjax.load_adapter reads it"
        )
    return None


def _without_u_net(header: Header) -> str | None:
    """A checkpoint that has lost its U-Net; one with a U-Net by diffusers' names is for others to tell."""
    held = [any(re.fullmatch(pattern, name) for name in header.tensors) for pattern in (_VAE, _TEXT, _THEIR_UNET)]
    if held == [True, True, False]:
        averaged = (
            " and averages of one (model_ema.*), which are not read" if any(map(is_averaged, header.tensors)) else ""
        )
        return (
            f"a checkpoint without its U-Net (model.diffusion_model.*): it holds a VAE and a text encoder{averaged}. "
            "Take the whole file; its VAE alone can be given as vae= beside another checkpoint"
        )
    return None


def _rows(shape: tuple[int, ...]) -> int:
    """How many vectors a table holds."""
    return shape[0] if len(shape) == 2 else 1


def _first(table: Iterable[tuple[str, str]], names: Iterable[str]) -> str | None:
    names = list(names)
    return next((kind for pattern, kind in table if any(re.fullmatch(pattern, name) for name in names)), None)
