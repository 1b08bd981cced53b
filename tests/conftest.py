"""What several test files share."""

from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Stable Diffusion 1.x of random float16 weights; tests must leave it as it is."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
