"""What the OpenAPI description says of each route, beyond what FastAPI finds out itself."""

from __future__ import annotations

from typing import Any

from lrpguard.serving.oip import DTYPES, INPUT_NAME

_STATUS = ["clean", "flagged", "restored", "unknown", "unguarded"]
_REASON = ["overload", "deadline", "guard_failure", "shadow", None]
_LABEL = {"type": ["integer", "null"]}
_CLASS = {"type": ["string", "null"]}
_NUMBER = {"type": ["number", "null"]}


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names}


def _json(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_ERROR = _json(
    _object({name: {"type": "string"} for name in ("error", "code", "request_id")}),
    "Refused: 400 bad input, 403 not exposed, 404 no such model, 408 slow body, 413 too large, 415 "
    "compressed, 422 flagged under the policy reject, 429 overload, 500 failure, 503 not ready, "
    "504 deadline.",
)
_RESPONSES = {"default": _ERROR}

SERVER: dict[str, Any] = {
    "responses": {200: _json(_object({"name": {"type": "string"}}), "About"), **_RESPONSES}
}
LIVE: dict[str, Any] = {
    "responses": {200: _json(_object({"live": {"const": True}}), "Alive"), **_RESPONSES}
}
_READY = _object({"ready": {"type": "boolean"}, "reason": {"type": ["string", "null"]}})
READY: dict[str, Any] = {
    "responses": {200: _json(_READY, "Ready"), 503: _json(_READY, "Not ready"), **_RESPONSES}
}
_TENSOR = {
    "name": {"type": "string"},
    "datatype": {"type": "string"},
    "shape": {"type": "array", "items": {"type": "integer"}},
}
METADATA: dict[str, Any] = {
    "responses": {
        200: _json(
            _object(
                {
                    "name": {"type": "string"},
                    "platform": {"type": "string"},
                    "inputs": {"type": "array", "items": _object(_TENSOR)},
                    "outputs": {"type": "array", "items": _object(_TENSOR)},
                }
            ),
            "Inputs and outputs",
        ),
        **_RESPONSES,
    }
}

_INFER_REQUEST = _object(
    {
        "id": {"type": "string", "maxLength": 256},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": _object(
                {
                    "name": {"const": INPUT_NAME},
                    "datatype": {"enum": list(DTYPES)},
                    "shape": {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 1},
                        "minItems": 4,
                        "maxItems": 4,
                    },
                    "data": {"type": "array", "items": {"type": "number"}},
                }
            ),
        },
        "outputs": {
            "type": "array",
            "items": _object({"name": {"type": "string"}}),
        },
    },
    ["inputs"],
)
INFER: dict[str, Any] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _INFER_REQUEST}},
        }
    },
    "responses": {
        200: _json(
            _object(
                {
                    "model_name": {"type": "string"},
                    "id": {"type": "string"},
                    "outputs": {"type": "array", "items": _object(_TENSOR)},
                }
            ),
            "Outcome of each image",
        ),
        **_RESPONSES,
    },
}

_FILE = {"type": "string", "format": "binary"}
PREDICT: dict[str, Any] = {
    "openapi_extra": {
        "parameters": [
            {"name": "maps", "in": "query", "required": False, "schema": {"type": "boolean"}}
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/png": {"schema": _FILE},
                "image/jpeg": {"schema": _FILE},
                "application/octet-stream": {"schema": _FILE},
                "multipart/form-data": {"schema": _object({"file": _FILE})},
            },
        },
    },
    "responses": {
        200: _json(
            _object(
                {
                    "request_id": {"type": "string"},
                    "label": _LABEL,
                    "class": _CLASS,
                    "logits": {"type": "array", "items": {"type": "number"}},
                    "model_label": {"type": "integer"},
                    "model_class": _CLASS,
                    "flagged": {"type": "boolean"},
                    "restored_label": _LABEL,
                    "restored_class": _CLASS,
                    "status": {"enum": _STATUS},
                    "unguarded": {"type": "boolean"},
                    "reason": {"enum": _REASON},
                    "copies": {"type": ["integer", "null"]},
                    "p_value": _NUMBER,
                    "score": _NUMBER,
                },
                ["request_id", "label", "logits", "flagged", "status", "unguarded"],
            ),
            "Outcome of the image",
        ),
        **_RESPONSES,
    },
}
