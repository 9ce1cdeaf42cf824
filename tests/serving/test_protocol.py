"""KServe's v1 protocol: photos go in as JSON, as they are, or in a form; answers come as the client accepts them."""

import base64
from io import BytesIO

import numpy
import pytest
import torch
from PIL import Image
from support import red_or_blue
from support.service import (
    BLUE,
    EXPLAIN,
    MODEL,
    PREDICT,
    RED,
    RED_CELL,
    file,
    hottest,
    instance,
    levels,
    source,
)

import gradcam_fast

PNG = {"content-type": "image/png"}


def ask(client, *instances, address=EXPLAIN, **options):
    response = client.post(address, json={"instances": list(instances)}, **options)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_models_are_listed_and_described(client):
    assert client.get("/v1/models").json() == {"models": [MODEL]}
    described = client.get(f"/v1/models/{MODEL}").json()
    assert described["ready"] is True and described["name"] == MODEL
    assert (described["input"], described["classes"], described["layer"]) == ([56, 56], 2, "1")
    assert client.get(f"/v1/models/{MODEL}/classes").json() == {"classes": ["red", "blue"]}
    assert client.get(f"/v1/models/{MODEL}/layers").json() == {
        "layers": [{"name": "1", "kind": "ReLU", "grid": [7, 7], "default": True}]
    }


def test_a_photo_in_json_is_predicted_and_explained(client):
    answer = ask(client, instance(RED), instance(BLUE, target="red"))
    assert [prediction["classes"][0]["name"] for prediction in answer["predictions"]] == ["red", "blue"]
    (red,), (blue,) = (explanation["maps"] for explanation in answer["explanations"])
    assert (red["class"], red["name"], hottest(red["map"]), red["valid"]) == (0, "red", RED_CELL, True)
    assert (blue["name"], blue["valid"]) == ("red", False) and not levels(blue["map"]).any()
    assert answer["explanations"][0]["size"] == [224, 224] and answer["explanations"][0]["box"] == [0, 0, 224, 224]


def test_the_numbers_are_those_of_the_library(client, tmp_path):
    network = source(tmp_path).load()
    images = network.preprocess([Image.open(BytesIO(BLUE)).convert("RGB")]).images
    expected = gradcam_fast.Explainer(network.model, size=(7, 7))(images, target=[[1, 0]])
    (answer,) = ask(client, instance(BLUE, target=[1, "red"]))["explanations"]
    for rank, answered in enumerate(answer["maps"]):
        heatmap = expected.heatmap[0, rank].numpy()
        assert numpy.abs(levels(answered["map"]) - heatmap * 255).max() <= 0.5
        for name in ("score", "raw_min", "raw_max"):
            assert answered[name] == pytest.approx(getattr(expected, name)[0, rank].item())
    probability = torch.softmax(expected.logits[0], 0)[1].item()
    assert answer["maps"][0]["probability"] == pytest.approx(probability)


def test_a_prediction_has_no_maps(client):
    answer = ask(client, instance(BLUE), address=PREDICT)
    assert [entry["name"] for entry in answer["predictions"][0]["classes"]] == ["blue", "red"]
    assert "explanations" not in answer
    (one,) = ask(client, instance(BLUE, topk=1), address=PREDICT)["predictions"]
    assert [entry["class"] for entry in one["classes"]] == [1]


def test_a_photo_as_it_is_takes_its_choices_from_the_address(client):
    response = client.post(f"{EXPLAIN}?target=blue&target=0&method=layercam&layer=1", content=BLUE, headers=PNG)
    (explanation,) = response.json()["explanations"]
    assert [entry["name"] for entry in explanation["maps"]] == ["blue", "red"]
    assert (explanation["method"], explanation["layer"]) == ("layercam", "1")


def test_photos_in_a_form_share_the_choices_in_it(client):
    files = [("photos", ("a.png", RED)), ("photos", ("b.png", BLUE))]
    response = client.post(EXPLAIN, files=files, data={"topk": "2"})
    explanations = response.json()["explanations"]
    assert [[entry["name"] for entry in explanation["maps"]] for explanation in explanations] == [
        ["red", "blue"],
        ["blue", "red"],
    ]


