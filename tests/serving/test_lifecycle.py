"""The command's service is ready when its models are, drains without losing a request, and reloads while it runs."""

import asyncio
import concurrent.futures
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
from support import red_or_blue
from support.service import BLUE, EXPLAIN, MODEL, PREDICT, RED, running, source

from gradcam_fast.pipeline.network_source import NetworkSource
from gradcam_fast.serving import ServiceSettings, create_app, protocol, served_model

PNG = {"content-type": "image/png"}


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_sigterm_answers_every_request_of_clients_that_turn_away_when_told(tmp_path):
    """Eight clients that keep their connections, as load balancers do, until the service is no longer ready."""
    answers = []
    stop = threading.Event()
    with running(tmp_path, "--drain", "2") as served:

        def talk():
            with httpx.Client(base_url=served.address, timeout=30) as client:
                while not stop.is_set():
                    answers.append(client.post(EXPLAIN, content=RED, headers=PNG).status_code)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            talking = [pool.submit(talk) for _ in range(8)]
            until(lambda: len(answers) > 20)
            before = len(answers)
            served.process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(served.url("/v2/health/ready")).status_code == 503)
            until(lambda: len(answers) > before + 8)  # it goes on answering
            stop.set()
            assert [done.result() for done in talking] == [None] * 8
        assert served.process.wait(20) == 0
    assert set(answers) == {200}


@pytest.mark.slow
def test_sigterm_answers_the_requests_that_it_has_though_they_take_longer(tmp_path):
    with running(tmp_path, "--drain", "0", "--max-batch", "1", model="support.red_or_blue:slow_model") as served:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            posts = [
                pool.submit(httpx.post, served.url(EXPLAIN), content=RED, headers=PNG, timeout=60) for _ in range(8)
            ]
            time.sleep(1)
            served.process.send_signal(signal.SIGTERM)
            assert [post.result().status_code for post in posts] == [200] * 8
            with pytest.raises(httpx.ConnectError):
                httpx.get(served.url("/v2/health/live"))
        assert served.process.wait(20) == 0


@pytest.mark.slow
def test_a_second_signal_ends_the_service_at_once(tmp_path):
    with running(tmp_path, "--drain", "60") as served:
        served.process.send_signal(signal.SIGINT)
        until(lambda: httpx.get(served.url("/v2/health/ready")).status_code == 503)
        assert httpx.get(served.url("/v2/health/live")).status_code == 200
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(10) in (0, 130)


def test_photos_of_a_client_that_leaves_are_given_up():
    started, cancelled = [], []

    class Engine:
        async def answer(self, model, query):
            started.append(query)
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.append(query)
                raise

    class Request:
        async def receive(self):
            await asyncio.sleep(0.1)
            return {"type": "http.disconnect"}

    async def main():
        answer = await protocol._unless_gone(Request(), protocol._answer_all(Engine(), MODEL, ["one", "another"]))
        await asyncio.sleep(0)
        return answer

    assert asyncio.run(main()) is None
    assert started == cancelled == ["one", "another"]


def head_of(served, length):
    """The head of a request for an explanation, and where it goes."""
    host, port = served.address.removeprefix("http://").rstrip("/").split(":")
    head = f"POST {EXPLAIN} HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
    return (host, int(port)), head.encode()


@pytest.mark.slow
def test_a_client_that_leaves_the_queue_costs_no_explanation(tmp_path):
    with running(tmp_path, "--max-batch", "1", model="support.red_or_blue:slow_model") as served:
        where, head = head_of(served, len(RED))
        connections = [socket.create_connection(where) for _ in range(4)]
        for connection in connections:
            connection.sendall(head + RED)
            time.sleep(0.05)
        for connection in connections[1:]:  # the first one is being explained
            connection.close()
        assert connections[0].recv(1000).startswith(b"HTTP/1.1 200")
        assert httpx.post(served.url(EXPLAIN), content=RED, headers=PNG, timeout=30).status_code == 200
        metrics = httpx.get(served.url("/metrics")).text
        assert f'requests_total{{model="{MODEL}",status="499",verb="explain"}} 3.0' in metrics
        assert f'photos_total{{explained="true",model="{MODEL}"}} 2.0' in metrics


