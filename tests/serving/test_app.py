"""The routes, over real HTTP: answers equal the library's, and bad input gets a named error."""

from __future__ import annotations

import http.client
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lrpguard import Guard
from tests.serving.conftest import MODEL, Files, png, running, small_config

httpx = pytest.importorskip("httpx")

BODY_BYTES = 200_000
PIXELS = 100_000


@pytest.fixture(scope="module")
def url(files: Files) -> Iterator[str]:
    limits = (f"limits.body_bytes={BODY_BYTES}", f"limits.pixels={PIXELS}", "limits.images=4")
    with running(small_config(files, "answer.expose_scores=true", *limits)) as address:
        yield address


@pytest.fixture(scope="module")
def quiet(files: Files) -> Iterator[str]:
    """A service that tells no scores, as is the default."""
    with running(small_config(files, "answer.page=false", "answer.metrics=false")) as address:
        yield address


def tensor(images: torch.Tensor, **changes: Any) -> dict[str, Any]:
    entry = {
        "name": "images",
        "datatype": "FP32",
        "shape": list(images.shape),
        "data": images.flatten().tolist(),
    }
    return {"inputs": [entry | changes]}


def infer(url: str, body: Any) -> Any:
    return httpx.post(f"{url}/v2/models/{MODEL}/infer", json=body)


def outputs(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


class TestPredict:
    @pytest.mark.parametrize("kind", ["body", "form"])
    def test_the_answer_is_the_librarys(
        self, url: str, files: Files, guard: Guard, kind: str
    ) -> None:
        for image in (files.clean[0], files.odd[0]):
            expected = guard(image[None])
            content = png(image)
            sent = {"content": content} if kind == "body" else {"files": {"file": content}}
            answer = httpx.post(f"{url}/predict", **sent).json()
            assert answer["logits"] == expected.logits[0].tolist()
            assert answer["label"] == int(expected.label[0])
            assert answer["flagged"] == bool(expected.flagged[0])
            assert answer["p_value"] == float(expected.p_value[0])
            assert answer["score"] == float(expected.score[0])
            assert answer["status"] == expected.status[0]
            assert answer["unguarded"] is False

    def test_maps_are_the_librarys(self, url: str, files: Files, guard: Guard) -> None:
        import base64

        answer = httpx.post(f"{url}/predict?maps=true", content=png(files.odd[0])).json()
        expected = guard(files.odd, maps=True)
        for name in ("relevance", "relevance_variance"):
            sent = np.frombuffer(base64.b64decode(answer[name]), "<f4").reshape(8, 8)
            assert np.array_equal(sent, getattr(expected, name)[0].numpy())
        changed = np.frombuffer(base64.b64decode(answer["changed_pixels"]), np.uint8)
        assert expected.changed_pixels is not None
        assert np.array_equal(changed.reshape(8, 8), expected.changed_pixels[0].numpy())
        assert sum(answer["calibration"]["counts"]) == answer["calibration"]["n"]

    @pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "BMP", "PNG"])
    def test_a_larger_image_of_each_format_is_brought_to_size(self, url: str, form: str) -> None:
        file = io.BytesIO()
        Image.new("RGB", (40, 30), "grey").save(file, form)
        assert httpx.post(f"{url}/predict", content=file.getvalue()).status_code == 200

    def test_the_request_id_is_the_clients_where_it_is_harmless(
        self, url: str, files: Files
    ) -> None:
        def named(name: str) -> str:
            answer = httpx.post(
                f"{url}/predict", content=png(files.clean[0]), headers={"X-Request-ID": name}
            )
            assert answer.headers["x-request-id"] == answer.json()["request_id"]
            return str(answer.json()["request_id"])

        assert named("order-66.a_b") == "order-66.a_b"
        assert named('"}<script>') != '"}<script>'
        assert named("x" * 65) != "x" * 65


