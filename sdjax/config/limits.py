"""More than any network has, and few enough that a trace of them all ends within seconds; and how far numbers go that
come from a file."""

MOST_LEVELS, MOST_RESNETS, MOST_LAYERS = 8, 16, 256

# Of the arguments of `generate`: least and most, both allowed. A picture's settings are held to these before anything
# is made of them: the text is a stranger's, and a number may ask for more memory or time than there is.
RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 10_000),
    "seed": (0, 2**64 - 1),
    "num_images": (1, 10_000),
    "first_image": (0, 1_000_000),
    "height": (1, 16_384),
    "width": (1, 16_384),
    "guidance_scale": (0, 10_000),
    "image_guidance_scale": (0, 10_000),
    "guidance_rescale": (0, 1),
    "strength": (0, 1),
    "eta": (-100, 100),
    "refiner_start": (0, 1),
    "denoising_start": (0, 1),
    "denoising_end": (0, 1),
    "aesthetic_score": (-1000, 1000),
    "negative_aesthetic_score": (-1000, 1000),
    "mask_blur": (0, 1000),
    "mask_crop": (0, 16_384),
    "noise_level": (0, 10_000),
    "stop_after": (1, 100_000),
}
PIXELS = (-1_000_000, 1_000_000)  # of SDXL's sizes and crops
OPTION = (-1e9, 1e9)  # of a number among a sampler's options
MOST_OPTIONS, MOST_ENTRIES = 100, 1001  # of a sampler's options, and of a list among them: the levels of 1000 steps
MOST_PROMPTS_JOINED = 16  # by AND in one prompt: each is a row of the U-Net's batch
