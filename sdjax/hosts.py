"""Several processes, on one host or many: each its share of the pictures, and a line open to the first of them.

`jax.distributed` tells the processes of each other's devices. It also ends every process when one does not come or
dies: by a failed check in C++, with status 134 and no exception that could be explained to anybody. Making pictures
side by side needs no collective, so nothing is lost by leaving it as soon as everybody knows everybody:

    1. the processes meet at the coordinator's address, over plain sockets; one that does not come is named;
    2. they join jax.distributed, ask for the devices, and leave it;
    3. the sockets stay open. One that breaks before its process said that it was done is the sign of a death, which
       the system itself gives, also for a process that was killed.

What is said is a line of text. Who connects and says anything else is not listened to.
"""

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax

DONE = "done"
# Seconds until a host that went without a word is asked after, between questions, and questions.
KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


@dataclass(frozen=True, eq=False)
class Hosts:
    """The processes that have met.

    Attributes:
      index: this one's. processes: how many there are. lines: an open socket by process: to process 0, or, of that
        one, to all others.
    """

    index: int = 0
    processes: int = 1
    lines: Mapping[int, socket.socket] | None = None

    def share(self, count: int) -> range:
        """Which of `count` items are this process's."""
        return share(count, self.index, self.processes)

    def finish(self) -> tuple[int, ...]:
        """Says that this process is done and waits for the others: those that ended before they were."""
        lines = self.lines or {}
        try:
            if self.index:
                _say(lines[0], DONE)
                told = _hear(lines[0])
                return tuple(json.loads(told)) if told else (0,)
            lost = tuple(process for process, line in sorted(lines.items()) if _hear(line) != DONE)
            for line in lines.values():
                _say(line, json.dumps(lost))
            return lost
        finally:
            for line in lines.values():
                line.close()


def share(count: int, index: int, processes: int) -> range:
    """Which of `count` items process `index` of so many takes: a run of neighbours. Raises ValueError."""
    _check(index, processes)
    return range(count * index // processes, count * (index + 1) // processes)


def join(coordinator: str | None, processes: int = 1, index: int = 0, timeout: float = 300.0) -> Hosts:
    """Meets the other processes, before anything of JAX's has run.

    coordinator: "host:port" of process 0, where it can be reached. timeout: seconds for all to come.

    Raises ValueError for an address or a number that cannot be, TimeoutError naming who did not come to which address.
    """
    _check(index, processes)
    if processes == 1:
        return Hosts()
    host, port = _address(coordinator)
    until = time.monotonic() + timeout
    if index:
        lines = {0: _call(host, port, f"sdjax {index} {processes}", until, timeout)}
    else:
        lines = _receive(host, port, processes, until, timeout)
    jax.distributed.initialize(f"{host}:{port}", processes, index, initialization_timeout=max(1, round(timeout)))
    jax.devices()
    jax.distributed.shutdown()
    return Hosts(index, processes, lines)


def _check(index: int, processes: int) -> None:
    if processes < 1:
        raise ValueError(f"processes must be at least 1, not {processes}")
    if not 0 <= index < processes:
        raise ValueError(f"process_index must be from 0 to {processes - 1}, one less than processes, not {index}")


def _address(coordinator: str | None) -> tuple[str, int]:
    host, _, port = (coordinator or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"coordinator must be host:port, where process 0 can be reached, not {coordinator!r}")
    return host, int(port)


def _receive(host: str, port: int, processes: int, until: float, timeout: float) -> dict[int, socket.socket]:
    """Process 0's side: waits until all have come, then lets them go on."""
    try:
        door = socket.create_server(("", port))
    except OSError as error:
        raise OSError(f"coordinator={host}:{port}: process 0 cannot listen there ({error.strerror})") from None
    lines: dict[int, socket.socket] = {}
    with door:
        while len(lines) < processes - 1:
            door.settimeout(max(0.01, until - time.monotonic()))
            try:
                line = door.accept()[0]
            except TimeoutError:
                missing = ", ".join(str(i) for i in range(1, processes) if i not in lines)
                raise TimeoutError(
                    f"process {missing} of {processes} did not come to {host}:{port} within {timeout:g} s; start it "
                    "with the same coordinator, or name fewer processes"
                ) from None
            line.settimeout(5)
            process = _named(_hear(line), processes)
            if process is None or process in lines:
                line.close()
                continue
            lines[process] = _patient(line)
    for line in lines.values():
        _say(line, "go")
    return lines


def _named(hello: str, processes: int) -> int | None:
    """Who says so; None for somebody else."""
    known = {f"sdjax {i} {processes}": i for i in range(1, processes)}
    return known.get(hello)


def _call(host: str, port: int, hello: str, until: float, timeout: float) -> socket.socket:
    """The others' side: tries until process 0 is there and everybody has come."""
    last = "nobody answers"
    while (left := until - time.monotonic()) > 0:
        try:
            line = socket.create_connection((host, port), timeout=left)
        except OSError as error:
            last = error.strerror or str(error)
            time.sleep(min(0.2, left))
            continue
        _say(line, hello)
        if _hear(line) == "go":
            return _patient(line)
        last = "process 0 is there, but others are missing, or this process_index is taken"
        line.close()
        time.sleep(min(0.2, left))
    raise TimeoutError(f"{host}:{port}: not joined within {timeout:g} s ({last}); is process 0 running there?")


def _patient(line: socket.socket) -> socket.socket:
    """A line that waits as long as the other side lives, and notices where that is gone with its whole host."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return line


def _say(line: socket.socket, text: str) -> None:
    """One line; a side that is gone hears nothing, which `_hear` finds out."""
    try:
        line.sendall(f"{text}\n".encode())
    except OSError:
        return


def _hear(line: socket.socket) -> str:
    """One line of up to 1,000 characters; empty where the other side is gone."""
    heard = b""
    try:
        while not heard.endswith(b"\n") and len(heard) < 1000:
            if not (more := line.recv(1)):
                return ""
            heard += more
    except OSError:
        return ""
    return heard.decode("ascii", "replace").strip()
