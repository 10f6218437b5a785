"""Models by specification: torchvision, timm, and the user's own factory."""

import sys
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from lrpguard.errors import ConfigurationError, LoadingError, MissingDependencyError
from lrpguard.inputs import NormalizedModel
from lrpguard.loading import Preprocessing, load_model

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, 3)
    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

class Zoo:
    @staticmethod
    def grey():
        return Net()

def rgb():
    return Net(3)

def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))

def failing():
    raise ZeroDivisionError("no net today")

def text():
    return "a model"

def normalised():
    from lrpguard.inputs import NormalizedModel
    return NormalizedModel(Net(), [0.5], [0.5])

ready = Net().train()
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write the factories into the current directory; return their module's name."""
    name = f"factories_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    return name


def save_weights(folder: Path, model: nn.Module) -> Path:
    path = folder / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


def bare(model: nn.Module) -> nn.Module:
    assert isinstance(model, NormalizedModel)
    return model.model


def normalization(model: nn.Module) -> tuple[list[float], list[float]]:
    assert isinstance(model, NormalizedModel)
    return [round(v, 4) for v in model.mean.flatten().tolist()], [
        round(v, 4) for v in model.std.flatten().tolist()
    ]


class TestFactory:
    def test_from_the_current_directory(self, factories: str) -> None:
        path = list(sys.path)

        loaded = load_model(f"{factories}:rgb")

        assert sys.path == path
        assert loaded.name == f"{factories}:rgb"
        assert loaded.preprocessing == Preprocessing(channels=3)
        assert (loaded.image_size, loaded.resize_size, loaded.class_names) == (None, None, None)
        assert not any(module.training for module in loaded.model.modules())
        assert not isinstance(loaded.model, NormalizedModel)  # taken to accept [0, 1]
        assert loaded.model(torch.rand(2, 3, 8, 8)).shape == (2, 3)

    @pytest.mark.parametrize("attribute", ["Net", "Zoo.grey", "ready"])
    def test_a_class_a_dotted_name_or_a_module(self, factories: str, attribute: str) -> None:
        loaded = load_model(f"{factories}:{attribute}")

        assert type(loaded.model).__name__ == "Net"
        assert loaded.channels == 1
        assert not loaded.model.training

    def test_from_an_installed_package(self) -> None:
        assert load_model("torchvision.models:squeezenet1_1").channels == 3

    def test_weights_and_normalisation(self, factories: str, tmp_path: Path) -> None:
        trained = load_model(f"{factories}:rgb").model
        path = save_weights(tmp_path, trained)
        images = torch.rand(2, 3, 8, 8)
        mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]

        loaded = load_model(f"{factories}:rgb", weights=path, mean=mean, std=std)

        by_hand = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(loaded.model(images), trained(by_hand))

    def test_a_model_without_convolutions_has_the_channels_of_its_mean(
        self, factories: str
    ) -> None:
        assert load_model(f"{factories}:dense").channels == 3
        assert load_model(f"{factories}:dense", mean=[0.5], std=[0.5]).channels == 1

    def test_an_image_size_can_be_asked_for(self, factories: str) -> None:
        loaded = load_model(f"{factories}:rgb", image_size=(32, 24))

        assert loaded.preprocessing == Preprocessing(image_size=(32, 24))

    @pytest.mark.parametrize(
        ("attribute", "words"),
        [
            ("failing", "ZeroDivisionError: no net today"),
            ("text", r"gave a str; expected a torch\.nn\.Module"),
            ("absent", "AttributeError"),
        ],
    )
    def test_what_goes_wrong_is_told(self, factories: str, attribute: str, words: str) -> None:
        with pytest.raises(LoadingError, match=words):
            load_model(f"{factories}:{attribute}")

    def test_a_module_that_is_not_there(self) -> None:
        with pytest.raises(LoadingError, match="No module named 'no_such_module'"):
            load_model("no_such_module:factory")

    def test_a_second_normalisation_is_refused(self, factories: str) -> None:
        with pytest.raises(ConfigurationError, match="NormalizedModel"):
            load_model(f"{factories}:normalised", mean=[0.5], std=[0.5])


