"""Write docs/architectures.md: every composite on members of the families of torchvision and timm.

    python -m scripts.make_architectures

Weights are random (no download), in float64, one random image, on the CPU; about three minutes on
one core. It needs lrpguard[dev,timm]: timm for its families, zennit as an oracle. ``--only NAME``
prints the row of one network and writes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from lrpguard.errors import LrpGuardError
from lrpguard.lrp import COMPOSITES, Composite, Epsilon, Gamma, LayerRule, conservation, relevance
from scripts.zennit_oracle import ORACLES, zennit_relevance

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architectures.md"
SEED = 0
CLASSES = 10

GAMMA = Composite("gamma", Epsilon(1e-6), (LayerRule(Gamma(0.25), kind="convolution"),))
"""Gamma on every convolution, without the z-box of the preset."""

SHOWN = (
    COMPOSITES["epsilon"],
    COMPOSITES["epsilon-plus"],
    COMPOSITES["epsilon-alpha2-beta1"],
    GAMMA,
    COMPOSITES["epsilon-gamma-box"],
    COMPOSITES["epsilon-alpha2-beta1-flat"],
    COMPOSITES["cmp"],
)


@dataclass(frozen=True)
class Member:
    """One network of a family.

    Attributes:
        name: Its name in its library.
        size: Height and width of the image.
        options: Arguments of its builder.
        rectifies: ReLU is its only nonlinearity, so LRP-0 is gradient times input.
        canonizer: zennit's canonizer with which it is right on this network, ``""`` for none
            needed, None where zennit is no oracle.
        narrow: Builds a narrow member in place of the library's, which would be too slow here.
    """

    name: str
    size: int = 64
    options: tuple[tuple[str, Any], ...] = ()
    rectifies: bool = False
    canonizer: str | None = None
    narrow: Callable[[], nn.Module] | None = field(default=None, repr=False)

    def build(self) -> nn.Module:
        """Return the network with random weights and BatchNorm statistics, in eval mode."""
        torch.manual_seed(SEED)
        options = {"num_classes": CLASSES, **dict(self.options)}
        if self.narrow is not None:
            model = self.narrow()
        elif self in TORCHVISION:
            model = torchvision.models.get_model(self.name, **options)
        else:
            model = timm.create_model(self.name, pretrained=False, **options)
        return _randomized(model.double().eval())


def _narrow_maxvit() -> nn.Module:
    model: nn.Module = torchvision.models.MaxVit(
        (64, 64), 16, 8, [16, 32], [1, 1], 8, 0.1, num_classes=CLASSES
    )
    return model


_PLAIN = (("aux_logits", False), ("init_weights", False))
_MERGE = "zennit.canonizers.SequentialMergeBatchNorm"
_RESNET = "zennit.torchvision.ResNetCanonizer"
_IMAGE_64 = (("img_size", 64),)

TORCHVISION = (
    Member("alexnet", rectifies=True, canonizer=""),
    Member("vgg11", rectifies=True, canonizer=""),
    Member("vgg11_bn", rectifies=True, canonizer=_MERGE),
    Member("squeezenet1_1", rectifies=True, canonizer=""),
    Member("resnet18", rectifies=True, canonizer=_RESNET),
    Member("resnext50_32x4d", rectifies=True, canonizer=_RESNET),
    Member("wide_resnet50_2", rectifies=True),
    Member("densenet121", rectifies=True),
    Member("googlenet", options=_PLAIN, rectifies=True, canonizer=_MERGE),
    Member("inception_v3", 96, _PLAIN, rectifies=True),
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
    Member("maxvit (narrow)", narrow=_narrow_maxvit),
)

TIMM = (
    Member("convmixer_768_32", 32, rectifies=True),
    Member("cspresnet50", rectifies=True),
    Member("darknet17", rectifies=True),
    Member("dla34", rectifies=True),
    Member("dm_nfnet_f0", 32),
    Member("dpn48b"),
    Member("ese_vovnet19b_dw"),
    Member("gernet_s", rectifies=True),
    Member("ghostnet_050"),
    Member("hrnet_w18_small", rectifies=True),
    Member("mobilenetv4_conv_small", rectifies=True),
    Member("mobileone_s0", rectifies=True),
    Member("nf_resnet26", rectifies=True),
    Member("repvgg_a0", rectifies=True),
    Member("res2net50_14w_8s", rectifies=True),
    Member("resnest14d"),
    Member("rexnet_100"),
    Member("selecsls42b", rectifies=True),
    Member("skresnet18"),
    Member("tf_efficientnet_lite0"),
    Member("tresnet_m"),
    Member("beit_base_patch16_224", options=(*_IMAGE_64, ("depth", 3))),
    Member("cait_xxs24_224", options=_IMAGE_64),
    Member("convit_tiny", options=_IMAGE_64),
    Member("davit_tiny"),
    Member("deit_tiny_patch16_224", options=_IMAGE_64),
    Member("edgenext_xx_small"),
    Member("levit_128s", options=_IMAGE_64),
    Member("mixer_s32_224", options=_IMAGE_64),
    Member("mobilevit_xxs"),
    Member("pit_ti_224", options=_IMAGE_64),
    Member("poolformer_s12"),
    Member("resmlp_12_224", options=_IMAGE_64),
    Member("tnt_s_legacy_patch16_224", options=_IMAGE_64),
    Member("twins_pcpvt_small", options=_IMAGE_64),
    Member("visformer_tiny", options=_IMAGE_64),
    Member("volo_d1_224", options=_IMAGE_64),
    Member("xcit_nano_12_p16_224"),
    Member("botnet26t_256", options=_IMAGE_64),
    Member("coat_tiny", options=_IMAGE_64),
    Member("focalnet_tiny_srf"),
    Member("gmixer_12_224", options=_IMAGE_64),
    Member("lambda_resnet26t", options=_IMAGE_64),
    Member("mobilevitv2_050"),
    Member("poolformerv2_s12"),
)


def _randomized(model: nn.Module) -> nn.Module:
    """Give a value to what the libraries leave at zero or one: heads, biases, statistics."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.05)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: The network.
        size: Height and width of the image.
        cells: Residual under each composite shown, "" where it is refused.
        refusals: The error's first line under each composite, "" where there is none.
        gradient: Distance of LRP-0 to gradient times input.
        oracle: Distances to zennit under its composites.
    """

    name: str
    size: int
    cells: tuple[str, ...]
    refusals: tuple[str, ...]
    gradient: str
    oracle: str

    def line(self, notes: list[str]) -> str:
        """Return the line in Markdown, and note its reasons for refusal."""
        shown = []
        for cell, refusal in zip(self.cells, self.refusals, strict=True):
            if refusal and refusal not in notes:
                notes.append(refusal)
            shown.append(cell or f"refused ({notes.index(refusal) + 1})")
        return " | ".join(
            [f"| {self.name}", str(self.size), *shown, self.gradient, f"{self.oracle} |"]
        )


def residual(model: nn.Module, image: Tensor, composite: Composite) -> tuple[str, str]:
    """Return the residual of the conservation law, and the reason for a refusal."""
    try:
        return f"{conservation(model, image, composite=composite).residual:.0e}", ""
    except LrpGuardError as error:
        return "", str(error).splitlines()[0]


def distance(ours: Tensor, theirs: Tensor) -> str:
    """Return the relative L2 distance of two maps."""
    return f"{float((ours - theirs).norm() / theirs.norm()):.0e}"


def to_gradient(model: nn.Module, image: Tensor) -> str:
    """Return the distance of LRP-0 to gradient times input by plain autograd."""
    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf.clone()).max(1).values.sum(), leaf)
    return distance(
        relevance(model, image, composite=COMPOSITES["zero"]).relevance, gradient * image
    )


def to_zennit(model: nn.Module, image: Tensor, canonizer: str) -> str:
    """Return the distances to zennit under z-plus, alpha-beta and gamma."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = 0.0  # zennit 0.5.1 leaves it behind after its merge: a factor 1 - eps / 2
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return " / ".join(
        distance(
            relevance(model, image, composite=composite).relevance,
            zennit_relevance(model, image, rule, canonizer),
        )
        for composite, rule in zip(SHOWN[1:4], ORACLES, strict=True)
    )