def test_the_overlay_is_hot_where_the_class_is(client):
    response = client.post(f"{EXPLAIN}?alpha=1&colormap=gray", content=RED, headers={**PNG, "accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-gradcam-classes"] == "0" and response.headers["x-gradcam-layer"] == "1"
    picture = numpy.asarray(Image.open(BytesIO(response.content)))
    assert picture.shape == (224, 224, 3)
    row, column = (32 * place + 16 for place in RED_CELL)
    assert picture[row, column].min() > 230 and picture[-10:, :10].max() < 10


def test_the_array_has_the_maps_at_the_size_of_the_input(client, tmp_path):
    response = client.post(f"{EXPLAIN}?topk=2", content=RED, headers={**PNG, "accept": "application/x-npy"})
    maps = numpy.load(BytesIO(response.content))
    network = source(tmp_path).load()
    images = network.preprocess([red_or_blue.photo("red", RED_CELL)]).images
    expected = gradcam_fast.explain(network.model, images, topk=2).heatmap[0].numpy()
    assert maps.dtype == numpy.float32 and maps.shape == (2, 56, 56)
    numpy.testing.assert_allclose(maps, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("", "application/json"),
        ("image/*", "image/png"),
        ("application/json;q=0.5, image/png;q=0.9", "image/png"),
        ("application/json, image/png;q=0.9", "application/json"),
        ("text/html, application/x-npy", "application/x-npy"),
        ("application/*", "application/json"),
        ("image/webp, */*;q=0.1", "application/json"),
        ("application/json;q=0, */*", "image/png"),
    ],
)
def test_the_answer_is_of_the_type_that_is_accepted_most(client, accept, kind):
    response = client.post(EXPLAIN, content=RED, headers={**PNG, "accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, kind)


UNREADABLE = instance(b"no photo")


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "the body: invalid JSON: EOF while parsing"),
        (b"", 400, "the body: invalid JSON"),
        (b"\xff\xfe", 400, "the body: invalid JSON"),
        ({"instances": []}, 400, "instances: list should have at least 1 item after validation, not 0"),
        ({}, 400, "instances: field required"),
        ({"instances": [{"photo": 1}]}, 400, "instances[0].image: field required"),
        ({"instances": [{"image": {"b64": "$$$$"}}]}, 400, "instances[0].image.b64: not base64 of the standard"),
        ({"instances": [instance(b"")]}, 400, "instances[0].image: no bytes came; send a photo"),
        ({"instances": [instance(RED, topk=0)]}, 400, "instances[0].topk: input should be greater than or equal to 1"),
        ({"instances": [instance(RED, topk="two")]}, 400, "instances[0].topk: input should be a valid integer"),
        ({"instances": [instance(RED, topk=True)]}, 400, "instances[0].topk: input should be a valid integer"),
        ({"instances": [instance(RED, size=3)]}, 400, "instances[0].size: extra inputs are not permitted"),
        ({"instances": [instance(RED, topk=1, target=0)]}, 400, "instances[0].image: give only one of target and topk"),
        ({"instances": [instance(RED), UNREADABLE]}, 422, "instances[1].image: not a photo in a format that Pillow"),
        ({"instances": [instance(RED, target="green")]}, 422, "target: no class is named 'green'"),
        ({"instances": [instance(RED, target=-1)]}, 422, "target: class -1 is out of range; this network has the c"),
        ({"instances": [instance(RED, target=[0, 7])]}, 422, "target: class 7 is out of range"),
        ({"instances": [instance(RED, topk=3)]}, 422, "at most 2 classes of a photo are explained at once"),
        ({"instances": [instance(RED, method="camera")]}, 422, "method: 'camera' is not served here; choose one of g"),
        ({"instances": [instance(RED, method="scorecam")]}, 422, "method: 'scorecam' is not served here"),
        ({"instances": [instance(RED, layer="conv9")]}, 422, "conv9"),
        ({"instances": [instance(RED, layer="")]}, 400, "instances[0].layer: string should have at least 1 char"),
        ({"instances": [instance(RED, target="x" * 300)]}, 400, "instances[0].target"),
        ({"instances": [instance(RED, layer="4")]}, 422, "layer '4'"),
        ({"instances": [instance(RED)] * 17}, 413, "17 photos were sent; send at most 16 at once"),
    ],
)
def test_what_cannot_be_answered_is_told_in_a_sentence(client, body, status, sentence):
    sent = {"content": body, "headers": {"content-type": "application/json"}} if isinstance(body, bytes) else {}
    response = client.post(EXPLAIN, **(sent or {"json": body}))
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert sentence in response.json()["error"]
    assert "Traceback" not in response.text and "/" not in response.json()["error"].replace("image/", "")


