"""The contract at the edge: images in [0, 1], NCHW, and an eager model that takes them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lrpguard.errors import (
    ConfigurationError,
    InputRangeError,
    InputShapeError,
    InputTypeError,
    LrpGuardWarning,
    NonFiniteInputError,
    TrainingModeError,
    UnsupportedModelError,
)

PIXEL_TOLERANCE = 1e-6
"""Pixels outside [0, 1] by at most this much are rounding, and are clipped."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

MAX_PIXELS = 4096 * 4096
"""Largest H * W of one image that is accepted."""

MAX_SIDE = 65_500
"""Longest side of one image that is accepted: what a JPEG can hold, which a changed view is."""


class NormalizedModel(nn.Module):
    """A model that wants normalised input, made to take pixels in [0, 1].

    Relevance is taken at the input of the wrapped network, that is after the
    normalisation, which maps each pixel to one pixel: this is where the paper's
    toolbox takes it.

    Args:
        model: Network from normalised images to logits. It is held, not copied.
        mean: Mean of each channel, on the [0, 1] scale.
        std: Standard deviation of each channel, on the [0, 1] scale, positive.

    Raises:
        ConfigurationError: ``mean`` and ``std`` differ in length, or a ``std`` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ConfigurationError(
                f"mean has {len(mean)} and std {len(std)} values; give one of each a channel."
            )
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise ConfigurationError(
                f"mean is {tuple(mean)} and std {tuple(std)}; each value must be finite, and each "
                "std positive."
            )
        self.model = eager_module(model)
        reference = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        like = partial(torch.tensor, device=reference.device, dtype=reference.dtype)
        self.register_buffer("mean", like(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", like(list(std)).view(1, -1, 1, 1))
        self.training = model.training

    def normalize(self, images: Tensor) -> Tensor:
        """Return ``(images - mean) / std``, of shape [B, C, H, W].

        Raises:
            InputShapeError: The images have another number of channels than ``mean``.
        """
        channels = self.mean.shape[1]
        if images.ndim != 4 or images.shape[1] != channels:
            raise InputShapeError(
                f"images have shape {list(images.shape)}; the normalisation has {channels} "
                f"channel(s), so lrpguard takes [B, {channels}, H, W]."
            )
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Return the wrapped model's logits for images [B, C, H, W] in [0, 1]."""
        logits: Tensor = self.model(self.normalize(images))
        return logits


