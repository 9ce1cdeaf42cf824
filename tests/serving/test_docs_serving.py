"""The code in docs/serving.md runs as it stands there."""

import base64
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from support.documents import DOCS, python_blocks
from support.service import RED, file

from gradcam_fast.serving import protocol  # noqa: F401, its routes are named in the table

APPLICATION, ON_RAY, LITSERVE = python_blocks("serving.md")


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
    from support import red_or_blue

    request = {"image": base64.b64encode(file(red_or_blue.photo("red"))).decode()}
    outputs = api.unbatch(api.predict(api.batch([api.decode_request(request)] * 2)))
    answers = [api.encode_response(output) for output in outputs]
    assert len(answers) == 2 and answers[0] == answers[1] and len(answers[0]["map"]) == 7


def test_the_table_names_the_addresses_that_there_are():
    names = {}
    exec(APPLICATION, names)
    text = (DOCS / "serving.md").read_text()
    for path in names["app"].openapi()["paths"]:
        shown = path.replace("{model}", "M")
        assert shown in text or shown.removeprefix("/v1/models/M") in text or shown == "/v2/models/M/ready", path


def test_the_picture_is_there():
    assert Path(DOCS, "serving-page.jpg").stat().st_size < 100_000
