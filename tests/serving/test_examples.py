"""docs/examples: what stands there runs, and names what there is."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lrpguard import Guard
from lrpguard.serving.metrics import Metrics
from tests.serving.conftest import MODEL, Files, running, small_config
from tests.serving.models import SPEC

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
BESIDE = "scripts/test installs it beside .venv, and runs this file there"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_litserve_answers_as_the_guard(
    files: Files, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("litserve", reason=BESIDE)
    monkeypatch.setenv("MODEL", SPEC)
    monkeypatch.setenv("CALIBRATION", str(files.calibration))
    api = load("litserve_api").GuardedAPI()
    api.setup("cpu")
    image = api.decode_request({"image": files.odd[0].tolist()})
    answer = api.encode_response(api.predict(image))
    assert answer["flagged"] is True
    assert answer["label"] == int(guard(files.odd).label[0])
    assert "p_value" not in answer


def test_mlflow_answers_as_the_guard(files: Files, guard: Guard, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow.pyfunc", reason=BESIDE)
    model = load("mlflow_model").GuardedModel(SPEC)
    mlflow.save_model(
        str(tmp_path / "model"),
        python_model=model,
        artifacts={"calibration": str(files.calibration)},
        pip_requirements=[],
    )
    served: Any = mlflow.load_model(str(tmp_path / "model"))
    answers = served.predict(files.odd.numpy())
    assert answers == guard(files.odd).to_dicts()


@pytest.mark.parametrize("binary", [True, False])
def test_kserves_client_asks_the_service(files: Files, guard: Guard, binary: bool) -> None:
    kserve = pytest.importorskip("kserve", reason=BESIDE)
    images = torch.cat([files.clean[:2], files.odd])
    sent = kserve.InferInput("images", list(images.shape), "FP32")
    sent.set_data_from_numpy(images.numpy(), binary_data=binary)

    async def conversation(url: str) -> Any:
        config = kserve.RESTConfig(protocol="v2", timeout=60)
        async with kserve.InferenceRESTClient(config) as client:
            assert await client.is_server_live(url)
            assert await client.is_server_ready(url)
            assert await client.is_model_ready(url, MODEL)
            assert not await client.is_model_ready(url, "another")
            asked = kserve.InferRequest(MODEL, [sent], request_id="7")
            return await client.infer(url, asked, model_name=MODEL)

    with running(small_config(files)) as url:
        answer = asyncio.run(conversation(url))
    expected = guard(images)
    told = {output.name: output.as_numpy().tolist() for output in answer.outputs}
    assert answer.id == "7"
    assert told["logits"] == expected.logits.tolist()
    for name in ("label", "flagged", "restored_label"):
        assert told[name] == getattr(expected, name).tolist()


def test_kserve_knows_all_that_its_manifest_says() -> None:
    kserve = pytest.importorskip("kserve", reason=BESIDE)
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load((EXAMPLES / "kserve.yaml").read_text())
    assert set(manifest["spec"]) <= set(kserve.V1beta1InferenceServiceSpec.attribute_map.values())
    known = set(kserve.V1beta1PredictorSpec.attribute_map.values())
    assert set(manifest["spec"]["predictor"]) <= known


def test_the_dashboard_asks_for_metrics_that_there_are(guard: Guard) -> None:
    pytest.importorskip("prometheus_client")
    assert guard.calibration is not None
    metrics = Metrics("m")
    metrics.calibrated(guard.calibration, "0" * 16)
    metrics.drifted("scores", 1.0)
    metrics.alerted("drift")
    metrics.judged("clean", 4, 1.0)
    metrics.took("guard", 0.1)
    there = set(re.findall(r"^(lrpguard_\w+)", metrics.exposition()[0].decode(), re.MULTILINE))
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"lrpguard_\w+", target["expr"])
    }
    assert len(asked) >= 9
    assert asked <= there


def test_the_manifests_probe_routes_that_there_are() -> None:
    yaml = pytest.importorskip("yaml")
    for name in ("kubernetes.yaml", "kserve.yaml"):
        text = (EXAMPLES / name).read_text()
        assert list(yaml.safe_load_all(text))
        assert set(re.findall(r"path: (/v2\S+?)[,}]", text)) <= {
            "/v2/health/live",
            "/v2/health/ready",
        }
    deployment, *_ = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
    assert container["resources"]["limits"]
