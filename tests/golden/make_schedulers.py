"""Makes schedulers.npz: what diffusers' own schedulers give on the toy network of tests/reference.py.

Run from the repository root, with torch and diffusers installed: python -m tests.golden.make_schedulers
The file in the repository was made with diffusers 0.42.1 and torch 2.13.0 (CPU).
"""

from pathlib import Path

import diffusers
import numpy as np
import torch

from tests.parity.test_schedulers import X_T, diffusers_run, with_schedule
from tests.reference import draws
from tests.test_golden_schedulers import CASES, label


def main() -> None:
    arrays = {"x_T": X_T, "versions": np.array([diffusers.__version__, torch.__version__])}
    for case in CASES:
        name, steps, config, schedule, eta = case
        noise = draws(steps).astype(np.float32) if eta else None
        timesteps, latents = diffusers_run(name, steps, with_schedule(config, schedule), eta, noise)
        arrays[f"{label(case)}/timesteps"] = timesteps.astype(np.float32)
        arrays[f"{label(case)}/latents"] = latents
    np.savez_compressed(Path(__file__).with_name("schedulers.npz"), **arrays)


if __name__ == "__main__":
    main()
