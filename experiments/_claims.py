"""Who makes which picture, among processes that share a folder and nothing else.

A process claims pictures by files that one process alone can make (O_EXCL), and keeps its claims by touching one file
of its own every few seconds. Nothing listens, nobody has to know how many there are, and they come and go as they like.
In the folder's .claims, which is gone when the last process has ended, but for what dead ones elsewhere left: that goes
with a run that outlives their lease.

    8f3a.member     a process: what it calls itself, and its machine. Touched, and locked for as long as it lives
    12.1            picture 12 is claimed, by the process whose id the file holds. Gone when the picture is there
    12.2            the same, after the process of 12.1 died: of those that saw it, one made this file
    joined-8f3a.1   that process agrees with begun.json (see _record.py)
    begin.1         held while begun.json is compared or written, and while somebody leaves

A process is dead when its lock is free; of one on the same machine this is known at once, also after kill -9. Of one
elsewhere, when its file has not *changed* for a lease, by the clock of the process that watches. Clocks of different
machines are never compared, so they may differ as they like.

A process that merely stood still for a lease is taken for dead too. It does no harm: its pictures are the same as those
of whoever took them over, and a picture is never written over one that is there (`_files.publish`). Nor does a claim
that was lost, so nothing here needs more than O_EXCL: not locks over the network, nor directories that are up to date.
"""

import fcntl
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from experiments._files import writing

LEASE = 60.0  # seconds for which a claim lives after the last sign of its process
SIGNS = 6  # of life in a lease
PAUSE = 0.05  # seconds between two looks of somebody who waits

# Where a process is told its number among others, and what is counted there.
RANKS = (
    ("SLURM_PROCID", "Slurm task"),
    ("JOB_COMPLETION_INDEX", "Kubernetes pod"),
    ("TPU_WORKER_ID", "TPU worker"),
    ("OMPI_COMM_WORLD_RANK", "MPI rank"),
)


def whoami(environment: Mapping[str, str]) -> tuple[str, int]:
    """What this process is called in messages, and its number where Slurm, Kubernetes, a TPU pod or MPI tell one."""
    here = f"process {os.getpid()} on {socket.gethostname()}"
    told = [(variable, kind, rank) for variable, kind in RANKS if (rank := _number(environment, variable)) is not None]
    if not told:
        return here, 0
    variable, kind, rank = told[0]
    if variable == "SLURM_PROCID" and (array := _number(environment, "SLURM_ARRAY_TASK_ID")) is not None:
        rank += array * (_number(environment, "SLURM_NTASKS") or 1)
    return f"{kind} {rank}, {here}", rank


def _number(environment: Mapping[str, str], variable: str) -> int | None:
    value = environment.get(variable, "")
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else None


def first(rank: int, count: int) -> int:
    """Where among `count` pictures a process of that number begins to look, so that few look at the same place.

    The multiples of the golden section, modulo 1, are spread evenly however many there are.
    """
    return int(rank * (5**0.5 - 1) / 2 % 1 * count)


