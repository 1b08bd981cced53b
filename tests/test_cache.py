"""The compilation cache: a folder of the user's, kept where they chose one already, never fatal."""

import jax
import pytest

from sdjax import cache


@pytest.fixture
def config():
    """JAX's setting, put back afterwards."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    jax.config.update("jax_compilation_cache_dir", before)


def test_default_is_the_users_cache_folder(config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.enable()
    assert config.jax_compilation_cache_dir == str(tmp_path / "sdjax" / "compiled")
    assert (tmp_path / "sdjax" / "compiled").is_dir()


def test_a_folder_chosen_before_stays(config, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    cache.enable()
    assert config.jax_compilation_cache_dir == str(tmp_path / "mine")
    cache.enable(tmp_path / "other")
    assert config.jax_compilation_cache_dir == str(tmp_path / "other")


def test_a_folder_that_cannot_be_made_is_a_warning(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="no compilation cache"):
        cache.enable(tmp_path / "file" / "folder")
    assert config.jax_compilation_cache_dir is None
