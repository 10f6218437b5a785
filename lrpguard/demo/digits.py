"""Scikit-learn's handwritten digits, their splits, and the small CNN packaged with lrpguard."""

from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from lrpguard.errors import LoadingError, MissingDependencyError

WEIGHTS_FILE = "digits_cnn.safetensors"
CALIBRATION_SIZE = 600
TEST_SIZE = 400
SPLIT_SEED = 20210
PIXEL_LEVELS = 16.0
MEND_WEIGHTS = "Reinstall lrpguard, or make the file with `python scripts/train_digits.py`."


@dataclass(frozen=True, eq=False)
class DigitSet:
    """Digit images with their labels.

    Attributes:
        images: Grey images, float32 ``[N, 1, 8, 8]`` in [0, 1].
        labels: Digits shown, int64 ``[N]`` in 0..9.
        indices: Positions in scikit-learn's ``load_digits()``, int64 ``[N]``.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, positions: Tensor) -> "DigitSet":
        """Take some of the images.

        Args:
            positions: Positions within this set, int64 ``[M]``.

        Returns:
            The images, labels and indices at these positions, in their order.
        """
        return DigitSet(self.images[positions], self.labels[positions], self.indices[positions])


@dataclass(frozen=True, eq=False)
class DigitSplits:
    """Disjoint parts of the digits, which together are all of them.

    Attributes:
        train: The 797 images the packaged weights were trained on.
        calibration: 600 images to calibrate a guard on.
        test: 400 images that no choice was made on.
    """

    train: DigitSet
    calibration: DigitSet
    test: DigitSet


def load_digits() -> DigitSet:
    """Load all 1,797 handwritten digits that scikit-learn carries.

    Returns:
        The images scaled from 0..16 to [0, 1], in scikit-learn's order.

    Raises:
        MissingDependencyError: scikit-learn is not installed.

    Source:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
        Learning Repository, 1998, as packaged by ``sklearn.datasets.load_digits``.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "The handwritten digits come with scikit-learn, which is not installed. "
            "Install it with: pip install 'lrpguard[demo]'"
        ) from error
    bunch = datasets.load_digits()
    images = torch.tensor(bunch.images / PIXEL_LEVELS, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    return DigitSet(images, labels, torch.arange(len(labels)))


def load_digit_splits() -> DigitSplits:
    """Split the digits into train, calibration and test, the same way every time.

    The seed is no argument: the packaged weights were trained on this ``train`` part, so any
    other split would calibrate and test on training images. The parts are drawn without
    stratifying, so that calibration and test images are exchangeable, as conformal p-values need.

    Returns:
        The three disjoint parts.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    digits = load_digits()
    # RandomState, not default_rng: numpy promises that its stream never changes (NEP 19).
    order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(digits))).long()
    held_out = CALIBRATION_SIZE + TEST_SIZE
    return DigitSplits(
        train=digits.subset(order[held_out:]),
        calibration=digits.subset(order[:CALIBRATION_SIZE]),
        test=digits.subset(order[CALIBRATION_SIZE:held_out]),
    )


class DigitsNet(nn.Module):
    """A plain CNN for 8x8 grey digits: three convolutions, two max-pools, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(32 * 2 * 2, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Classify digits.

        Args:
            images: ``[B, 1, 8, 8]`` in [0, 1].

        Returns:
            Logits ``[B, 10]``.
        """
        logits: Tensor = self.classifier(self.features(images))
        return logits


def load_digits_model() -> DigitsNet:
    """Load the packaged digit classifier.

    Returns:
        A ``DigitsNet`` in eval mode, float32, on the CPU.

    Raises:
        LoadingError: The packaged weights are missing, damaged, or of another architecture.
    """
    resource = resources.files("lrpguard.demo").joinpath(WEIGHTS_FILE)
    try:
        state = load_safetensors(resource.read_bytes())
    except OSError as error:
        raise LoadingError(
            f"The packaged digit weights '{WEIGHTS_FILE}' cannot be read ({error}). {MEND_WEIGHTS}"
        ) from error
    except SafetensorError as error:
        raise LoadingError(
            f"The packaged digit weights '{WEIGHTS_FILE}' are damaged: expected a safetensors "
            f"file, got {error}. {MEND_WEIGHTS}"
        ) from error
    # Built without storage, so that loading draws nothing from the caller's random state.
    with torch.device("meta"):
        model = DigitsNet()
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise LoadingError(
            f"The packaged digit weights '{WEIGHTS_FILE}' do not fit DigitsNet: {error}. "
            f"{MEND_WEIGHTS}"
        ) from error
    return model.eval()
