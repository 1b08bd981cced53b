"""ComfyUI: `prompt`, the graph that was run: {"3": {"class_type": "KSampler", "inputs": {"seed": 8, ...}}, ...}.

An input is a value or a link, [name of a node, number of its output]. From the nodes that save a picture the links
lead back to one sampler, and from that to its texts, its empty latents and its checkpoint:

    KSampler, KSamplerAdvanced, SamplerCustom, SamplerCustomAdvanced      one, over the whole of its steps
    CLIPTextEncode, CLIPTextEncodeSDXL, CLIPSetLastLayer                  its prompts
    EmptyLatentImage                                                      its size

Other nodes on the way are named in a note where what they do is left out (a LoRA), and refused where without them
there would be no telling what was made: latents from elsewhere, conditions that are joined, two samplers in turn.

A graph is a stranger's: it may be in circles, or wide. Each node is looked at once, links are followed MOST_LINKS deep.

[1] https://github.com/comfyanonymous/ComfyUI, nodes.py and comfy_extras/nodes_custom_sampler.py
"""

from dataclasses import dataclass
from typing import Any, TypeGuard

from sdjax.metadata.foreign import names
from sdjax.metadata.foreign.fields import Fields, Found, as_number, as_object, not_done, sampler
from sdjax.metadata.foreign.swarmui import COMFY, DRAWING, OTHERS_NOISE

ONLY_WORKFLOW = (
    "the picture holds the editor's workflow alone, not the graph that was run; open it in ComfyUI, choose Workflow > "
    "Export (API), or run it once more and take the picture that comes out"
)
MOST_LINKS = 64
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
_SAVES = ("save", "preview")  # in the names of nodes that take a picture out
# Nodes that leave nothing of theirs in the picture, or whose work is done here.
_KNOWN = {
    *SAMPLERS, "CheckpointLoaderSimple", "CheckpointLoader", "CLIPTextEncode", "CLIPTextEncodeSDXL", "EmptyLatentImage",
    "CLIPSetLastLayer", "VAEDecode", "VAEDecodeTiled", "VAELoader", "KSamplerSelect", "BasicScheduler", "RandomNoise",
    "AlignYourStepsScheduler", "CFGGuider", "UNETLoader", "CLIPLoader", "DualCLIPLoader", "Reroute", "SaveImage",
    "PreviewImage", "SaveImageWebsocket", "Note",
}  # fmt: skip
_CONDITIONS = ("positive", "negative")  # inputs of ControlNetApplyAdvanced, and its outputs in their order
# Names of the one value that a node holds, or (a Reroute's) hands on.
_VALUE = ("value", "text", "string", "seed", "noise_seed", "int", "float", "number", "")


@dataclass(frozen=True)
class Graph:
    """The nodes by name."""

    nodes: dict[str, Any]

    def node(self, name: Any, output: int = 0) -> "Node":
        """Raises ValueError where there is none of that name."""
        found = self.nodes.get(str(name))
        if not isinstance(found, dict) or not isinstance(found.get("class_type"), str):
            raise ValueError(f"a link leads to node {str(name)[:20]!r}, which is not in the graph")
        inputs = found.get("inputs")
        return Node(self, str(name), found["class_type"], inputs if isinstance(inputs, dict) else {}, output)


@dataclass(frozen=True)
class Node:
    """One node: its name, its class, and its inputs, which are values or links; and which output a link took."""

    graph: Graph
    name: str
    kind: str
    inputs: dict[str, Any]
    output: int = 0

    def __str__(self) -> str:
        return f"{self.kind[:40]} (node {self.name[:20]})"

    def linked(self, *inputs: str) -> "Node | None":
        """The node that the first of these inputs comes from, past those that only pass it on. Raises ValueError."""
        for name in inputs:
            link = self.inputs.get(name)
            for _ in range(MOST_LINKS):
                if not is_link(link):
                    break
                node = self.graph.node(*link)
                if node.kind != "Reroute":
                    return node
                link = next(iter(node.inputs.values()), None)
            else:
                raise ValueError(f"{name} of {self} comes through more than {MOST_LINKS} nodes")
        return None

    def links(self) -> list[str]:
        """The names of all nodes that it takes something from."""
        return [str(value[0]) for value in self.inputs.values() if is_link(value)]

    def value(self, name: str) -> Any:
        """An input's value, through nodes that do nothing but hold one. Raises ValueError."""
        node, value = self, self.inputs.get(name)
        for _ in range(MOST_LINKS):
            if not is_link(value):
                return value
            node = self.graph.node(value[0])
            held = [node.inputs[one] for one in _VALUE if one in node.inputs]
            if len(node.inputs) > 2 or len(held) != 1:
                break
            value = held[0]
        raise ValueError(f"{name} of {self} comes from {node}, which cannot be followed")

    def fields(self, *inputs: str) -> Fields:
        """These inputs as fields, so that each is read by its type."""
        return Fields({name: self.value(name) for name in inputs if name in self.inputs})


