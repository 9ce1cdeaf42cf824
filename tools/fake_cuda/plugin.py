"""A pytest plugin: ``pytest -p fake_cuda.plugin`` runs PyTorch's CUDA operators on the CPU."""

from . import operators


def pytest_configure(config):
    config.fake_cuda_operators = operators.install()
