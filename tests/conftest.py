"""What tests start from: the same random numbers, small images, the networks of the recipes, the command line.

What only some of them need is imported when they ask for it.
"""

import os
from functools import partial

import pytest
import torch


def pytest_configure():
    # Threads that wait for each other on busy cores make networks this small many times slower, not faster.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16)


@pytest.fixture(scope="session")
def vgg():
    models = pytest.importorskip("torchvision.models", exc_type=Exception)
    torch.manual_seed(0)
    return models.vgg16().eval()


@pytest.fixture(scope="session")
def resnet():
    models = pytest.importorskip("torchvision.models", exc_type=Exception)
    torch.manual_seed(0)
    return models.resnet152().eval()


@pytest.fixture(scope="session")
def gpu_on_host(tmp_path_factory):
    """The module that gpu_on_host.cpp makes."""
    from support import extensions

    return extensions.load("gpu_on_host", tmp_path_factory)


@pytest.fixture(scope="session")
def pneumonia_net():
    import chest_xray

    torch.manual_seed(1)  # 0 gives evidence against pneumonia only: the recipe then divides zero by zero
    return chest_xray.PneumoniaNet().eval()


@pytest.fixture
def run(capsys):
    """run("explain", photo, ...): exit status, lines of standard output, lines of standard error."""
    from support.command import run_command

    return partial(run_command, capsys)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """small(n): n photos, red in one place; the network is the one that tells red from blue."""
    from support import red_or_blue
    from support.command import small_photos

    from gradcam_fast.pipeline import networks

    monkeypatch.setattr(networks, "load_network", lambda name, **_: red_or_blue.network())
    return partial(small_photos, tmp_path)
