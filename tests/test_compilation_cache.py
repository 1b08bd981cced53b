"""The compilation cache: a folder of the user's, kept where they chose one already, never fatal."""

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from sdjax.runtime import compilation_cache

SETTINGS = (compilation_cache.FOLDER, compilation_cache.LEAST_SECONDS, compilation_cache.XLA_CACHES)
# Two processes at once: each compiles the same programs into one cache, and prints what they give.
CHILD = """
import sys, jax, jax.numpy as jnp
from pathlib import Path
from sdjax.runtime import compilation_cache as cache
with cache.within(Path(sys.argv[1])):
    print([float(jax.jit(lambda x, k=k: jnp.sin(x * k).sum())(jnp.arange(100.0))) for k in range(5)])
"""


@pytest.fixture
def config():
    """JAX's settings, put back afterwards."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_default_is_the_users_cache_folder(config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.enable()
    assert config.jax_compilation_cache_dir == str(tmp_path / "sdjax" / "compiled")
    assert (tmp_path / "sdjax" / "compiled").is_dir()


def test_a_folder_chosen_before_stays(config, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compilation_cache.enable(fill=lambda caches: tmp_path / "other")
    assert config.jax_compilation_cache_dir == str(tmp_path / "mine")
    compilation_cache.enable(tmp_path / "other")
    assert config.jax_compilation_cache_dir == str(tmp_path / "other")


def test_exported_programs_bring_theirs_which_may_have_been_moved(config, tmp_path):
    expected = compiled(tmp_path / "first", 0.25)
    (tmp_path / "first").rename(tmp_path / "second")
    before = set((tmp_path / "second").iterdir())
    compilation_cache.enable(fill=lambda caches: tmp_path / "second")
    assert config.jax_compilation_cache_dir == str(tmp_path / "second")
    assert compiled(tmp_path / "second", 0.25) == expected
    assert {path for path in (tmp_path / "second").iterdir() if path.name.endswith("-cache")} <= before


@pytest.mark.parametrize("where", ["file", "file/folder"])
def test_a_folder_that_cannot_be_made_is_a_warning(config, tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="no compilation cache: .*file.* cannot be made"):
        compilation_cache.enable(tmp_path / where)
    assert config.jax_compilation_cache_dir is None


def test_a_user_without_a_home_is_a_warning(config, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(UserWarning, match="no compilation cache: Could not determine home directory"):
        compilation_cache.enable()
    assert config.jax_compilation_cache_dir is None


def test_from_a_folder_that_cannot_be_written_to_programs_are_read(config, monkeypatch, tmp_path):
    def refused(dir):
        raise PermissionError(13, os.strerror(13), str(dir))

    monkeypatch.setattr(compilation_cache.tempfile, "TemporaryFile", refused)
    with pytest.warns(UserWarning, match="programs are not kept: .* cannot be written to .Permission denied"):
        compilation_cache.enable(tmp_path)
    assert config.jax_compilation_cache_dir == str(tmp_path)
    assert config.jax_persistent_cache_min_compile_time_secs == math.inf


def compiled(folder: Path, factor: float) -> float:
    """The result of a small program, compiled or read in `folder`."""
    jax.clear_caches()
    with compilation_cache.within(folder):
        return float(jax.jit(lambda x: jnp.sin(x * factor).sum())(jnp.arange(100.0)))


def damage_empty(content: bytes) -> bytes:
    return b""


def damage_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage_garbage(content: bytes) -> bytes:
    return bytes(range(256)) * (len(content) // 256 + 1)


def damage_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [damage_empty, damage_half, damage_garbage, damage_bit])
def test_a_damaged_entry_is_compiled_again(config, tmp_path, damage):
    expected = compiled(tmp_path, 0.5)
    kept = list(tmp_path.glob("*-cache"))
    assert kept
    for path in kept:
        path.write_bytes(damage(path.read_bytes()))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert compiled(tmp_path, 0.5) == expected
    assert any("cache" in str(one.message) for one in said)


@pytest.mark.parametrize("damage", [damage_empty, damage_half, damage_garbage, damage_bit])
def test_a_damaged_entry_is_removed_at_the_next_start_and_written_anew(config, tmp_path, damage):
    """JAX alone would warn of it in every process for ever: it never writes over an entry."""
    expected = compiled(tmp_path, 0.5)
    compilation_cache.enable(tmp_path)
    kept = sorted(tmp_path.glob("*-cache"))
    for path in kept:
        path.write_bytes(damage(path.read_bytes()))
    compilation_cache.enable(tmp_path)
    assert kept and not list(tmp_path.glob("*-cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(tmp_path, 0.5) == compiled(tmp_path, 0.5) == expected
    assert sorted(tmp_path.glob("*-cache")) == kept


def test_whole_entries_stay_and_what_is_no_file_goes(config, tmp_path):
    compiled(tmp_path, 0.5)
    kept = sorted(tmp_path.glob("*-cache"))
    os.mkfifo(tmp_path / "jit_f-00-cache")  # to read it would wait for ever
    compilation_cache.enable(tmp_path)
    assert kept and sorted(tmp_path.glob("*-cache")) == kept


def test_two_processes_share_a_folder(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate()[0] for one in running]
    assert [one.returncode for one in running] == [0, 0]
    assert said[0] == said[1] and said[0].startswith("[0.0, ")
    assert len(list(tmp_path.glob("*-cache"))) >= 5


def test_within_puts_the_settings_back(config, tmp_path):
    before = {name: getattr(config, name) for name in SETTINGS}
    with compilation_cache.within(tmp_path):
        assert config.jax_compilation_cache_dir == str(tmp_path)
    assert {name: getattr(config, name) for name in SETTINGS} == before
