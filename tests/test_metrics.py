"""Metrics: each step's numbers once, however a run was broken off."""

import sys

import pytest

from sdjax.train.metrics import Csv, TensorBoard


def recorded(path, first: int, last: int, **more: float) -> None:
    """A run from `first` done to `last`, flushed twice."""
    table = Csv(path)
    table.begin(first)
    for n in range(first + 1, last + 1):
        table.record(n, {"loss": 1 / n, **(more if n % 2 == 0 else {})})
        if n == (first + last) // 2:
            table.flush()
    table.end()


def test_a_resumed_table_is_that_of_an_unbroken_run(tmp_path):
    recorded(tmp_path / "whole.csv", 0, 9)
    recorded(tmp_path / "broken.csv", 0, 6)  # of which 5 and 6 were after the last checkpoint
    recorded(tmp_path / "broken.csv", 4, 9)
    assert (tmp_path / "broken.csv").read_text() == (tmp_path / "whole.csv").read_text()
    lines = (tmp_path / "whole.csv").read_text().splitlines()
    assert lines[:3] == ["step,loss", "1,1.0", "2,0.5"] and len(lines) == 10


def test_a_metric_that_comes_later_gets_its_column(tmp_path):
    recorded(tmp_path / "run.csv", 0, 2)
    recorded(tmp_path / "run.csv", 2, 4, validation_loss=7.0)
    lines = (tmp_path / "run.csv").read_text().splitlines()
    assert lines == ["step,loss,validation_loss", "1,1.0,", "2,0.5,", f"3,{1 / 3},", "4,0.25,7.0"]


def test_a_half_written_row_is_dropped(tmp_path):
    (tmp_path / "run.csv").write_text("step,loss,rate\n1,1.0,0.1\n2,0")
    table = Csv(tmp_path / "run.csv")
    table.begin(2)
    table.flush()
    assert (tmp_path / "run.csv").read_text() == "step,loss,rate\n1,1.0,0.1\n"


@pytest.mark.parametrize("text", ["a picture\n\x00\x01", "loss,step\n1,2\n", "step,loss\nfirst,1\n"])
def test_what_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "run.csv").write_text(text)
    with pytest.raises(ValueError, match="run.csv is no table of a run's metrics; move it away"):
        Csv(tmp_path / "run.csv").begin(3)


def test_tensorboard_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"pip install 'sdjax\[tensorboard\]'"):
        TensorBoard(tmp_path)


def test_tensorboards_files_hold_the_steps(tmp_path):
    pytest.importorskip("tensorboardX")
    board = TensorBoard(tmp_path)
    board.begin(4)
    board.record(5, {"loss": 0.5})
    board.flush()
    board.end()
    (path,) = tmp_path.iterdir()
    assert b"loss" in path.read_bytes()
