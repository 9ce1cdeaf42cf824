"""Clients of services of the network that tells red from blue."""

from functools import partial

import pytest

pytest.importorskip("fastapi")

from support import service


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a service with the default settings."""
    with service.client(tmp_path_factory.mktemp("service")) as client:
        yield client


@pytest.fixture
def client_of(tmp_path):
    """client_of(max_body=100): a context manager that gives a client of a service with these settings."""
    return partial(service.client, tmp_path)
