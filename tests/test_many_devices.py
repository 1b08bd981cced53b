"""Training on many devices: the numbers of one, a state that is cut, and one that moves; on two processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.many_devices import MESHES, losses

ROOT = Path(__file__).parent.parent


def start(devices: int, *arguments: object) -> subprocess.Popen:
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "tests.many_devices", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def told(process: subprocess.Popen, status: int = 0) -> dict:
    out, err = process.communicate(timeout=400)
    assert process.returncode == status, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    return told(start(8, "meshes", tmp_path_factory.mktemp("meshes")))


@pytest.mark.parametrize("name", MESHES)
def test_the_losses_are_those_of_one_device(found, name):
    one = found["losses"]["one"]
    assert len(set(one)) == 10 and found["moved"] > 5e-3
    np.testing.assert_allclose(found["losses"][name], one, rtol=1e-5)
    assert found["apart"][name] < 1e-6


@pytest.mark.parametrize("name, share", [("one", 1), ("copied", 1), ("cut", 1 / 8), ("both", 1 / 4), ("four", 1 / 2)])
def test_a_moment_lies_as_its_parameter(found, name, share):
    assert found["largest_share"][name] == share


@pytest.mark.parametrize("way", ["cut to one", "four to both"])
def test_a_run_goes_on_with_other_devices(found, way):
    assert found["apart"][way] < 1e-6


def test_a_state_reads_back_over_another_mesh(found):
    assert found["read"] == 0.0
    assert found["marks"] == [True, False]  # of the same numbers cut and whole, and of others


def port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def test_two_processes_are_one_run(found, tmp_path):
    """The same losses; one folder, written once; each makes its half of every batch."""
    number = port()
    both = [start(2, "process", tmp_path, number, i, 10, 0) for i in range(2)]
    first, second = map(told, both)
    assert first["step"] == second["step"] == 10 and first["devices"] == 4
    assert [first["rows"], second["rows"]] == [[0, 8], [8, 16]]
    assert first["total"] == second["total"] == pytest.approx(found["total"], rel=1e-6)
    assert first["said"] == 10 and second["said"] == 0
    np.testing.assert_allclose(losses(tmp_path), found["losses"]["one"], rtol=1e-5)


@pytest.mark.ci
def test_a_signal_to_one_of_two_processes_ends_both_after_the_same_step(tmp_path):
    number = port()
    both = [start(2, "process", tmp_path, number, i, 1000, 0.1) for i in range(2)]
    while not (tmp_path / "settings.json").exists():
        time.sleep(0.1)
    time.sleep(15)
    both[1].send_signal(signal.SIGTERM)
    first, second = (told(one, 75) for one in both)
    assert first["newest"] == second["newest"] and 0 < first["newest"] < 1000
    assert "stopped by SIGTERM, with its state saved" in first["interrupted"]
