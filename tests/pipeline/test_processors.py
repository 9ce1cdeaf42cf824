"""The cores of this process are those of its affinity, and no more than its container may use."""

import os

import pytest

from gradcam_fast.pipeline import processors


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(cores, **files): this machine has so many cores, and control groups with these files."""

    def build(cores, **files):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(processors, "_CGROUP_2", tmp_path / "max")
        monkeypatch.setattr(processors, "_CGROUP_1", (tmp_path / "quota", tmp_path / "period"))

    return build


def test_without_a_container_the_affinity_counts(machine):
    machine(6)
    assert processors.cores() == 6


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"max": "200000 100000\n"}, 2),
        ({"max": "150000 100000\n"}, 2),
        ({"max": "10000 100000\n"}, 1),
        ({"max": "max 100000\n"}, 8),
        ({"max": "6400000 100000\n"}, 8),
        ({"quota": "300000\n", "period": "100000\n"}, 3),
        ({"quota": "-1\n", "period": "100000\n"}, 8),
        ({"max": ""}, 8),
    ],
)
def test_the_limit_of_a_container_counts_if_it_is_lower(machine, files, cores):
    machine(8, **files)
    assert processors.cores() == cores
