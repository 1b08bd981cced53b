"""What the pictures are to show, in words, and how words are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdjax.core.notice import notice
from sdjax.model.spec import ModelSpec
from sdjax.model.text_encoder import ClipSkip
from sdjax.request import checks, new_words
from sdjax.request.arguments.topic import NONE, UNUSUAL, Flag, Topic, argument
from sdjax.text.prompts import check_style
from sdjax.text.tags import Tag, tags

Columns = Mapping[str, Sequence[str | None]]  # each of the texts, for each of the prompts
SECOND = ("prompt_2", "negative_prompt_2")  # of the second text encoder


@dataclass(frozen=True, eq=False, repr=False)
class Prompting(Topic):
    """The texts, each one for all prompts or a list with one for each; see `generate`."""

    prompt: str | Sequence[str] | None = argument(None, str, each="prompt")
    negative_prompt: str | Sequence[str] | None = argument(
        None, str, NONE, each="prompt", flag=Flag("What to steer away from.")
    )
    prompt_2: str | Sequence[str] | None = argument(
        None, str, told=UNUSUAL, each="prompt", flag=Flag("SDXL: another prompt for the second text encoder.")
    )
    negative_prompt_2: str | Sequence[str] | None = argument(
        None, str, told=UNUSUAL, each="prompt",
        flag=Flag("SDXL: what to steer away from, for the second text encoder."),
    )  # fmt: skip
    prompt_style: str = argument(
        "plain", str, told=UNUSUAL, flag=Flag("How prompts are read: plain (no syntax), a1111 or comfy.")
    )
    clip_skip: int | str | None = argument(
        None, str, told=UNUSUAL, flag=Flag("Text layers to leave out, as diffusers:1, a1111:2 or comfy:-2.")
    )
    # A file holds the words and their vectors' digests, which is refused with the remedy.
    embeddings: Any = argument(None, str, told=UNUSUAL, raw=True)

    def prompts(self, spec: ModelSpec) -> list[str]:
        """The prompts, for a model that is told by text what to show. Raises ValueError."""
        if self.prompt is None:
            raise ValueError(f'prompt is missing: {spec.name} is told by text what to show ("" is a prompt too)')
        return checks.texts(self.prompt, "prompt")

    def columns(self, prompts: Sequence[str]) -> Columns:
        """Each text for each of these prompts. Raises ValueError, also for a style that there is none of."""
        check_style(self.prompt_style)
        names = [name for name, declared in self.declarations().items() if declared.each == "prompt"]
        columns = {name: checks.optional_texts(getattr(self, name), len(prompts), name) for name in names}
        return {**columns, "prompt": list(prompts)}

    def tags(self, columns: Columns) -> tuple[Columns, list[list[Tag]]]:
        """The texts without the tags in A1111's prompts, as `<lora:name:0.8>`, and the tags of each prompt.

        Raises ValueError for a tag that says no number where there must be one.
        """
        texts = columns["prompt"]
        if self.prompt_style != "a1111":
            if any("<lora:" in (text or "") for text in texts):
                notice("<lora:..> is read in prompts under prompt_style='a1111' alone; here it is words")
            return columns, [[] for _ in texts]
        found = [tags(text or "") for text in texts]
        return {**columns, "prompt": [text for text, _ in found]}, [own for _, own in found]

    def skip(self, spec: ModelSpec) -> ClipSkip:
        """The layers to leave out. Raises ValueError where one of the encoders has fewer."""
        skip = ClipSkip.read(self.clip_skip, self.prompt_style)
        for encoder in spec.encoders.values():
            skip.depth(encoder.config, spec.family, negative=False)
        return skip

    def checked(self, columns: Columns, skip: ClipSkip, zeros: bool) -> "Prompting":
        """With the checked columns. zeros: whether one of the models tells no negative prompt from the empty text."""
        negative = [text if zeros else text or "" for text in columns["negative_prompt"]]
        texts: dict[str, Any] = {"prompt": [text or "" for text in columns["prompt"]], "negative_prompt": negative}
        texts |= {name: columns[name] for name in SECOND if getattr(self, name) is not None}
        return replace(self, **texts, clip_skip=None if self.clip_skip is None else str(skip))

    def opened(self, spec: ModelSpec) -> "Prompting":
        """With the embeddings read that were given as files, and their words checked. Raises ValueError."""
        return replace(self, embeddings=new_words.opened(self.embeddings, spec, self.prompt_style))

    def settings(self) -> dict[str, Any]:
        """As of other topics; embeddings go by their words and digests."""
        told = super().settings()
        told.pop("embeddings", None)
        return told | ({"embeddings": new_words.told(self.embeddings)} if self.embeddings else {})
