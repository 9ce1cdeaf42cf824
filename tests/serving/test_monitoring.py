"""The metrics tell how long each stage takes, how large batches are, and where the maps are hot."""

import json
import re
from pathlib import Path

import numpy
import pytest
import torch
from support import red_or_blue
from support.service import BLUE, EXPLAIN, MODEL, PREDICT, RED, RED_CELL, file, instance

from gradcam_fast.serving.map_statistics import map_statistics
from gradcam_fast.serving.metrics import METRICS
from gradcam_fast.serving.queries import is_sampled

PNG = {"content-type": "image/png"}
ROOT = Path(__file__).parents[2]


def values_of(client):
    """The value of each sample, by its name and labels."""
    text = client.get("/metrics").text
    return {
        (name, labels or ""): float(value)
        for name, labels, value in re.findall(r"^gradcam_fast_(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)
    }


def value(client, name, **labels):
    for (sample, text), measured in values_of(client).items():
        if sample == name and dict(re.findall(r'(\w+)="([^"]*)"', text)) == {"model": MODEL, **labels}:
            return measured
    return 0.0


def test_a_request_is_counted_and_each_of_its_stages_timed(client_of):
    with client_of() as client:
        client.post(EXPLAIN, json={"instances": [instance(RED), instance(BLUE)]})
        client.post(EXPLAIN, content=b"no photo", headers=PNG)
        assert value(client, "requests_total", verb="explain", status="200") == 1
        assert value(client, "requests_total", verb="explain", status="422") == 1
        assert value(client, "request_seconds_count", verb="explain") == 2
        for stage, count in (("decode", 3), ("queue", 2), ("encode", 1)):
            assert value(client, "stage_seconds_count", stage=stage) == count, stage
        assert 1 <= value(client, "stage_seconds_count", stage="model") <= 2
        assert value(client, "batch_photos_sum") == 2
        assert value(client, "photos_total", explained="true") == 2


def test_the_metrics_tell_where_the_maps_are_hot(client_of):
    with client_of() as client:
        client.post(EXPLAIN, json={"instances": [instance(RED, target=["red", "blue"])]})
        assert value(client, "maps_total", valid="true") == value(client, "maps_total", valid="false") == 1
        assert value(client, "map_centre_x_count") == 1
        x, y = ((RED_CELL[axis] + 0.5) / 7 for axis in (1, 0))
        assert value(client, "map_centre_x_sum") == pytest.approx(x, abs=0.02)
        assert value(client, "map_centre_y_sum") == pytest.approx(y, abs=0.02)
        assert value(client, "map_border_mass_sum") < 0.05 and 0 < value(client, "map_entropy_sum") < 0.2


def test_a_prediction_is_explained_for_the_metrics_if_it_is_in_the_sample(client_of):
    photos = [file(red_or_blue.photo("red", (row, column))) for row in range(5) for column in range(4)]
    sampled = [is_sampled(photo, 0.5) for photo in photos]
    assert 4 < sum(sampled) < 16
    with client_of(sample_rate=0.5) as client:
        for photo in photos:
            answer = client.post(PREDICT, content=photo, headers=PNG).json()
            assert list(answer) == ["predictions"] and answer["predictions"][0]["classes"][0]["name"] == "red"
        assert value(client, "photos_total", explained="true") == sum(sampled)
        assert value(client, "photos_total", explained="false") == len(photos) - sum(sampled)
        assert value(client, "map_entropy_count") == sum(sampled)


def test_of_the_sample_only_those_are_explained_that_the_function_chooses(client_of):
    def is_blue(logits):
        assert isinstance(logits, torch.Tensor)
        return logits[:, 1] > logits[:, 0]

    with client_of(sample_rate=1.0, when=is_blue) as client:
        for photo in (RED, BLUE, RED):
            assert client.post(PREDICT, content=photo, headers=PNG).status_code == 200
        assert value(client, "photos_total", explained="true") == 1
        assert value(client, "photos_total", explained="false") == 2
        # What a client asks for is explained in any case.
        (map_of_red,) = client.post(EXPLAIN, content=RED, headers=PNG).json()["explanations"][0]["maps"]
        assert map_of_red["valid"] is True


def test_a_sample_is_a_share_and_the_same_photos_each_time():
    photos = [f"photo {number}".encode() for number in range(2000)]
    for share in (0.01, 0.1, 0.9):
        chosen = [photo for photo in photos if is_sampled(photo, share)]
        assert abs(len(chosen) / len(photos) - share) < 0.03
        assert chosen == [photo for photo in chosen if is_sampled(photo, share + 0.05)]
    assert not any(is_sampled(photo, 0) for photo in photos) and all(is_sampled(photo, 1) for photo in photos)


def test_statistics_of_maps_that_are_known():
    one_hot = numpy.zeros((7, 7), numpy.float32)
    one_hot[3, 0] = 1
    assert map_statistics(one_hot) == (0, 1, pytest.approx(0.5 / 7), 0.5)
    even = map_statistics(numpy.ones((8, 4)))
    assert even.entropy == pytest.approx(1) and (even.centre_x, even.centre_y) == (0.5, 0.5)
    assert even.border_mass == pytest.approx(0.25)  # the outer rows of 8; the columns' centres are an eighth inside
    assert map_statistics(numpy.zeros((3, 3))) is None
    assert map_statistics(numpy.full((3, 3), numpy.nan)) is None
    assert map_statistics(numpy.ones((1, 1))).entropy == 0


def test_the_dashboard_shows_metrics_that_there_are():
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    shown = set(re.findall(r"gradcam_fast_(\w+)", json.dumps(dashboard)))
    suffixes = {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    known = {metric.name + suffix for metric in METRICS for suffix in suffixes[metric.kind]}
    assert shown <= known
    assert {metric.name for metric in METRICS} <= {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
