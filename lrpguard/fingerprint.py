"""What a calibration belongs to: the model's architecture, weights and arithmetic."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def model_fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 over the model's modules, their settings, and all weights and buffers.

    Settings are what a module's ``extra_repr`` says. A plain attribute that its forward reads and
    ``extra_repr`` does not say, such as a temperature, is not seen: make it a buffer.

    Args:
        model: Any eager module; the device it lies on does not matter.

    Returns:
        64 hexadecimal digits.
    """
    state = hashlib.sha256()
    for name, module in model.named_modules():
        # Not the Python module's name: a class moved from a script into a package is the same.
        kind = type(module).__qualname__
        state.update(f"{name}\0{kind}\0{module.extra_repr()}\n".encode())
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        state.update(plain.view(torch.uint8).numpy().data if plain.numel() else b"")
    return state.hexdigest()


def model_precision(model: nn.Module) -> str:
    """Return the arithmetic that scores depend on, e.g. ``"float32"`` or ``"float32+tf32"``.

    Either of convolutions and matrix products in TensorFloat-32 counts.

    TensorFloat-32 changes relevance maps by some percent, so a calibration holds only for
    the precision it was made with.
    """
    reference = next((p for p in model.parameters() if p.is_floating_point()), None)
    if reference is None:
        return "float32"
    name = str(reference.dtype).removeprefix("torch.")
    on_cuda = reference.device.type == "cuda"
    return f"{name}+tf32" if on_cuda and name == "float32" and _uses_tf32() else name


def _uses_tf32() -> bool:
    convolution = getattr(torch.backends.cudnn, "conv", None)
    if convolution is None:  # older torch
        return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    matmul = torch.backends.cuda.matmul
    return bool("tf32" in (convolution.fp32_precision, matmul.fp32_precision))
