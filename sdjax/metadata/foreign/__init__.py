"""Settings that other programs wrote into their pictures: who wrote them, and what they are in `generate`'s words.

AUTOMATIC1111's text, which many programs write, is in `infotext`; here are those that keep JSON. Each has a file, which
says where its facts are from. Read `fields` first, then any other.

    program         where                                             noise, prompts and levels
    SwarmUI         `parameters`: {"sui_image_params": {...}}         ComfyUI's
    Fooocus         `parameters` or EXIF: {"full_prompt": ...}        ComfyUI's
    ComfyUI         `prompt`: the graph that was run                  its own
    InvokeAI        `invokeai_metadata`, `sd-metadata`, `Dream`       diffusers', on the CPU
    NovelAI         `Comment` beside Software: NovelAI                not known
    Easy Diffusion  a text for each setting, or JSON in EXIF          not known
    Draw Things     XMP: {"c": prompt, "uc": negative prompt ...}     not known

A reader gives what `generate` can do and notes what it cannot; it raises ValueError where a picture cannot be told.
"""

from collections.abc import Callable, Mapping

from sdjax.metadata import texts as picture_texts
from sdjax.metadata.foreign import comfyui, drawthings, easydiffusion, fooocus, invokeai, novelai, swarmui
from sdjax.metadata.foreign.fields import Fields, Found, as_object, is_object

PROGRAMS = "A1111, Forge, SD.Next, ComfyUI, SwarmUI, Fooocus, InvokeAI, NovelAI, Easy Diffusion, Draw Things and sdjax"

# Of a JSON object: a program, whether it is its, and its reader.
_OBJECTS: tuple[tuple[str, Callable[[Fields], bool], Callable[[Fields], Found]], ...] = (
    ("SwarmUI", swarmui.is_its, swarmui.read),
    ("Fooocus", fooocus.is_its, fooocus.read),
    ("InvokeAI", invokeai.is_its, invokeai.read),
    ("Easy Diffusion", easydiffusion.is_its, easydiffusion.read),
    ("NovelAI", novelai.is_its, novelai.read),
    ("Draw Things", drawthings.is_its, drawthings.read),
)


def read(texts: Mapping[str, str], size: tuple[int, int]) -> tuple[str, Found] | None:
    """(The program, what it wrote) of a picture's texts, or None where no program's are among them.

    size: (width, height) of the picture, for a program that does not write it.

    Raises:
      ValueError: they are a program's, and cannot be told in `generate`'s words; it names the program.
    """
    if easydiffusion.is_its(Fields(texts)):  # a text for each of its settings
        return "Easy Diffusion", _named("Easy Diffusion", easydiffusion.read, Fields(texts))
    if "dream" in Fields(texts) and "sd-metadata" not in Fields(texts):
        return "InvokeAI", _named("InvokeAI", invokeai.read_dream, texts["Dream" if "Dream" in texts else "dream"])
    if texts.get(picture_texts.SOFTWARE) == "NovelAI" and "Comment" in texts:
        beside = {"size": size, "description": texts.get("Description")}
        read_it = lambda text: novelai.read(Fields({**as_object(text), **beside}))  # noqa: E731
        return "NovelAI", _named("NovelAI", read_it, texts["Comment"])
    for name in ("parameters", picture_texts.COMMENT, "invokeai_metadata", "sd-metadata", picture_texts.XMP, "Comment"):
        found = _of_object(texts.get(name, ""))
        if found is not None:
            return found
    return None


def read_graph(texts: Mapping[str, str]) -> tuple[str, Found] | None:
    """(ComfyUI, what its graph says), or None where there is none: for pictures without settings in plainer words.

    Raises:
      ValueError: as `read`; or there is only the editor's workflow.
    """
    if "prompt" in texts and is_object(texts["prompt"]):
        return "ComfyUI", _named("ComfyUI", comfyui.read, texts["prompt"])
    if "workflow" in texts and is_object(texts["workflow"]):
        raise ValueError(f"ComfyUI: {comfyui.ONLY_WORKFLOW}")
    return None


def _of_object(text: str) -> tuple[str, Found] | None:
    """Of JSON that is some program's; None where it is no object."""
    if not is_object(text):
        return None
    fields = Fields(as_object(text))
    for program, is_its, read_it in _OBJECTS:
        if is_its(fields):
            return program, _named(program, read_it, fields)
    if comfyui.is_its(fields):
        return "ComfyUI", _named("ComfyUI", comfyui.read, text)
    raise ValueError(f"the settings are JSON of a program that is not known here; read are those of {PROGRAMS}")


def _named(program: str, reader: Callable[..., Found], *given: object) -> Found:
    try:
        return reader(*given)
    except ValueError as error:
        raise ValueError(f"{program}: {error}") from None
