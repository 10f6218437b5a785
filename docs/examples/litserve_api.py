"""A guarded model under LitServe: ``pip install lrpguard litserve``, then run this file.

The guard belongs into ``predict``: what a LitServe callback returns is dropped, and what it raises
is swallowed.
"""

from __future__ import annotations

import os
from typing import Any

import litserve
import torch
from torch import Tensor

from lrpguard import Guard, Verdict
from lrpguard.loading import load_model


class GuardedAPI(litserve.LitAPI):
    """Images [C, H, W] in [0, 1] as JSON lists in, verdicts out."""

    def setup(self, device: str) -> None:
        """Load the model and its calibration, which are refused where they do not fit."""
        loaded = load_model(os.environ["MODEL"], device=torch.device(device))
        self.guard = Guard(loaded.model, calibration=os.environ["CALIBRATION"])

    def decode_request(self, request: dict[str, Any], **_: Any) -> Tensor:
        """Return one image [1, C, H, W]."""
        return torch.tensor(request["image"], dtype=torch.float32)[None]

    def predict(self, image: Tensor, **_: Any) -> Verdict:
        """Judge it."""
        verdict: Verdict = self.guard(image)
        return verdict

    def encode_response(self, verdict: Verdict, **_: Any) -> dict[str, Any]:
        """Return what clients may see: no p-value and no score, which help attackers."""
        record = verdict.to_dicts()[0]
        return {name: record[name] for name in ("label", "flagged", "restored_label", "status")}


if __name__ == "__main__":
    litserve.LitServer(GuardedAPI()).run(port=8000)
