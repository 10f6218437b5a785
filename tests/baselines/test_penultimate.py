"""Mahalanobis distance and nearest neighbours of features that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lrpguard.baselines import baseline
from lrpguard.errors import CalibrationSizeError, ConfigurationError
from tests.support import images, small_net


class Shown(nn.Module):
    """The features are the pixels, minus one half; two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x[:, :, 0, 0] - 0.5)
        return logits


def shown(features: Tensor) -> Tensor:
    """Return images whose penultimate features in :class:`Shown` these are, within ±0.5."""
    return (features.double() + 0.5)[:, :, None, None].expand(-1, 3, 2, 2)


def test_knn_is_the_distance_of_directions_to_the_kth_neighbour() -> None:
    known = torch.tensor([[0.3, 0, 0], [0, 0.2, 0], [0, 0, 0.1], [-0.3, 0, 0]])
    labels = torch.zeros(4, dtype=torch.long)
    test = torch.tensor([[0.4, 0, 0], [0.1, 0.1, 0]])

    def at(k: int) -> list[float]:
        fitted = baseline("knn", k=k).fit(Shown().eval(), shown(known), labels)
        return fitted.anomaly(shown(test)).tolist()

    near = (2 - 2**0.5) ** 0.5  # 45 degrees apart
    assert at(1) == pytest.approx([0, near], abs=1e-7)
    assert at(2) == pytest.approx([2**0.5, near], abs=1e-7)
    assert at(3) == pytest.approx([2**0.5, 2**0.5], abs=1e-7)
    assert at(4)[0] == pytest.approx(2, abs=1e-7)


def test_knn_needs_k_images() -> None:
    clean = images(4, seed=1)
    with pytest.raises(CalibrationSizeError, match="was given 4 images and k = 5"):
        baseline("knn", k=5).fit(small_net(), clean, torch.zeros(4, dtype=torch.long))
    with pytest.raises(ConfigurationError, match="k is 0"):
        baseline("knn", k=0)


class TestMahalanobis:
    @pytest.fixture(autouse=True)
    @staticmethod
    def needs_sklearn() -> None:
        pytest.importorskip("sklearn", reason="needs lrpguard[baselines]")

    def test_is_the_distance_to_the_nearest_class(self) -> None:
        generator = torch.Generator().manual_seed(0)
        noise = 0.02 * torch.randn(400, 3, generator=generator, dtype=torch.float64)
        noise[:, 0] *= 3
        labels = torch.arange(400) % 2
        centres = torch.tensor([[0.2, 0.2, 0], [-0.2, 0, 0.1]], dtype=torch.float64)
        fitted = baseline("mahalanobis").fit(Shown().eval(), shown(centres[labels] + noise), labels)
        test = torch.stack([*centres, centres[0] + torch.tensor([0.06, 0, 0])])
        test = torch.cat([test, centres[:1] + torch.tensor([0, 0.06, 0])])

        near, other, along, across = fitted.anomaly(shown(test)).tolist()

        assert max(near, other) < 0.1
        assert along == pytest.approx(1, rel=0.4)  # one standard deviation
        assert across == pytest.approx(9, rel=0.4)  # three

    def test_uses_the_true_labels(self) -> None:
        clean = images(40, seed=1)
        first, second = (
            baseline("mahalanobis").fit(small_net(), clean, labels).anomaly(images(4, seed=2))
            for labels in (torch.arange(40) % 5, torch.arange(40) % 2)
        )
        assert not torch.allclose(first, second)

    def test_labels_beyond_the_classes_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="the model has classes 0 … 4"):
            baseline("mahalanobis").fit(small_net(), images(20), torch.full((20,), 5))

    def test_few_images_are_refused(self) -> None:
        with pytest.raises(CalibrationSizeError, match="was given 9 images"):
            baseline("mahalanobis").fit(small_net(), images(9), torch.zeros(9, dtype=torch.long))
