"""Claims: processes that share a folder, killed, stopped, with wrong clocks; all that is asked for is there once."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from experiments import _claims
from experiments._claims import Claims

ROOT = Path(__file__).parents[1]


class Worker:
    """A process of claims_worker.py, and what it printed."""

    def __init__(self, folder: Path, printed: Path, count: int, size: int, **options: object) -> None:
        command = [sys.executable, "-m", "tests.claims_worker", str(folder), str(count), str(size), json.dumps(options)]
        with open(printed, "x") as file:
            self.run = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.PIPE, text=True)
        self.printed = printed

    def lines(self) -> list[str]:
        return self.printed.read_text().splitlines()

    def kill(self, signal: int, begun: bool, seconds: float) -> None:
        """So many seconds after its start, or, if it has begun, after its first claim."""
        while begun and not self.lines() and self.run.poll() is None:
            time.sleep(0.005)
        time.sleep(seconds)
        self.run.send_signal(signal)

    def end(self) -> None:
        error = self.run.communicate(timeout=120)[1]
        assert self.run.returncode == 0, error


def numbered(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.png")}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["one machine", "four machines"])
def test_four_processes_and_twenty_kills(tmp_path, elsewhere):
    """300 lines, and clocks that are up to ten minutes wrong; on one machine a death is seen by the lock alone."""
    out, moments = tmp_path / "out", random.Random(0)
    out.mkdir()
    workers: list[Worker] = []

    def begin(i: int) -> Worker:
        options = {"lease": 1.0, "machine": f"machine {moments.random()}"} if elsewhere else {}
        options |= {"skew": moments.uniform(-600, 600), "work": 0.05, "rank": i}
        workers.append(Worker(out, tmp_path / str(len(workers)), 300, 3, **options))
        return workers[-1]

    running = [begin(i) for i in range(4)]
    there: dict[str, tuple[int, int]] = {}
    for kill in range(20):
        i = moments.randrange(4)
        running[i].kill(signal.SIGKILL, begun=kill % 4 > 0, seconds=moments.uniform(0, 0.1))
        now = numbered(out)
        assert there.items() <= now.items()  # none lost, none made again
        there, running[i] = now, begin(i)
    for one in running:
        one.end()
    clock = Clock()
    with claims(out, "me", clock=clock) as (last,), last.lock():
        last.others()
        clock.now = 61  # so that those die that nobody has seen die, and the last one tidies up
    # What dead ones elsewhere left goes with a run that outlives their lease, which this last one need not.
    left = {".claims"} if elsewhere else set()
    assert {path.name for path in out.iterdir()} - left == {f"{i:05d}.png" for i in range(300)}
    assert all((out / f"{i:05d}.png").read_text() == f"{i}\n" * 1000 for i in range(300))
    told = [line for worker in workers for line in worker.lines()]
    news = [line for line in told if line.startswith("new ")]
    assert len(news) == len(set(news))
    assert elsewhere or sum(line.startswith("dropped") for line in told) <= 20  # nor work done for nothing


def test_a_process_that_stands_still_loses_its_claims_and_does_no_harm(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    still = Worker(out, tmp_path / "still", 6, 3, lease=0.5, work=0.3, machine="a")
    still.kill(signal.SIGSTOP, begun=True, seconds=0.0)
    try:
        Worker(out, tmp_path / "quick", 6, 3, lease=0.5, machine="b").end()
        made = numbered(out)
        assert len(made) == 6
    finally:
        still.run.send_signal(signal.SIGCONT)
    still.end()
    assert numbered(out) == made and {path.name for path in out.iterdir()} == made.keys()
    assert any(line.startswith("dropped") for line in still.lines())


# ---------------------------------------------------------------------- in this process


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def claims(folder: Path, *machines: str | None, clock: Clock | None = None):
    """A process on each of these machines; "me" is this one, where a death is seen by the lock."""
    with ExitStack() as stack:
        made = []
        for machine in machines:
            one = Claims(folder, f"process on {machine}", clock=clock or Clock())
            one.machine = _claims._machine() if machine == "me" else machine
            made.append(stack.enter_context(one))
        yield made


def die(one: Claims) -> None:
    """As kill -9 leaves it: the lock is gone, the files are not."""
    one._ended.set()
    os.close(one._file)
    one._file = os.open(one.folder, os.O_RDONLY)  # for the test's own end


def touch(one: Claims, seconds: float) -> None:
    os.utime(one._file, (seconds, seconds))


def test_neighbours_are_taken_by_one_process_each(tmp_path):
    with claims(tmp_path, "me", "me") as (a, b):
        assert a.take(range(10), 4) == range(0, 4)
        assert b.take(range(10), 4) == range(4, 8)
        a.release(range(1, 3))
        assert b.take([0, 1, 2, 3, 8], 4) == range(1, 3)  # 3 is taken, so they end there
        assert b.take([5, 8, 10], 4) == range(8, 9)
        assert not a.take(range(4, 9), 4) and not a.take([], 4)


def test_a_death_on_this_machine_is_known_at_once(tmp_path):
    with claims(tmp_path, "me", "me") as (a, b):
        assert a.take(range(2), 2) == range(2)
        assert not b.take(range(2), 2)
        die(a)
        assert b.take(range(2), 2) == range(2)


@pytest.mark.parametrize("machine", ["elsewhere", None], ids=["elsewhere", "where no lock tells"])
def test_a_death_elsewhere_is_known_after_a_lease_of_ones_own_clock(tmp_path, machine):
    clock = Clock()
    with claims(tmp_path, machine, "me", clock=clock) as (a, b):
        a.take(range(2), 2)
        for minutes in (-30, 30, -10, 0):  # whatever it writes there: it lives where that is another than before
            touch(a, time.time() + 60 * minutes)
            assert not b.take(range(2), 2)
            clock.now += 59
            assert not b.take(range(2), 2)
        clock.now += 2
        assert b.take(range(2), 2) == range(2)


def test_of_two_thieves_one_wins_and_a_third_sees_it(tmp_path):
    with claims(tmp_path, "me", "me", "me", "me") as (a, b, c, d):
        a.take([7], 1)
        die(a)
        seen = b._there()
        assert c.take([7], 1)
        assert not b._claim("7", seen)  # as who looked before the other took it
        assert not d.take([7], 1)
        c.release([7])
        assert d.take([7], 1)  # which c gave back without its picture


def test_claims_without_a_word_live_for_a_lease(tmp_path):
    clock = Clock()
    with claims(tmp_path, "me", clock=clock) as (a,):
        (a.folder / "3.1").touch()  # its process died between making and writing it
        (a.folder / "4.1").write_text("../../x")
        assert not a.take([3, 4], 2)
        clock.now = 61
        assert a.take([3, 4], 2) == range(3, 5)


def test_who_comes_too_late_does_not_hold_the_lock(tmp_path, monkeypatch):
    with claims(tmp_path, "me", "me", "me") as (a, b, c):
        assert a._claim_alone("begin")
        die(a)
        assert b._claim_alone("begin")
        (a.folder / "begin.1").unlink()
        monkeypatch.setattr(c, "_claim", lambda key, there: Claims._claim(c, key, {}))  # looked before all that
        assert not c._claim_alone("begin") and not (c.folder / "begin.1").exists()
        b._release("begin")
        assert c._claim_alone("begin")


def test_a_claim_that_is_anothers_by_now_is_not_given_back(tmp_path):
    with claims(tmp_path, "me", "me") as (a, b):
        a.take([0], 1)
        (a.folder / "0.1").unlink()  # a was thought dead, and somebody tidied up
        assert b.take([0], 1)
        a.release([0])
        assert (b.folder / "0.1").read_text() == b.id


def test_a_process_appears_again_where_its_file_was_removed(tmp_path):
    with claims(tmp_path, "me", "me") as (a, b):
        a._member(a.id).unlink()
        assert a.take([0], 1) and not b.take([0], 1)


def test_who_is_at_work(tmp_path):
    clock = Clock()
    with claims(tmp_path, "me", "me", "elsewhere", clock=clock) as (a, b, far):
        assert a.others() == [] and a.at_work() is None  # b has not joined
        b.join()
        assert a.others() == [b.id] and a.at_work() == "process on me"
        die(b)
        assert a.others() == []
        far.join()
        assert a.others() == [far.id]
        touch(far, 1.0)
        assert a.at_work() == "process on elsewhere"
        clock.now = 61
        assert a.others() == [] and a.at_work() is None


def test_what_the_dead_left_is_tidied_away_and_what_the_living_have_is_not(tmp_path):
    with claims(tmp_path, "me", "me", "me") as (a, b, c):
        a.take(range(3), 3)
        die(a)
        (tmp_path / ".0123.partial").write_bytes(b"half")
        (tmp_path / "00000.png").write_bytes(b"whole")
        with b.lock():
            b.tidy()
            assert {path.name for path in b.folder.iterdir()} == {f"{b.id}.member", f"{c.id}.member", "begin.1"}
    assert [path.name for path in tmp_path.iterdir()] == ["00000.png"]


def test_a_full_disk_is_one_sentence_and_takes_nothing(tmp_path):
    with claims(tmp_path, "me") as (a,), full(), pytest.raises(OSError, match="make room and give the same command"):
        a.take([0], 1)
    assert not list(tmp_path.iterdir())
    with full(), pytest.raises(OSError, match=f"{tmp_path} cannot be written .*; make room"), claims(tmp_path, "me"):
        pass
    assert not list(tmp_path.iterdir())


@contextmanager
def full():
    """No file can grow, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "environment,name,rank",
    [
        ({}, "", 0),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, "Slurm task 3, ", 3),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_ARRAY_TASK_ID": "2"}, "Slurm task 9, ", 9),
        ({"JOB_COMPLETION_INDEX": "5", "TPU_WORKER_ID": "1"}, "Kubernetes pod 5, ", 5),
        ({"TPU_WORKER_ID": "2"}, "TPU worker 2, ", 2),
        ({"TPU_WORKER_ID": "two", "SLURM_PROCID": ""}, "", 0),
    ],
)
def test_who_a_process_is(environment, name, rank):
    told, number = _claims.whoami(environment)
    assert told.startswith(f"{name}process {os.getpid()} on ") and number == rank


def test_where_processes_begin():
    starts = sorted(_claims.first(rank, 1000) for rank in range(8))
    gaps = [after - before for before, after in zip(starts, [*starts[1:], 1000], strict=True)]
    assert starts[0] == 0 and min(gaps) > 50 and max(gaps) < 250
    assert all(0 <= _claims.first(rank, 1) == 0 for rank in range(100))
