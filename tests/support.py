"""Small models, evidence and calibrations that the tests above the LRP engine share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from lrpguard import Calibration, Evidence, Guard, Smoothing, preparing
from lrpguard.consistency import Candidates
from lrpguard.detector import Detector, PaperDetector
from lrpguard.readings import SUPPORTS, VALUES, Readings
from lrpguard.scores import SCORES
from tests.nets import images as random_images
from tests.nets import randomized

SIZE = 8
"""Height and width of the images of :func:`small_net`."""

CLASSES = 5
FAST = Smoothing(n=4)


def small_net(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return a network of milliseconds for images [B, 3, 8, 8], in eval mode."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, CLASSES),
    )
    return randomized(net, seed=seed, dtype=dtype)


def images(batch: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random pixels in [0, 1] for :func:`small_net`, [B, 3, 8, 8]."""
    return random_images(batch, SIZE, seed=seed, dtype=dtype)


def picture(channels: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Return random pixels in [0, 1], neighbours alike [C, H, W]."""
    rng = np.random.default_rng(seed)
    rough = rng.random((channels, height, width))
    smooth = ndimage.uniform_filter(rough, size=(1, 3, 3), mode="nearest")
    return torch.from_numpy((0.3 * rough + 0.7 * smooth).astype(np.float32))


class Wrapped(nn.Module):
    """A network whose forward first shows its input to ``before``, which may raise.

    Args:
        net: The network.
        before: Called with each batch the network is about to see; where a graph is being
            built, it may look at its size alone.
        after: From logits to logits, after the network.
    """

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], object] = lambda batch: None,
        after: Callable[[Tensor, Tensor], Tensor] = lambda batch, logits: logits,
    ) -> None:
        super().__init__()
        self.net = net
        self.before = before
        self.after = after
        self.eval()

    def forward(self, batch: Tensor) -> Tensor:
        self.before(batch)
        return self.after(batch, self.net(batch))


class Raises:
    """Raise an error at the given call, and never else.

    Args:
        error: What to raise.
        at: Number of the call that raises, from 1.
    """

    def __init__(self, error: BaseException, *, at: int) -> None:
        self.error = error
        self.at = at
        self.calls = 0

    def __call__(self, *_: object) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error


def make_evidence(
    *,
    logits: list[list[float]],
    noisy_logits: list[list[list[float]]],
    label: list[int] | None = None,
    variance: list[list[list[float]]] | None = None,
    total: list[list[float]] | None = None,
    mean: list[list[list[float]]] | None = None,
    views: list[list[list[float]]] | None = None,
    chroma: list[float] | None = None,
    line: list[float] | None = None,
    place: list[float] | None = None,
) -> Evidence:
    """Return evidence written out by hand; what is left out is zero, the label the argmax.

    Without ``views`` there are none.
    """
    clean, noisy = torch.tensor(logits), torch.tensor(noisy_logits)
    batch, n = noisy.shape[:2]
    spread = torch.zeros(batch, 2, 2) if variance is None else torch.tensor(variance)
    return Evidence(
        logits=clean,
        label=clean.argmax(1) if label is None else torch.tensor(label),
        noisy_logits=noisy,
        relevance_mean=torch.zeros_like(spread) if mean is None else torch.tensor(mean),
        relevance_variance=spread,
        relevance_total=torch.zeros(batch, n) if total is None else torch.tensor(total),
        relevance_quantiles=None,
        view_logits=None if views is None else torch.tensor(views),
        chroma_noise=torch.zeros(batch) if chroma is None else torch.tensor(chroma),
        line_noise=torch.zeros(batch) if line is None else torch.tensor(line),
        place_roughness=torch.zeros(batch) if place is None else torch.tensor(place),
        sigma=0.05,
    )


def make_candidates(
    n: int, *, classes: int = 5, seed: int = 0, values: Tensor | None = None
) -> Candidates:
    """Return candidates of n clean images that move at random, in unit steps, three behind.

    Strong views keep the label of 30 % of the images, of more, and the last of all of them.

    Args:
        n: Number of images.
        classes: Number of classes K; the up to nine nearest others are the candidates.
        seed: Of labels, classes and values.
        values: What they are, in place of normal ones [n, C, 1 + J].
    """
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (n,), generator=generator)
    count = min(9, classes - 1)
    rank = torch.rand(n, classes, generator=generator).scatter(1, label[:, None], -1)
    drawn = torch.randn(n, count, VALUES, generator=generator, dtype=torch.float64)
    drawn[..., 0] -= 3
    share = torch.rand(n, count, SUPPORTS, generator=generator, dtype=torch.float64).softmax(1)
    kept = torch.rand(n, SUPPORTS, generator=generator) < torch.linspace(0.3, 1, SUPPORTS)
    return Candidates(
        label=label,
        classes=rank.topk(count, dim=1).indices,
        values=drawn if values is None else values,
        support=share.log(),
        kept=kept.double(),
    )


def make_readings(n: int, *, seed: int = 0, **columns: Tensor) -> Readings:
    """Return the readings of n clean images: every score and its candidates, all at random.

    Args:
        n: Number of images.
        seed: Of all that is drawn.
        columns: Scores, by name, in place of standard normal ones [n].
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    scores = torch.randn(n, len(SCORES), generator=generator, dtype=torch.float64)
    for name, column in columns.items():
        scores[:, list(SCORES).index(name)] = column
    return Readings(tuple(SCORES), scores, make_candidates(n, seed=seed))


def make_calibration(
    anomalies: list[float] | Tensor,
    *,
    alpha: float = 0.1,
    detector: Detector | None = None,
    proposals: Tensor | None = None,
    **changes: Any,
) -> Calibration:
    """Return a calibration with these anomaly scores, in any order."""
    fields: dict[str, Any] = {
        "smoothing": FAST,
        "image_shape": (3, SIZE, SIZE),
        "fingerprint": "f" * 64,
        "precision": "float32",
        "fit_n": 0,
        "data_digest": "d" * 64,
        "created": "2025-01-02T03:04:05+00:00",
        "version": "0.1.0",
    }
    return Calibration(
        detector=detector or PaperDetector(),
        anomalies=torch.as_tensor(anomalies, dtype=torch.float64).sort().values,
        proposals=proposals,
        alpha=alpha,
        **fields | changes,
    )


def paper_guard(
    model: nn.Module | None = None, *, alpha: float = 0.3, n_images: int = 30, **options: Any
) -> Guard:
    """Return a guard calibrated with the paper's detector, which flags readily."""
    guard = Guard(small_net() if model is None else model, **{"smoothing": FAST} | options)
    reference = next(guard.model.parameters())
    clean = images(n_images, seed=1).to(reference.device, reference.dtype)
    guard.calibrate([clean], alpha=alpha, detector="paper")
    return guard


def state_of(model: nn.Module) -> list[object]:
    """Return all of a model that using it must not change, in a form that ``==`` compares."""
    seen: list[object] = [torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
    for name, module in model.named_modules():
        hooks = sorted((k, len(v)) for k, v in vars(module).items() if k.endswith("_hooks"))
        seen.append((name, type(module), module.training, sorted(vars(module)), hooks))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        place = (tensor.device, tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr())
        flags = (tensor.requires_grad, tensor.grad is None, tensor._version, tensor._backward_hooks)
        seen.append((name, content, place, flags))
    return seen


def times(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """Let channels_last take so many times the time of contiguous: the clock decides otherwise."""
    ratios = iter((1.0, ratio))

    def in_turns(*_: object) -> list[tuple[float, float]]:
        taken = next(ratios)
        return [(2.0, 2.0 * taken), (1.0, 1.0 * taken), (1.0, 9.0)]

    monkeypatch.setattr(preparing, "_in_turns", in_turns)
