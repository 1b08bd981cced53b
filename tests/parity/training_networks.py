"""Networks that take part in training or measuring, built in torch from their published descriptions, small or whole.

Names are those of the published state dicts: taming-transformers' NLayerDiscriminator, torchvision's VGG-16 with the
lins of lpips, pytorch-fid's Inception.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sdjax.core.tree import flatten, unflatten
from sdjax.weights.names import from_file, tensor_name

Size = tuple[int, int]


def params_like(expected: dict, network: nn.Module) -> dict:
    """A torch network's parameters in the nesting of `expected`: every tensor has its place."""
    state = {k: v.detach().numpy() for k, v in network.state_dict().items() if "num_batches" not in k}
    params = unflatten({path: from_file(path, state.pop(tensor_name(path))).copy() for path in flatten(expected)})
    assert not state, state.keys()
    return params


def scattered(network: nn.Module, seed: int = 0) -> nn.Module:
    """Vectors away from 1 and 0, so that a dropped one shows; running variances stay positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim == 1:
                step = 0.2 * torch.randn(tensor.shape, generator=generator)
                tensor.copy_(tensor + (step.abs() if "var" in name else step))
    return network


def discriminator(width: int, layers: int) -> nn.Module:
    """taming-transformers' modules/discriminator/model.py: "main", a Sequential."""
    rows: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    before = width
    for n in range(1, layers + 1):
        after = width * min(2**n, 8)
        stride = 2 if n < layers else 1
        rows += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        before = after
    network = nn.Module()
    network.main = nn.Sequential(*rows, nn.Conv2d(before, 1, 4, 1, 1))
    network.forward = lambda x: network.main(x)
    for module in network.modules():  # no running averages: the published one is only ever run in training
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network


