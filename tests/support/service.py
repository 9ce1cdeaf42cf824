"""A service of the network that tells red from blue, and what its tests send."""

import base64
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from io import BytesIO

import numpy
from fastapi.testclient import TestClient

from gradcam_fast.pipeline.network_source import NetworkSource
from gradcam_fast.serving import ServiceSettings, create_app
from support import red_or_blue

MODEL = "red-or-blue"
EXPLAIN, PREDICT = f"/v1/models/{MODEL}:explain", f"/v1/models/{MODEL}:predict"
RED_CELL, BLUE_CELL = (2, 5), (6, 0)


def source(folder, model="support.red_or_blue:model"):
    """The network, with the names of its classes in a file of ``folder``."""
    classes = folder / "classes.txt"
    classes.write_text("\n".join(red_or_blue.NAMES))
    size = (red_or_blue.SIDE,) * 2
    return NetworkSource(
        model, classes=classes, size=size, mean=(0.0,) * 3, std=(1.0,) * 3, crop=None, probabilities="softmax",
        device="cpu",
    )  # fmt: skip


@contextmanager
def client(folder, settings=None, *, sources=None, **settings_by_name):
    """A client of a service that runs in this process."""
    app = create_app(sources or {MODEL: source(folder)}, settings or ServiceSettings(threads=1, **settings_by_name))
    with TestClient(app, raise_server_exceptions=False) as test_client:
        yield test_client


def file(photo, kind="PNG"):
    """The bytes of a photo's file."""
    data = BytesIO()
    photo.save(data, kind)
    return data.getvalue()


RED, BLUE = file(red_or_blue.photo("red", RED_CELL)), file(red_or_blue.photo("blue", BLUE_CELL))


def free_port():
    """A port that no one listens to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def instance(data, **choices):
    """A photo as an instance of KServe's v1 protocol."""
    return {"image": {"b64": base64.b64encode(data).decode()}, **choices}


def levels(answered):
    """The array in the JSON of a map."""
    return numpy.frombuffer(base64.b64decode(answered["b64"]), numpy.uint8).reshape(answered["shape"])


def hottest(answered):
    """(row, column) of the hottest cell in the JSON of a map."""
    array = levels(answered)
    return numpy.unravel_index(array.argmax(), array.shape)


class Running:
    """A service that runs as the command does, in a process of its own."""

    def __init__(self, process, address):
        self.process, self.address = process, address

    def url(self, path):
        return self.address.rstrip("/") + path


@contextmanager
def running(folder, *options, model="support.red_or_blue:model", names=red_or_blue.NAMES, crop=1, env=None):
    """``gradcam-fast serve`` of the network, on a free port; it is killed at the end."""
    classes = folder / "classes.txt"
    classes.write_text("\n".join(names))
    side = str(red_or_blue.SIDE)
    network = [] if str(model).endswith(".pt2") else [
        "--classes", classes, "--size", side, "--crop", str(crop), *"--mean 0 0 0 --std 1 1 1".split(),
        *"--probabilities softmax".split(),
    ]  # fmt: skip
    command = [
        sys.executable, "-m", "gradcam_fast", "serve", "--port", "0", "--model", model, "--name", MODEL, *network,
        *"--device cpu --threads 1".split(), *map(str, options),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **(env or {})}
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        try:
            line = next((line for line in process.stdout if line.startswith("ready")), "")
            assert line.startswith("ready at http://"), (folder / "log").read_text()
            yield Running(process, line.split()[-1])
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
