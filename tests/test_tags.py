"""Tags in prompts: A1111's grammar and defaults, LoRA Block Weight's parts, bad numbers, texts that go on for ever."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.text.tags import Tag, tags


@pytest.mark.parametrize(
    ("text", "left", "tag"),
    [
        ("a <lora:x> b", "a  b", Tag("lora", "x")),
        ("<lora:x:0.8>", "", Tag("lora", "x", 0.8, 0.8)),
        ("<lora:x:0.5:0.8>", "", Tag("lora", "x", 0.5, 0.8)),
        ("<lora:x:0.5:0.8:4>", "", Tag("lora", "x", 0.5, 0.8, 4)),
        ("<lora:x:te=0.5>", "", Tag("lora", "x", 0.5, 0.5)),
        ("<lora:x:unet=0.5>", "", Tag("lora", "x", 1.0, 0.5)),
        ("<lora:x:te=0.5:unet=0.8:dyn=4>", "", Tag("lora", "x", 0.5, 0.8, 4)),
        ("<lora:x:0.1:0.2:te=0.5>", "", Tag("lora", "x", 0.5, 0.2)),  # the named goes over the placed
        ("<lora:x:te=0.5:0.1:0.2>", "", Tag("lora", "x", 0.5, 0.2)),
        ("<lora:x:-1>", "", Tag("lora", "x", -1.0, -1.0)),
        ("<lora:x: .5 :1e-1>", "", Tag("lora", "x", 0.5, 0.1)),
        ("<lyco:x:0.8>", "", Tag("lyco", "x", 0.8, 0.8)),
        ("<hypernet:x:0.5>", "", Tag("hypernet", "x", 1.0, 0.5)),
        ("<hypernet:x>", "", Tag("hypernet", "x", 1.0, 1.0)),
        ("<lora:a b-c.d_é:1>", "", Tag("lora", "a b-c.d_é")),
        ("<lora:a=b=c>", "", Tag("lora", "a=b=c")),  # two signs make no named part
        ("<lora:x:1:lbw=OUTALL>", "", Tag("lora", "x", lbw="OUTALL")),
        ("<lora:x:1:lbw=1,0,.5>", "", Tag("lora", "x", lbw=(1.0, 0.0, 0.5))),
        ("<lora:x:1:start=3:stop=10>", "", Tag("lora", "x", start=3, stop=10)),
        ("<lora:x:1:step=3-10>", "", Tag("lora", "x", start=3, stop=10)),
        ("<lora:x:1:lbwe=IN:zz=1>", "", Tag("lora", "x", unread=("lbwe=IN", "zz=1"))),
        ("<lora:x:1:1:4:zz>", "", Tag("lora", "x", dyn=4, unread=("zz",))),
        ("<other:x:y:z=1>", "", Tag("other", "x", unread=("y", "z=1"))),
        ("<lora:x\ny:1>", "", Tag("lora", "x\ny")),
    ],
)
def test_a_tag(text, left, tag):
    assert tags(text) == (left, [tag])


@pytest.mark.parametrize(
    "text", ["", "a cat", "<cat>", "<lora:>", "< lora:x>", "<lora x:1>", "<lora:x:1", "lora:x:1>", "<:x>", "a < b > c"]
)
def test_what_is_none(text):
    assert tags(text) == (text, [])


def test_several_in_their_order():
    text = "masterpiece, <lora:a:0.5>, <hypernet:b:1> cat <lora:a:0.7> dog<lyco:c>"
    left, found = tags(text)
    assert left == "masterpiece, ,  cat  dog" and [one.name for one in found] == ["a", "b", "a", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <lora:x:strong> b", "<lora:x:strong>: te must be a number, not 'strong'"),
        ("<lora:x:0.5:0,8>", "<lora:x:0.5:0,8>: unet must be a number, not '0,8'"),
        ("<lora:x:nan>", "te must be a number, not 'nan'"),
        ("<lora:x:inf>", "te must be a number"),
        ("<lora:x:1e999>", "te must be a number"),
        ("<lora:x:>", "te must be a number, not ''"),
        ("<lora:x:te=>", "te must be a number, not ''"),
        ("<hypernet:x:much>", "<hypernet:x:much>: its strength must be a number"),
        ("<lora:x:1:1:half>", "dyn must be a whole number from 1 on, not 'half'"),
        ("<lora:x:dyn=0>", "dyn must be a whole number from 1 on"),
        ("<lora:x:dyn=2.5>", "dyn must be a whole number from 1 on"),
        ("<lora:x:1:start=-1>", "start must be a whole number from 0 on"),
        ("<lora:x:1:step=5>", "step must be two numbers, as step=5-20"),
        ("<lora:x:1:step=9-5>", "it stops at step 5 and starts at 9"),
        ("<lora:x:1:lbw=1,R,0>", "lbw must be a number, not 'R' (R, U and X stand for numbers that are drawn"),
        ("<lora:x:1:lbw=>", "lbw is empty"),
        ("<lora: >", "<lora: > names no file; write <lora:name:0.8>"),
        ("<lora:te=1>", "<lora:te=1> names no file"),
        ("<lora::1>", "<lora::1> names no file"),
    ],
)
def test_a_bad_tag_is_told_whole(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tags(text)


@pytest.mark.parametrize(
    "text",
    [
        "<a:" * 100_000,
        "<" * 300_000,
        "<" + "w" * 300_000,
        "<lora:" + "x" * 300_000,
        ("<" + "w" * 100) * 3000 + ">",
        "<a:>" * 100_000,
        "<lora:x:1>" * 20_000,
        "<lora:x" + ":1=1" * 100_000 + ">",
    ],
)
def test_no_text_takes_long(text):
    start = time.perf_counter()
    tags(text)
    assert time.perf_counter() - start < 5


@settings(max_examples=500, deadline=None)
@given(st.text("<>:=lora hypernt.1,-\n", max_size=80))
def test_any_text_is_read_or_refused_in_a_line(text):
    try:
        left, found = tags(text)
    except ValueError as error:
        assert "\n" not in str(error).replace("\\n", "") and len(str(error)) < 400
        return
    assert len(left) + sum(len(f"<{one.kind}:{one.name}>") for one in found) <= len(text)
    assert not re.search(r"<\w+:[^>]+>", left) or found
