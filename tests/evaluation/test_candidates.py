"""Other restorations: by hand, on the packaged digits model, and what they cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lrpguard import Consensus, Guard, Smoothing
from lrpguard.attacks import pgd
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.candidates import (
    BLURRED_SHARE,
    CANDIDATES,
    COUNTER_EPS,
    INPAINTED_SHARE,
    Told,
    best_other,
    choose,
    counter_perturbed,
    restored_labels,
)
from lrpguard.filters import jpeg, median, total_variation
from lrpguard.noise import gaussian_copies
from lrpguard.restoration import UNKNOWN

BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}


class Counting(nn.Module):
    """The digits model, counting the images that go through it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = load_digits_model()
        self.images = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        logits: Tensor = self.inner(images)
        return logits


@pytest.fixture(scope="module")
def model() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def attacked(model: Counting) -> tuple[Tensor, Tensor]:
    """Images that an attack has fooled the model on, and their true classes."""
    pytest.importorskip("sklearn", reason="needs lrpguard[demo]")
    test = load_digit_splits().test
    images, labels = test.images[:60], test.labels[:60]
    moved = pgd(model, images, labels, eps=0.12, steps=10, seed=0)
    with torch.no_grad():
        fooled = (model(moved).argmax(1) != labels) & (model(images).argmax(1) == labels)
    assert int(fooled.sum()) >= 20
    return moved[fooled][:20], labels[fooled][:20]


@pytest.fixture(scope="module")
def told(model: Counting, attacked: tuple[Tensor, Tensor]) -> Told:
    guard = Guard(model, smoothing=Smoothing(n=6, sigma=0.1))
    guard.calibrate(load_digit_splits().calibration.images[:120].split(40))
    return Told(guard, attacked[0], guard.with_evidence(attacked[0])[1])


def restore(told: Told, name: str) -> Tensor:
    return BY_NAME[name].restore(told)


@pytest.mark.parametrize("name", BY_NAME)
def test_gives_another_label_or_none_the_same_each_time_and_alone(told: Told, name: str) -> None:
    labels = restore(told, name)

    assert labels.shape == told.label.shape
    assert bool((labels != told.label).all())
    assert bool(((labels >= 0) | (labels == UNKNOWN)).all())
    assert bool((labels >= 0).any())
    alone = Told(told.guard, told.images[3:4], told.evidence.select(slice(3, 4)))
    assert restore(alone, name).tolist() == labels[3:4].tolist()


def test_those_called_free_run_the_model_no_more_and_the_others_do(
    told: Told, model: Counting
) -> None:
    for candidate in CANDIDATES:
        before = model.images
        candidate.restore(told)
        assert (model.images == before) == candidate.free, candidate.name


def test_by_hand(told: Told) -> None:
    """Label 0; the request itself says 1, most copies 2, the surest copy 3."""
    logits = torch.tensor([[9.0, 5, 1, 1]])
    copies = torch.tensor([[[9.0, 0, 1, 0], [9, 0, 1, 0], [0, 0, 0, 9]]])
    evidence = replace(
        told.evidence.select(slice(0, 1)),
        logits=logits,
        label=torch.tensor([0]),
        noisy_logits=copies,
    )
    one = Told(told.guard, told.images[:1], evidence)

    assert [int(restore(one, name)) for name in ("runner-up", "vote", "mean-softmax")] == [1, 2, 3]


def test_equal_votes_go_to_the_more_probable_class(told: Told) -> None:
    copies = torch.tensor([[[9.0, 2, 0, 1], [9, 0, 0, 7]]])
    evidence = replace(
        told.evidence.select(slice(0, 1)), label=torch.tensor([0]), noisy_logits=copies
    )
    assert int(restore(Told(told.guard, told.images[:1], evidence), "vote")) == 3


def test_filters_are_those_of_the_views(told: Told) -> None:
    filters = {"median": median, "jpeg": jpeg, "total-variation": total_variation}
    for name, change in filters.items():
        views = torch.stack([change(image) for image in told.images])
        with torch.no_grad():
            expected = best_other(told.guard.model(views), told.label)
        assert torch.equal(restore(told, name), expected), name


