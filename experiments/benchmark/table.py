"""The README's table, from what the benchmark wrote."""

from collections.abc import Mapping
from typing import Any

LABELS = {
    "sdjax": "sdjax",
    "eager": "diffusers, eager",
    "channels_last": "diffusers, eager, channels_last",
    "compiled": "diffusers, torch.compile max-autotune, channels_last",
    "openvino": "OpenVINO",
}
ROWS = {"unet_step": "guided U-Net step", "vae_decode": "VAE decode", "text_encoder": "text encoder"}
HEADER = """| | by | seconds | ratio | first call, cold | warm | peak, GiB | share of the floor |
|---|---|---|---|---|---|---|---|"""


def markdown(found: Mapping[str, Any]) -> str:
    """The run as a paragraph and a table: for each row ours first, then the others; `ratio` is ours to theirs."""
    ceilings = ", ".join(f"{side} {rate / 1e12:.3g}" for side, rate in found["ceilings"].items())
    lines = [f"{found['device']}; {found['versions']}. Ceiling, TFLOP/s of a matrix product: {ceilings}.", "", HEADER]
    for entry in found["rows"]:
        lines += rows(entry)
    return "\n".join(lines)


def title(entry: Mapping[str, Any]) -> str:
    """What was measured, in words."""
    name = ROWS.get(entry["row"]) or f"picture, {entry['steps']} steps"
    apart = "" if entry["in_turns"] else " (one side after the other)"
    return f"{entry['family']} {entry['size']}², batch {entry['batch']}: {name}{apart}"


def rows(entry: Mapping[str, Any]) -> list[str]:
    """The lines of one entry."""
    lines = []
    for side, one in entry["sides"].items():
        name = title(entry) if side == "sdjax" else ""
        if "failed" in one:
            lines.append(f"| {name} | {LABELS[side]} | {one['failed'].replace('|', ' ')[:200]} | | | | | |")
            continue
        ratio = f"{entry['ratios'][side]:.2f}" if side in entry["ratios"] and side != "sdjax" else ""
        if side == entry.get("best"):
            ratio = f"**{ratio}**, memory {entry['memory_ratio']:.2f}"
        warm = "" if one["warm"] is None else f"{one['warm']:.3g}"
        figures = f"{one['median']:.3g} | {ratio} | {one['cold']:.3g} | {warm} | {one['peak']:.2f} | {one['share']:.0%}"
        lines.append(f"| {name} | {LABELS[side]} | {figures} |")
    return lines
