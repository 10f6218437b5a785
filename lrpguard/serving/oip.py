"""The Open Inference Protocol, version 2, with its binary tensors.

Source: github.com/kserve/open-inference-protocol; the binary tensor data extension of Triton.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lrpguard.serving.answer import Outcome
from lrpguard.serving.refusal import RefusedError, bad_request

HEADER_LENGTH = "inference-header-content-length"
"""Header that says how much of a body is JSON; the rest is binary tensors."""

DTYPES: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Types in which images may come, little-endian."""

VERSION = "1"
"""The one version of the model that there is."""

INPUT_NAME = "images"

_OUTPUTS: dict[str, tuple[str, str]] = {
    "logits": ("FP32", "<f4"),
    "label": ("INT64", "<i8"),
    "flagged": ("BOOL", "?"),
    "restored_label": ("INT64", "<i8"),
    "status": ("BYTES", "O"),
    "unguarded": ("BOOL", "?"),
    "copies": ("INT64", "<i8"),
    "p_value": ("FP64", "<f8"),
    "score": ("FP64", "<f8"),
}
SCORES = ("p_value", "score")
"""Outputs that are there only where scores are exposed."""


@dataclass(frozen=True, eq=False)
class InferRequest:
    """What a client asks.

    Attributes:
        images: Pixels [B, C, H, W], unchecked.
        id: The client's own name for the request.
        outputs: Outputs asked for, and whether binary; None for all.
        binary: Whether those of which nothing is said are binary.
    """

    images: Tensor
    id: str | None
    outputs: Mapping[str, bool] | None
    binary: bool


def output_names(*, scores: bool) -> tuple[str, ...]:
    """Return the outputs of an answer."""
    return tuple(name for name in _OUTPUTS if scores or name not in SCORES)


def metadata(
    name: str, shape: Sequence[int], classes: int | None, *, scores: bool
) -> dict[str, Any]:
    """Return the model's metadata: its inputs and outputs."""
    return {
        "name": name,
        "platform": "pytorch_lrpguard",
        "versions": [VERSION],
        "inputs": [{"name": INPUT_NAME, "datatype": "FP32", "shape": [-1, *shape]}],
        "outputs": [
            {
                "name": output,
                "datatype": _OUTPUTS[output][0],
                "shape": [-1, classes or -1] if output == "logits" else [-1],
            }
            for output in output_names(scores=scores)
        ],
    }


def parse(
    body: bytes,
    header_length: str | None,
    *,
    image_shape: Sequence[int],
    max_images: int,
    scores: bool,
) -> InferRequest:
    """Read a request.

    Args:
        body: JSON, and binary tensors behind it where ``header_length`` says so.
        header_length: The header ``Inference-Header-Content-Length``.
        image_shape: (C, H, W) of the images that are taken.
        max_images: Most images of a request.
        scores: Whether scores are exposed, and may be asked for.

    Raises:
        RefusedError: 400, saying what is wrong with it.
    """
    text, binary = _divided(body, header_length)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_request("the body is no JSON.") from error
    tensor = _only_input(content)
    shape = _shape(tensor, image_shape, max_images)
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise bad_request(
            f"the input's datatype is not one of {', '.join(DTYPES)}: pixels in [0, 1]."
        )
    parameters = _object(tensor.get("parameters"), "the input's parameters")
    if "binary_data_size" in parameters:
        pixels = _binary(binary, parameters["binary_data_size"], DTYPES[datatype], shape)
    elif binary:
        raise bad_request("there is binary data behind the JSON that no input claims.")
    else:
        pixels = _listed(tensor.get("data"), DTYPES[datatype], shape)
    name = content.get("id")
    if name is not None and not (isinstance(name, str) and len(name) <= 256):
        raise bad_request("the id is no text of at most 256 characters.")
    asked = _object(content.get("parameters"), "the request's parameters")
    return InferRequest(
        torch.from_numpy(pixels),
        name or None,
        _asked_outputs(content.get("outputs"), output_names(scores=scores)),
        asked.get("binary_data_output") is True,
    )