def bomb(side: int) -> bytes:
    """Return a PNG of side x side zeros: tiny as a file, huge as an image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(min(side * (side + 1), 4_000_000)), 9)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def text_bomb() -> bytes:
    """Return a PNG whose text chunk inflates to 64 MB."""
    image = io.BytesIO()
    Image.new("L", (8, 8)).save(image, "PNG")
    data = b"k\0\0" + zlib.compress(bytes(64_000_000), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + data))
    whole = image.getvalue()
    return whole[:33] + chunk + whole[33:]


class TestBadFiles:
    @pytest.mark.parametrize(
        ("content", "status", "words"),
        [
            (b"", 400, "empty"),
            (b"no image", 400, "no image of these formats"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "no image of these formats"),
            (b"PK\x03\x04" + bytes(100), 400, "no image of these formats"),
            (bomb(400), 413, "the limit is 100000"),
            (bomb(50_000), 413, "far more"),
            (text_bomb(), 400, "damaged"),
            (b"x" * (BODY_BYTES + 1), 413, "larger than the limit"),
        ],
        ids=["empty", "text", "svg", "zip", "bomb", "huge bomb", "text bomb", "large"],
    )
    def test_each_gets_a_named_error(
        self, url: str, content: bytes, status: int, words: str
    ) -> None:
        answer = httpx.post(f"{url}/predict", content=content)
        assert answer.status_code == status
        assert words in answer.json()["error"]
        assert set(answer.json()) == {"error", "code", "request_id"}

    def test_a_cut_off_file_is_damaged(self, url: str, files: Files) -> None:
        answer = httpx.post(f"{url}/predict", content=png(files.clean[0])[:-30])
        assert answer.status_code == 400
        assert "damaged" in answer.json()["error"]

    def test_a_body_without_announced_length_is_limited_too(self, url: str) -> None:
        def pieces() -> Iterator[bytes]:
            for _ in range(40):
                yield bytes(10_000)

        answer = httpx.post(f"{url}/predict", content=pieces())
        assert answer.status_code == 413

    def test_a_compressed_body_is_refused(self, url: str) -> None:
        content = zlib.compress(bytes(10_000_000))
        answer = httpx.post(f"{url}/predict", content=content, headers={"content-encoding": "gzip"})
        assert answer.status_code == 415

    @pytest.mark.parametrize(
        "form",
        [{"files": {"other": b"x"}}, {"data": {"file": "text"}}, {"files": [("file", b"x")] * 3}],
        ids=["other field", "no file", "several"],
    )
    def test_a_form_without_its_file_is_refused(self, url: str, form: Any) -> None:
        if "data" in form:
            form["headers"] = {"content-type": "multipart/form-data; boundary=x"}
        answer = httpx.post(f"{url}/predict", **form)
        assert answer.status_code == 400
        assert answer.json()["code"] == "bad_input"

    def test_a_malformed_form_is_told_why(self, url: str) -> None:
        answer = httpx.post(f"{url}/predict", files=[("file", b"x")] * 3)
        assert "malformed: Too many files" in answer.json()["error"]


class TestInfer:
    def test_the_answer_is_the_librarys(self, url: str, files: Files, guard: Guard) -> None:
        images = torch.cat([files.clean[:2], files.odd])
        expected = guard(images)
        found = outputs(infer(url, tensor(images) | {"id": "mine"}))
        assert found["logits"]["shape"] == [3, 10]
        assert found["logits"]["data"] == expected.logits.flatten().tolist()
        assert found["label"]["data"] == expected.label.tolist()
        assert found["flagged"]["data"] == expected.flagged.tolist() == [False, False, True]
        assert found["p_value"]["data"] == expected.p_value.tolist()
        assert found["restored_label"]["data"] == expected.restored_label.tolist()
        assert found["status"]["data"] == list(expected.status)
        assert found["unguarded"]["data"] == [False] * 3

    def test_nested_data_are_taken_too(self, url: str, files: Files) -> None:
        flat = infer(url, tensor(files.clean[:2]))
        nested = infer(url, tensor(files.clean[:2], data=files.clean[:2].tolist()))
        assert outputs(flat) == outputs(nested)

    def test_only_what_is_asked_for_is_answered(self, url: str, files: Files) -> None:
        body = tensor(files.clean[:1]) | {"outputs": [{"name": "label"}]}
        assert set(outputs(infer(url, body))) == {"label"}

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"name": "pixels"}, "another name"),
            ({"datatype": "UINT8"}, "datatype"),
            ({"datatype": ["FP32"]}, "datatype"),
            ({"shape": [1, 3, 8, 8]}, "expected [B, 1, 8, 8], B from 1 to 4"),
            ({"shape": [5, 1, 8, 8]}, "B from 1 to 4"),
            ({"shape": [0, 1, 8, 8]}, "B from 1 to 4"),
            ({"shape": [True, 1, 8, 8]}, "whole numbers"),
            ({"shape": [1 << 70, 1, 8, 8]}, "B from 1 to 4"),
            ({"data": [0.5] * 63}, "63 values"),
            ({"data": [2.0] * 64}, "pixels in [0, 1]"),
            ({"data": ["0.5"] * 64}, "not all numbers"),
            ({"data": [True] * 64}, "not all numbers"),
            ({"data": [[0.5], [0.5, 0.5]]}, "no regular list"),
            ({"data": [10**400] * 64}, "numbers"),
            ({"data": None}, "no data"),
            ({"parameters": []}, "no JSON object"),
            ({"parameters": {"binary_data_size": 256}}, "binary data has 0 bytes"),
        ],
    )
    def test_a_wrong_tensor_gets_a_named_error(
        self, url: str, files: Files, changes: dict[str, Any], words: str
    ) -> None:
        answer = infer(url, tensor(files.clean[:1], **changes))
        assert answer.status_code == 400
        assert words in answer.json()["error"]

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"[]", b"null", b'{"inputs": {}}', b'{"inputs": [1]}', b"[" * 100_000, b"\xff"],
    )
    def test_a_body_that_is_no_request_is_refused(self, url: str, body: bytes) -> None:
        answer = httpx.post(f"{url}/v2/models/{MODEL}/infer", content=body)
        assert answer.status_code == 400
        assert answer.json()["code"] == "bad_input"

    def test_json_with_nan_is_refused(self, url: str) -> None:
        data = ", ".join(["NaN"] * 64)
        body = (
            f'{{"inputs": [{{"name": "images", "datatype": "FP32", "shape": [1, 1, 8, 8], '
            f'"data": [{data}]}}]}}'
        )
        answer = httpx.post(f"{url}/v2/models/{MODEL}/infer", content=body)
        assert answer.status_code == 400
        assert "NaN" in answer.json()["error"]

    @pytest.mark.parametrize("length", ["-1", "99999", "x", "9" * 20, "²"])
    def test_a_wrong_length_of_the_json_is_refused(self, url: str, length: str) -> None:
        answer = httpx.post(
            f"{url}/v2/models/{MODEL}/infer",
            content=b"{}",
            headers={"inference-header-content-length": length.encode()},
        )
        assert answer.status_code == 400


class TestTriton:
    """Triton's own client, unchanged."""

    @pytest.fixture
    def client(self, url: str) -> Iterator[Any]:
        triton = pytest.importorskip("tritonclient.http")
        with triton.InferenceServerClient(url.removeprefix("http://")) as client:
            yield client
        client.close = lambda: None  # its __del__ closes again, in whatever thread collects it

    def test_health_and_metadata(self, client: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.get_server_metadata()["name"] == "lrpguard"
        metadata = client.get_model_metadata(MODEL)
        assert metadata["inputs"][0]["shape"] == [-1, 1, 8, 8]

    @pytest.mark.parametrize("binary", [True, False])
    def test_infer(self, client: Any, files: Files, guard: Guard, binary: bool) -> None:
        triton = pytest.importorskip("tritonclient.http")
        images = torch.cat([files.clean[:2], files.odd])
        sent = triton.InferInput("images", list(images.shape), "FP32")
        sent.set_data_from_numpy(images.numpy(), binary_data=binary)
        asked = [
            triton.InferRequestedOutput(name, binary_data=binary)
            for name in ("logits", "label", "flagged", "p_value", "status", "restored_label")
        ]
        answer = client.infer(MODEL, [sent], outputs=asked, request_id="7")
        expected = guard(images)
        for name in ("logits", "label", "flagged", "p_value", "restored_label"):
            assert np.array_equal(answer.as_numpy(name), getattr(expected, name).numpy())
        statuses = [getattr(s, "decode", lambda s=s: s)() for s in answer.as_numpy("status")]
        assert statuses == list(expected.status)
        assert answer.get_response()["id"] == "7"

    def test_all_outputs_come_where_none_is_named(self, client: Any, files: Files) -> None:
        triton = pytest.importorskip("tritonclient.http")
        sent = triton.InferInput("images", [1, 1, 8, 8], "FP32")
        sent.set_data_from_numpy(files.clean[:1].numpy())
        answer = client.infer(MODEL, [sent])
        assert answer.as_numpy("logits").shape == (1, 10)
        assert answer.as_numpy("unguarded").tolist() == [False]

    def test_an_error_is_one_for_the_client(self, client: Any) -> None:
        triton = pytest.importorskip("tritonclient.http")
        exception = pytest.importorskip("tritonclient.utils").InferenceServerException
        sent = triton.InferInput("images", [1, 1, 4, 4], "FP32")
        sent.set_data_from_numpy(np.zeros((1, 1, 4, 4), np.float32))
        with pytest.raises(exception, match="expected \\[B, 1, 8, 8\\]"):
            client.infer(MODEL, [sent])


class TestOtherRoutes:
    @pytest.mark.parametrize(
        "name",
        ["other", "..%2F..%2Fetc%2Fpasswd", "%2e%2e", "..", "digits%00", "digits/../x", "%c0%ae"],
    )
    def test_no_other_model_is_found(self, url: str, name: str) -> None:
        for route in ("", "/ready", "/infer"):
            connection = http.client.HTTPConnection(url.removeprefix("http://"))  # path as it is
            method = "POST" if route == "/infer" else "GET"
            connection.request(method, f"/v2/models/{name}{route}", body=b"{}")
            answer = connection.getresponse()
            assert answer.status in (404, 405)
            assert b"passwd" not in answer.read()
            connection.close()

    def test_the_one_version_is_the_model(self, url: str, files: Files) -> None:
        model = f"{url}/v2/models/{MODEL}"
        metadata = httpx.get(model).json()
        (version,) = metadata["versions"]
        assert httpx.get(f"{model}/versions/{version}").json() == metadata
        assert httpx.get(f"{model}/versions/{version}/ready").json()["ready"] is True
        body = tensor(files.clean[:1])
        answer = httpx.post(f"{model}/versions/{version}/infer", json=body)
        assert outputs(answer) == outputs(infer(url, body))

    @pytest.mark.parametrize("route", ["", "/ready", "/infer"])
    def test_another_version_is_refused_with_those_there_are(self, url: str, route: str) -> None:
        method = "POST" if route == "/infer" else "GET"
        answer = httpx.request(method, f"{url}/v2/models/{MODEL}/versions/2{route}")
        assert (answer.status_code, answer.json()["code"]) == (404, "no_version")
        assert "there is: 1" in answer.json()["error"]

    def test_every_refusal_has_one_form(self, url: str) -> None:
        for method, path in (("GET", "/nowhere"), ("GET", "/predict"), ("POST", "/v2")):
            answer = httpx.request(method, url + path)
            assert answer.status_code in (404, 405)
            assert set(answer.json()) == {"error", "code", "request_id"}
            assert answer.headers["x-request-id"] == answer.json()["request_id"]

    def test_metrics_tell_the_calibration_and_the_outcomes(self, url: str, files: Files) -> None:
        httpx.post(f"{url}/predict", content=png(files.odd[0]))
        text = httpx.get(f"{url}/metrics").text
        flagged = [
            line
            for line in text.splitlines()
            if line.startswith("lrpguard_requests_total")
            and ('"flagged"' in line or '"restored"' in line)
        ]
        assert sum(float(line.split()[-1]) for line in flagged) >= 1
        assert "lrpguard_calibration_info{" in text
        assert 'lrpguard_stage_duration_seconds_bucket{le="0.001",stage="guard"}' in text
        assert "lrpguard_score_bucket" in text


class TestWithheld:
    """The default: no p-values, scores and maps for clients."""

    def test_no_score_is_told(self, quiet: str, files: Files) -> None:
        answer = httpx.post(f"{quiet}/predict", content=png(files.clean[0])).json()
        assert not {"p_value", "score"} & set(answer)
        assert not {"p_value", "score"} & set(outputs(infer(quiet, tensor(files.clean[:1]))))
        names = [o["name"] for o in httpx.get(f"{quiet}/v2/models/{MODEL}").json()["outputs"]]
        assert not {"p_value", "score"} & set(names)

    def test_asking_for_them_is_refused(self, quiet: str, files: Files) -> None:
        asked = tensor(files.clean[:1]) | {"outputs": [{"name": "p_value"}]}
        assert infer(quiet, asked).status_code == 400
        answer = httpx.post(f"{quiet}/predict?maps=true", content=png(files.clean[0]))
        assert answer.status_code == 403

    def test_page_and_metrics_can_be_left_out(self, quiet: str) -> None:
        assert httpx.get(f"{quiet}/").status_code == 404
        assert httpx.get(f"{quiet}/metrics").status_code == 404
