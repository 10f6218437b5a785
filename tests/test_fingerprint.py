"""The fingerprint changes with whatever changes the scores, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lrpguard import normalized
from lrpguard.fingerprint import model_fingerprint, model_precision
from tests.nets import TinyResNet, plain_cnn, randomized
from tests.support import small_net


def tiny_resnet() -> nn.Module:
    return randomized(TinyResNet(), dtype=torch.float32)


def test_is_a_sha256_and_repeats() -> None:
    first = model_fingerprint(tiny_resnet())
    assert len(bytes.fromhex(first)) == 32
    assert model_fingerprint(tiny_resnet()) == first


@torch.no_grad()
def one_bit_of_a_weight(model: nn.Module) -> None:
    weight = next(model.parameters()).view(-1)
    weight[3] = torch.nextafter(weight[3], torch.tensor(torch.inf))


@torch.no_grad()
def running_variance(model: nn.Module) -> None:
    model.bn.running_var[0] += 1e-3  # type: ignore[union-attr, index, operator]


def bn_epsilon(model: nn.Module) -> None:
    model.bn.eps = 1e-3  # type: ignore[union-attr]


def to_bfloat16(model: nn.Module) -> None:
    model.bfloat16()


@torch.no_grad()
def swapped_weights(model: nn.Module) -> None:
    first, second = model.blocks[0].conv1.weight, model.blocks[0].conv2.weight  # type: ignore[index, union-attr]
    first.data, second.data = second.data.clone(), first.data.clone()


def another_class(model: nn.Module) -> None:
    class Other(TinyResNet):
        pass

    model.__class__ = Other


@pytest.mark.parametrize(
    "change",
    [
        one_bit_of_a_weight,
        running_variance,
        bn_epsilon,
        to_bfloat16,
        swapped_weights,
        another_class,
    ],
)
def test_changes_with(change: Callable[[nn.Module], None]) -> None:
    model = tiny_resnet()
    before = model_fingerprint(model)
    change(model)
    assert model_fingerprint(model) != before


@pytest.mark.parametrize(
    "other",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(2, padding=1),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.LeakyReLU(0.1),
        nn.LeakyReLU(0.2),
        nn.Identity(),
        nn.Upsample(scale_factor=2.0),
        nn.Upsample(scale_factor=2.0, mode="bilinear"),
    ],
)
def test_changes_with_settings_without_weights(other: nn.Module) -> None:
    reference = model_fingerprint(nn.Sequential(nn.AvgPool2d(3)))
    assert model_fingerprint(nn.Sequential(other)) != reference
    again = model_fingerprint(nn.Sequential(other))
    assert again == model_fingerprint(nn.Sequential(other))


def test_settings_without_weights_differ_from_each_other() -> None:
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(3), nn.AvgPool2d(2)]
    assert len({model_fingerprint(nn.Sequential(p)) for p in pools}) == 4


def test_changes_with_the_normalisation() -> None:
    found = {
        model_fingerprint(small_net()),
        *(
            model_fingerprint(normalized(small_net(), mean, std))
            for mean, std in (
                ([0.5] * 3, [0.5] * 3),
                ([0.5, 0.5, 0.501], [0.5] * 3),
                ([0.5] * 3, [0.5, 0.5, 0.501]),
            )
        ),
    }
    assert len(found) == 4


def channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)


def frozen(model: nn.Module) -> None:
    model.requires_grad_(False)


def hooked(model: nn.Module) -> None:
    model.register_forward_hook(lambda *_: None)


def used(model: nn.Module) -> None:
    model(torch.rand(1, 3, 16, 16))


def gradients(model: nn.Module) -> None:
    model(torch.rand(1, 3, 16, 16)).sum().backward()


@pytest.mark.parametrize("change", [channels_last, frozen, hooked, used, gradients])
def test_does_not_change_with(change: Callable[[nn.Module], None]) -> None:
    model = tiny_resnet()
    before = model_fingerprint(model)
    change(model)
    assert model_fingerprint(model) == before


def test_survives_saving_and_loading_the_weights() -> None:
    other = randomized(plain_cnn(), seed=1)
    other.load_state_dict(randomized(plain_cnn(), seed=2).state_dict())
    assert model_fingerprint(other) == model_fingerprint(randomized(plain_cnn(), seed=2))


def test_does_not_change_when_a_script_becomes_a_module() -> None:
    # Calibrated in train.py, where the class is __main__.Net, then served as train.Net.
    script = type("Net", (TinyResNet,), {"__module__": "__main__"})
    module = type("Net", (TinyResNet,), {"__module__": "train"})
    prints = {model_fingerprint(randomized(kind())) for kind in (script, module)}
    assert len(prints) == 1


def test_odd_tensors() -> None:
    class Odd(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.register_buffer("count", torch.tensor(count))
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("nothing", torch.empty(0))
            self.register_buffer("brain", torch.ones(3, dtype=torch.bfloat16))
            self.register_buffer("turn", torch.ones(2, dtype=torch.complex64))
            self.register_buffer("unset", None)

    assert model_fingerprint(Odd(1)) == model_fingerprint(Odd(1)) != model_fingerprint(Odd(2))


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "float32"),
        (torch.float64, "float64"),
        (torch.float16, "float16"),
        (torch.bfloat16, "bfloat16"),
    ],
)
def test_precision(dtype: torch.dtype, name: str) -> None:
    assert model_precision(small_net().to(dtype)) == name


def test_precision_of_a_model_without_parameters() -> None:
    assert model_precision(nn.Flatten()) == "float32"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_the_fingerprint_is_the_same_and_the_precision_knows_tf32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_resnet()
    before = model_fingerprint(model)
    model.cuda()
    assert model_fingerprint(model) == before
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert model_precision(model) == "float32+tf32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert model_precision(model) == "float32"


@pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="this torch sets TF32 in one way alone"
)
def test_precision_where_tf32_is_set_in_the_new_way() -> None:
    class Elsewhere(nn.Flatten):
        """Seems to lie on a GPU, so that the precision of one can be asked for anywhere."""

        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
            yield SimpleNamespace(  # type: ignore[misc]
                device=torch.device("cuda"), dtype=torch.float32, is_floating_point=lambda: True
            )

    cudnn: Any = torch.backends.cudnn
    conv = cudnn.conv
    before = conv.fp32_precision
    try:
        conv.fp32_precision = "ieee"
        assert model_precision(Elsewhere()) == "float32"
        conv.fp32_precision = "tf32"
        assert model_precision(Elsewhere()) == "float32+tf32"
    finally:
        conv.fp32_precision = before
