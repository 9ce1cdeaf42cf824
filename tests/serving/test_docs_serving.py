"""The code in docs/serving.md runs as it stands there."""

import base64
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy
import pytest
import torch
from fastapi.testclient import TestClient
from support import red_or_blue, triton
from support.documents import DOCS, blocks, python_blocks
from support.service import BLUE, RED, file, free_port

from gradcam_fast.serving import protocol  # noqa: F401, its routes are named in the table

APPLICATION, ON_RAY, LITSERVE, BENTOML, TRITON = python_blocks("serving.md")


def test_the_application_is_one():
    names = {}
    exec(APPLICATION, names)
    with TestClient(names["app"]) as client:
        response = client.post("/v1/models/resnet18:explain", content=RED, headers={"content-type": "image/png"})
        assert response.json()["explanations"][0]["layer"] == "layer4"


@pytest.mark.slow
def test_the_deployment_is_one_of_ray():
    pytest.importorskip("ray")
    names = {}
    exec(ON_RAY, names)
    assert type(names["application"]).__name__ == "Application"


def test_the_api_of_litserve_explains():
    pytest.importorskip("litserve", exc_type=ImportError)
    names = {}
    exec(LITSERVE, names)
    api = names["Explain"](max_batch_size=4)
    api.setup("cpu")
    request = {"image": base64.b64encode(file(red_or_blue.photo("red"))).decode()}
    outputs = api.unbatch(api.predict(api.batch([api.decode_request(request)] * 2)))
    answers = [api.encode_response(output) for output in outputs]
    assert len(answers) == 2 and answers[0] == answers[1] and len(answers[0]["map"]) == 7


@pytest.mark.slow
def test_the_service_of_bentoml_explains_over_http(tmp_path):
    pytest.importorskip("bentoml", reason="BentoML is not installed; pip install '.[recipes]'")
    # The network has no weights there, so that nothing is downloaded; here both processes draw the same.
    seeded = f"import torch\n\ntorch.manual_seed(0)\n{BENTOML}"
    (tmp_path / "service.py").write_text(seeded)
    names = {"__name__": "service"}
    exec(compile(seeded, tmp_path / "service.py", "exec"), names)
    (alone,) = names["Explain"].inner().explain([red_or_blue.photo("red")])
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", "service:Explain", "--port", str(port)]
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path / "home"), "BENTOML_DO_NOT_TRACK": "true"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        try:
            until_ready(f"http://127.0.0.1:{port}/readyz", server, tmp_path / "log")
            files = [("images", (f"{name}.png", data, "image/png")) for name, data in (("red", RED), ("blue", BLUE))]
            response = httpx.post(f"http://127.0.0.1:{port}/explain", files=files, timeout=60)
        finally:
            server.terminate()
            server.wait(30)
    assert response.status_code == 200, response.text
    red, blue = response.json()
    assert red["class"] == alone["class"] and numpy.shape(blue["map"]) == (7, 7)
    numpy.testing.assert_allclose(red["map"], alone["map"], atol=1e-4)  # beside another photo it may round otherwise
    assert numpy.abs(numpy.subtract(red["map"], blue["map"])).max() > 0.01


def until_ready(address, server, log, seconds=120):
    deadline = time.monotonic() + seconds
    while True:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            if httpx.get(address).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)


@pytest.fixture
def triton_model(monkeypatch):
    """The model of Triton's recipe, and its outputs by the configuration: (name, type, shape of one photo)."""
    triton.install(monkeypatch)
    (configuration,) = [block.code for block in blocks("docs/serving.md") if 'backend: "python"' in block.code]
    described = configuration.partition("output")[2]
    outputs = re.findall(r'name: "(\w+)", data_type: (\w+), dims: \[ ([\d, ]+) \]', described)
    names = {}
    exec(TRITON, names)
    model = names["TritonPythonModel"]()
    model.initialize({"model_instance_kind": "CPU", "model_instance_device_id": "0"})
    return model, [(name, of_type, tuple(map(int, dims.split(",")))) for name, of_type, dims in outputs]


def test_the_model_of_triton_explains_the_photos_of_several_requests_together(triton_model):
    model, outputs = triton_model
    batches, explainer = [], model.explainer
    model.explainer = lambda images: batches.append(len(images)) or explainer(images)
    two, one = model.execute([triton.photos(RED, BLUE), triton.photos(BLUE)])
    assert batches == [3]
    for response, count in ((two, 2), (one, 1)):
        assert not response.has_error()
        found = [(tensor.name(), tensor.as_numpy()) for tensor in response.output_tensors()]
        assert [name for name, _ in found] == [name for name, _, _ in outputs]
        for (_, array), (_, of_type, shape) in zip(found, outputs, strict=True):
            assert array.shape == (count, *shape)
            assert array.dtype == {"TYPE_INT64": numpy.int64, "TYPE_FP32": numpy.float32}[of_type]
    images = torch.cat([model.preprocess(red_or_blue.photo(*seen)).images for seen in (("red",), ("blue", (6, 0)))])
    expected = explainer(images)
    numpy.testing.assert_array_equal(two.output_tensors()[0].as_numpy()[:, 0], expected.target)
    numpy.testing.assert_allclose(two.output_tensors()[1].as_numpy(), expected.heatmap, atol=1e-4)
    numpy.testing.assert_allclose(one.output_tensors()[1].as_numpy()[0], expected.heatmap[1], atol=1e-4)


def test_a_photo_that_triton_s_model_cannot_read_fails_its_own_request_only(triton_model):
    model, _ = triton_model
    bad, good = model.execute([triton.photos(RED, b"no photo"), triton.photos(RED)])
    assert bad.has_error() and bad.error().message() == "photo: not a photo in a format that Pillow reads"
    assert not good.has_error() and len(good.output_tensors()) == 2
    (alone,) = model.execute([triton.photos(b"")])
    assert alone.has_error()


def test_the_table_names_the_addresses_that_there_are():
    names = {}
    exec(APPLICATION, names)
    text = (DOCS / "serving.md").read_text()
    for path in names["app"].openapi()["paths"]:
        shown = path.replace("{model}", "M")
        assert shown in text or shown.removeprefix("/v1/models/M") in text or shown == "/v2/models/M/ready", path


def test_the_picture_is_there():
    assert Path(DOCS, "serving-page.jpg").stat().st_size < 100_000
