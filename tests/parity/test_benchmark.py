"""The benchmark's other half: useful operations as published, and diffusers' side of each row."""

import pytest

from experiments.benchmark import floor, theirs
from experiments.benchmark.subject import Job

# Teraoperations, counted before from the same configs; SD 1.5 without attention is the 339 GMAC that is published.
PUBLISHED = [
    (Job("unet_step", "sd15", 512, batch=3), 3 * 2 * 0.8033),
    (Job("unet_step", "sd21", 768), 2 * 2.149),
    (Job("unet_step", "sdxl", 1024), 2 * 6.761),
    (Job("vae_decode", "sd15", 512), 2.514),
    (Job("picture", "sd15", 512, steps=20), 34.67),
]


@pytest.mark.parametrize(("job", "tera"), PUBLISHED, ids=str)
def test_useful_operations(job, tera):
    assert floor.useful(job) / 1e12 == pytest.approx(tera, rel=1e-3)


@pytest.mark.parametrize("row", ["unet_step", "vae_decode", "text_encoder"])
def test_a_row_of_theirs(row):
    made = theirs.call(Job(row, "shapes", 32, batch=2), "channels_last")()
    starts = {"unet_step": (2, 4, 4, 4), "vae_decode": (2, 3, 32, 32), "text_encoder": (4,)}[row]
    assert made.shape[: len(starts)] == starts
    assert made.isfinite().all()


def test_a_picture_of_theirs():
    made = theirs.call(Job("picture", "shapes", 32, batch=2, steps=2), "eager")()
    assert [one.size for one in made] == [(32, 32)] * 2
