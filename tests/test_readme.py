"""The README's Python: every call fits the code, and what the shipped models can run does what it says."""

import ast
import inspect
import re
import warnings
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import sdjax
from experiments.shapes import COLOURS, RELATIONS, SHAPES, SIZES, parse_caption, score
from experiments.shapes.objects import nearest_colour

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
# What only a checkpoint, a picture or a machine of one's own can run.
ELSEWHERE = re.compile(r"stormy|-folder'|\.safetensors'|from_a1111|'programs'|devices=")


def statements() -> list[ast.stmt]:
    """Of all blocks, in the order of reading: each goes on from those before it."""
    return [one for block in BLOCKS for one in ast.parse(block).body]


# ---------------------------------------------------------------------- against signatures


class Names:
    """What the names of the examples are: modules, functions, classes or, for a value, its class in `Of`."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {"jax": None, "window": None}
        self.checked = 0

    def run(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([statement], []), "README.md", "exec"), self.known)
        for node in ast.walk(statement):
            if isinstance(node, ast.Call | ast.Attribute):
                self.kind(node)
        if isinstance(statement, ast.Assign):
            self.assign(statement.targets[0], statement.value)

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple):
            values = value.elts if isinstance(value, ast.Tuple) else [None] * len(target.elts)
            for one, its in zip(target.elts, values, strict=True):
                self.known[ast.unparse(one)] = None if its is None else self.kind(its)
        else:
            self.known[ast.unparse(target)] = self.kind(value)

    def kind(self, node: ast.expr) -> Any:
        """A module, class or function, `Of` a class, or None where nothing is known."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.attribute(self.kind(node.value), node.attr)
        if isinstance(node, ast.Call):
            called = self.kind(node.func)
            if ours(called):
                self.check(called, node)
                return returned(called)
        return None

    def attribute(self, owner: Any, name: str) -> Any:
        if isinstance(owner, Of):
            assert hasattr(owner.kind, name) or name in owner.kind.__annotations__, f"{owner.kind} has no {name}"
            found = inspect.getattr_static(owner.kind, name, None)
            return found if isinstance(found, FunctionType) else None
        if isinstance(owner, ModuleType):
            assert hasattr(owner, name), f"{owner.__name__} has no {name}"
            return getattr(owner, name)
        return None

    def check(self, called: Any, node: ast.Call) -> None:
        """Its keywords, and as many arguments, can be bound."""
        method = isinstance(node.func, ast.Attribute) and isinstance(self.kind(node.func.value), Of)
        args = [None] * (len(node.args) + method)
        inspect.signature(called).bind(*args, **{one.arg: None for one in node.keywords if one.arg is not None})
        self.checked += 1


class Of(SimpleNamespace):
    """A value of the class `kind`."""


def ours(called: Any) -> bool:
    module = getattr(called, "__module__", "") or ""
    return callable(called) and module.partition(".")[0] in ("sdjax", "experiments")


def returned(called: Any) -> Any:
    """What a call gives: a value of the class, or of the class that the function says."""
    if isinstance(called, type):
        return Of(kind=called)
    said = inspect.signature(called).return_annotation
    said = getattr(sdjax, said, None) if isinstance(said, str) else said
    return Of(kind=said) if isinstance(said, type) and ours(said) else None


def test_every_call_fits_its_signature():
    names = Names()
    for statement in statements():
        names.run(statement)
    assert names.checked >= 40


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("sd.generate('a', step=3)", "step"),
        ("sd.generat('a')", "generat"),
        ("sdjax.plann()", "plann"),
        ("sd.generate('a').picture", "picture"),
        ("sdjax.plan('euler', step=3).plot()", "step"),
        ("sdjax.grow()", "image"),
    ],
)
def test_such_a_check_finds_a_mistake(wrong, message):
    names = Names()
    with pytest.raises((AssertionError, TypeError), match=message):
        for statement in ast.parse(f"import sdjax\nsd = sdjax.load()\n{wrong}").body:
            names.run(statement)


def test_the_grammar_is_the_worlds():
    [text] = re.findall(r"```\n(caption   = .*?)```", README, re.DOTALL)
    said = {line.split()[0]: line.partition("=")[2].split("  ")[0].strip() for line in text.splitlines() if "=" in line}
    assert said["COLOUR"].split() == [*COLOURS] and said["SHAPE"].split() == [*SHAPES]
    assert tuple(said["RELATION"].split(" | ")) == RELATIONS and f"[{'|'.join(SIZES)}]" in said["thing"]
    assert parse_caption(text.splitlines()[-1].removeprefix("such as").strip())


