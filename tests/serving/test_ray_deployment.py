"""With Ray Serve, replicas of the models answer; one that is killed loses what it had, told as 503, and is replaced."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import red_or_blue
from support.service import (
    BLUE,
    BLUE_CELL,
    EXPLAIN,
    MODEL,
    RED,
    RED_CELL,
    free_port,
    hottest,
    instance,
    running,
    source,
)

ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'ray[serve]'")
httpx = pytest.importorskip("httpx")

pytestmark = pytest.mark.slow
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of the network's classes, and of its weights."""
    folder = tmp_path_factory.mktemp("ray")
    save_weights(folder, swapped=False)
    return folder


def save_weights(folder, *, swapped):
    """The weights, or those with which the network sees red as blue."""
    model = red_or_blue.slow_model()
    if swapped:
        model[0].weight.data = model[0].weight.data.flip(0)
    torch.save(model.state_dict(), folder / "new.pt")
    os.replace(folder / "new.pt", folder / "weights.pt")


@pytest.fixture(scope="module")
def address(folder):
    """A service with two replicas on a cluster of this machine."""
    from ray import serve

    from gradcam_fast.serving import ServiceSettings, deployment

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        network = replace(source(folder), model="support.red_or_blue:slow_model", weights=str(folder / "weights.pt"))
        settings = ServiceSettings(max_batch=1)
        serve.run(deployment({MODEL: network}, settings, replicas=2, cpus=0.5), name="gradcam", route_prefix="/")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def test_the_command_serves_on_a_cluster_of_its_own_and_ends_at_sigterm(tmp_path):
    """Before the other tests, whose cluster stays for all of them."""
    with running(tmp_path, "--ray", "--port", free_port()) as served:
        answer = httpx.post(served.url(f"/v1/models/{MODEL}:predict"), content=BLUE, headers=PNG, timeout=60)
        assert answer.json()["predictions"][0]["classes"][0]["name"] == "blue"
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0


def replicas():
    """The processes of the models, by their titles."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title.startswith("ray::ServeReplica:gradcam:models"):
            found.append(int(folder.name))
    return found


def test_a_photo_is_explained_by_a_replica(address):
    body = {"instances": [instance(RED), instance(BLUE)]}
    answer = httpx.post(f"{address}/v1/models/{MODEL}:explain", json=body, timeout=60).json()
    cells = [hottest(explanation["maps"][0]["map"]) for explanation in answer["explanations"]]
    assert cells == [RED_CELL, BLUE_CELL]
    assert httpx.get(f"{address}/v1/models/{MODEL}/classes").json() == {"classes": ["red", "blue"]}
    assert httpx.get(f"{address}/v1/models/{MODEL}").json()["layer"] == "1"
    # One arena of memory for all threads, which must be known when the process starts.
    assert all(b"MALLOC_ARENA_MAX=1\0" in Path(f"/proc/{pid}/environ").read_bytes() for pid in replicas())


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        ({"json": {"instances": [instance(RED, target="green")]}}, 422, "target: no class is named 'green'"),
        ({"json": {"instances": [instance(b"none")]}}, 422, "instances[0].image: not a photo in a format that Pil"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "the body: invalid JSON"),
    ],
)
def test_a_fault_on_a_replica_is_told_as_on_one_machine(address, options, status, sentence):
    response = httpx.post(f"{address}/v1/models/{MODEL}:explain", timeout=60, **options)
    assert response.status_code == status and response.json()["error"].startswith(sentence)


def load(address, model=MODEL):
    return httpx.post(f"{address}/v2/repository/models/{model}/load", timeout=60)


def test_every_replica_loads_a_model_again_without_dropping_a_request(address, folder):
    answers, stop = [], threading.Event()

    def explained():
        answer = httpx.post(f"{address}{EXPLAIN}", content=RED, headers=PNG, timeout=60)
        return answer.status_code, answer.status_code == 200 and answer.json()["explanations"][0]["maps"][0]["name"]

    def talk():
        while not stop.is_set():
            answers.append(explained())

    clients = [threading.Thread(target=talk) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        save_weights(folder, swapped=True)
        answer = load(address)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert (answer.status_code, answer.json()) == (200, {"name": MODEL, "ready": True})
    assert answers[0] == (200, "red") and set(answers) <= {(200, "red"), (200, "blue")}
    # Twelve at a time take turns on both replicas.
    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(lambda _: explained(), range(12))) == {(200, "blue")}


def test_a_model_that_cannot_be_loaded_again_stays_as_it_was(address, folder):
    good = (folder / "weights.pt").read_bytes()
    before = httpx.post(f"{address}{EXPLAIN}", content=BLUE, headers=PNG, timeout=60).json()["predictions"]
    (folder / "weights.pt").write_bytes(b"broken")
    answer = load(address)
    (folder / "weights.pt").write_bytes(good)
    assert answer.status_code == 500 and str(folder) not in answer.text
    after = httpx.post(f"{address}{EXPLAIN}", content=BLUE, headers=PNG, timeout=60).json()["predictions"]
    assert after == before
    assert load(address, "other").status_code == 404


def test_a_replica_that_is_killed_loses_only_what_it_had(address):
    answers, stop = [], threading.Event()

    def talk():
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                response = client.post(f"{address}/v1/models/{MODEL}:explain", content=RED, headers=PNG)
                answers.append((response.status_code, response.headers.get("retry-after")))

    clients = [threading.Thread(target=talk) for _ in range(6)]
    for client in clients:
        client.start()
    deadline = time.monotonic() + 60
    while len(answers) < 12:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first = replicas()
    assert len(first) == 2 and Counter(answers) == {(200, None): len(answers)}
    os.kill(first[0], signal.SIGKILL)
    killed_at = len(answers)
    while set(replicas()) <= set(first) or len(replicas()) < 2 or len(answers) < killed_at + 40:
        assert time.monotonic() < deadline + 60
        time.sleep(0.1)
    stop.set()
    for client in clients:
        client.join()
    count = Counter(answers)
    assert set(count) <= {(200, None), (503, "1")}
    # No more than the six clients can have had in flight on one replica.
    assert count[(503, "1")] <= 6
    assert count[(200, None)] >= 40
