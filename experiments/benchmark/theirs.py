"""diffusers' side, on torch: a call that computes a row once and waits for it.

As it comes (eager) in either of torch's memory layouts, or compiled in the slowest-to-compile mode, layout
channels_last, which is what diffusers' own guide to a fast Stable Diffusion does.
"""

import tempfile
from typing import Any

import diffusers
import torch
import transformers

from experiments.benchmark.subject import PROMPT, SCALE, Call, Job, factor, pooled_and_ids, preset, write_tokenizer

SIDES = ("eager", "channels_last", "compiled")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@torch.no_grad()
def call(job: Job, side: str) -> Call:
    """A call that computes the job's row as `side` of SIDES does."""
    makers = {"unet_step": step, "picture": picture, "vae_decode": decode, "text_encoder": text, "matmul": matmul}
    run = makers[job.row](job, side)

    @torch.no_grad()
    def finished() -> Any:
        made = run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return made

    return finished


def where(job: Job) -> dict[str, Any]:
    """Device and dtype, as torch's functions take them."""
    return {"device": DEVICE, "dtype": getattr(torch, job.dtype)}


def filled(module: Any, job: Job) -> Any:
    """A network that was made without memory, its weights drawn in place: no second copy at any time."""
    module = torch.nn.Module.to(module, getattr(torch, job.dtype)).to_empty(device=DEVICE).eval()
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(float(name.endswith("weight")))
        else:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound)
    return module


def ready(module: Any, side: str, compiled: bool = True) -> Any:
    """A network in the side's layout, and compiled where the side is."""
    if side != "eager":
        module = module.to(memory_format=torch.channels_last)
    return torch.compile(module, mode="max-autotune", fullgraph=True) if compiled and side == "compiled" else module


def unet(job: Job) -> Any:
    """The U-Net."""
    with torch.device("meta"):
        made = diffusers.UNet2DConditionModel.from_config(preset(job.family).configs["unet"])
    return filled(made, job)


def autoencoder(job: Job, side: str) -> Any:
    """The VAE, its decoder ready."""
    with torch.device("meta"):
        made = diffusers.AutoencoderKL.from_config(preset(job.family).configs["vae"])
    vae = ready(filled(made, job), side, compiled=False)
    vae.decoder = ready(vae.decoder, side)
    return vae


def text_encoder(job: Job, name: str) -> Any:
    """A text encoder; not made without memory first, for its buffer of positions must keep its numbers."""
    config = preset(job.family).configs[name]
    return (
        getattr(transformers, config["architectures"][0])(transformers.CLIPTextConfig(**config)).eval().to(**where(job))
    )


def latents(job: Job) -> Any:
    """Unit Gaussian noise `b c h w`."""
    side, channels = job.size // factor(job.family), preset(job.family).configs["vae"]["latent_channels"]
    return torch.randn(job.batch, channels, side, side, **where(job))


def told(job: Job) -> dict[str, Any]:
    """What the U-Net takes beside latents and timestep, for 2 x batch latents."""
    configs = preset(job.family).configs
    length, width = configs["text_encoder"]["max_position_embeddings"], configs["unet"]["cross_attention_dim"]
    given = {"encoder_hidden_states": torch.randn(2 * job.batch, length, width, **where(job))}
    added = pooled_and_ids(job)
    if added is None:
        return given
    pooled, ids = (torch.from_numpy(one).to(**where(job)) for one in added)
    return {**given, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}


def scheduler(job: Job) -> Any:
    """The scheduler of sdjax's dpmpp_2m."""
    return diffusers.DPMSolverMultistepScheduler.from_config(dict(preset(job.family).scheduler))


def step(job: Job, side: str) -> Call:
    """One sampling step with guidance."""
    return guided(job, ready(unet(job), side), told(job))


def guided(job: Job, network: Any, given: dict[str, Any]) -> Call:
    """The same by any `network(latents, t, **given)` whose answer has the prediction as `sample`."""
    x = latents(job)

    def run() -> Any:
        solver = scheduler(job)
        solver.set_timesteps(job.steps, device=DEVICE)
        t = solver.timesteps[0]
        uncond, cond = network(torch.cat([x] * 2), t, **given).sample.chunk(2)
        return solver.step(uncond + SCALE * (cond - uncond), t, x).prev_sample

    return run


def decode(job: Job, side: str) -> Call:
    """Latents to pixels."""
    vae, x = autoencoder(job, side), latents(job)
    del vae.encoder
    return lambda: vae.decode(x / vae.config.scaling_factor).sample


def text(job: Job, side: str) -> Call:
    """2 x batch prompts through the first text encoder."""
    encoder, config = ready(text_encoder(job, "text_encoder"), side), preset(job.family).configs["text_encoder"]
    shape = (2 * job.batch, config["max_position_embeddings"])
    ids = torch.randint(0, config["vocab_size"], shape, device=DEVICE)
    return lambda: encoder(ids).last_hidden_state


def picture(job: Job, side: str) -> Call:
    """diffusers' own pipeline, from prompts to PIL images."""
    pipe = pipeline(job, side)
    asked = {"height": job.size, "width": job.size, "num_inference_steps": job.steps, "guidance_scale": SCALE}
    prompts = [PROMPT] * job.batch
    return lambda: pipe(prompts, negative_prompt=[""] * job.batch, **asked).images


def pipeline(job: Job, side: str) -> Any:
    """The whole family with random weights."""
    encoders = [name for name in preset(job.family).configs if name.startswith("text_encoder")]
    parts: dict[str, Any] = {name: text_encoder(job, name) for name in encoders}
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(folder, job.family)
        parts |= {
            name.replace("text_encoder", "tokenizer"): transformers.CLIPTokenizer.from_pretrained(folder)
            for name in encoders
        }
    parts |= {"unet": ready(unet(job), side), "vae": autoencoder(job, side), "scheduler": scheduler(job)}
    if len(encoders) == 2:
        pipe: Any = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = diffusers.StableDiffusionPipeline(**parts, **rest)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def matmul(job: Job, side: str) -> Call:
    """A product of two square matrices."""
    one, other = torch.randn(2, job.size, job.size, device=DEVICE).to(getattr(torch, job.dtype))
    return lambda: one @ other


def device_peak() -> int | None:
    """The most device memory taken so far, in bytes; None on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None
