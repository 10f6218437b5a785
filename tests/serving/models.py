"""The digits network, whose behaviour a test can change from outside while it is served."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from lrpguard.demo.digits import DigitsNet, load_digits_model

SPEC = "tests.serving.models:controlled"
FOLDER_VARIABLE = "TEST_MODEL_FOLDER"
"""Folder whose files change the behaviour of a model in another process.

While ``slow`` exists a run waits; ``hold`` does the same to a process that has made as many runs
as it says; ``kill`` is taken away by the run that then kills its process; with ``huge`` a run asks
for more memory than there is.
"""


class Behaviour:
    """What the network does beside its work.

    Attributes:
        gate: Runs wait while it is cleared.
        entered: Set when a run begins.
        noisy_error: Raised where noisy copies are explained, not on a clean image alone.
        error: Raised on any run.
        nan: Whether logits are NaN.
        runs: Runs on noisy copies, where there is the folder.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.noisy_error: BaseException | None = None
        self.error: BaseException | None = None
        self.nan = False
        self.runs = 0


BEHAVIOUR = Behaviour()


class Controlled(DigitsNet):
    """The network; copies come more than one at a time, a clean image alone."""

    def forward(self, images: Tensor) -> Tensor:
        noisy = images.shape[0] > 1
        BEHAVIOUR.entered.set()
        if noisy:
            BEHAVIOUR.gate.wait(300)
        if BEHAVIOUR.error is not None:
            raise BEHAVIOUR.error
        if noisy and BEHAVIOUR.noisy_error is not None:
            raise BEHAVIOUR.noisy_error
        _act_on_files(noisy)
        logits = super().forward(images)
        return logits * torch.nan if BEHAVIOUR.nan else logits


def _act_on_files(noisy: bool) -> None:
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        return
    end = time.monotonic() + 300
    BEHAVIOUR.runs += noisy
    while noisy and _held(Path(folder)) and time.monotonic() < end:
        time.sleep(0.02)
    if noisy:
        with contextlib.suppress(FileNotFoundError):
            Path(folder, "kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    if Path(folder, "huge").exists():
        torch.empty(1 << 46)  # more than any machine has: the allocator refuses


def _held(folder: Path) -> bool:
    hold = folder / "hold"
    if (folder / "slow").exists():
        return True
    return hold.exists() and BEHAVIOUR.runs > int(hold.read_text())


def controlled() -> Controlled:
    """Return the network, with the packaged weights."""
    model = Controlled()
    model.load_state_dict(load_digits_model().state_dict())
    return model.eval()