@pytest.mark.parametrize("spec", ["squeezenet1_1", "", ":", "torchvision:", ":factory"])
def test_another_specification_is_refused(spec: str) -> None:
    with pytest.raises(LoadingError, match="not understood"):
        load_model(spec)


def test_mean_and_std_come_together_and_fit_the_channels(factories: str) -> None:
    with pytest.raises(ConfigurationError, match="std is not given"):
        load_model(f"{factories}:rgb", mean=[0.5])
    with pytest.raises(ConfigurationError, match="mean is not given"):
        load_model(f"{factories}:rgb", std=[0.5])
    with pytest.raises(ConfigurationError, match="3 channel"):
        load_model(f"{factories}:rgb", mean=[0.5], std=[0.5])
    with pytest.raises(ConfigurationError, match="positive"):
        load_model(f"{factories}:rgb", mean=[0.5] * 3, std=[0.5, 0.5, 0.0])


@pytest.mark.parametrize("device", ["cuda:99", "no such device"])
def test_a_device_that_is_not_there_is_told(factories: str, device: str) -> None:
    with pytest.raises(ConfigurationError, match=f"device '{device}'"):
        load_model(f"{factories}:rgb", device=device)


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of random weights."""
    torch.manual_seed(0)
    return save_weights(tmp_path_factory.mktemp("weights"), torchvision.models.squeezenet1_1())


class TestTorchvision:
    def test_a_weights_file_gets_imagenets_preprocessing(self, squeezenet: Path) -> None:
        loaded = load_model("torchvision:squeezenet1_1", weights=squeezenet)

        assert loaded.preprocessing == Preprocessing(image_size=(224, 224), resize_size=256)
        assert (loaded.image_size, loaded.resize_size, loaded.channels) == ((224, 224), 256, 3)
        assert loaded.class_names is not None
        assert len(loaded.class_names) == 1000
        assert loaded.class_names[0] == "tench"
        assert normalization(loaded.model) == (IMAGENET_MEAN, IMAGENET_STD)
        assert not any(module.training for module in loaded.model.modules())

    def test_a_given_normalisation_goes_first(self, squeezenet: Path) -> None:
        loaded = load_model(
            "torchvision:squeezenet1_1", weights=squeezenet, mean=[0.5] * 3, std=[0.25] * 3
        )

        assert normalization(loaded.model) == ([0.5] * 3, [0.25] * 3)

    def test_the_named_weights_decide_the_preprocessing_of_a_file(self, tmp_path: Path) -> None:
        path = save_weights(tmp_path, torchvision.models.mobilenet_v2())

        sizes = [
            load_model(f"torchvision:mobilenet_v2{named}", weights=path).resize_size
            for named in ("", "@DEFAULT", "@IMAGENET1K_V2", "@IMAGENET1K_V1")
        ]

        assert sizes == [232, 232, 232, 256]

    def test_own_classes_need_a_normalisation(self, tmp_path: Path) -> None:
        trained = torchvision.models.squeezenet1_1(num_classes=7).eval()
        path = save_weights(tmp_path, trained)
        images = torch.rand(1, 3, 64, 64)

        with pytest.raises(LoadingError, match=r"7 classes.*1000.*--mean"):
            load_model("torchvision:squeezenet1_1", weights=path)
        loaded = load_model(
            "torchvision:squeezenet1_1", weights=path, mean=[0.0] * 3, std=[1.0] * 3
        )

        assert loaded.class_names is None
        torch.testing.assert_close(loaded.model(images), trained(images))

    def test_random_weights_are_refused_with_the_names_of_real_ones(self) -> None:
        with pytest.raises(LoadingError, match=r"@DEFAULT.*@IMAGENET1K_V1.*--weights FILE"):
            load_model("torchvision:squeezenet1_1")

    @pytest.mark.parametrize("named", ["IMAGENET1K_V9", "IMAGENET1K_FEATURES"])
    def test_weights_that_classify_nothing_are_refused(self, named: str) -> None:
        with pytest.raises(LoadingError, match=f"{named}.*DEFAULT, IMAGENET1K_V1"):
            load_model(f"torchvision:vgg16@{named}")

    def test_an_unknown_name_gets_close_ones(self) -> None:
        with pytest.raises(LoadingError, match="resnet18"):
            load_model("torchvision:resnet_18@DEFAULT")

    def test_other_weights_do_not_fit(self, squeezenet: Path) -> None:
        with pytest.raises(LoadingError, match="does not fit the model"):
            load_model("torchvision:mobilenet_v2", weights=squeezenet)

    def test_a_failed_download_tells_to_bring_a_file(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def unreachable(*_: object, **__: object) -> None:
            raise urllib.error.URLError("no route to host")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr("torch.hub.urlopen", unreachable)

        with pytest.raises(LoadingError, match=r"no route to host.*--weights FILE"):
            load_model("torchvision:squeezenet1_1@DEFAULT")

    def test_downloaded_weights_come_with_their_preprocessing(
        self, monkeypatch: pytest.MonkeyPatch, squeezenet: Path
    ) -> None:
        from safetensors.torch import load_file

        monkeypatch.setattr(
            "torchvision.models._api.load_state_dict_from_url",
            lambda *_, **__: load_file(squeezenet),
        )

        loaded = load_model("torchvision:squeezenet1_1@IMAGENET1K_V1")

        assert normalization(loaded.model) == (IMAGENET_MEAN, IMAGENET_STD)
        own = bare(loaded.model).state_dict()
        assert all(torch.equal(own[k], v) for k, v in load_file(squeezenet).items())

    def test_googlenet_is_built_as_for_its_published_weights(self, tmp_path: Path) -> None:
        published = torchvision.models.googlenet(
            init_weights=False, aux_logits=True, transform_input=True
        ).eval()
        path = save_weights(tmp_path, published)  # as the published file, with auxiliaries
        images = torch.rand(1, 3, 64, 64)

        loaded = load_model("torchvision:googlenet", weights=path)
        other = load_model("torchvision:googlenet", weights=path, mean=[0.5] * 3, std=[0.5] * 3)

        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        expected: Tensor = published((images - mean) / std)
        torch.testing.assert_close(loaded.model(images), expected)
        assert vars(bare(loaded.model))["transform_input"] is True
        assert vars(bare(other.model))["transform_input"] is False  # fed with [-1, 1] already


class TestTimm:
    @pytest.fixture(autouse=True)
    def _needs_timm(self) -> None:
        pytest.importorskip("timm", reason="needs lrpguard[timm]")

    def test_a_weights_file_gets_timms_preprocessing(self, tmp_path: Path) -> None:
        import timm

        trained = timm.create_model("mobilenetv3_small_050", pretrained=False).eval()
        images = torch.rand(1, 3, 64, 64)

        loaded = load_model("timm:mobilenetv3_small_050", weights=save_weights(tmp_path, trained))

        assert loaded.preprocessing == Preprocessing(
            image_size=(224, 224), resize_size=256, interpolation="bicubic"
        )
        assert normalization(loaded.model) == (IMAGENET_MEAN, IMAGENET_STD)
        torch.testing.assert_close(bare(loaded.model)(images), trained(images))

    def test_own_classes_need_a_normalisation(self, tmp_path: Path) -> None:
        import timm

        trained = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=5)
        path = save_weights(tmp_path, trained)

        with pytest.raises(LoadingError, match=r"5 classes.*1000.*--mean"):
            load_model("timm:mobilenetv3_small_050", weights=path)
        loaded = load_model(
            "timm:mobilenetv3_small_050", weights=path, mean=[0.5] * 3, std=[0.5] * 3
        )

        assert loaded.model(torch.rand(1, 3, 64, 64)).shape == (1, 5)

    def test_a_failed_download_tells_to_bring_a_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(*_: object, **__: object) -> None:
            raise OSError("no route to host")

        monkeypatch.setattr("timm.create_model", unreachable)

        with pytest.raises(LoadingError, match=r"no route to host.*--weights FILE"):
            load_model("timm:mobilenetv3_small_050")

    def test_an_unknown_name_gets_close_ones(self) -> None:
        with pytest.raises(LoadingError, match="resnet18"):
            load_model("timm:resnet_18")


def test_a_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.data", None)

    with pytest.raises(MissingDependencyError, match=r"lrpguard\[timm\]"):
        load_model("timm:resnet18")
