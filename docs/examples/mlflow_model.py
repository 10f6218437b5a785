"""A guarded model as an MLflow pyfunc: ``pip install lrpguard mlflow``, then

mlflow.pyfunc.log_model(
    "guarded", python_model=GuardedModel("torchvision:resnet18@DEFAULT"),
    artifacts={"calibration": "guard.safetensors"})
"""

from __future__ import annotations

from typing import Any

import mlflow.pyfunc
import numpy as np
import torch

from lrpguard import Guard
from lrpguard.loading import load_model


class GuardedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Arrays [B, C, H, W] in [0, 1] in, one record an image out.

    Args:
        spec: The model, as ``lrpguard check --model`` takes it.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def load_context(self, context: Any) -> None:
        """Load the model, and the calibration that was logged with it."""
        self.guard = Guard(
            load_model(self.spec).model, calibration=context.artifacts["calibration"]
        )

    def predict(self, context: Any, model_input: Any, params: Any = None) -> list[dict[str, Any]]:
        """Judge a batch."""
        images = torch.from_numpy(np.asarray(model_input, dtype=np.float32))
        return list(self.guard(images).to_dicts())
