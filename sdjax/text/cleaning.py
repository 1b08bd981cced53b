"""What A1111's tokenizers make of a text before they cut it, which the Rust one of `tokens` does not.

    CLIP, in SD 1 and SDXL's first encoder    ftfy.fix_text                     transformers' own (slow) CLIPTokenizer
    OpenCLIP, in SD 2 and SDXL's second       the same, and html.unescape twice      open_clip/tokenizer.py, basic_clean

Curly quotes become straight, ligatures letters, full-width signs ordinary ones, mojibake what it was, "&amp;" is "&".
Both then write it small as Python does, to whom the last letter of "ΣΑΣ" is "ς"; the Rust one looks at each letter by
itself. A1111 cuts a prompt at its brackets first, and each piece is cleaned by itself.

The installed program has ftfy since OpenAI's CLIP, which it needs, asks for it. diffusers and ComfyUI ask for none, and
their newer transformers has no slow tokenizer: `plain` and `comfy` texts are not cleaned.
"""

import html


def a1111(text: str, open_clip: bool) -> str:
    """The text as A1111's tokenizer of that kind cleans it. Half of a surrogate pair stays, and is refused later."""
    import ftfy  # 0.1 s, which no other style needs

    fixed = ftfy.fix_text(text, ftfy.TextFixerConfig(explain=False, fix_surrogates=False))
    return _last_sigmas(html.unescape(html.unescape(fixed)) if open_clip else fixed)


def _last_sigmas(text: str) -> str:
    """Each Σ written small, as its place in a word has it; the other letters are left to the Rust tokenizer, which
    makes the same of them, and behind the canonical form as the others do."""
    if "Σ" not in text:
        return text
    small, at, found = text.lower(), 0, []
    for letter in text:
        found.append(small[at] if letter == "Σ" else letter)
        at += len(letter.lower())
    return "".join(found)
