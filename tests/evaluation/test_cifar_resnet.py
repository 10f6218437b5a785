"""The CIFAR ResNets: layers, shortcuts, and how they load."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.cifar_resnet import (
    MEAN,
    STD,
    BasicBlock,
    CifarResNet,
    resnet20,
    resnet32,
)
from lrpguard.loading import load_model
from lrpguard.lrp.engine import conservation


@pytest.mark.parametrize(
    ("make", "layers", "parameters"), [(resnet20, 20, 0.27), (resnet32, 32, 0.46)]
)
def test_layers_and_parameters_are_those_of_table_6_of_the_paper(
    make: Callable[[], CifarResNet], layers: int, parameters: float
) -> None:
    model = make()
    weighted = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]

    assert len(weighted) == layers
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.01)


def test_keys_are_those_of_the_published_weights() -> None:
    block = r"layer[123]\.\d\.(conv[12]|bn[12])\.\w+"
    known = re.compile(rf"^((conv1|bn1|linear)\.\w+|{block})$")

    assert [name for name in resnet20().state_dict() if not known.match(name)] == []


def test_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    block = BasicBlock(2, 4).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # nothing but the shortcut is left
    x = torch.arange(32.0).view(1, 2, 4, 4)

    out = block(x)

    assert out.shape == (1, 4, 2, 2)
    assert torch.equal(out[0, 1:3], x[0, :, ::2, ::2])
    assert not out[0, [0, 3]].any()


def test_shortcut_of_equal_width_is_the_identity() -> None:
    block = BasicBlock(3, 3).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    assert torch.equal(block(x), functional.relu(x))


def test_conserves_relevance_in_float64() -> None:
    torch.manual_seed(0)
    model = resnet20().double().eval()

    books = conservation(model, torch.rand(2, 3, 32, 32, dtype=torch.float64))

    assert books.residual < 1e-10
    assert books.input != 0


def test_loads_by_its_specification_with_its_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = resnet20()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    images = torch.rand(2, 3, 32, 32)

    loaded = load_model(
        "lrpguard.evaluation.cifar_resnet:resnet20",
        weights=tmp_path / "weights.safetensors",
        mean=MEAN,
        std=STD,
    )

    normal = (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), model.eval()(normal))


@pytest.mark.parametrize(("blocks", "classes"), [(0, 10), (3, 1)])
def test_refuses_a_size_that_is_no_network(blocks: int, classes: int) -> None:
    with pytest.raises(ConfigurationError, match="expected blocks >= 1, classes >= 2"):
        CifarResNet(blocks, classes)