@pytest.mark.parametrize(
    ("address", "options", "status", "sentence"),
    [
        ("/v1/models/dog:explain", {"json": {}}, 404, "there is no model 'dog'; choose one of red-or-blue"),
        ("/v1/models/dog:predict", {"content": RED, "headers": PNG}, 404, "there is no model 'dog'"),
        (EXPLAIN, {"content": RED, "headers": {"content-type": "text/plain"}}, 415, "the body is text/plain; send"),
        (EXPLAIN, {"content": RED, "headers": {**PNG, "accept": "text/html"}}, 406, "none of the types in Accept"),
        (PREDICT, {"content": RED, "headers": {**PNG, "accept": "image/png"}}, 406, "none of the types in Accept"),
        (f"{PREDICT}?target=red", {"content": RED, "headers": PNG}, 422, "a prediction takes no target and no layer"),
        (f"{EXPLAIN}?topk=-1", {"content": RED, "headers": PNG}, 400, "topk: '-1' is not a whole number from 1"),
        (f"{EXPLAIN}?colour=red", {"content": RED, "headers": PNG}, 400, "colour: extra inputs are not permitted"),
        (f"{EXPLAIN}?alpha=x", {"content": RED, "headers": PNG}, 400, "alpha: input should be a valid number"),
        (f"{EXPLAIN}?alpha=2", {"content": RED, "headers": {**PNG, "accept": "image/png"}}, 400, "alpha"),
        (
            f"{EXPLAIN}?colormap=virdis",
            {"content": RED, "headers": {**PNG, "accept": "image/png"}},
            422,
            "colormap='virdis' is unknown (did you mean viridis",
        ),
        (
            f"{EXPLAIN}?topk=2",
            {"content": RED, "headers": {**PNG, "accept": "image/png"}},
            406,
            "image/png shows one class; ask for one, or accept application/json",
        ),
        (EXPLAIN, {"data": {"topk": "1"}, "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, ""),
        (EXPLAIN, {"content": RED, "headers": {**PNG, "x-request-timeout": "soon"}}, 400, "'soon' is no number of"),
        ("/v1/nothing", {"json": {}}, 404, "Not Found"),
        ("/v1/models", {"json": {}}, 405, "Method Not Allowed"),
    ],
)
def test_other_faults_of_a_request_are_told_in_a_sentence(client, address, options, status, sentence):
    response = client.post(address, **options)
    assert response.status_code == status, response.text
    assert sentence in response.json()["error"]


def test_a_request_without_a_type_is_json(client):
    body = {"instances": [instance(RED)]}
    request = client.build_request("POST", EXPLAIN, json=body)
    del request.headers["content-type"]
    assert client.send(request).status_code == 200


def test_a_photo_is_turned_upright_and_its_box_is_of_the_upright_photo(client):
    lying = red_or_blue.photo("red", RED_CELL).resize((224, 112))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = BytesIO()
    lying.save(data, "JPEG", exif=exif)
    (explanation,) = ask(client, instance(data.getvalue()))["explanations"]
    assert explanation["size"] == [112, 224] and explanation["box"] == [0, 0, 112, 224]


def test_values_that_are_not_numbers_are_null(client_of, monkeypatch):
    broken = red_or_blue.network()
    torch.nn.init.constant_(broken.model[0].weight, float("nan"))
    from gradcam_fast.serving import served_model

    monkeypatch.setattr(served_model.ServedModel, "_try_once", lambda self: "1")
    with client_of() as client:
        served = client.app.state.engine._models[MODEL]
        served.network.model[0].weight.data.fill_(float("nan"))
        (explanation,) = ask(client, instance(RED))["explanations"]
    (entry,) = explanation["maps"]
    assert (entry["score"], entry["probability"], entry["raw_max"], entry["valid"]) == (None, None, None, False)


@pytest.mark.slow
def test_kserves_own_client_works(tmp_path):
    kserve = pytest.importorskip(
        "kserve", reason="its pinned dependencies exclude those of other tests", exc_type=ImportError
    )
    import asyncio

    from support.service import running

    async def talk(base):
        answers = {}
        async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1")) as rest:
            data = {"instances": [instance(RED, topk=2)]}
            answers["live"] = await rest.is_server_live(base)
            answers["ready"] = await rest.is_model_ready(base, MODEL)
            answers["explain"] = await rest.explain(base, MODEL, data)
            answers["infer"] = await rest.infer(base, {"instances": [instance(BLUE)]}, model_name=MODEL)
        async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2")) as rest:
            answers["v2"] = [
                await rest.is_server_live(base),
                await rest.is_server_ready(base),
                await rest.is_model_ready(base, MODEL),
            ]
        return answers

    with running(tmp_path) as served:
        answers = asyncio.run(talk(served.address))
    assert answers["live"] is True and answers["ready"] is True and answers["v2"] == [True, True, True]
    (explanation,) = answers["explain"]["explanations"]
    assert hottest(explanation["maps"][0]["map"]) == RED_CELL
    assert answers["infer"]["predictions"][0]["classes"][0]["name"] == "blue"


def test_base64_is_that_of_the_standard_alphabet_only(client):
    data = base64.urlsafe_b64encode(file(red_or_blue.photo("red"), "JPEG")).decode()
    assert set("-_") & set(data)
    response = client.post(EXPLAIN, json={"instances": [{"image": {"b64": data}}]})
    assert response.status_code == 400