@pytest.mark.slow
def test_a_body_that_does_not_come_is_given_up_at_the_deadline(tmp_path):
    with running(tmp_path, "--deadline", "1", "--max-requests", "2") as served:
        where, head = head_of(served, len(RED))
        slow = [socket.create_connection(where) for _ in range(2)]
        for connection in slow:
            connection.sendall(head + RED[:10])
        until(lambda: httpx.post(served.url(EXPLAIN), content=RED, headers=PNG).status_code == 503)
        until(lambda: httpx.post(served.url(EXPLAIN), content=RED, headers=PNG).status_code == 200)
        assert all(connection.recv(1000).startswith(b"HTTP/1.1 504") for connection in slow)
        for connection in slow:
            connection.close()


@pytest.mark.slow
def test_sighup_loads_the_models_again_and_keeps_those_that_fail(tmp_path, weights):
    def name():
        answer = httpx.post(served.url(PREDICT), content=RED, headers=PNG)
        return answer.json()["predictions"][0]["classes"][0]["name"]

    file = weights(swapped=False)
    with running(tmp_path, "--weights", file) as served:
        assert name() == "red"
        weights(swapped=True)
        served.process.send_signal(signal.SIGHUP)
        until(lambda: name() == "blue")
        file.write_bytes(b"broken")
        served.process.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded" in (tmp_path / "log").read_text())
        assert name() == "blue"


@pytest.mark.slow
def test_a_connection_that_is_closed_is_noticed_by_the_running_service(tmp_path):
    with running(tmp_path) as served:
        where, head = head_of(served, len(RED))
        for _ in range(5):
            with socket.create_connection(where) as connection:
                connection.sendall(head + RED[:100])
        # Half a body, then gone: nothing is left behind, and the service goes on.
        assert httpx.post(served.url(EXPLAIN), content=RED, headers=PNG).status_code == 200
        assert '"status": 500' not in (tmp_path / "log").read_text()


def arenas(process):
    """How many arenas of glibc a process has beside its first: each begins a piece of 64 MB of the address space."""
    lines = [line.split() for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()]
    pieces = [line[0].split("-") for line in lines if len(line) == 5]  # those of files have a name, too
    return sum(int(start, 16) % 2**26 == 0 and int(end, 16) - int(start, 16) <= 2**26 for start, end in pieces)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")
def test_all_threads_share_one_arena(tmp_path):
    """With one for each thread, a request of EfficientNet-Lite0 got 15 MB of memory anew from the system."""
    with running(tmp_path) as served, concurrent.futures.ThreadPoolExecutor(4) as pool:
        posts = [pool.submit(httpx.post, served.url(EXPLAIN), content=RED, headers=PNG) for _ in range(8)]
        assert {post.result().status_code for post in posts} == {200}
        assert arenas(served.process) == 0


@pytest.fixture
def weights(tmp_path):
    """weights(red): a file of weights with which the network sees red as red, or as blue; and its source."""
    path = tmp_path / "weights.pt"

    def write(*, swapped):
        model = red_or_blue.model()
        if swapped:
            model[0].weight.data = model[0].weight.data.flip(0)
        torch.save(model.state_dict(), path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)
        return path

    return write


