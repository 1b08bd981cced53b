"""Token ids with CLIP's real vocabulary: ours are transformers', and open_clip's where that reads a text alike.

open_clip's tokenizer is OpenAI's own code. It differs in what it does before it joins bytes:

    (1)   ftfy.fix_text: undoes mojibake, straightens quotes, spells out ligatures, halves full-width signs, ...
    (2)   html.unescape, twice: "&amp;lt;" is "<"
    (3)   white space and lower case are Python's: U+001C to U+001F are white space, "İ" keeps its dot
    (4)   BOS and EOS are `<start_of_text>` and `<end_of_text>`; CLIP's own names `<|...|>` are cut as text
    (5)   letters are those of the `regex` package: Unicode's newest; and U+0345 is dropped, since it is no letter but
          its other case is one, so that neither side of CLIP's expression matches it
    (6)   contractions are looked for without regard to case, to which the long s is an s: "'ſ" is one

so a string is compared with it where (1) to (3) leave what the canonical form here leaves, (4) and (6) do not occur and
each sign is of the same kind to both. transformers' CLIPTokenizer of version 5, the Rust one, has none of these: it is
compared on all strings. Its slow one, of version 4 and before, did (1) and (3) where ftfy was installed, and A1111 has
it installed: prompts in that style are cleaned first, and compared with OpenAI's code behind either cleaning.
"""

import functools
import importlib.util
import random
import re
import sys
from pathlib import Path

import ftfy
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.text import Tokenizer, cleaning
from sdjax.text.prompts import chunks
from sdjax.text.vocabulary import BOS, EOS, clip_tokenizer_files

CASES = 10_000
PADS = (EOS, "!")
TEXT = """
a an the of on in with photo portrait photograph astronaut riding horse Mars highly detailed 8k uhd f/1.4 50mm
masterpiece, best quality trending artstation greg rutkowski don't I'll we've he's they'd o'clock rock'n'roll
café naïve Ünïcödé STRASSE straße İstanbul \N{LATIN SMALL LIGATURE FI}ne ½ x² № Ωmega привет мир Київ שלום مرحبا
नमस्ते สวัสดี 日本語 中文字幕 こんにちは 한국어 👍 👍🏽 👨\u200d👩\u200d👧 🇩🇪 ❤\ufe0f 🏳\ufe0f\u200d🌈 e\u0301 n\u0303
a\u0308\u0304 q\u0307\u0323 Z\u0351\u036b\u0343 &amp; &lt;b&gt; &#39; &quot; <|endoftext|> <|startoftext|> <lora:x:0.8>
(word:1.3) ((x)) [a|b] BREAK AND 1girl 2024 3.14159 1,000,000 -- ... !!! ?! #hashtag @user http://x.y/z?q=1 C:\\dir
snake_case CamelCase 's 'S ’s “quoted” — … \u00ad \u200b \ufeff
"""
WORDS = TEXT.split()
SPACES = (" ", " ", " ", "  ", "\t", "\n", "\u00a0", "\u3000", "", ", ", ".", "-")
ALPHABETS = (
    st.characters(codec="utf-8"),  # all of Unicode
    st.characters(max_codepoint=0x7F),
    st.characters(categories=["Cc", "Cf", "Zs", "Zl", "Zp"]),
    st.characters(categories=["Mn", "Mc", "Me", "Lu", "Ll", "Lt", "Lm"]),
    st.characters(categories=["Nd", "Nl", "No", "Po", "So", "Sk"]),
    st.sampled_from("aAİıſßẞKΣς'’sStTrReEvVmMlLdD<|>&;#x\u0301\u0307 \n"),
)
TEXTS = st.one_of(*(st.text(alphabet, max_size=40) for alphabet in ALPHABETS))


def captions(count: int) -> list[str]:
    """Strings put together from WORDS, some very long, with some characters changed."""
    rng = random.Random(0)
    found = ["", " ", "a" * 5000, "é" * 700, "1" * 300, "ab" * 2000 + " cd", "'" * 200, "👍" * 150]
    while len(found) < count:
        text = "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randrange(1, 25)))
        if rng.random() < 0.3:
            at = rng.randrange(len(text) + 1)
            text = (
                text[:at] + chr(rng.choice((rng.randrange(0x20, 0x3000), rng.randrange(0xE000, 0x20000)))) + text[at:]
            )
        found.append(rng.choice((str, str.upper, str.title))(text))
    return found


