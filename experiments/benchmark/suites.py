"""The prepared tables, each ordered by what one would miss most if time ran out."""

from experiments.benchmark.subject import Job

# The small SDXL on CPUs: two of the large one fit no laptop.
SUITES = {
    "cpu": [
        Job("unet_step", "sd15", 512),
        Job("picture", "sd15", 512),
        Job("vae_decode", "sd15", 512),
        Job("unet_step", "vega", 512),
        Job("text_encoder", "sd15", 512),
    ],
    "gpu": [
        Job("picture", "sd15", 512),
        Job("picture", "sdxl", 1024, steps=30),
        Job("picture", "sdxl", 1024, batch=8),
        Job("unet_step", "sd15", 512),
        Job("unet_step", "sdxl", 1024),
        Job("picture", "sd15", 512, batch=8),
        Job("picture", "sd21", 768, steps=25),
        Job("unet_step", "sdxl", 1024, batch=8),
        Job("unet_step", "sd15", 512, batch=8),
        Job("unet_step", "sd21", 768),
        Job("unet_step", "sd21", 768, batch=8),
        Job("picture", "sd21", 768, batch=8, steps=25),
        Job("vae_decode", "sd15", 512),
        Job("vae_decode", "sdxl", 1024),
    ],
}  # fmt: skip
