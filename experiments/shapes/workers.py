"""Processes beside this one: drawing and scoring are plain NumPy, a few milliseconds a picture."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from experiments.shapes.score import Verdict, score


def pool(pictures: int) -> ProcessPoolExecutor:
    """For so many pictures: at most a process a core; new ones, not forks, which would share locks of JAX's threads."""
    number = min(os.cpu_count() or 1, 1 + pictures // 100)
    return ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn"))


def scores(workers: ProcessPoolExecutor, images: np.ndarray, captions: list[str]) -> list[Verdict]:
    """The verdict on each picture uint8 `b H W 3`."""
    return list(workers.map(score, images, captions, chunksize=16))
