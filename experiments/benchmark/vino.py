"""OpenVINO's side, on a CPU: diffusers' U-Net converted, for the row `unet_step`, in float32.

Only where the package `openvino` is installed. The precision is said: left to itself, OpenVINO computes in bfloat16
where the processor can.
"""

from types import SimpleNamespace
from typing import Any

import torch

from experiments.benchmark import theirs
from experiments.benchmark.subject import Call, Job


class Predict(torch.nn.Module):
    """The U-Net with nothing but tensors in and out, as the converter wants it."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, x: Any, t: Any, context: Any, pooled: Any = None, ids: Any = None) -> Any:
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": ids}
        return self.unet(x, t, context, added_cond_kwargs=added, return_dict=False)[0]


def call(job: Job) -> Call:
    """A call that computes one guided U-Net step."""
    import openvino

    torch.set_grad_enabled(False)
    given = theirs.told(job)
    more = tuple(given.get("added_cond_kwargs", {}).values())
    x = torch.cat([theirs.latents(job)] * 2)
    example = (x, torch.tensor(999.0), given["encoder_hidden_states"], *more)
    shapes = [list(one.shape) for one in example]
    model = openvino.convert_model(Predict(theirs.unet(job)), example_input=example, input=shapes)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    del model

    def network(x: Any, t: Any, encoder_hidden_states: Any, added_cond_kwargs: Any = None) -> Any:
        arrays = (x, t.float(), encoder_hidden_states, *(added_cond_kwargs or {}).values())
        made = compiled([array.numpy() for array in arrays])[0]
        return SimpleNamespace(sample=torch.from_numpy(made))

    return theirs.guided(job, network, given)
