"""Only this machine is let in without a key, an answer gives nothing of the machine away, and the log no photo."""

import base64
import json
import logging

import pytest
from support.service import EXPLAIN, MODEL, PREDICT, RED, instance

from gradcam_fast.serving import request_log, served_model
from gradcam_fast.serving.security import LOOPBACK_NAMES, check_exposure, is_loopback

PNG = {"content-type": "image/png"}
KEY = "k3y with spaces"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_this_machine_needs_no_key(host):
    assert is_loopback(host)
    check_exposure(host, None, no_auth=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_other_addresses_need_a_key_or_that_it_is_said_aloud(host):
    with pytest.raises(ValueError, match=r"set GRADCAM_FAST_API_KEY to a key .* or give --no-auth"):
        check_exposure(host, None, no_auth=False)
    check_exposure(host, KEY, no_auth=False)
    check_exposure(host, None, no_auth=True)


def test_an_empty_key_is_no_key():
    with pytest.raises(ValueError, match="GRADCAM_FAST_API_KEY is empty"):
        check_exposure("127.0.0.1", " ", no_auth=False)


@pytest.mark.parametrize(
    "authorization", [None, "", KEY, f"Basic {KEY}", f"bearer {KEY}", f"Bearer {KEY}x", "Bearer ", "Bearer \xff"]
)
def test_without_the_key_only_health_and_the_page_are_open(client_of, authorization):
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    with client_of(api_key=KEY) as client:
        closed = [
            client.get("/v1/models", headers=headers),
            client.get(f"/v1/models/{MODEL}/classes", headers=headers),
            client.post(EXPLAIN, content=RED, headers={**PNG, **headers}),
            client.post(f"/v2/repository/models/{MODEL}/load", headers=headers),
            client.get("/metrics", headers=headers),
            client.get("/openapi.json", headers=headers),
            client.get("/docs", headers=headers),
        ]
        assert [response.status_code for response in closed] == [401] * 7
        assert closed[0].headers["www-authenticate"] == "Bearer" and list(closed[0].json()) == ["error"]
        for path in ("/", "/v2/health/live", "/v2/health/ready", "/static/page.js"):
            assert client.get(path, headers=headers).status_code == 200


def test_with_the_key_everything_is_open(client_of):
    with client_of(api_key=KEY) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        assert client.get("/v1/models").status_code == client.get("/metrics").status_code == 200
        assert client.post(EXPLAIN, content=RED, headers=PNG).status_code == 200


def test_without_the_key_a_body_is_not_read(client_of):
    def body():
        yield pytest.fail("was read")

    with client_of(api_key=KEY) as client:
        assert client.post(EXPLAIN, content=body(), headers=PNG).status_code == 401


def test_the_key_is_not_in_what_the_settings_print():
    from gradcam_fast.serving import ServiceSettings

    assert KEY not in repr(ServiceSettings(api_key=KEY))


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:8080", 200), ("evil.example", 400)]
)
def test_another_name_for_this_machine_is_refused(client_of, host, status):
    with client_of(allowed_hosts=LOOPBACK_NAMES) as client:
        assert client.get("/v1/models", headers={"host": host}).status_code == status


def test_no_other_page_may_read_answers(client):
    for response in (
        client.get("/v1/models", headers={"origin": "https://evil.example"}),
        client.options(EXPLAIN, headers={"origin": "https://evil.example", "access-control-request-method": "POST"}),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_page_is_sent_to_browsers_with_a_policy(client):
    page = client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html") and "Where did the model look?" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert client.get("/static/../app.py").status_code == client.get("/static/%2e%2e/app.py").status_code == 404


def test_an_unexpected_failure_is_told_without_its_reason(client_of, monkeypatch, caplog):
    def fail(self, work, photos):
        raise RuntimeError("secret of /root/model.py")

    monkeypatch.setattr(served_model.ServedModel, "run", fail)
    with client_of() as client, caplog.at_level(logging.ERROR):
        logging.getLogger("gradcam_fast").propagate = True
        failed = client.post(EXPLAIN, content=RED, headers={**PNG, "x-request-id": "abc-1"})
        assert failed.headers["x-request-id"] == "abc-1" and failed.headers["x-content-type-options"] == "nosniff"
        assert failed.status_code == 500 and "secret" not in failed.text and "abc-1" in failed.json()["error"]
        assert "secret of /root/model.py" in caplog.text
        assert client.get("/v2/health/live").status_code == 200


def test_a_request_keeps_its_id_unless_that_could_forge_the_log(client):
    assert client.get("/v1/models", headers={"x-request-id": "a:1.b-2_c"}).headers["x-request-id"] == "a:1.b-2_c"
    for forged in ("a b", 'x"}', "y" * 129):
        identity = client.get("/v1/models", headers={"x-request-id": forged}).headers["x-request-id"]
        assert identity != forged and len(identity) == 32


def test_the_log_has_a_line_of_json_for_each_request_and_nothing_of_the_photo(client, caplog):
    encoded = base64.b64encode(RED).decode()
    with caplog.at_level(logging.INFO, logger="gradcam_fast.serving"):
        logging.getLogger("gradcam_fast").propagate = True
        client.post(PREDICT, json={"instances": [instance(RED)]}, headers={"x-request-id": "one"})
        client.get("/v2/health/live")
    lines = [
        json.loads(request_log.JsonLines().format(record)) for record in caplog.records if "fields" in vars(record)
    ]
    (line,) = [line for line in lines if line.get("path", "").startswith(("/v1", "/v2"))]
    assert (line["method"], line["path"], line["status"]) == ("POST", PREDICT, 200)
    assert line["ms"] > 0 and line["level"] == "info"
    assert not any(encoded[start : start + 16] in json.dumps(lines) for start in range(0, len(encoded) - 16, 16))


def test_a_line_of_the_log_is_one_line_with_the_request_and_the_traceback():
    token = request_log.request_id.set("seven")
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "failed", None, (type(error), error, error.__traceback__))
    line = request_log.JsonLines().format(record)
    request_log.request_id.reset(token)
    assert "\n" not in line
    values = json.loads(line)
    assert values["request_id"] == "seven" and "two\nlines" in values["traceback"]


def test_a_made_up_model_is_no_label_of_the_metrics(client):
    client.post("/v1/models/made-up-name:explain", json={})
    assert "made-up-name" not in client.get("/metrics").text
