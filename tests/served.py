"""Programs run one after the other in forks of a process that has imported them.

An import takes seconds, and what a test of a user's mistake looks at takes none. Each fork is as a process of its own:
it has its own flags, and starts JAX itself. The process that forks has done nothing but import, and computes nothing.
"""

import contextlib
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[1]


class Server:
    """As a context. modules: what runs import, imported once."""

    def __init__(self, *modules: str) -> None:
        command = [sys.executable, "-m", "tests.served", *modules]
        self._process = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def run(self, module: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """As `python -m module flags` in the repository's root."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([module, flags]), file=self._process.stdin, flush=True)
        status, stdout, stderr = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess([module, *flags], status, stdout, stderr)


def _serve() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
        del sys.modules[name]  # it is run afresh, of which runpy would warn
    for line in sys.stdin:
        module, flags = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if not child:
                _be(module, flags, out.fileno(), err.fileno())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            told = [status, *(_whole(file.fileno()) for file in (out, err))]
        print(json.dumps(told), flush=True)


def _whole(file: int) -> str:
    os.lseek(file, 0, os.SEEK_SET)
    with open(file, closefd=False, errors="replace") as opened:
        return opened.read()


def _be(module: str, flags: list[str], out: int, err: int) -> None:
    """Becomes the program; never returns."""
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.argv = [module, *flags]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
