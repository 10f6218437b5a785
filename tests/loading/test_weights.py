"""Weights files: read without running anything, and loaded strictly."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lrpguard.errors import LoadingError
from lrpguard.loading.weights import class_count, load_weights, modern_densenet_names, read_weights


class Dangerous:
    """What a pickle may do when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exit, (3,))


def small_net(classes: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, classes))


def parallel(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "form", ["safetensors", "plain", "state_dict", "model", "parallel", "nested parallel"]
)
def test_every_form_of_a_state_dict_is_read(tmp_path: Path, form: str) -> None:
    state = small_net(seed=1).state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        content: dict[str, object] = {
            "plain": state,
            "state_dict": {"state_dict": state, "epoch": 3},
            "model": {"model": state, "lr": 0.1},
            "parallel": parallel(state),
            "nested parallel": {"state_dict": parallel(state)},
        }[form]
        torch.save(content, path)
    model = small_net(seed=2)

    load_weights(model, read_weights(path), source=str(path))

    assert all(torch.equal(state[name], own) for name, own in model.state_dict().items())


def test_a_models_own_module_prefix_is_kept() -> None:
    saved, model = (nn.ModuleDict({"module": nn.Linear(2, 2)}) for _ in range(2))

    load_weights(model, saved.state_dict(), source="w")

    assert torch.equal(model.state_dict()["module.weight"], saved.state_dict()["module.weight"])


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"weight": torch.ones(2), "extra": Dangerous()}, path)

    with pytest.raises(LoadingError, match=r"weights_only=True.*safetensors"):
        read_weights(path)


def test_a_pickled_model_is_refused_with_the_mend(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(small_net(), path)

    with pytest.raises(LoadingError, match=r"Save the state dict alone"):
        read_weights(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)

    with pytest.raises(LoadingError, match="expected a state dict"):
        read_weights(path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    state = small_net().state_dict()
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-50])

    with pytest.raises(LoadingError, match=str(path)):
        read_weights(path)


def test_missing_files_and_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match="no weights file"):
        read_weights(tmp_path / "w.pth")
    (tmp_path / "w.h5").touch()
    with pytest.raises(LoadingError, match=r"'\.h5'.*safetensors"):
        read_weights(tmp_path / "w.h5")


def test_what_does_not_fit_is_named_and_the_model_unchanged() -> None:
    model = small_net()
    before = model.state_dict()["0.weight"].clone()
    state = small_net(seed=1).state_dict()
    state["3.weight"] = torch.ones(7, 8)
    state["extra"] = torch.ones(1)
    del state["1.bias"]

    with pytest.raises(LoadingError) as caught:
        load_weights(model, state, source="weights.pth")

    message = str(caught.value)
    assert "it lacks 1.bias" in message
    assert "the model has no extra" in message
    assert "3.weight [7, 8] (model: [4, 8])" in message
    assert torch.equal(model.state_dict()["0.weight"], before)


def test_old_files_without_batch_counters_fit() -> None:
    model, saved = small_net(), small_net(seed=1)
    state = {k: v for k, v in saved.state_dict().items() if "num_batches_tracked" not in k}

    load_weights(model, state, source="w")

    assert len(state) == len(saved.state_dict()) - 1
    assert all(torch.equal(state[k], model.state_dict()[k]) for k in state)


def test_long_lists_are_cut() -> None:
    with pytest.raises(LoadingError, match="and 4 more"):
        load_weights(small_net(), {}, source="w")


def test_classes_are_read_off_the_classifier() -> None:
    model = small_net(classes=4)

    assert class_count(model, small_net(classes=7).state_dict(), default=4) == 7
    assert class_count(model, small_net(classes=4).state_dict(), default=4) == 4
    assert class_count(model, nn.Linear(5, 9).state_dict(), default=4) == 4


def test_old_densenet_names_are_made_modern() -> None:
    name = "features.denseblock1.denselayer1.norm.1.weight"
    kept = "features.transition1.norm.weight"

    renamed = modern_densenet_names({name: torch.ones(1), kept: torch.ones(1)})

    assert list(renamed) == ["features.denseblock1.denselayer1.norm1.weight", kept]
