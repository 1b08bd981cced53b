"""How a program of this folder treats its user: a line for a mistake of theirs, a traceback for one of ours.

    exit 0     done, or --helpshort
    exit 2     the user's mistake: "generate: steps must be ...", on standard error
    exit 75    a training run that was told to end (SIGTERM, Ctrl-C), and saved its state first
    exit 130   stopped by Ctrl-C, wherever in JAX it strikes

A mistake is a ValueError or an OSError that a check of this repository raised. The same class from inside
JAX or NumPy is a fault of ours, and keeps its traceback.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

OURS = ("sdjax", "experiments")
AGAIN = 0.02  # seconds until a Ctrl-C that was dropped is sent again


def run(main: Callable[[], None], define_flags: Callable[[], None] = lambda: None) -> NoReturn:
    """Parses the flags, runs `main()` and exits as this module's docstring says.

    define_flags: called first, where defining them takes a time in which Ctrl-C may strike.
    """
    path = Path(sys.argv[0])
    name = path.parent.name if path.stem == "__main__" else path.stem  # of a package, its folder's
    try:
        define_flags()
        app.run(lambda _: guarded(main, name), flags_parser=lambda argv: parse(argv, name))
    except KeyboardInterrupt:  # before main
        fail(name, "stopped", 130)
    finally:  # another Ctrl-C would be a traceback out of what JAX does at the end
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise AssertionError("app.run always exits")


def guarded(main: Callable[[], None], name: str) -> None:
    """Calls `main()`; a user's mistake, or Ctrl-C, becomes one line of `name` and SystemExit."""
    try:
        _check_here()
        with _heard(), warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"{name}: {message}", file=sys.stderr)
            main()
    except KeyboardInterrupt:
        fail(name, "stopped", 130)
    except (ValueError, OSError) as error:
        if not _raised_by_us(error):
            raise
        fail(name, str(error), 2)
    except Exception as error:
        status = getattr(error, "status", None)  # of `train.interrupt.Interrupted`, not imported for this alone
        if not isinstance(status, int) or not _raised_by_us(error):
            raise
        fail(name, str(error), status)


def _check_here() -> None:
    """Raises OSError where the folder is gone that everything relative is looked for in."""
    try:
        os.getcwd()
    except OSError:
        raise OSError("the folder that this was started in is gone; cd into one that is there") from None


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Within it no Ctrl-C is lost.

    What is raised in a callback of the garbage collector (JAX has one, which runs all the time) or in a destructor,
    Python drops, with a traceback and nothing more. A KeyboardInterrupt is sent again then, a moment later.
    """
    usual, waiting = sys.unraisablehook, list[threading.Timer]()

    def again(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            return usual(dropped)
        if not any(timer.is_alive() for timer in waiting):  # pressed twice, it stops once
            waiting.append(threading.Timer(AGAIN, os.kill, (os.getpid(), signal.SIGINT)))
            waiting[-1].daemon = True
            waiting[-1].start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = usual
        for timer in waiting:  # what is heard by now stops nothing that comes after
            timer.cancel()


def parse(argv: Sequence[str], name: str) -> list[str]:
    """`flags.FLAGS(argv)`, where a wrong flag is one line and exit 2, and asking for help is exit 0."""
    own_flags(argv[0])
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        fail(name, f"{_told(error)} (--helpshort lists the flags)", 2)
    except SystemExit:  # --help and its like, for which absl exits with 1
        sys.exit(0)
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # else JAX tells of every kind of device that is not here
    if len(rest) > 1:
        fail(name, f"{rest[1]!r} belongs to no flag; put a value with spaces in quotes", 2)
    return rest


def own_flags(program: str) -> None:
    """Makes the flags that any module of ours has defined those that --helpshort lists; absl's own are none of them."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.partition(".")[0] in OURS:
            for flag in defined:
                flags.FLAGS.register_key_flag_for_module(program, flag)


def _told(error: flags.Error) -> str:
    """absl's message in one line; of flags that must be given, their names."""
    missing = re.findall(r"Flag (--\w+) must have a value other than None", str(error))
    return f"{' and '.join(missing)} must be given" if missing else f"{' '.join(str(error).split())}{_habit(error)}"


def _habit(error: flags.Error) -> str:
    """What a flag of another program is called here, where absl finds no name that is near."""
    if not isinstance(error, flags.UnrecognizedFlagError) or "Did you mean" in str(error):
        return ""
    from sdjax.core import hints

    meant = re.match(r"write (\w+)=", hints.GENERATE.get(error.flagname, ""))
    return f". Did you mean: {meant[1]} ?" if meant and meant[1] in flags.FLAGS else ""


def number(text: str, kind: type, flag: str) -> Any:
    """`text` as an int or a float. Raises ValueError with the flag's name."""
    try:
        return kind(text)
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise ValueError(f"--{flag}: {text!r} is no {what}") from None


def fail(name: str, message: str, status: int) -> NoReturn:
    """Prints one line to standard error and exits."""
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(status)


def _raised_by_us(error: BaseException) -> bool:
    """Whether the innermost frame of the traceback is a file of this repository."""
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    module: Any = frame.f_globals.get("__name__", "")
    return module == "__main__" or module.partition(".")[0] in OURS
