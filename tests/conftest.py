"""What all tests share: one compilation cache, quick compiles, a tiny checkpoint.

A test costs what it compiles. So every program is kept in one folder for the whole run, its workers, its children and
the next run, and XLA leaves out the optimisations that take it longest: these networks are compiled for more seconds
than they run. Tests whose subject is the optimised code, or which run a real network for long, are marked `optimised`.
Counts of compilations stay true: what is read from the folder was traced and asked for all the same.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Before JAX is imported, and in the environment: child processes read it too.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
QUICK = {
    "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
os.environ |= QUICK

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.checkpoints import make_checkpoint  # noqa: E402

PARITY = Path(__file__).parent / "parity"
MAPPINGS = Path("/proc/self/maps")
MOST_MAPPINGS = 25_000  # of a test process's memory, after which compiled programs are dropped


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of tests/parity is `parity`; files that take longest go first."""
    for item in items:
        if item.path.is_relative_to(PARITY):
            item.add_marker("parity")
    long = {item.path for item in items if any(map(item.get_closest_marker, ("optimised", "long")))}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Stable Diffusion 1.x of random float16 weights; tests must leave it as it is."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(autouse=True)
def compiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Quick compiles, here and in children; XLA's own for a test that is marked `optimised`."""
    if request.node.get_closest_marker("optimised") is None:
        yield
        return
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Drops compiled programs after a file where this process holds many.

    Each takes mappings of memory, of which Linux allows a process 65,530. Where XLA gets no more, it crashes.
    """
    yield
    if MAPPINGS.exists() and len(MAPPINGS.read_text().splitlines()) > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()