class Claims:
    """This process's claims in a folder: `with Claims(out, name) as claims`; in the end they are given back.

    lease: seconds. clock: seconds too, from anywhere, that only go up. All methods raise OSError.
    """

    def __init__(
        self, folder: Path, name: str, lease: float = LEASE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.out, self.folder, self.name = folder, folder / ".claims", name
        self.lease, self.clock, self.machine = lease, clock, _machine()
        self.id = uuid.uuid4().hex
        self._file = -1  # of the member file
        self._held: dict[str, Path] = {}
        self._signs: dict[str, tuple[tuple[int, int], float, bool]] = {}  # by file: last sign, since when, ever another
        self._ended, self._appearing = threading.Event(), threading.Lock()

    def __enter__(self) -> "Claims":
        with writing(self.out):
            try:
                self._appear()
            except OSError:
                self._vanish()
                raise
        threading.Thread(target=self._live, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            with suppress(OSError):  # which must not hide what ended the run
                self._leave()
        finally:
            self._ended.set()
            self._vanish()

    def take(self, numbers: Iterable[int], most: int) -> range:
        """Claims neighbours: the first of `numbers` that is free, and up to `most` with it. Empty where none is."""
        taken = range(0)
        with writing(self.out):
            self._appear()
            there = self._there()
            for number in numbers:
                if taken and (len(taken) == most or number != taken.stop):
                    break
                if self._claim(str(number), there):
                    taken = range(taken.start if taken else number, number + 1)
                elif taken:
                    break
        return taken

    def release(self, numbers: Iterable[int]) -> None:
        """Gives claims back, after their pictures were written."""
        with writing(self.out):
            for number in numbers:
                self._release(str(number))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time; waits for it."""
        with writing(self.out):
            self._appear()
            while not self._claim_alone("begin"):
                time.sleep(PAUSE)
            try:
                yield
            finally:
                self._release("begin")

    def join(self) -> None:
        """Says that this process is at work; within `lock`."""
        self._claim(f"joined-{self.id}", {})

    def others(self) -> list[str]:
        """The ids of other processes that are at work, as far as is known; within `lock`."""
        # All are looked at, also those that have not joined: a lease begins with the first look.
        alive = [path.stem for path in self.folder.glob("*.member") if self._lives(path) is not False]
        joined = {key.removeprefix("joined-") for key in self._there() if key.startswith("joined-")}
        return [one for one in alive if one in joined and one != self.id]

    def at_work(self) -> str | None:
        """What another process that is at work calls itself; waits up to a lease where only time can tell."""
        while others := self.others():
            for one in others:
                if self._lives(self._member(one)):
                    return self._name(one)
            time.sleep(PAUSE)
        return None

    def tidy(self) -> None:
        """Removes what dead processes left, half-written files too; within `lock`, where no other is at work."""
        kept = {path.name for path in self._held.values()} | {self._member(self.id).name}
        for path in (*self.folder.iterdir(), *self.out.glob(".*.partial")):
            # A member may not have joined yet, or be about to appear.
            alive = path.suffix in (".member", ".new") and self._lives(path) is not False
            if path.name not in kept and not alive:
                path.unlink(missing_ok=True)

    def _leave(self) -> None:
        for key in [key for key in self._held if not key.startswith("joined-")]:
            self._release(key)
        with self.lock():
            self._release(f"joined-{self.id}")
            if not self.others():
                self.tidy()

    # ------------------------------------------------------------------ this process's file

    def _member(self, id: str) -> Path:
        return self.folder / f"{id}.member"

    def _appear(self) -> None:
        """Makes this process's own file where it is not there: before the first claim, or after it was thought dead."""
        with self._appearing:
            while not self._is_there():
                self._close()
                self.folder.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # another process left and took the folder with it
                    self._file = self._made()

    def _is_there(self) -> bool:
        try:
            return self._file >= 0 and os.fstat(self._file).st_nlink > 0
        except OSError:  # of NFS: another host removed it
            return False

    def _close(self) -> None:
        """And with it the lock is free."""
        if self._file >= 0:
            with suppress(OSError):
                os.close(self._file)
            self._file = -1

    def _vanish(self) -> None:
        with self._appearing:  # before the name is taken away: NFS keeps a file that is open, and its folder with it
            self._close()
        with suppress(OSError):
            os.unlink(self._member(self.id))
        with suppress(OSError):  # not empty: others are at work
            os.rmdir(self.folder)

    def _made(self) -> int:
        """Locked and written before it has the name that others look for."""
        new = self.folder / f"{self.id}.new"
        file = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o666)
        try:
            machine = self.machine if _lock(file, fcntl.LOCK_EX) else None
            os.write(file, json.dumps({"name": self.name, "machine": machine}).encode())
            os.rename(new, self._member(self.id))
        except OSError:
            os.close(file)
            new.unlink(missing_ok=True)
            raise
        return file

    def _live(self) -> None:
        """The thread that touches the file; a disk that is full or away is tried again."""
        while not self._ended.wait(self.lease / SIGNS):
            with self._appearing, suppress(OSError):
                os.utime(self._file)

    # ------------------------------------------------------------------ claims

    def _there(self) -> dict[str, int]:
        """What is claimed, and how often it was taken over, from 1."""
        latest: dict[str, int] = {}
        for name in os.listdir(self.folder):
            key, _, turn = name.rpartition(".")
            if turn.isdecimal():
                latest[key] = max(latest.get(key, 0), int(turn))
        return latest

    def _claim(self, key: str, there: Mapping[str, int]) -> bool:
        """Whether it is this process's now: nobody had it, or who had it is dead, and no other was quicker."""
        turn = there.get(key, 0)
        if turn and self._owned(self.folder / f"{key}.{turn}"):
            return False
        path = self.folder / f"{key}.{turn + 1}"
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        self._held[key] = path
        try:
            os.write(file, self.id.encode())
        finally:
            os.close(file)
        return True

    def _claim_alone(self, key: str) -> bool:
        """`_claim`, and nobody has taken it over from a turn before this one, however late this process came."""
        if not self._claim(key, self._there()):
            return False
        if f"{key}.{self._there().get(key)}" == self._held[key].name:
            return True
        self._release(key)
        return False

    def _release(self, key: str) -> None:
        path = self._held.pop(key, None)
        # Another's by now, where this process stood still and was thought dead.
        if path and _owner(path) in (self.id, ""):
            path.unlink(missing_ok=True)

    def _owned(self, claim: Path) -> bool:
        """Whether whose claim it is may be alive."""
        id = _owner(claim)
        if id is None:  # given back in this moment; the next look sees it
            return True
        # Empty: its process died before it could write, or is about to.
        return self._lives(self._member(id) if re.fullmatch("[0-9a-f]{32}", id) else claim) is not False

    # ------------------------------------------------------------------ life and death

    def _lives(self, path: Path) -> bool | None:
        """Whether the process of this file lives; None where only time can tell."""
        try:
            file = os.open(path, os.O_RDONLY)  # NFS asks its server now, which for a mere stat it does not
        except FileNotFoundError:
            return False
        try:
            found, locked = os.fstat(file), None
            if self.machine is not None and _told(file).get("machine") == self.machine:
                locked = not _lock(file, fcntl.LOCK_SH)
        finally:
            os.close(file)
        sign = found.st_ino, found.st_mtime_ns
        before, since, changed = self._signs.get(path.name, (None, 0.0, False))
        if sign != before:
            since, changed = self.clock(), before is not None
            self._signs[path.name] = sign, since, changed
        if locked is False or self.clock() - since > self.lease:
            return False
        return True if locked or changed else None

    def _name(self, id: str) -> str:
        try:
            file = os.open(self._member(id), os.O_RDONLY)
        except FileNotFoundError:
            return "a process that has ended"
        try:
            return str(_told(file).get("name"))[:200]
        finally:
            os.close(file)


def _owner(claim: Path) -> str | None:
    """Whose claim it is; None where there is none."""
    try:
        return claim.read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        return None


def _told(file: int) -> dict[str, object]:
    """What a member file says."""
    try:
        told = json.loads(os.read(file, 4096))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _lock(file: int, kind: int) -> bool:
    """Whether the lock could be had."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:  # somebody has it, or this file system knows none
        return False
    return True


def _machine() -> str | None:
    """A name for the kernel that runs, the same in all its containers; None where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None