class Lpips(nn.Module):
    """The package lpips' LPIPS(net="vgg"), version 0.1, without its dropout."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        rows: list[nn.Module] = []
        before = 3
        self.ends = []
        for width, depth in zip(widths, (2, 2, 3, 3, 3), strict=True):
            if rows:
                rows.append(nn.MaxPool2d(2, 2))
            for _ in range(depth):
                rows += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            self.ends.append(len(rows))
        self.features = nn.Sequential(*rows)
        for i, width in enumerate(widths):
            lin = nn.Module()
            lin.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))
            lin.model[1].weight.data.abs_()
            setattr(self, f"lin{i}", lin)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
        first, second = (x - shift) / scale, (y - shift) / scale
        total = torch.zeros(len(x), 1, 1, 1)
        start = 0
        for i, end in enumerate(self.ends):
            first, second = self.features[start:end](first), self.features[start:end](second)
            start = end
            apart = (_unit(first) - _unit(second)) ** 2
            total = total + getattr(self, f"lin{i}").model(apart).mean((2, 3), keepdim=True)
        return total


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)


class Unit(nn.Module):
    """torchvision's BasicConv2d."""

    def __init__(self, before: int, after: int, size: Size | int, stride: int = 1, padding: Size | int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Some units by name; `way(self, x)` gives the parts that are laid side by side."""

    def __init__(self, way, **units: Unit) -> None:
        super().__init__()
        self.way = way
        for name, unit in units.items():
            self.add_module(name, unit)

    def row(self, x: torch.Tensor, *names: str) -> torch.Tensor:
        for name in names:
            x = getattr(self, name)(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.way(self, x), 1)


def _average(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _a(before: int, pooled: int) -> Block:
    def way(m: Block, x: torch.Tensor) -> list[torch.Tensor]:
        return [
            m.branch1x1(x),
            m.row(x, "branch5x5_1", "branch5x5_2"),
            m.row(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            m.branch_pool(_average(x)),
        ]

    return Block(
        way, branch1x1=Unit(before, 64, 1), branch5x5_1=Unit(before, 48, 1), branch5x5_2=Unit(48, 64, 5, 1, 2),
        branch3x3dbl_1=Unit(before, 64, 1), branch3x3dbl_2=Unit(64, 96, 3, 1, 1),
        branch3x3dbl_3=Unit(96, 96, 3, 1, 1), branch_pool=Unit(before, pooled, 1),
    )  # fmt: skip


def _b() -> Block:
    def way(m: Block, x: torch.Tensor) -> list[torch.Tensor]:
        double = m.row(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return [m.branch3x3(x), double, F.max_pool2d(x, 3, 2)]

    return Block(
        way, branch3x3=Unit(288, 384, 3, 2), branch3x3dbl_1=Unit(288, 64, 1),
        branch3x3dbl_2=Unit(64, 96, 3, 1, 1), branch3x3dbl_3=Unit(96, 96, 3, 2),
    )  # fmt: skip


def _c(width: int) -> Block:
    def way(m: Block, x: torch.Tensor) -> list[torch.Tensor]:
        return [
            m.branch1x1(x),
            m.row(x, *(f"branch7x7_{i}" for i in (1, 2, 3))),
            m.row(x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
            m.branch_pool(_average(x)),
        ]

    across, down = {"size": (1, 7), "padding": (0, 3)}, {"size": (7, 1), "padding": (3, 0)}
    return Block(
        way, branch1x1=Unit(768, 192, 1), branch7x7_1=Unit(768, width, 1), branch7x7_2=Unit(width, width, **across),
        branch7x7_3=Unit(width, 192, **down), branch7x7dbl_1=Unit(768, width, 1),
        branch7x7dbl_2=Unit(width, width, **down), branch7x7dbl_3=Unit(width, width, **across),
        branch7x7dbl_4=Unit(width, width, **down), branch7x7dbl_5=Unit(width, 192, **across),
        branch_pool=Unit(768, 192, 1),
    )  # fmt: skip


def _d() -> Block:
    def way(m: Block, x: torch.Tensor) -> list[torch.Tensor]:
        seven = m.row(x, *(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)))
        return [m.row(x, "branch3x3_1", "branch3x3_2"), seven, F.max_pool2d(x, 3, 2)]

    return Block(
        way, branch3x3_1=Unit(768, 192, 1), branch3x3_2=Unit(192, 320, 3, 2), branch7x7x3_1=Unit(768, 192, 1),
        branch7x7x3_2=Unit(192, 192, (1, 7), 1, (0, 3)), branch7x7x3_3=Unit(192, 192, (7, 1), 1, (3, 0)),
        branch7x7x3_4=Unit(192, 192, 3, 2),
    )  # fmt: skip


def _e(before: int, maximum: bool) -> Block:
    def way(m: Block, x: torch.Tensor) -> list[torch.Tensor]:
        one, two = m.branch3x3_1(x), m.row(x, "branch3x3dbl_1", "branch3x3dbl_2")
        pooled = F.max_pool2d(x, 3, 1, 1) if maximum else _average(x)
        return [
            m.branch1x1(x), m.branch3x3_2a(one), m.branch3x3_2b(one), m.branch3x3dbl_3a(two), m.branch3x3dbl_3b(two),
            m.branch_pool(pooled),
        ]  # fmt: skip

    across, down = {"size": (1, 3), "padding": (0, 1)}, {"size": (3, 1), "padding": (1, 0)}
    return Block(
        way, branch1x1=Unit(before, 320, 1), branch3x3_1=Unit(before, 384, 1), branch3x3_2a=Unit(384, 384, **across),
        branch3x3_2b=Unit(384, 384, **down), branch3x3dbl_1=Unit(before, 448, 1),
        branch3x3dbl_2=Unit(448, 384, 3, 1, 1), branch3x3dbl_3a=Unit(384, 384, **across),
        branch3x3dbl_3b=Unit(384, 384, **down), branch_pool=Unit(before, 192, 1),
    )  # fmt: skip


class Inception(nn.Module):
    """pytorch-fid's fid_inception_v3 up to the average that it calls block 3."""

    def __init__(self) -> None:
        super().__init__()
        stem = {
            "Conv2d_1a_3x3": Unit(3, 32, 3, 2), "Conv2d_2a_3x3": Unit(32, 32, 3),
            "Conv2d_2b_3x3": Unit(32, 64, 3, 1, 1), "Conv2d_3b_1x1": Unit(64, 80, 1), "Conv2d_4a_3x3": Unit(80, 192, 3),
        }  # fmt: skip
        mixed = {
            "Mixed_5b": _a(192, 32), "Mixed_5c": _a(256, 64), "Mixed_5d": _a(288, 64), "Mixed_6a": _b(),
            "Mixed_6b": _c(128), "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": _d(),
            "Mixed_7b": _e(1280, False), "Mixed_7c": _e(2048, True),
        }  # fmt: skip
        for name, module in (stem | mixed).items():
            self.add_module(name, module)
        self.mixed = tuple(mixed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name in self.mixed:
            x = getattr(self, name)(x)
        return x.mean((2, 3))


def nchw(x: np.ndarray) -> torch.Tensor:
    """`b h w c` as torch has it."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