@pytest.fixture(scope="module")
def ours() -> dict[str, Tokenizer]:
    """By the token that pads."""
    return {pad: Tokenizer.read(clip_tokenizer_files(pad), "clip") for pad in PADS}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> dict[str, transformers.CLIPTokenizer]:
    """By the token that pads."""
    found = {}
    for pad in PADS:
        folder = tmp_path_factory.mktemp("clip")
        for name, data in clip_tokenizer_files(pad).items():
            (folder / name).write_bytes(data)
        found[pad] = transformers.CLIPTokenizer.from_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def open_clip():
    """open_clip/tokenizer.py by itself: the package imports torchvision and timm, the file does not."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.submodule_search_locations is None:
        pytest.fail("pip install --no-deps open_clip_torch==3.3.0")
    path = Path(found.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def read_alike(ours: Tokenizer, open_clip, text: str) -> bool:
    """Whether (1) to (6) make no difference to `text`."""
    if any(name in text.lower() for name in (BOS, EOS, "<start_of_text>", "<end_of_text>")):
        return False
    canonical = ours._engine.normalizer.normalize_str(text).strip(" ")
    if "'ſ" in canonical:
        return False
    return canonical == open_clip.clean_fn(text) and all(sign_alike(ours, open_clip, sign) for sign in canonical)


@functools.cache
def sign_alike(ours: Tokenizer, open_clip, sign: str) -> bool:
    """Whether `sign` is to both a letter, a digit, white space, or none of these."""
    return all(ours.pieces(text) == open_clip.encode(text) for text in (f"a{sign}", f"1{sign}", f"{sign}-", f"-{sign}"))


@pytest.mark.parametrize("pad", PADS)
def test_ids_are_transformers(ours, theirs, pad):
    texts = captions(CASES)
    assert [ours[pad].pieces(text) for text in texts] == theirs[pad](texts, add_special_tokens=False)["input_ids"]


@settings(max_examples=2000, deadline=None)
@given(TEXTS, st.sampled_from(PADS))
def test_ids_are_transformers_on_any_text(ours, theirs, text, pad):
    assert ours[pad].pieces(text) == theirs[pad](text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("pad", PADS)
def test_rows_are_transformers(ours, theirs, pad):
    texts = [text for text in captions(300) if len(ours[pad].pieces(text)) <= 75]
    rows = theirs[pad](texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert ours[pad].tokens(texts).tolist() == rows and len(texts) > 100


def test_ids_are_open_clips(ours, open_clip):
    """Those of the strings that are read alike have the same ids, without exception."""
    texts = [text for text in captions(3 * CASES) if read_alike(ours[EOS], open_clip, text)][:CASES]
    assert len(texts) == CASES
    signs = {sign for sign in "".join(WORDS) if open_clip.clean_fn(sign) == sign}
    assert len(signs) > 100 and all(sign_alike(ours[EOS], open_clip, sign) for sign in signs)
    assert [ours[EOS].pieces(text) for text in texts] == [open_clip.encode(text) for text in texts]


@settings(max_examples=2000, deadline=None)
@given(TEXTS)
def test_ids_are_open_clips_on_any_text(ours, open_clip, text):
    if read_alike(ours[EOS], open_clip, text):
        assert ours[EOS].pieces(text) == open_clip.encode(text)


CLEANED = ["&lt;b&gt;", "&amp;amp;", "“quoted”", "\N{LATIN SMALL LIGATURE FI}ne", "Ａ", "schÃ¶n", "\x1b[31mred"]


@pytest.mark.parametrize("text", CLEANED)
def test_what_open_clip_cleans_and_stable_diffusion_does_not(ours, theirs, open_clip, text):
    """Points (1) and (2), so that the difference is known, not guessed."""
    assert ours[EOS].pieces(text) == theirs[EOS](text, add_special_tokens=False)["input_ids"] != open_clip.encode(text)


# A1111's texts ------------------------------------------------------

BRACES = ("<|", "<start_of_text>", "<end_of_text>")  # names of special tokens, which are no text to the slow one


def slow_clean(text: str) -> str:
    """transformers 4's tokenization_clip.py, _tokenize with ftfy: whitespace_clean(fix_text(text)).lower()."""
    return re.sub(r"\s+", " ", ftfy.fix_text(text)).strip().lower()


@pytest.mark.parametrize("second", [False, True])
def test_a1111s_texts_are_cleaned(ours, open_clip, monkeypatch, second):
    """The first text encoder has transformers' slow tokenizer, OpenCLIP its own; 5,000 strings, no exception."""
    texts = [text for text in captions(6000) if not any(brace in text.lower() for brace in BRACES)]
    cleaned = [cleaning.a1111(text, second) for text in texts]
    with monkeypatch.context() as patched:
        if not second:
            patched.setattr(open_clip, "clean_fn", slow_clean)
        theirs = [open_clip.encode(text) for text in texts]
        signs = {sign for text in texts for sign in open_clip.clean_fn(text)}
    unlike = {sign for sign in signs if not sign_alike(ours[EOS], open_clip, sign)}
    assert len(unlike) < len(signs) / 20 and not unlike & set(map(chr, range(0x2000)))
    differ = [text for text, found, ids in zip(texts, cleaned, theirs, strict=True) if ours[EOS].pieces(found) != ids]
    assert all(unlike & set(text.lower()) for text in differ) and len(texts) > 4000


@pytest.mark.parametrize(
    ("text", "same"),
    [("“a cat”", '"a cat"'), ("a，b", "a,b"), ("\N{LATIN SMALL LIGATURE FI}", "fi"), ("&amp;", "&"), ("ＡＢＣ", "ABC")]
    + [("ΣΑΣ", "σας"), ("\ufeffa\x1bcat\u2028", "acat"), ("cafÃ©", "café"), ("donâ€™t", "don't")],
)
def test_what_a1111_reads_as_one(ours, text, same):
    """And the other styles, whose tokenizers clean nothing, do not."""
    for tokenizer in ours.values():
        assert chunks(text, tokenizer, "a1111") == chunks(same, tokenizer, "a1111")
        assert all(chunks(text, tokenizer, style) != chunks(same, tokenizer, style) for style in ("plain", "comfy"))