def row(member: Member) -> Row:
    """Measure one network."""
    model = member.build()
    image = torch.rand(1, 3, member.size, member.size, dtype=torch.float64)
    found = [residual(model, image, composite) for composite in SHOWN]
    return Row(
        name=member.name,
        size=member.size,
        cells=tuple(cell for cell, _ in found),
        refusals=tuple(refusal for _, refusal in found),
        gradient=to_gradient(model, image) if member.rectifies else "-",
        oracle="-" if member.canonizer is None else to_zennit(model, image, member.canonizer),
    )


def table(rows: Sequence[Row], notes: list[str]) -> str:
    """Return a table in Markdown."""
    names = (f"`{composite.name}`" for composite in SHOWN)
    head = " | ".join(["| Network", "Size", *names, "LRP-0 to g*x", "to zennit |"])
    lines = [head, "|---" * (len(SHOWN) + 4) + "|", *(row.line(notes) for row in rows)]
    return "\n".join(lines)


def page(torchvision_rows: Sequence[Row], timm_rows: Sequence[Row]) -> str:
    """Return the page, Markdown."""
    notes: list[str] = []
    tables = table(torchvision_rows, notes), table(timm_rows, notes)
    reasons = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    rows = (*torchvision_rows, *timm_rows)
    passed = [sum(bool(row.cells[i]) for row in rows) for i in range(len(SHOWN))]
    counts = ", ".join(
        f"`{composite.name}` {count}" for composite, count in zip(SHOWN, passed, strict=True)
    )
    return f"""# Architectures

Each cell is the residual of the conservation law, `logit = input + bias + stabilizer`, relative to
its largest term, under one composite: how exactly all relevance is accounted for. `gamma` is gamma
0.25 on every convolution and epsilon on dense layers; the others are the presets.

Two columns hold the relative L2 distance of whole maps to an oracle. *LRP-0 to g\\*x*: to gradient
times input by plain autograd, where ReLU is the only nonlinearity (pooling aside) and the two are
equal. *To zennit*: under `epsilon-plus` / `epsilon-alpha2-beta1` / `gamma`, on networks where
zennit {version("zennit")} is right and quick. (It passes relevance through a functional average,
`F.avg_pool2d` or `x.mean`, by its plain gradient: Inception.) "-": there is no such oracle; the
operators of these networks (gates, normalisations, attention, identity-rule activations) have an
oracle each in `tests/lrp`, and `tests/lrp/test_fuzz_dense.py` compares every rule with dense
matrices on random networks.

Conservation says that no relevance is lost or made; it does not say that a map is a good
explanation. Random weights (seed {SEED}), one random image of the size shown, float64, CPU,
torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}.

Of {len(rows)} networks pass: {counts}. The others are refused by name, with the reason below.

## torchvision: every family of its classifiers

{tables[0]}

## timm: families that torchvision does not have

{tables[1]}

## Reasons for refusal

{reasons}

Made by `python -m scripts.make_architectures`.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    members = (*TORCHVISION, *TIMM)
    parser.add_argument("--only", choices=[m.name for m in members], help="print one row")
    only: str | None = parser.parse_args(arguments).only
    torch.set_num_threads(1)
    rows: dict[Member, Row] = {}
    for member in members:
        if only in (None, member.name):
            rows[member] = row(member)
            print(rows[member].line([]), flush=True)
    if only is None:
        PAGE.write_text(
            page([rows[m] for m in TORCHVISION], [rows[m] for m in TIMM]), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
