"""Detectors of the Adversarial Robustness Toolbox (ART), as they are, on our interface.

ART gets our features in place of a network to look into, so that the user's model is neither
hooked, moved nor switched. Its own thresholds are not used, only its scores.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lrpguard.baselines.base import BATCH, ModelBaseline, check_positive
from lrpguard.baselines.features import activations, penultimate
from lrpguard.baselines.lid import attacked_pairs
from lrpguard.errors import MissingDependencyError

LEARNING_RATE = 1e-3

HIDDEN = 64
"""Width of the detectors that ART trains."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArtSubsetScan(ModelBaseline[Any]):
    """ART's ``SubsetScanningDetector`` on the penultimate features.

    Each feature gets an empirical p-value against clean images; the score is the largest
    Berk-Jones statistic over subsets of features. Source: Cintas et al. 2020, "Detecting
    adversarial attacks via subset scanning of autoencoder activations and reconstruction error";
    McFowland, Speakman, Neill 2013.
    """

    name: ClassVar[str] = "art-subset-scan"

    @property
    def passes(self) -> str:
        """One forward."""
        return "1 forward"

    def _learn(self, model: nn.Module, images: Tensor, labels: Tensor) -> Any:
        features = penultimate(model, images, batch=BATCH).float().numpy()
        through = _classifier(nn.Sequential(nn.Identity()), features.shape[1:])
        return _evasion().SubsetScanningDetector(through, features, layer=0, verbose=False)

    def _score(self, model: nn.Module, state: Any, images: Tensor) -> Tensor:
        return torch.stack([self._one(state, row) for row in _features(model, images)])

    def _one(self, detector: Any, features: Any) -> Tensor:
        try:
            report, _ = detector.detect(features[None])
        except ValueError as error:
            # ART 1.20 fails where no feature has a p-value up to 0.5: it has no subset to score.
            if "empty sequence" not in str(error):
                raise
            return torch.zeros((), dtype=torch.float64)
        return torch.tensor(float(report["scores"][0]), dtype=torch.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class _TrainedOnPgd(ModelBaseline[Any]):
    """A detector of ART that learns to tell clean images from PGD's, one epoch after another.

    Attributes:
        epochs: Passes over the training images, >= 1.
        eps: PGD's largest change of a pixel, in [0, 1].
        steps: PGD's steps, >= 1.
        seed: Seed of PGD, of the detector's first weights and of the order of the images.
    """

    attack_free: ClassVar[bool] = False

    epochs: int = 30
    eps: float = 8 / 255
    steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(epochs=self.epochs, eps=self.eps, steps=self.steps)

    def _train(self, clean: Any, adversarial: Any, network: type[nn.Module]) -> Any:
        """Return ART's classifier of clean (0) and adversarial (1) inputs, trained by ART."""
        x = np.concatenate([clean, adversarial])
        y = np.repeat([0, 1], [len(clean), len(adversarial)])
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            torch.default_generator.manual_seed(self.seed)
            trained = _classifier(network(x.shape[1]), x.shape[1:])
            trained.fit(x, y, batch_size=BATCH, nb_epochs=self.epochs)
        return trained

    def _pairs(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        pairs = attacked_pairs(
            model, images, labels, eps=self.eps, steps=self.steps, seed=self.seed, name=self.name
        )
        return torch.cat([pairs.clean, pairs.noisy]), pairs.adversarial


@dataclass(frozen=True, kw_only=True, eq=False)
class ArtBinaryInput(_TrainedOnPgd):
    """ART's ``BinaryInputDetector``: a small convolutional network on the pixels.

    Fitted with attacks. Source: Gong, Wang, Ku 2017, "Adversarial and clean data are not twins".
    The network is ours; ART takes any.
    """

    name: ClassVar[str] = "art-binary-input"

    @property
    def passes(self) -> str:
        """The model is not run."""
        return "0 forward (its own small network instead)"

    def _learn(self, model: nn.Module, images: Tensor, labels: Tensor) -> Any:
        clean, adversarial = (p.float().cpu().numpy() for p in self._pairs(model, images, labels))
        return _evasion().BinaryInputDetector(self._train(clean, adversarial, _PixelNetwork))

    def _score(self, model: nn.Module, state: Any, images: Tensor) -> Tensor:
        return _margin(state, images.float().cpu().numpy())


@dataclass(frozen=True, kw_only=True, eq=False)
class ArtBinaryActivation(_TrainedOnPgd):
    """ART's ``BinaryActivationDetector``: a small network on the penultimate features.

    Fitted with attacks. Source: Metzen, Genewein, Fischer, Bischoff 2017, "On detecting adversarial
    perturbations". The network is ours; ART takes any.
    """

    name: ClassVar[str] = "art-binary-activation"

    @property
    def passes(self) -> str:
        """One forward."""
        return "1 forward"

    def _learn(self, model: nn.Module, images: Tensor, labels: Tensor) -> Any:
        clean, adversarial = (
            penultimate(model, part, batch=BATCH).float().numpy()
            for part in self._pairs(model, images, labels)
        )
        detector = self._train(clean, adversarial, _FeatureNetwork)
        through = _classifier(nn.Sequential(nn.Identity()), clean.shape[1:])
        return _evasion().BinaryActivationDetector(through, detector, layer=0)

    def _score(self, model: nn.Module, state: Any, images: Tensor) -> Tensor:
        return _margin(state, _features(model, images))


class _PixelNetwork(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, HIDDEN, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(HIDDEN, 2),
        )


class _FeatureNetwork(nn.Sequential):
    def __init__(self, features: int) -> None:
        super().__init__(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))


def _features(model: nn.Module, images: Tensor) -> Any:
    return activations(model, images).penultimate.float().cpu().numpy()


def _margin(detector: Any, x: Any) -> Tensor:
    """Return how much more adversarial than clean a trained detector finds each input [b]."""
    with torch.random.fork_rng(devices=[]):  # ART's data loader draws a seed, and never uses it
        report, _ = detector.detect(x)
    logits = torch.from_numpy(np.asarray(report["predictions"], dtype=np.float64))
    return logits[:, 1] - logits[:, 0]


def _classifier(network: nn.Module, shape: tuple[int, ...]) -> Any:
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE) if _learns(network) else None
    return _art("estimators.classification").PyTorchClassifier(
        network,
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=2,
        optimizer=optimizer,
        device_type="cpu",
    )


def _learns(network: nn.Module) -> bool:
    return any(True for _ in network.parameters())


def _evasion() -> Any:
    return _art("defences.detector.evasion")


def _art(module: str) -> Any:
    try:
        return importlib.import_module(f"art.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            "ART's detectors need adversarial-robustness-toolbox, which is not installed: "
            "pip install 'lrpguard[baselines]'."
        ) from error
