"""Malformed bodies by the thousand: each is an answer or a named refusal, never a failure."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lrpguard.loading import Preprocessing
from lrpguard.serving import oip
from lrpguard.serving.chain import records
from lrpguard.serving.decode import decode_image
from lrpguard.serving.refusal import RefusedError
from tests.serving.conftest import MODEL, Files, png, running, small_config

SHAPE = (1, 2, 2)
MANY = settings(
    max_examples=250,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NUMBERS = st.lists(st.floats(0, 1), min_size=4, max_size=4)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.just("images") | ANY_JSON,
        "datatype": st.sampled_from(["FP16", "FP32", "FP64", "INT8", "BYTES"]) | ANY_JSON,
        "shape": st.just([1, *SHAPE]) | st.lists(st.integers(-9, 9), max_size=5) | ANY_JSON,
    },
    optional={"data": NUMBERS | ANY_JSON, "parameters": ANY_JSON},
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, min_size=1, max_size=2) | ANY_JSON},
    optional={"id": ANY_JSON, "outputs": ANY_JSON, "parameters": ANY_JSON},
)


def parsed(body: bytes, length: str | None) -> oip.InferRequest | None:
    """Parse a body; a refusal must be one of the client's faults, and tell no inside."""
    found, refusal = None, None
    try:
        found = oip.parse(body, length, image_shape=SHAPE, max_images=3, scores=False)
    except RefusedError as error:
        refusal = error
    assert refusal is None or (refusal.status == 400 and len(refusal.message) < 400)
    return found


@MANY
@given(REQUEST, st.none() | st.text(max_size=6))
def test_any_request_is_parsed_or_refused(request: Any, length: str | None) -> None:
    found = parsed(json.dumps(request).encode(), length)
    if found is not None:
        assert found.images.shape[1:] == SHAPE


@MANY
@given(st.binary(max_size=200), st.none() | st.integers(0, 200).map(str))
def test_any_bytes_are_parsed_or_refused(body: bytes, length: str | None) -> None:
    parsed(body, length)


@MANY
@given(st.binary(min_size=0, max_size=40), st.integers(0, 64), st.sampled_from(["FP16", "FP32"]))
def test_any_binary_tensor_is_parsed_or_refused(data: bytes, size: int, datatype: str) -> None:
    entry = {
        "name": "images",
        "datatype": datatype,
        "shape": [1, *SHAPE],
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [entry]}).encode()
    found = parsed(head + data, str(len(head)))
    whole = 4 * oip.DTYPES[datatype].itemsize
    assert (found is not None) == (len(data) == size == whole)


def picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(file, form)
    return file.getvalue()


PICTURES = [picture(form) for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP")]


@MANY
@given(
    st.sampled_from(PICTURES),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    st.floats(0, 1),
)
def test_any_damaged_picture_is_decoded_or_refused(
    whole: bytes, changes: list[tuple[float, int]], cut: float
) -> None:
    content = bytearray(whole)
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    content = content[: len(content) if cut > 0.5 else int(2 * cut * len(content))]
    image = torch.zeros(3, 8, 8)
    refusal = None
    try:
        image = decode_image(bytes(content), Preprocessing(image_size=(8, 8)), max_pixels=10_000)
    except RefusedError as error:
        refusal = error
    assert refusal is None or (refusal.status in (400, 413) and "0x" not in refusal.message)
    assert image.shape == (3, 8, 8)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


def mutations(count: int) -> Iterator[bytes]:
    """Yield damaged requests of one digit: pieces cut out, doubled, put in."""
    dice = random.Random(0)
    tensor = {"name": "images", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}
    whole = json.dumps({"id": "x", "inputs": [tensor], "outputs": [{"name": "label"}]}).encode()
    bits = (b'"', b"[", b"]", b"{", b"}", b"null", b"-1", b"1e999", b"\xff", b"\\u0000", b"NaN")
    for _ in range(count):
        body = whole
        for _ in range(dice.randint(1, 4)):
            start = dice.randrange(len(body) + 1)
            end = min(len(body), start + dice.choice((0, 1, 1, 5, 40)))
            body = body[:start] + dice.choice(bits) * dice.randint(0, 2) + body[end:]
        yield body


def test_ten_thousand_damaged_requests_leave_the_service_well(files: Files, tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    seen: Counter[int] = Counter()
    with (
        running(small_config(files, f"audit.folder={tmp_path / 'audit'}")) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        for body in mutations(10_000):
            answer = client.post(f"/v2/models/{MODEL}/infer", content=body)
            seen[answer.status_code] += 1
            assert answer.status_code in (200, 400), (body, answer.text)
            assert len(answer.content) < 2000
            assert b"Traceback" not in answer.content
        assert client.get("/v2/health/ready").status_code == 200
        whole = client.post("/predict", content=png(files.clean[0]))
        assert whole.json()["status"] == "clean"
    assert seen[400] > 9_000
    # Nothing is judged whose answer is refused.
    assert sum(1 for _ in records(tmp_path / "audit", key=b"")) == seen[200] + 1


class TestOpenApi:
    """Requests that schemathesis makes from our own description of the service."""

    @pytest.fixture(scope="class", name="url")
    @staticmethod
    def service(files: Files) -> Iterator[str]:
        with running(small_config(files, "answer.expose_scores=true")) as address:
            yield address

    def test_every_answer_is_as_described(self, url: str) -> None:
        schemathesis = pytest.importorskip("schemathesis")
        from schemathesis.specs.openapi.checks import positive_data_acceptance

        requests = pytest.importorskip("requests")
        description = requests.get(f"{url}/openapi.json").json()
        schema = schemathesis.openapi.from_dict(description)
        checked = []
        for result in schema.get_all_operations():
            operation = result.ok()
            strategy = (
                operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
                | operation.as_strategy()
            )

            @settings(
                max_examples=15,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            @given(strategy)
            def check(case: Any) -> None:
                if case.path_parameters:
                    case.path_parameters["model"] = MODEL
                answer = case.call(base_url=url)
                assert answer.status_code < 500, answer.text
                assert "Traceback" not in answer.text
                # A schema cannot say how shape and data belong together, nor what a picture is.
                case.validate_response(answer, excluded_checks=[positive_data_acceptance])
                checked.append(answer.status_code)

            check()
        assert len(checked) > 60
