import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from lrpguard.demo import digits
from lrpguard.demo.digits import (
    DigitSet,
    DigitsNet,
    load_digit_splits,
    load_digits,
    load_digits_model,
)
from lrpguard.errors import LoadingError, MissingDependencyError


@pytest.fixture(scope="module")
def splits() -> digits.DigitSplits:
    return load_digit_splits()


@pytest.fixture
def packaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the test's own, which load_digits_model takes for the packaged one."""
    file = tmp_path / "weights.safetensors"
    monkeypatch.setattr(digits, "WEIGHTS_FILE", str(file))
    return file


def accuracy(model: nn.Module, part: DigitSet) -> float:
    with torch.no_grad():
        return float((model(part.images).argmax(1) == part.labels).double().mean())


def indices_digest(*parts: DigitSet) -> str:
    indices: Tensor = torch.cat([part.indices for part in parts])
    return hashlib.sha256(indices.numpy().astype("<i8").tobytes()).hexdigest()


def test_images_obey_the_pixel_contract() -> None:
    every = load_digits()
    assert every.images.shape == (1797, 1, 8, 8)
    assert every.images.dtype == torch.float32
    assert (every.images.min().item(), every.images.max().item()) == (0.0, 1.0)
    assert every.labels.dtype == torch.int64
    assert set(every.labels.tolist()) == set(range(10))


def test_splits_are_disjoint_and_cover_all(splits: digits.DigitSplits) -> None:
    parts = (splits.train, splits.calibration, splits.test)
    assert [len(part) for part in parts] == [797, 600, 400]
    joined = torch.cat([part.indices for part in parts])
    assert torch.equal(joined.sort().values, torch.arange(1797))


def test_no_image_stands_in_two_splits_by_content(splits: digits.DigitSplits) -> None:
    trained_on = {image.numpy().tobytes() for image in splits.train.images}
    held_out = torch.cat([splits.calibration.images, splits.test.images])
    assert not any(image.numpy().tobytes() in trained_on for image in held_out)


def test_indices_name_the_images_and_labels(splits: digits.DigitSplits) -> None:
    every = load_digits()
    for part in (splits.train, splits.calibration, splits.test):
        assert torch.equal(part.images, every.images[part.indices])
        assert torch.equal(part.labels, every.labels[part.indices])


def test_every_digit_is_well_represented_in_each_split(splits: digits.DigitSplits) -> None:
    for part in (splits.train, splits.calibration, splits.test):
        assert part.labels.bincount(minlength=10).min() >= 0.07 * len(part)


def test_splits_are_those_the_packaged_weights_were_trained_on(splits: digits.DigitSplits) -> None:
    # Other splits put training images into calibration and test: then train the weights again.
    assert indices_digest(splits.train, splits.calibration, splits.test) == (
        "604758c7adf2240941b9f2ee1d5bd56c819b9c2112c6e061d3795e81c7459a70"
    )


def test_splits_leave_the_global_random_states_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)
    load_digit_splits()
    load_digits_model()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state(legacy=False)) == str(numpy_state)


def test_packaged_model_is_accurate_on_images_it_never_saw(splits: digits.DigitSplits) -> None:
    model = load_digits_model()
    assert accuracy(model, splits.test) >= 0.97
    assert accuracy(model, splits.calibration) >= 0.97


def test_packaged_model_is_ready_to_use() -> None:
    model = load_digits_model()
    assert not any(module.training for module in model.modules())
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_each_load_gives_weights_of_its_own(splits: digits.DigitSplits) -> None:
    first, second = load_digits_model(), load_digits_model()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert accuracy(second, splits.test) >= 0.97


def test_packaged_weights_are_small() -> None:
    file = Path(digits.__file__).with_name(digits.WEIGHTS_FILE)
    assert file.stat().st_size <= 150_000


def test_a_fresh_net_is_untrained(splits: digits.DigitSplits) -> None:
    assert accuracy(DigitsNet(), splits.test) < 0.5


def test_missing_weights_say_how_to_make_them(packaged_file: Path) -> None:
    with pytest.raises(LoadingError, match=r"cannot be read.*scripts/train_digits\.py"):
        load_digits_model()


def test_truncated_weights_are_refused(packaged_file: Path) -> None:
    whole = save(DigitsNet().state_dict())
    packaged_file.write_bytes(whole[:-1])
    with pytest.raises(LoadingError, match=r"damaged.*scripts/train_digits\.py"):
        load_digits_model()


def test_weights_of_another_architecture_are_refused(packaged_file: Path) -> None:
    packaged_file.write_bytes(save(nn.Linear(2, 2).state_dict()))
    with pytest.raises(LoadingError, match="do not fit DigitsNet"):
        load_digits_model()


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lrpguard\[demo\]'"):
        load_digits()