def test_a_model_is_loaded_again_without_dropping_a_request(client_of, tmp_path, weights):
    plain = source(tmp_path)
    file = str(weights(swapped=False))
    reloaded = NetworkSource(**{**vars(plain), "weights": file})
    with client_of(sources={MODEL: reloaded}) as client:
        names, stop = [], threading.Event()

        def talk():
            while not stop.is_set():
                answer = client.post(PREDICT, content=RED, headers=PNG)
                names.append((answer.status_code, answer.json()["predictions"][0]["classes"][0]["name"]))

        threads = [threading.Thread(target=talk) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(names) > 10)
        weights(swapped=True)
        assert client.post(f"/v2/repository/models/{MODEL}/load").json() == {"name": MODEL, "ready": True}
        until(lambda: names[-1] == (200, "blue"))
        stop.set()
        for thread in threads:
            thread.join()
        assert set(names) == {(200, "red"), (200, "blue")}
        assert names[0] == (200, "red")


def test_a_model_that_cannot_be_loaded_again_stays_as_it_was(client_of, tmp_path, weights):
    file = weights(swapped=False)
    with client_of(sources={MODEL: NetworkSource(**{**vars(source(tmp_path)), "weights": str(file)})}) as client:
        file.write_bytes(b"broken")
        failed = client.post(f"/v2/repository/models/{MODEL}/load")
        assert failed.status_code == 500 and str(tmp_path) not in failed.text
        answer = client.post(PREDICT, content=RED, headers=PNG)
        assert answer.json()["predictions"][0]["classes"][0]["name"] == "red"
        assert client.post("/v2/repository/models/other/load").status_code == 404


def test_a_model_is_loaded_and_tried_with_the_threads_of_the_service(client_of, monkeypatch):
    """With one for each core, on cores that others use, loading takes many times as long."""
    seen, make = [], red_or_blue.model

    def model():
        network = make()
        network.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        seen.append(torch.get_num_threads())
        return network

    monkeypatch.setattr(red_or_blue, "model", model)
    with client_of(settings=ServiceSettings(threads=3)) as client:
        assert len(seen) > 1 and set(seen) == {3}
        seen.clear()
        assert client.post(f"/v2/repository/models/{MODEL}/load").status_code == 200
        assert len(seen) > 1 and set(seen) == {3}


@pytest.mark.parametrize("name", ["", "a/b", "a b", "../x", "a:b", "-"])
def test_a_name_that_cannot_stand_in_an_address_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot stand in an address; give a name of letters, digits"):
        create_app({name: source(tmp_path)})
    with pytest.raises(ValueError, match="there is no model to serve"):
        create_app({})


def test_several_models_are_served(client_of, tmp_path):
    sources = {"first": source(tmp_path), "second": NetworkSource("resnet18", weights="random", device="cpu")}
    with client_of(sources=sources) as client:
        assert client.get("/v1/models").json() == {"models": ["first", "second"]}
        first = client.post("/v1/models/first:explain", content=BLUE, headers=PNG).json()
        second = client.post("/v1/models/second:explain?target=tabby", content=BLUE, headers=PNG).json()
    assert first["explanations"][0]["maps"][0]["name"] == "blue"
    assert second["explanations"][0]["layer"] == "layer4"
    assert second["explanations"][0]["maps"][0]["map"]["shape"] == [7, 7]


def test_a_reload_and_requests_of_both_models_do_not_mix(client_of, monkeypatch, tmp_path):
    """Photos that were prepared for the old model are run by the old model."""
    seen = []
    run = served_model.ServedModel.run

    def watched(self, work, photos):
        seen.append(self is work.model and all(prepared.work.model is self for prepared in photos))
        return run(self, work, photos)

    monkeypatch.setattr(served_model.ServedModel, "run", watched)
    with client_of() as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        posts = [pool.submit(client.post, EXPLAIN, content=RED, headers=PNG) for _ in range(12)]
        loads = [pool.submit(client.post, f"/v2/repository/models/{MODEL}/load") for _ in range(2)]
        assert {done.result().status_code for done in posts + loads} == {200}
    assert seen and all(seen)


