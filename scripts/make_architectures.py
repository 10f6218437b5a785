"""Write docs/architectures.md: the conservation law on members of the torchvision families.

    python scripts/make_architectures.py

Weights are random (no download), in float64, one random image, on the CPU. It takes some minutes
on one core (maxvit, too slow at its 224 pixels, is only in the tests). ``--only NAME`` prints the
row of one network and writes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lrpguard.errors import LrpGuardError
from lrpguard.lrp import COMPOSITES, Composite, conservation, relevance

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architectures.md"
SEED = 0
SHOWN = ("epsilon", "epsilon-plus", "epsilon-gamma-box", "epsilon-alpha2-beta1-flat", "cmp")


@dataclass(frozen=True)
class Member:
    """One network of a family.

    Attributes:
        name: Its name in torchvision.
        size: Height and width of the image.
        options: Arguments of its builder.
        rectifies: ReLU is its only nonlinearity, so LRP-0 is gradient times input.
    """

    name: str
    size: int = 64
    options: tuple[tuple[str, Any], ...] = ()
    rectifies: bool = False

    def build(self) -> nn.Module:
        """Return the network with random weights and BatchNorm statistics, in eval mode."""
        torch.manual_seed(SEED)
        model: nn.Module = torchvision.models.get_model(
            self.name, num_classes=10, **dict(self.options)
        )
        return _randomized(model.double().eval())


MEMBERS = (
    Member("alexnet", rectifies=True),
    Member("vgg11_bn", rectifies=True),
    Member("squeezenet1_1", rectifies=True),
    Member("resnet18", rectifies=True),
    Member("resnext50_32x4d", rectifies=True),
    Member("wide_resnet50_2", rectifies=True),
    Member("densenet121", rectifies=True),
    Member("googlenet", options=(("aux_logits", False), ("init_weights", False)), rectifies=True),
    Member("inception_v3", 96, (("aux_logits", False), ("init_weights", False)), rectifies=True),
    Member("shufflenet_v2_x0_5", rectifies=True),
    Member("mnasnet0_5", rectifies=True),
    Member("regnet_x_400mf", rectifies=True),
    Member("regnet_y_400mf"),
    Member("mobilenet_v2"),
    Member("mobilenet_v3_small"),
    Member("efficientnet_b0"),
    Member("efficientnet_v2_s"),
    Member("convnext_tiny"),
    Member("vit_b_32", options=(("image_size", 64),)),
    Member("swin_t"),
    Member("swin_v2_t"),
)


def _randomized(model: nn.Module) -> nn.Module:
    """Give a value to what torchvision leaves at zero or one: heads, biases, statistics."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.05)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def residual(model: nn.Module, image: Tensor, composite: Composite) -> str:
    """Return the residual of the conservation law, or the reason for a refusal."""
    try:
        return f"{conservation(model, image, composite=composite).residual:.0e}"
    except LrpGuardError as error:
        return f"refused: {error}"


def distance(model: nn.Module, image: Tensor) -> str:
    """Return the relative L2 distance of LRP-0 to gradient times input by plain autograd."""
    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf.clone()).max(1).values.sum(), leaf)
    ours = relevance(model, image, composite=COMPOSITES["zero"]).relevance
    expected = gradient * image
    return f"{float((ours - expected).norm() / expected.norm()):.0e}"


def row(member: Member) -> str:
    """Return one line of the table."""
    model = member.build()
    image = torch.rand(1, 3, member.size, member.size, dtype=torch.float64)
    cells = [residual(model, image, COMPOSITES[name]) for name in SHOWN]
    last = distance(model, image) if member.rectifies else "-"
    return " | ".join([f"| {member.name}", str(member.size), *cells, f"{last} |"])


def page(rows: Sequence[str]) -> str:
    """Return the page, Markdown."""
    head = " | ".join(["| Network", "Size", *(f"`{name}`" for name in SHOWN), "LRP-0 to g*x |"])
    rule = "|---" * (len(SHOWN) + 3) + "|"
    return f"""# Architectures

Each cell is the residual of the conservation law, `logit = input + bias + stabilizer`, relative to
its largest term, under one composite: how exactly all relevance is accounted for. The last column
is the relative L2 distance of LRP-0 to gradient times input by plain autograd, for networks whose
only nonlinearity is ReLU (pooling aside), where the two are equal.

Random weights (seed {SEED}), one random image of the size shown, float64, CPU,
torch {torch.__version__}, torchvision {torchvision.__version__}.

Conservation says that no relevance is lost or made; it does not say that a map is a good
explanation. The weight rules are compared with zennit on VGG, SqueezeNet and ResNet in the tests.

{head}
{rule}
{chr(10).join(rows)}

Made by `python scripts/make_architectures.py`.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[m.name for m in MEMBERS], help="print one row")
    only: str | None = parser.parse_args(arguments).only
    rows = []
    for member in MEMBERS:
        if only in (None, member.name):
            rows.append(row(member))
            print(rows[-1], flush=True)
    if only is None:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
