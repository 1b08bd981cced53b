"""What a file is that should be a checkpoint's and is none, told by its first bytes. Nothing in it is unpacked or run.

Downloads go wrong in silence: `git clone` without LFS leaves a pointer, a server answers with a login page or an error,
a browser keeps an archive under the model's name.
"""

import re

from sdjax.core.errors import shown

START = 4096  # bytes that are looked at
AGAIN = "download the file itself"

_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/", b"# xet version ")
_BINARY = (
    (b"GGUF", "a GGUF file (of llama.cpp and stable-diffusion.cpp), which is not read; take the model's .safetensors"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras), which is not read; take the model's .safetensors"),
    (b"\x93NUMPY", "a NumPy array, no checkpoint"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it, the .safetensors is inside"),
    (b"Rar!", "a RAR archive: unpack it, the .safetensors is inside"),
    (b"\x1f\x8b", "a gzip archive: unpack it, the .safetensors is inside"),
    (b"\xfd7zXZ", "an xz archive: unpack it, the .safetensors is inside"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive: unpack it, the .safetensors is inside"),
    (b"BZh", "a bzip2 archive: unpack it, the .safetensors is inside"),
    (b"\x89PNG", "a picture (PNG), perhaps the model's preview; take its .safetensors"),
    (b"\xff\xd8\xff", "a picture (JPEG), perhaps the model's preview; take its .safetensors"),
    (b"GIF8", "a picture (GIF), perhaps the model's preview; take its .safetensors"),
    (b"RIFF", "a picture or a sound (RIFF), perhaps the model's preview; take its .safetensors"),
    (b"%PDF", "a PDF document, no checkpoint"),
    (b"\x7fELF", "a program, no checkpoint: do not run it"),
    (b"MZ", "a program, no checkpoint: do not run it"),
)
_TORCH = re.compile(rb"(.*/)?(data\.pkl|constants\.pkl|byteorder|version|\.format_version|\.storage_alignment|data/.*)")


def pointer_or_page(start: bytes) -> str | None:
    """What a file is that begins with these bytes, where it stands for another or is a server's answer; else None."""
    text = _utf8(start).lstrip()
    if text.startswith(_POINTERS):
        size = re.search(rb"size (\d{1,18})", text)
        of = f" of {int(size[1]):,} bytes" if size else ""
        return f"a Git LFS pointer, which stands for a file{of}: run `git lfs pull` where it was cloned, or {AGAIN}"
    if text.startswith(b"/annex/objects/"):
        return f"a git-annex pointer, which stands for a file: run `git annex get` where it was cloned, or {AGAIN}"
    if re.match(rb"(<!--.{0,1000}?-->\s*)?<(!doctype html|html|head|body)\b", text, re.IGNORECASE | re.DOTALL):
        return f"a web page{_quoted(rb'<title[^>]*>(.*?)</title>', text)}, as a login or an error: log in and {AGAIN}"
    if text.startswith(b"<?xml") or re.match(rb"<(error|html)\b", text, re.IGNORECASE):
        message = _quoted(rb"<(?:message|code)>(.*?)</", text)
        return f"an XML document{message}, as a server's answer that it has no such file: {AGAIN}"
    return None


def impostor(start: bytes) -> str | None:
    """What a file is that begins with these bytes and is no safetensors file, with the remedy; None if not known."""
    if found := pointer_or_page(start):
        return found
    if found := next((what for magic, what in _BINARY if start.startswith(magic)), None):
        return found
    if start.startswith(b"PK\x03\x04"):
        return f"a zip archive that begins with {shown(repr(_first_entry(start)), 80)}: unpack it"
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it, the .safetensors is inside"
    if start and not start.strip(b"\0"):
        return f"filled with zeros: its room was taken and its bytes never came; {AGAIN} again"
    text = _text(_utf8(start))
    if text is None:
        return None
    if text.startswith(("{", "[")):
        return f"JSON text that begins {shown(repr(text[:100]), 120)}, as a server's answer or a config: {AGAIN}"
    return f"a text file that begins {shown(repr(text[:100]), 120)}: {AGAIN}"


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins with these bytes is what torch.save or pickle writes."""
    if start.startswith(b"PK\x03\x04"):
        entry = _first_entry(start)
        return not entry or _TORCH.fullmatch(entry.encode()) is not None
    # A safetensors file begins with a length, whose upper bytes are zero, and a brace.
    return start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[8:9] != b"{"


def _utf8(start: bytes) -> bytes:
    """Text as UTF-8 without a byte order mark: Windows' editor writes one, its shell writes UTF-16."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return start.decode("utf-16", "ignore").encode()
    return start.removeprefix(b"\xef\xbb\xbf")


def _first_entry(start: bytes) -> str:
    """The name of a zip archive's first file, as far as it is among these bytes."""
    return start[30 : 30 + int.from_bytes(start[26:28], "little")].decode("utf-8", "replace")


def _quoted(pattern: bytes, start: bytes) -> str:
    found = re.search(pattern, start, re.IGNORECASE | re.DOTALL)
    text = " ".join(found[1].decode("utf-8", "replace").split()) if found else ""
    return f" ({shown(repr(text), 80)})" if text else ""


def _text(start: bytes) -> str | None:
    """The first bytes as text where they are some: of UTF-8, all printable; the last letter may be cut."""
    text = start.decode("utf-8", "ignore").strip()
    whole = len(text.encode()) >= len(start.strip()) - 3
    return text if text and whole and all(c.isprintable() or c.isspace() for c in text) else None
