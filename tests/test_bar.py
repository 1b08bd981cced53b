"""The progress bar while programs are compiled."""

from sdjax.core.jit import program, tracing
from sdjax.sampling.bar import Bar


def test_compiling_is_said_and_is_no_pace(capsys):
    @program()
    def double(x):
        return 2 * x

    bar = Bar(200, True)
    with bar.shown():
        double(1.0)  # traced and compiled
        compiling = capsys.readouterr().err
        bar.reach(8)
        first = capsys.readouterr().err
        double(2.0)  # is compiled already
        again = capsys.readouterr().err
    assert "compiling, once: 0/200" in compiling and "it/s" not in compiling.split("compiling, once")[-1]
    assert "8/200" in first and "?it/s" in first and "compiling" not in first.split("8/200")[-1]
    assert "compiling" not in again
    assert tracing.get() is None


def test_a_hidden_bar_says_nothing(capsys):
    bar = Bar(5, False)
    with bar.shown():
        bar.compile()
        bar.reach(5)
    assert bar.hidden and capsys.readouterr().err == ""
