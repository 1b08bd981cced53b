"""How much memory a process has had at its highest, and how much this machine has left (Linux)."""

import contextlib
from pathlib import Path


def forget() -> None:
    """Sets this process's highest memory to what it has now; left as it is on a kernel that cannot."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def highest() -> int:
    """The most that this process has had since `forget`, in bytes."""
    return _kilobytes("/proc/self/status", "VmHWM") * 1024


def free() -> int:
    """What a new process may take without swapping, in bytes."""
    return _kilobytes("/proc/meminfo", "MemAvailable") * 1024


def _kilobytes(path: str, name: str) -> int:
    return next(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith(f"{name}:"))
