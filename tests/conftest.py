"""What every test starts from: the same random numbers, and images small enough to be explained in milliseconds.

Knows nothing of the networks or of what is tested.
"""

import os

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