def test_views_are_run_where_the_detector_took_none(told: Told) -> None:
    blind = Told(told.guard, told.images, replace(told.evidence, view_logits=None))
    for name in ("median", "jpeg", "total-variation"):
        assert torch.equal(restore(blind, name), restore(told, name))


class Corner(nn.Module):
    """Class 0 by far, then 1 where the top left pixel is dark, else 2."""

    def __init__(self, row: int = 0) -> None:
        super().__init__()
        self.row = row
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        pixel = images[:, 0, self.row, 0]
        return torch.stack([torch.full_like(pixel, 9.0), 1 - pixel, pixel], dim=1)


@pytest.mark.parametrize(
    ("name", "share"), [("heat-and-blur", BLURRED_SHARE), ("inpainting", INPAINTED_SHARE)]
)
def test_only_the_most_relevant_pixels_are_changed(told: Told, name: str, share: float) -> None:
    """A white pixel among black ones becomes dark if, and only if, relevance lies there."""
    images = torch.zeros(1, 1, 16, 16)
    images[0, 0, 0, 0] = 1.0
    there, elsewhere = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    side = int((share * 256) ** 0.5)
    there[0, :side, :side] = 1
    elsewhere[0, -side:, -side:] = 1
    labels = []
    for relevance in (there, elsewhere):
        evidence = replace(
            told.evidence.select(slice(0, 1)),
            label=torch.tensor([0]),
            relevance_mean=relevance,
        )
        one = Told(Guard(Corner()), images, evidence)
        labels.append(int(restore(one, name)))
    assert labels == [1, 2]


def test_the_copies_agree_better_after_the_counter_perturbation(told: Told) -> None:
    model, better = told.guard.model, 0
    for image, label in zip(told.images, told.label, strict=True):
        noise = 0.1 * gaussian_copies(b"0123456789abcdef", 0, 8, image.shape)
        moved, after = counter_perturbed(model, image, label, noise)
        with torch.no_grad():
            logits = model(image + noise).double()
        others = logits.scatter(1, label.expand(8, 1), -torch.inf).softmax(1).mean(0)
        better += bool(after.amax() > others.amax())
        assert float((moved - image).abs().max()) <= COUNTER_EPS + 1e-6
        assert float(moved.min()) >= 0
        assert float(moved.max()) <= 1
        assert float(after[label]) == 0
    assert better >= 0.9 * len(told.images)
    assert all(p.grad is None for p in model.parameters())


def test_consensus_is_the_label_that_the_guard_restores(
    told: Told, attacked: tuple[Tensor, Tensor]
) -> None:
    ready = Guard(
        told.guard.model, calibration=told.guard.calibration, restoration=Consensus(harm=0.3)
    )
    verdict = ready(told.images)
    known = verdict.flagged & (verdict.restored_label >= 0)
    assert int(known.sum()) >= 3
    proposed = restore(told, "consensus")
    assert torch.equal(verdict.restored_label[known], proposed[known])
    assert int((proposed == attacked[1]).sum()) >= 12


def test_consensus_needs_candidates(told: Told) -> None:
    guard = Guard(told.guard.model, smoothing=Smoothing(n=4))
    with pytest.raises(ConfigurationError, match="calibrated with detector='combined'"):
        restore(Told(guard, told.images, told.evidence), "consensus")


def test_names() -> None:
    every = tuple(BY_NAME.values())
    assert choose("all") == every
    assert choose("none") == ()
    assert choose(None) == choose("default") == tuple(c for c in every if c.free)
    assert [c.name for c in choose("jpeg, vote")] == ["vote", "jpeg"]
    assert {c.name for c in every if c.control} == {"runner-up", "whitening-random"}
    with pytest.raises(ConfigurationError, match="no restoration is named 'prayer'; there are con"):
        choose("vote,prayer")


def test_labels_of_all_are_plain_numbers(told: Told) -> None:
    found = restored_labels(told, choose("vote,runner-up"))
    assert list(found) == ["runner-up", "vote"]
    assert all(type(label) is int for labels in found.values() for label in labels)