def serve(*options, env=None):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})}
    command = [sys.executable, "-m", "gradcam_fast", "serve", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--host", "0.0.0.0"],
            "--host: everybody who reaches 0.0.0.0 could use the service; set GRADCAM_FAST_API_KEY",
        ),
        (["--models", "missing.json"], "--models: missing.json cannot be read ("),
        (["--methods", "gradcam,camera"], "--methods: 'camera' is unknown; choose from gradcam, gradcam++"),
        (["--when", "json:nothing"], "--when: json has no function 'nothing'; give MODULE:FUNCTION"),
        (["--model", "resnet19"], "model 'resnet19' is unknown (did you mean resnet1"),
        (["--sample-rate", "2"], "invalid value for '--sample-rate': '2' is not a number from 0 to 1"),
        (["--deadline", "0"], "deadline=0.0 and drain=2.0 are seconds; give positive numbers"),
    ],
)
def test_wrong_options_of_the_command_are_told_in_one_line(run, options, message):
    status, out, err = run("serve", *options)
    assert (status, out) == (2, [])
    assert len(err) == 1 and message in err[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "extra"), [("fastapi", "serve"), ("starlette", "serve"), ("uvicorn", "serve"), ("ray", "serve-ray")]
)
def test_a_package_that_is_missing_is_told_with_what_to_install(package, extra):
    program = f"import sys; sys.modules[{package!r}] = None; from gradcam_fast.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, "serve", *(["--ray"] if package == "ray" else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2
    assert done.stderr == (
        f"gradcam-fast: the service needs {package}, which is not installed; run pip install 'gradcam-fast[{extra}]'\n"
    )


@pytest.mark.slow
def test_a_port_that_is_taken_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve("--model", "support.red_or_blue:model", "--size", red_or_blue.SIDE, "--port", port)
    assert done.returncode == 2 and f"port {port}" in done.stderr and "Traceback" not in done.stderr


def test_models_come_from_a_file(run, monkeypatch, tmp_path):
    from gradcam_fast import serving

    received = {}
    monkeypatch.setattr(serving, "run", lambda sources, settings, **options: received.update(sources), raising=False)
    models = {
        "cats": {"model": "resnet18", "weights": "cats.pth", "size": 64, "mean": [0, 0, 0]},
        "b": {"model": "x.pt2"},
    }
    (tmp_path / "models.json").write_text(json.dumps(models))
    assert run("serve", "--models", tmp_path / "models.json", "--device", "cpu")[0] == 0
    assert received == {
        "cats": NetworkSource("resnet18", weights="cats.pth", size=(64, 64), mean=(0, 0, 0), device="cpu"),
        "b": NetworkSource("x.pt2", device="cpu"),
    }
    (tmp_path / "models.json").write_text('{"cats": {"model": "resnet18", "wieghts": "cats.pth"}}')
    status, _, err = run("serve", "--models", tmp_path / "models.json")
    assert status == 2 and "--models: cats: 'wieghts' is unknown; give of model, weights" in err[0]


@pytest.mark.slow
def test_a_package_is_served_as_the_network_that_was_exported(client_of, tmp_path_factory, tmp_path):
    from support import packages
    from support.service import hottest

    path = packages.package(tmp_path_factory, "red or blue")
    with client_of(sources={MODEL: NetworkSource(str(path))}) as client:
        described = client.get(f"/v1/models/{MODEL}").json()
        assert (described["methods"], described["layer"], described["explains"]) == (["gradcam"], "1", "fixed")
        (explanation,) = client.post(EXPLAIN, content=BLUE, headers=PNG).json()["explanations"]
        assert [entry["name"] for entry in explanation["maps"]] == ["blue", "red"]
        assert hottest(explanation["maps"][0]["map"]) == (6, 0)
        refused = client.post(f"{EXPLAIN}?target=red", content=BLUE, headers=PNG)
        assert refused.status_code == 422 and "export it with --target input to choose later" in refused.json()["error"]
        assert client.post(PREDICT, content=RED, headers=PNG).status_code == 200
        layers = client.get(f"/v1/models/{MODEL}/layers").json()["layers"]
        assert layers == [{"name": "1", "kind": "", "grid": [], "default": True}]