def is_link(value: Any) -> TypeGuard[list[Any]]:
    """Whether an input is [name of a node, number of its output]."""
    pair = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)
    return pair and type(value[1]) is int and value[1] >= 0


def is_its(fields: Fields) -> bool:
    """Whether an object is a graph that was run."""
    return any(isinstance(node, dict) and "class_type" in node for node in list(fields.found.values())[:100])


def read(text: str) -> Found:
    """Raises ValueError."""
    nodes = as_object(text)
    if "nodes" in nodes and "links" in nodes:
        raise ValueError(ONLY_WORKFLOW)
    graph = Graph(nodes)
    way = _behind(graph)
    found = [node for node in way if node.kind in SAMPLERS]
    if len(found) != 1:
        listed = ", ".join(map(str, found[:4])) or ", ".join(sorted({node.kind[:40] for node in way})[:8]) or "none"
        many = "several samplers in turn" if found else f"no sampler that is known ({', '.join(SAMPLERS)})"
        raise ValueError(f"the graph has {many}: {listed}; it cannot be told as one run")
    told = _Sampling(found[0])
    settings = {**COMFY, **told.settings()}
    theirs = told.sampler_name
    if any(part in theirs for part in DRAWING):
        told.notes.append(OTHERS_NOISE)
    others = [node.kind for node in way if node.kind not in _KNOWN and not _is_value(node) and not _is_save(node)]
    return Found(settings, [*not_done(others, "has no counterpart here and is left out"), *told.notes])


def _behind(graph: Graph) -> list[Node]:
    """The nodes that what is saved was made by, each once; where nothing is saved, all."""
    every = [graph.node(name) for name, one in graph.nodes.items() if isinstance(one, dict) and "class_type" in one]
    waiting = [node.name for node in every if _is_save(node)] or [node.name for node in every]
    seen: dict[str, Node] = {}
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen[name] = graph.node(name)
            waiting += seen[name].links()
    return list(seen.values())


def _is_save(node: Node) -> bool:
    return any(word in node.kind.casefold() for word in _SAVES) and bool(node.links())


def _is_value(node: Node) -> bool:
    """Whether a node only holds a value."""
    return not node.links() and len(node.inputs) <= 2 and any(name in node.inputs for name in _VALUE)


