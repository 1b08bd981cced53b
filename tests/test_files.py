"""Folders that are replaced whole, or stay as they were; what is no file."""

import os
from pathlib import Path

import pytest

from sdjax.core import files


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text(path.name)
    return path


@pytest.mark.parametrize("keep", [False, True])
def test_a_folder_is_replaced_whole(tmp_path, keep):
    old = folder(tmp_path / "old", "both", "before")
    with files.replaced(old, keep=keep) as new:
        folder(new, "both", "after")
        assert (old / "both").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]
    assert {path.name for path in old.iterdir()} == {"both", "after"} | ({"before"} if keep else set())
    assert (old / "both").read_text() == new.name


def test_a_folder_stays_where_its_successor_fails(tmp_path):
    old = folder(tmp_path / "old", "before")
    with pytest.raises(ValueError, match="half"), files.replaced(old) as new:
        folder(new, "after")
        raise ValueError("half")
    with pytest.raises(FileNotFoundError), files.replaced(old):
        pass  # nothing was made, so the second of the two renames fails
    assert list(tmp_path.iterdir()) == [old]
    assert [path.name for path in old.iterdir()] == ["before"]


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    found = [files.irregular(path) for path in (tmp_path, tmp_path / "pipe", "/dev/null", tmp_path / "file")]
    assert found == [files.FOLDER, files.NO_FILE, files.NO_FILE, None]
    with pytest.raises(FileNotFoundError):
        files.irregular(tmp_path / "none")


def test_the_message_says_what_was_to_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file cannot be written \(.*\); choose another folder for the run$"):
        files.write(b"", tmp_path / "file" / "x", "the run")
    with pytest.raises(OSError, match="choose another folder for the pictures$"):
        files.write(b"", tmp_path / "file" / "x")