def normalized(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> NormalizedModel:
    """Wrap a model that wants normalised input so that it takes pixels in [0, 1].

    See :class:`NormalizedModel`.
    """
    return NormalizedModel(model, mean, std)


def check_images(images: object) -> Tensor:
    """Check a batch of images, and clip rounding errors at the ends of [0, 1].

    Args:
        images: Floating-point tensor [B, C, H, W] with pixels in [0, 1], B >= 1.

    Returns:
        The same images, detached; the very tensor's data where nothing had to be clipped.

    Raises:
        InputTypeError: Not a floating-point tensor.
        InputShapeError: Not four-dimensional, empty, or larger than ``MAX_PIXELS``
            or ``MAX_SIDE``.
        NonFiniteInputError: NaN or infinite pixels.
        InputRangeError: Pixels outside [0, 1] by more than ``PIXEL_TOLERANCE``.
    """
    if not isinstance(images, Tensor):
        raise InputTypeError(
            f"images are a {type(images).__name__}; lrpguard takes a torch.Tensor [B, C, H, W]."
        )
    if not images.is_floating_point():
        mend = " Divide by 255: images.float() / 255." if images.dtype == torch.uint8 else ""
        raise InputTypeError(
            f"images have dtype {images.dtype}; lrpguard takes floating-point pixels in [0, 1]."
            f"{mend}"
        )
    _check_computable(images)
    _check_shape(images)
    images = images.detach()
    low, high = (float(v) for v in torch.aminmax(images))
    if not (low - low == 0 and high - high == 0):  # NaN or infinite: x - x is NaN
        bad = (~torch.isfinite(images)).flatten(1).any(1).nonzero().flatten().tolist()
        raise NonFiniteInputError(
            f"images {bad[:8]} of the batch hold NaN or infinite pixels; lrpguard takes finite "
            "pixels in [0, 1]. Drop or decode them again."
        )
    if low < -PIXEL_TOLERANCE or high > 1 + PIXEL_TOLERANCE:
        raise InputRangeError(
            f"images span [{low:.4g}, {high:.4g}]; lrpguard takes pixels in [0, 1]. {_mend(high)}"
        )
    return images.clamp(0, 1) if low < 0 or high > 1 else images


def _check_computable(images: Tensor) -> None:
    dense = images.layout == torch.strided and images.device.type != "meta"
    if not dense or images.dtype not in FLOATS:
        raise InputTypeError(
            f"images are {images.dtype}, {images.layout}, on {images.device}; lrpguard takes dense "
            "float16, bfloat16, float32 or float64 pixels that are in memory."
        )


def _check_shape(images: Tensor) -> None:
    shape = list(images.shape)
    if images.ndim == 3:
        raise InputShapeError(
            f"images have shape {shape}; lrpguard takes a batch [B, C, H, W]. "
            "Add the batch dimension: images.unsqueeze(0)."
        )
    if images.ndim != 4:
        raise InputShapeError(f"images have shape {shape}; lrpguard takes [B, C, H, W].")
    if images.numel() == 0:
        raise InputShapeError(
            f"images have shape {shape}, which is empty; send at least one image, or skip the call."
        )
    if images.shape[2] * images.shape[3] > MAX_PIXELS:
        raise InputShapeError(
            f"images have shape {shape}; one image may have at most {MAX_PIXELS} pixels. "
            "Resize it to the size that the model was trained on."
        )
    if max(shape[2:]) > MAX_SIDE:
        raise InputShapeError(
            f"images have shape {shape}; no side may be longer than {MAX_SIDE} pixels. "
            "Resize it to the size that the model was trained on."
        )


def _mend(high: float) -> str:
    eight_bit = "Divide 8-bit values by 255. " if 10 < high <= 255 else ""
    return (
        f"{eight_bit}Wrap a model that wants normalised input with "
        "lrpguard.normalized(model, mean, std)."
    )


def check_model(model: object) -> nn.Module:
    """Return the eager module that lrpguard will run, or refuse.

    A module made by ``torch.compile(model)`` gives its original module, with a warning.

    Args:
        model: An eager ``nn.Module`` on one device, in eval mode.

    Raises:
        UnsupportedModelError: Not an eager module: scripted, exported, compiled in part,
            or spread over several devices.
        TrainingModeError: The model, or a part of it, is in train mode.
    """
    if not isinstance(model, nn.Module):
        mend = (
            " An exported program has lost its modules: give the nn.Module it was made from."
            if isinstance(model, torch.export.ExportedProgram)
            else ""
        )
        raise UnsupportedModelError(
            f"model is a {type(model).__name__}; lrpguard wraps an eager torch.nn.Module.{mend}"
        )
    model = eager_module(model)
    roots = (model, model.model if isinstance(model, NormalizedModel) else model)
    for name, module in model.named_modules():
        _check_eager(module, name, is_root=module in roots)
    check_eval(model)
    devices = {str(t.device) for t in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        raise UnsupportedModelError(
            f"the model's parameters lie on {sorted(devices)}; lrpguard runs a model on one "
            "device. Move it with model.to(device)."
        )
    return model


def eager_module(model: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped, with a warning; any other as it is."""
    original = getattr(model, "_orig_mod", None)
    if not isinstance(original, nn.Module):
        return model
    _warn_of_compiled()
    return original


def _warn_of_compiled() -> None:
    warnings.warn(
        "the model is compiled; lrpguard unwraps it and runs the eager original, because compiled "
        "code takes no part in relevance propagation.",
        LrpGuardWarning,
        stacklevel=4,
    )


def check_eval(model: nn.Module) -> None:
    """Refuse a model that is, in whole or in part, in train mode.

    Raises:
        TrainingModeError: Naming the first module in train mode.
    """
    for name, module in model.named_modules():
        if module.training:
            where = f"module '{name}'" if name else "the model"
            raise TrainingModeError(
                f"{where} ({type(module).__name__}) is in train mode; lrpguard explains the "
                "prediction that production serves. Call model.eval() first."
            )


def _check_eager(module: nn.Module, name: str, *, is_root: bool) -> None:
    where = f"module '{name}'" if name else "the model"
    if module._backward_hooks or module._backward_pre_hooks:
        raise UnsupportedModelError(
            f"{where} has a full backward hook, which would stand between the module and its LRP "
            "rule. Remove it before you guard the model, with handle.remove()."
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{where} is a TorchScript module, whose operators lrpguard cannot see. "
            "Give the eager nn.Module it was made from."
        )
    if isinstance(module, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    ):
        raise UnsupportedModelError(
            f"{where} is an exported program of aten operators, without its layers. "
            "Give the eager nn.Module it was made from."
        )
    compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
    if compiled and is_root:
        _warn_of_compiled()
    elif compiled:
        raise UnsupportedModelError(
            f"{where} is compiled inside an eager model. Compile the whole model, "
            "torch.compile(model), which lrpguard unwraps; or guard it before you compile parts."
        )


def stem_channels(model: nn.Module) -> int | None:
    """Return the input channels of the model's first convolution, None where there is none."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return None
