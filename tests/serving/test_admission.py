"""A crowd of uploads is refused before it is read, a large body while it comes in, and large photos undecoded."""

import struct
import threading
import time
import zlib

import pytest
from support.service import BLUE, EXPLAIN, MODEL, PREDICT, RED, instance

from gradcam_fast.serving import served_model

PNG = {"content-type": "image/png"}


@pytest.fixture
def held(monkeypatch):
    """Explanations wait until ``held.set()``; ``held.running`` counts those that have begun."""
    gate = threading.Event()
    gate.running = 0
    run = served_model.ServedModel.run

    def wait(self, work, photos):
        gate.running += len(photos)
        gate.wait(20)
        return run(self, work, photos)

    monkeypatch.setattr(served_model.ServedModel, "run", wait)
    yield gate
    gate.set()


def begin(client, count, data=RED):
    """Requests in threads of their own, and where their answers will be."""
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.post(EXPLAIN, content=data, headers=PNG)))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads, answers


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def admission_of(client):
    layer = client.app.middleware_stack
    while type(layer).__name__ != "Admission":
        layer = next(value for value in vars(layer).values() if callable(value) and hasattr(value, "__dict__"))
    return layer


def test_more_requests_than_the_limit_are_sent_away_and_those_let_in_are_answered(client_of, held):
    with client_of(max_requests=3) as client:
        threads, answers = begin(client, 3)
        until(lambda: admission_of(client).requests == 3)
        refused = client.post(EXPLAIN, content=RED, headers=PNG)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json() == {"error": "the service is answering as many requests as it can; try again in a moment"}
        assert client.get("/v2/health/ready").status_code == client.get(f"/v1/models/{MODEL}").status_code == 200
        held.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 3
        assert client.post(EXPLAIN, content=RED, headers=PNG).status_code == 200
        assert (admission_of(client).requests, admission_of(client).bytes) == (0, 0)


def test_the_bodies_of_all_requests_have_a_limit_together(client_of, held):
    with client_of(max_bytes=2 * len(RED) + 10, max_body=len(RED) + 10) as client:
        threads, answers = begin(client, 2)
        until(lambda: admission_of(client).requests == 2)
        assert client.post(EXPLAIN, content=RED, headers=PNG).status_code == 503
        held.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 2


def test_a_body_is_refused_by_its_length_before_it_is_read(client_of):
    def body():
        yield pytest.fail("was read")

    with client_of(max_body=100) as client:
        refused = client.post(EXPLAIN, content=body(), headers={**PNG, "content-length": "101"})
        assert refused.status_code == 413
        assert refused.json() == {
            "error": "the body has more than 100 bytes; send fewer photos at once, or smaller ones"
        }


@pytest.mark.parametrize("kind", ["application/json", "image/png", "multipart/form-data; boundary=x"])
def test_a_body_without_a_length_is_refused_while_it_comes_in(client_of, kind):
    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 1000

    with client_of(max_body=5000) as client:
        refused = client.post(EXPLAIN, content=body(), headers={"content-type": kind})
        assert refused.status_code == 413 and "more than 5,000 bytes" in refused.json()["error"]
        assert admission_of(client).requests == 0


def png_of(width, height):
    """A PNG that says it has so many pixels, and has the data of none."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_900_megapixels_are_refused_in_milliseconds(client):
    data = png_of(30_000, 30_000)
    client.post(EXPLAIN, content=data, headers=PNG)
    start = time.perf_counter()
    refused = client.post(EXPLAIN, content=data, headers=PNG)
    assert time.perf_counter() - start < 0.5
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("photo: has 30000 x 30000 pixels, more than 50,000,000; make it smaller")


def test_photos_that_are_refused_leave_the_others_alone(client):
    body = {"instances": [instance(RED), instance(b"\x89PNG broken"), instance(BLUE)]}
    assert client.post(EXPLAIN, json=body).status_code == 422
    assert client.post(PREDICT, content=RED, headers=PNG).status_code == 200


def test_a_request_that_takes_too_long_is_given_up_and_the_next_is_answered(client_of, held):
    with client_of(deadline=0.3) as client:
        start = time.monotonic()
        late = client.post(EXPLAIN, content=RED, headers=PNG)
        assert late.status_code == 504 and time.monotonic() - start < 5
        assert late.json()["error"].startswith("the request took longer than its deadline")
        held.set()
        assert client.post(EXPLAIN, content=RED, headers=PNG).status_code == 200


def test_a_client_may_ask_for_an_earlier_deadline_and_for_no_later_one(client_of, held):
    with client_of(deadline=0.5) as client:
        for asked in ("0.1", "600"):
            start = time.monotonic()
            late = client.post(EXPLAIN, content=RED, headers={**PNG, "x-request-timeout": asked})
            assert late.status_code == 504 and time.monotonic() - start < 5
        held.set()


def test_photos_whose_request_was_given_up_are_not_explained(client_of, held):
    with client_of(deadline=0.3) as client:
        assert client.post(EXPLAIN, content=RED, headers=PNG).status_code == 504
        assert held.running == 1  # the model is busy with it
        for _ in range(3):
            assert client.post(EXPLAIN, content=RED, headers=PNG).status_code == 504
        held.set()
        assert client.post(EXPLAIN, content=RED, headers=PNG).status_code == 200
        assert held.running == 2
