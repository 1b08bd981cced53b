"""Who may import whom, and what `import sdjax` must not bring along."""

import ast
import os
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import sdjax

ROOT = Path(__file__).parents[1]

# Rooms from the ground up: a file may import its own room and those of lower floors. Imports for types alone count.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("text", "torch_noise", "diffusion"),
    ("config",),
    ("nn", "weights"),
    ("images", "adapters", "runtime"),
    ("metadata",),
    ("model",),
    ("request",),
    ("sampling",),
    ("pipeline",),
    ("load", "export", "parallel"),
    ("__init__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
TRAIN = ("core", "text", "diffusion", "config", "nn", "weights", "images", "adapters", "train")  # never the pipeline
NEVER = ("experiments", "tests", "torch", "diffusers", "transformers")


def imported(path: Path) -> list[str]:
    """The absolute names of the modules that a file imports, at its top or inside a function."""
    names = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def room_of(path: Path) -> str:
    """The folder below sdjax/ that a file is in, or its own name at the top."""
    return path.relative_to(ROOT / "sdjax").parts[0].removesuffix(".py")


def may(room: str) -> set[str]:
    """The rooms that a room may import."""
    if room == "train":
        return set(TRAIN)
    return {room} | {other for other in FLOOR if FLOOR[other] < FLOOR[room]}


FILES = sorted((ROOT / "sdjax").rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def files_imported(path: Path) -> set[Path]:
    """The files of sdjax that a file imports: `from sdjax.core import short` is core/short.py."""
    found = set()
    for name in imported(path):
        if within(name, ("sdjax",)):
            found.add(MODULES[name] if name in MODULES else MODULES[name.rpartition(".")[0]])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_who_may_import_whom(path):
    for name in imported(path):
        assert not within(name, NEVER), f"{path} imports {name}"
    room, others = room_of(path), {room_of(one) for one in files_imported(path)}
    assert others <= may(room), f"{path}: {room} must not import {', '.join(sorted(others - may(room)))}"


def test_no_circle_of_files():
    """A file can be understood when those that it imports are."""
    waiting = {path: files_imported(path) - {path} for path in FILES if path != ROOT / "sdjax" / "__init__.py"}
    while ready := [path for path, needs in waiting.items() if not needs & waiting.keys()]:
        for path in ready:
            del waiting[path]
    assert not waiting, f"circles among {', '.join(str(path.relative_to(ROOT)) for path in sorted(waiting))}"


def test_rooms_have_doorplates():
    """No file lies in the hall, and every room says what lives there."""
    assert {room_of(path) for path in FILES} == {*FLOOR, "train"}
    for room in sorted({path.parent for path in FILES}):
        text = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8")))
        assert text and len(text) > 40, f"{room} has no docstring that says what lives there"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def test_import_starts_no_backend():
    """With a platform that does not exist, the first use of a device fails and the import does not."""
    ran = run("import sdjax, jax; print('imported'); jax.devices()", JAX_PLATFORMS="nowhere")
    assert ran.stdout.strip() == "imported" and "nowhere" in ran.stderr and ran.returncode == 1


def test_import_is_light():
    heavy = {"torch", "diffusers", "transformers", "orbax", "optax", "huggingface_hub", "matplotlib"}
    ran = run(f"import sdjax, sys; print(sorted({heavy} & {{m.split('.')[0] for m in sys.modules}}))")
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


def test_what_is_listed_is_what_is_meant_to_be_used():
    assert dir(sdjax) == sorted([*sdjax.__all__, "__version__"]) and sdjax.__all__ == sorted(sdjax.__all__)
    assert not [name for name in ("checks", "fields", "calls", "given", "micro", "hints", "Any") if name in dir(sdjax)]
    assert all(getattr(sdjax, name) is not None for name in sdjax.__all__)


def test_modules_come_when_they_are_asked_for():
    code = """
import sys, sdjax
assert not {"optax", "orbax"} & {name.split(".")[0] for name in sys.modules} and "sdjax.parallel" not in sys.modules
print(sdjax.parallel.spread.__name__, sdjax.train.state.TrainState.__name__, sdjax.train.loop.fit.__name__)
"""
    ran = run(code)
    assert ran.stdout.split() == ["spread", "TrainState", "fit"], ran.stderr


def test_experiments_are_not_installed():
    """A name that every second repository has; what is run from a clone is found there."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("*/**/__init__.py")}
    found = {name for name in packages if any(fnmatch(name, one) for one in settings["packages"]["find"]["include"])}
    assert {"sdjax", "sdjax.diffusion.solvers", "sdjax.train"} <= found
    assert {name.partition(".")[0] for name in (*found, *settings["package-data"])} == {"sdjax"}