# ---------------------------------------------------------------------- run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the examples find the pictures that they name."""
    monkeypatch.chdir(tmp_path)
    for name, box in (("white_here", (8, 8, 120, 120)), ("spot", (8, 8, 120, 120))):
        mask = Image.new("L", (128, 128))
        mask.paste(255, box)
        mask.save(f"{name}.png")
    depth = Image.new("L", (128, 128))
    for box in ((24, 50, 104, 78), (50, 24, 78, 104)):
        depth.paste(255, box)
    depth.save("near_is_light.png")
    circle = Image.new("RGB", (128, 128), COLOURS["white"])
    ImageDraw.Draw(circle).ellipse((20, 20, 108, 108), fill=COLOURS["red"])
    circle.save("in.png")
    (tmp_path / "moons").mkdir()
    for i in range(10):
        moon, side = Image.new("RGB", (512, 512), COLOURS["white"]), 200 + 16 * i
        ImageDraw.Draw(moon).pieslice(
            (200 - 8 * i, 256 - side // 2, 200 - 8 * i + side, 256 + side // 2), 90, 270, "red"
        )
        moon.save(f"moons/{i}.png")
    return tmp_path


def names_of(statement: ast.stmt, use: type) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, use)}


@pytest.mark.ci
@pytest.mark.long
def test_the_examples_do_what_they_say(folder, monkeypatch):
    """All that needs no other checkpoint, each statement going on from those before it."""
    shown: list[Any] = []
    names: dict[str, Any] = {"window": SimpleNamespace(show=shown.append)}
    monkeypatch.setattr("sdjax.notebook_callback", lambda: shown.append)
    made, left = {}, set()
    warnings.filterwarnings("ignore", "shapes was not trained on the word 'moon'")
    for statement in statements():
        text = ast.unparse(statement)
        if ELSEWHERE.search(text) or left & names_of(statement, ast.Load):
            left |= names_of(statement, ast.Store) - {"sd"}  # which is the shapes model from the first block on
        elif isinstance(statement, ast.Expr):  # what it makes is looked at below
            made[text] = eval(compile(ast.Expression(statement.value), "README.md", "eval"), names)
        else:
            exec(compile(ast.Module([statement], []), "README.md", "exec"), names)
            if isinstance(statement, ast.Assign):
                made[text] = names.get(ast.unparse(statement.targets[0]))
    check(made, names, shown)


def only(made: dict[str, Any], part: str) -> Any:
    """The pixels of the one example that holds `part`."""
    [found] = [one for text, one in made.items() if part in text]
    return found.pixels


def half_moon(pixels: np.ndarray) -> float:
    """How well what is not of the corner's colour fills the left half of an ellipse: intersection over union."""
    thing = np.abs(pixels - pixels[0, 0].astype(np.float32)).max(-1) > 90
    rows, columns = (np.flatnonzero(thing.any(axis)) for axis in (1, 0))
    box = thing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    y, x = ((np.arange(n) + 0.5) / n for n in box.shape)
    ideal = (2 * y[:, None] - 1) ** 2 + (x[None] - 1) ** 2 <= 1
    return float((box & ideal).sum() / (box | ideal).sum())


def check(made: dict[str, Any], names: dict[str, Any], shown: list[Any]) -> None:
    np.testing.assert_array_equal(names["again"].pixels[0], np.asarray(Image.open("picture.png")))
    assert score(names["circle"], "a large red circle on a white background").ok
    assert score(names["star"].images[0], "a large red star on a white background").ok
    assert score(only(made, "a blue heart on")[0], "a blue heart on a white background").ok
    assert score(only(made, "near_is_light")[0], "a pink cross on a blue background").ok
    assert score(only(made, "mask_crop")[0], names["prompt"]).ok
    assert score(only(made, "generate(both")[0], "a large orange circle on a white background").ok
    heart = only(made, "regions=two")[0]
    assert [nearest_colour(heart[60, x]) for x in (50, 78)] == ["blue", "red"]
    assert score(np.where((np.abs(heart - np.float32(COLOURS["white"])).max(-1) > 60)[..., None],
                          np.uint8(COLOURS["red"]), np.uint8(COLOURS["white"])), "a large red heart").ok  # fmt: skip
    assert len(shown) > 20 and sum(ok for ok, _ in [(v.ok, v.errors) for v in names["verdicts"]]) >= 3
    moon = np.asarray(Image.open("moon.png"))
    assert nearest_colour(moon[0, 0]) == "white" and half_moon(moon) > 0.8
    kept = names["tuned"].generate(names["captions"]).images
    assert sum(score(image, text).ok for image, text in zip(kept, names["captions"], strict=True)) >= 3
    assert sdjax.load("moons-model", compilation_cache=False).unet.in_channels == 4
