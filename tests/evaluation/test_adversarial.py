"""Attacked images: made in chunks, judged after rounding, stored, and trusted only when whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lrpguard.attacks import Attack
from lrpguard.errors import EvaluationError
from lrpguard.evaluation import adversarial
from lrpguard.evaluation.adversarial import attacked_set, chunk_length, default_cache
from lrpguard.evaluation.protocol import ImageSet
from tests.support import images, small_net


class Recorder:
    """An attack that adds a level, notes how it was called, and may fail at a call."""

    def __init__(self, change: float = 1 / 255, *, fails_at: int = -1) -> None:
        self.change = change
        self.fails_at = fails_at
        self.seeds: list[int] = []
        self.lengths: list[int] = []

    def __call__(self, model: nn.Module, batch: Tensor, labels: Tensor, seed: int) -> Tensor:
        if len(self.seeds) == self.fails_at:
            raise KeyboardInterrupt
        self.seeds.append(seed)
        self.lengths.append(len(batch))
        return batch + torch.where(batch < 0.5, self.change, -self.change)


def attack(run: Recorder, *, eps: float = 1 / 255, version: int = 1) -> Attack:
    return Attack(
        name="one", title="one", family="f", norm="linf", eps=eps, steps=1, run=run, version=version
    )


@pytest.fixture
def chunks_of_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "MAX_CHUNK", 4)


@pytest.fixture
def data() -> ImageSet:
    return ImageSet.of(images(10), torch.zeros(10, dtype=torch.int64))


def make(attack: Attack, data: ImageSet, cache: Path | None, *, seed: int = 0) -> Tensor:
    ticks = iter(range(100))
    return attacked_set(
        attack, small_net(), data, seed=seed, cache=cache, clock=lambda: float(next(ticks))
    ).images


@pytest.mark.usefixtures("chunks_of_4")
def test_a_second_call_reads_what_the_first_made(tmp_path: Path, data: ImageSet) -> None:
    first, second = Recorder(), Recorder()

    made = make(attack(first), data, tmp_path)
    read = make(attack(second), data, tmp_path)

    assert first.lengths == [4, 4, 2]
    assert len(set(first.seeds)) == 3
    assert second.lengths == []
    assert torch.equal(made, read)
    assert (made.int() - data.images.int()).abs().eq(1).all()
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.usefixtures("chunks_of_4")
def test_an_interruption_costs_one_chunk(tmp_path: Path, data: ImageSet) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(attack(Recorder(fails_at=2)), data, tmp_path)
    again, fresh = Recorder(), Recorder()

    resumed = make(attack(again), data, tmp_path)

    assert again.lengths == [2]
    assert torch.equal(resumed, make(attack(fresh), data, None))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("chunks_of_4")
def test_a_chunk_knows_nothing_of_the_other_chunks(data: ImageSet) -> None:
    whole, alone = Recorder(), Recorder()

    make(attack(whole), data, None)
    make(attack(alone), data.part(4, 8), None)

    assert alone.seeds == whole.seeds[1:2]


@pytest.mark.parametrize("change", ["seed", "data", "eps", "version"])
def test_nothing_of_another_run_is_taken(tmp_path: Path, data: ImageSet, change: str) -> None:
    make(attack(Recorder()), data, tmp_path)
    run = Recorder()

    make(
        attack(run, eps=(2 if change == "eps" else 1) / 255, version=1 + (change == "version")),
        data.part(0, 9) if change == "data" else data,
        tmp_path,
        seed=int(change == "seed"),
    )

    assert sum(run.lengths) >= 9


@pytest.mark.parametrize("harm", ["byte", "cut"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, data: ImageSet, harm: str) -> None:
    made = make(attack(Recorder()), data, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if harm == "byte" else content[:-7])
    run = Recorder()

    again = make(attack(run), data, tmp_path)

    assert run.lengths == [10]
    assert torch.equal(again, made)


def test_an_attack_out_of_its_ball_is_caught(data: ImageSet) -> None:
    with pytest.raises(EvaluationError, match=r"one left its ball of radius 0\.003922"):
        make(attack(Recorder(2 / 255)), data, None)


def test_an_attack_that_loses_images_is_caught(data: ImageSet) -> None:
    def half(model: nn.Module, batch: Tensor, labels: Tensor, seed: int) -> Tensor:
        return batch[::2]

    with pytest.raises(EvaluationError, match="one image for each"):
        make(replace(attack(Recorder()), run=half), data, None)


def test_what_rounding_undoes_is_undone(data: ImageSet) -> None:
    made = make(attack(Recorder(0.4 / 255)), data, None)

    assert torch.equal(made, data.images)


def test_chunks_fit_the_image_size() -> None:
    assert chunk_length((3, 32, 32)) == 64
    assert chunk_length((3, 224, 224)) == 13
    assert chunk_length((3, 2000, 2000)) == 4


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LRPGUARD_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("LRPGUARD_CACHE")
    assert default_cache().parts[-2:] == (".cache", "lrpguard")