def answer(
    outcomes: Sequence[Outcome],
    request: InferRequest,
    *,
    model: str,
    request_id: str,
    scores: bool,
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how much of it is JSON where binary tensors follow.

    A label that is not known is -1; a p-value or score of an unguarded answer is NaN in binary
    and null in JSON, which has no NaN.
    """
    every = dict.fromkeys(output_names(scores=scores), request.binary)
    asked = every if request.outputs is None else request.outputs
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, is_binary in asked.items():
        values = _values(name, outcomes)
        entry: dict[str, Any] = {
            "name": name,
            "datatype": _OUTPUTS[name][0],
            "shape": list(values.shape),
        }
        if is_binary:
            binary.append(_packed(values))
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = [_plain(value) for value in values.flatten().tolist()]
        outputs.append(entry)
    content = {
        "model_name": model,
        "model_version": "1",
        "id": request.id or request_id,
        "parameters": {"request_id": request_id},
        "outputs": outputs,
    }
    text = json.dumps(content, allow_nan=False).encode()
    return b"".join([text, *binary]), len(text) if binary else None


def _divided(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
        raise bad_request("Inference-Header-Content-Length is no count of bytes.")
    length = int(header_length)
    if length > len(body):
        raise bad_request("Inference-Header-Content-Length is larger than the body.")
    return body[:length], body[length:]


def _only_input(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise bad_request("the body is no JSON object.")
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise bad_request(f'expected one tensor: "inputs": [{{"name": "{INPUT_NAME}", ...}}].')
    if inputs[0].get("name") != INPUT_NAME:
        raise bad_request(f'the input has another name; the model takes "{INPUT_NAME}".')
    return inputs[0]


def _object(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request(f"{what} are no JSON object.")
    return value


def _shape(tensor: Mapping[str, Any], image_shape: Sequence[int], most: int) -> tuple[int, ...]:
    shape = tensor.get("shape")
    wanted = f"[B, {', '.join(str(side) for side in image_shape)}], B from 1 to {most}"
    if not isinstance(shape, list) or not all(type(side) is int for side in shape):
        raise bad_request(f"the input's shape is no list of whole numbers; expected {wanted}.")
    if shape[1:] != list(image_shape) or len(shape) != 4 or not 1 <= shape[0] <= most:
        raise bad_request(f"the input has shape {str(shape)[:80]}; expected {wanted}.")
    return tuple(shape)


def _binary(
    data: bytes, size: Any, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    expected = math.prod(shape) * dtype.itemsize
    if size != expected or type(size) is not int or len(data) != expected:
        raise bad_request(
            f"the binary data has {len(data)} bytes; shape and datatype make {expected}."
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _listed(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if not isinstance(data, list):
        raise bad_request("the input has no data: expected a list of numbers.")
    try:
        values = np.asarray(data)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise bad_request("the input's data are no regular list of numbers.") from error
    if values.dtype.kind not in "fiu":
        raise bad_request("the input's data are not all numbers.")
    if values.size != math.prod(shape):
        raise bad_request(
            f"the input has {values.size} values; its shape {list(shape)} another number."
        )
    with np.errstate(over="ignore"):  # becomes infinite, which is refused as such
        return values.astype(dtype.newbyteorder("=")).reshape(shape)


def _asked_outputs(asked: Any, names: Sequence[str]) -> dict[str, bool] | None:
    if asked is None:
        return None
    if not isinstance(asked, list) or len(asked) > len(_OUTPUTS):
        raise bad_request("the outputs are no list of at most one entry an output.")
    found: dict[str, bool] = {}
    for entry in asked:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise bad_request('an output is not of the form {"name": ...}.')
        if entry["name"] not in names:
            raise bad_request(f"there is no such output; there are {', '.join(names)}.")
        parameters = _object(entry.get("parameters"), "an output's parameters")
        found[entry["name"]] = parameters.get("binary_data") is True
    return found or None


def _values(name: str, outcomes: Sequence[Outcome]) -> npt.NDArray[Any]:
    read = [getattr(outcome, name) for outcome in outcomes]
    dtype = _OUTPUTS[name][1]
    if name in SCORES:
        read = [math.nan if value is None else value for value in read]
    elif dtype == "<i8":
        read = [-1 if value is None else value for value in read]
    return np.array(read, dtype=dtype)


def _packed(values: npt.NDArray[Any]) -> bytes:
    if values.dtype != object:
        return values.tobytes()
    texts = [str(value).encode() for value in values]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refused(error: RefusedError, request_id: str) -> dict[str, Any]:
    """Return the body of a refusal, the same on every route."""
    return {"error": error.message, "code": error.code, "request_id": request_id}