class _Sampling:
    """What one sampler's node says, with all that it is linked to."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.notes: list[str] = []
        self.sampler_name = ""

    def settings(self) -> dict[str, Any]:
        node = self.node
        made = self._levels() if "Custom" in node.kind else self._one_node()
        guider = self._from(node, "guider") if node.kind == "SamplerCustomAdvanced" else node
        if guider.kind not in ("CFGGuider", *SAMPLERS):
            raise ValueError(f"{guider} guides otherwise than by one prompt and a negative one")
        made["guidance_scale"] = float(guider.fields("cfg").number("cfg"))
        made |= self._texts(self._from(guider, "positive"), "prompt")
        made |= self._texts(self._from(guider, "negative"), "negative_prompt")
        made |= self._size(self._from(node, "latent_image"))
        made |= self._sizes(made)
        return {name: value for name, value in made.items() if value != "" or name == "prompt"}

    def _from(self, node: Node, *inputs: str) -> Node:
        found = node.linked(*inputs)
        if found is None:
            raise ValueError(f"{node} has no {inputs[0]}")
        return found

    def _one_node(self) -> dict[str, Any]:
        """KSampler, and KSamplerAdvanced over the whole of its steps."""
        node = self.node
        told = node.fields("seed", "noise_seed", "steps", "sampler_name", "scheduler", "denoise")
        self._check_whole(told.number("denoise", default=1))
        if node.kind == "KSamplerAdvanced":
            part = node.fields("add_noise", "start_at_step", "end_at_step", "return_with_leftover_noise")
            ends = part.whole("end_at_step", default=10_000) >= told.whole("steps")
            if (
                part.text("add_noise", default="enable") != "enable"
                or part.whole("start_at_step", default=0)
                or not ends
            ):
                raise ValueError(f"{node} makes a part of a run; a whole one is read")
        return self._sampler(told.text("sampler_name"), told.text("scheduler")) | {
            "steps": told.whole("steps"),
            "seed": told.whole("noise_seed" if "noise_seed" in told else "seed"),
        }

    def _levels(self) -> dict[str, Any]:
        """SamplerCustom and SamplerCustomAdvanced: sampler and levels are nodes of their own."""
        node = self.node
        which, levels = self._from(node, "sampler"), self._from(node, "sigmas")
        if which.kind != "KSamplerSelect":
            raise ValueError(f"the sampler of {which} is not one by name, as KSamplerSelect has it")
        told = levels.fields("steps", "denoise", "scheduler", "model_type")
        if levels.kind == "BasicScheduler":
            made = self._sampler(which.fields("sampler_name").text("sampler_name"), told.text("scheduler"))
        elif levels.kind == "AlignYourStepsScheduler" and told.text("model_type") in ("SD1", "SDXL"):
            made = self._sampler(which.fields("sampler_name").text("sampler_name"), None)
            made["schedule"] = "ays" if told.text("model_type") == "SD1" else "ays_sdxl"
        else:
            raise ValueError(f"the levels of {levels} are not followed; BasicScheduler's are")
        self._check_whole(told.number("denoise", default=1))
        noise = self._from(node, "noise") if node.kind == "SamplerCustomAdvanced" else node
        if node.kind == "SamplerCustom" and not node.fields("add_noise").truth("add_noise"):
            raise ValueError(f"{node} goes on from latents; a whole run is read")
        if noise.kind not in ("RandomNoise", "SamplerCustom"):
            raise ValueError(f"the noise of {noise} is not followed; RandomNoise's is")
        return made | {"steps": told.whole("steps"), "seed": noise.fields("noise_seed").whole("noise_seed")}

    def _check_whole(self, denoise: float) -> None:
        if denoise < 1:
            raise ValueError(
                f"{self.node} begins from latents (denoise {denoise:g}), and the picture does not hold them"
            )

    def _sampler(self, theirs: str, schedule: str | None) -> dict[str, Any]:
        if schedule is not None and schedule not in names.COMFY_SCHEDULES:
            raise ValueError(f"its scheduler {schedule[:60]!r} has no counterpart here")
        self.sampler_name = theirs
        return sampler(names.comfy(theirs, schedule), theirs)

    def _texts(self, node: Node, name: str) -> dict[str, Any]:
        """The prompt of a node, by way of those that only pass it on."""
        for _ in range(MOST_LINKS):
            if node.kind == "CLIPTextEncode":
                return {name: node.fields("text").text("text", default=""), **self._clip(node)}
            if node.kind == "CLIPTextEncodeSDXL":
                return self._both(node, name) | self._clip(node)
            passes = node.kind.startswith("ControlNetApply") and node.output < len(_CONDITIONS)
            found = node.linked("conditioning", _CONDITIONS[node.output]) if passes else None
            if found is None:
                raise ValueError(f"{name} comes from {node}, which cannot be told as one text")
            node = found
        raise ValueError(f"{name} comes through more than {MOST_LINKS} nodes")

    def _both(self, node: Node, name: str) -> dict[str, Any]:
        """SDXL's two texts, each with sizes of its own, which are (height, width) here."""
        told = node.fields("text_l", "text_g", "width", "height", "crop_w", "crop_h", "target_width", "target_height")
        first, second = told.text("text_l", default=""), told.text("text_g", default="")
        made: dict[str, Any] = {name: first} | ({f"{name}_2": second} if second != first else {})
        if "width" in told:
            of, (height, width) = name.removesuffix("prompt"), (told.whole("height"), told.whole("width"))
            made[f"{of}original_size"] = [height, width]
            made[f"{of}crop"] = [told.whole("crop_h", default=0), told.whole("crop_w", default=0)]
            target = told.whole("target_height", default=height), told.whole("target_width", default=width)
            made[f"{of}target_size"] = list(target)
        return made

    def _sizes(self, made: dict[str, Any]) -> dict[str, Any]:
        """Where one prompt alone has SDXL's sizes, the other's are the picture's own; `generate` would share them."""
        whole = [made["height"], made["width"]]
        own = {"original_size": whole, "crop": [0, 0], "target_size": whole}
        had = {of: f"{of}original_size" in made for of in ("", "negative_")}
        return {f"{of}{name}": value for of in had if any(had.values()) and not had[of] for name, value in own.items()}

    def _clip(self, node: Node) -> dict[str, Any]:
        """CLIPSetLastLayer on the way to the text encoder."""
        for _ in range(MOST_LINKS):
            found = node.linked("clip")
            if found is None:
                return {}
            if found.kind == "CLIPSetLastLayer":
                return {
                    "clip_skip": f"comfy:{found.fields('stop_at_clip_layer').whole('stop_at_clip_layer', default=-1)}"
                }
            node = found
        return {}

    def _size(self, node: Node) -> dict[str, int]:
        if node.kind != "EmptyLatentImage":
            raise ValueError(f"the latents come from {node}; read are runs that begin from EmptyLatentImage")
        told = node.fields("width", "height", "batch_size")
        if as_number(told.get("batch_size") or 1, "batch_size") != 1:
            self.notes.append("the picture is one of a batch, and which is not told: this makes the first")
        return {"width": told.whole("width"), "height": told.whole("height")}
