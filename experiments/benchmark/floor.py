"""The floor: how long a row would take if the machine did nothing but its multiplications at its best rate.

    share of the floor = useful operations / seconds / measured ceiling

Useful are the operations of the published architecture, two to a multiply-add, attention's products included: counted
by torch's FlopCounterMode on diffusers' networks without memory, so that an identity which saves some counts for who
has it. The ceiling is the best rate of a large matrix product in the same run, by either side.
"""

from collections.abc import Callable
from typing import Any

from experiments.benchmark.subject import Job, factor, preset


def ceiling_job(dtype: str, gpu: bool) -> Job:
    """The product that is timed for the ceiling."""
    return Job("matmul", "none", 8192 if gpu else 2048, dtype=dtype)


def useful(job: Job) -> float:
    """Operations of one call of the job."""
    if job.row == "matmul":
        return 2.0 * job.size**3
    count = {"unet_step": unet, "vae_decode": decoder, "text_encoder": first_encoder, "picture": picture}[job.row]
    return job.batch * count(job)


def unet(job: Job) -> float:
    """A guided step of one picture: the network on two samples."""
    import diffusers
    import torch

    configs = preset(job.family).configs
    text = configs["text_encoder"]["max_position_embeddings"], configs["unet"]["cross_attention_dim"]
    added = None
    if "text_encoder_2" in configs:
        pooled = torch.empty(1, configs["text_encoder_2"]["projection_dim"], device="meta")
        added = {"text_embeds": pooled, "time_ids": torch.empty(1, 6, device="meta")}
    network = _without_memory(lambda: diffusers.UNet2DConditionModel.from_config(configs["unet"]))
    t, context = torch.empty((), device="meta"), torch.empty(1, *text, device="meta")
    return 2 * _counted(lambda: network(_latents(job), t, context, added_cond_kwargs=added))


def decoder(job: Job) -> float:
    """One picture's pixels."""
    import diffusers

    network = _without_memory(lambda: diffusers.AutoencoderKL.from_config(preset(job.family).configs["vae"]))
    return _counted(lambda: network.decode(_latents(job)))


def first_encoder(job: Job) -> float:
    """One picture's two prompts through the first text encoder."""
    return 2 * _encoder(preset(job.family).configs["text_encoder"])


def picture(job: Job) -> float:
    """All of one picture."""
    encoders = [one for name, one in preset(job.family).configs.items() if name.startswith("text_encoder")]
    return job.steps * unet(job) + decoder(job) + 2 * sum(map(_encoder, encoders))


def _encoder(config: Any) -> float:
    """One prompt through one text encoder."""
    import torch
    import transformers

    kind = getattr(transformers, config["architectures"][0])
    network = _without_memory(lambda: kind(transformers.CLIPTextConfig(**config)))
    ids = torch.zeros(1, config["max_position_embeddings"], dtype=torch.int64, device="meta")
    return _counted(lambda: network(ids))


def _latents(job: Job) -> Any:
    import torch

    side, channels = job.size // factor(job.family), preset(job.family).configs["vae"]["latent_channels"]
    return torch.empty(1, channels, side, side, device="meta")


def _without_memory(make: Callable[[], Any]) -> Any:
    import torch

    with torch.device("meta"):
        return make().eval()


def _counted(call: Callable[[], Any]) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
