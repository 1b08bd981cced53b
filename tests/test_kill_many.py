"""What the killing experiment would see: a torn picture, a lost one, one that was made twice, a wrong end."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from experiments import kill_many
from tests.checkpoints import make_checkpoint
from tests.test_parallel import SMALL


def save(path, colour=0):
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(path)


def end(folder, names):
    (folder / "manifest.jsonl").write_text("".join(json.dumps({"file": name}) + "\n" for name in names))


def test_torn_pictures(tmp_path):
    save(tmp_path / "00000.png")
    assert list(kill_many.inspect_row(tmp_path)) == ["00000.png"] and kill_many.count(tmp_path) == 1
    whole = (tmp_path / "00000.png").read_bytes()
    (tmp_path / "00001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="00001.png is torn"):
        kill_many.inspect_row(tmp_path)


def test_lost_and_made_twice(tmp_path):
    save(tmp_path / "00000.png")
    before = kill_many.inspect_row(tmp_path)
    kill_many.compare(before, before | {"00001.png": (1, b"")})
    with pytest.raises(ValueError, match="00000.png was lost"):
        kill_many.compare(before, {})
    (tmp_path / "00000.png").rename(tmp_path / "old")
    save(tmp_path / "00000.png")
    with pytest.raises(ValueError, match="00000.png was made twice"):
        kill_many.compare(before, kill_many.inspect_row(tmp_path))


def test_the_end(tmp_path):
    save(tmp_path / "00000.png")
    made, other = kill_many.inspect_row(tmp_path), {"00000.png": (0, b"other")}
    end(tmp_path, ["00000.png"])
    kill_many.check(made, made, tmp_path, 1)
    with pytest.raises(ValueError, match="00000.png is another picture"):
        kill_many.check(made, other, tmp_path, 1)
    with pytest.raises(ValueError, match="1 pictures and 1 in the manifest, of 2"):
        kill_many.check(made, made, tmp_path, 2)
    end(tmp_path, [])
    with pytest.raises(ValueError, match="1 pictures and 0 in the manifest, of 1"):
        kill_many.check(made, made, tmp_path, 1)
    end(tmp_path, ["00000.png"])
    for left in (".0.partial", ".claims"):
        (tmp_path / left).touch()
        with pytest.raises(ValueError, match=f"{left}, which a killed process left"):
            kill_many.check(made, made, tmp_path, 1)
        (tmp_path / left).unlink()


def test_a_run_that_ends_by_itself_was_not_killed(tmp_path):
    assert not kill_many.killed(kill_many.start(["true"]), tmp_path, 1, 20.0)
    assert kill_many.killed(kill_many.start(["sleep", "20"]), tmp_path, 0, 0.01)


@pytest.mark.ci
def test_four_processes_for_real(tmp_path, capsys):
    tiny = make_checkpoint(tmp_path / "tiny", unet=SMALL)
    values = SimpleNamespace(kills=6, pictures=120, processes=4, batch=2, seconds=0.2, seed=0, model=str(tiny))
    kill_many.main(values)
    assert "120 of 120 pictures, none lost, none made twice, none torn" in capsys.readouterr().out
