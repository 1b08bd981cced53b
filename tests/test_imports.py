"""Who may import whom, and what `import sdjax` must not bring along."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each folder may import of sdjax; files at the top of the package compose and may import it all.
MAY = {
    "nn": ("sdjax.config", "sdjax.nn"),
    "diffusion": ("sdjax.diffusion",),
    "text": ("sdjax.config", "sdjax.fields", "sdjax.notice", "sdjax.presets", "sdjax.text", "sdjax.vocabulary"),
    "weights": ("sdjax.config", "sdjax.presets", "sdjax.vocabulary", "sdjax.weights"),
}
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


@pytest.mark.parametrize("path", sorted((ROOT / "sdjax").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_who_may_import_whom(path):
    folder = path.relative_to(ROOT / "sdjax").parts[0]
    for name in imported(path):
        assert not within(name, NEVER), f"{path} imports {name}"
        if within(name, ("sdjax",)):
            assert within(name, MAY.get(folder, ("sdjax",))), f"{path}: {folder} must not import {name}"


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
