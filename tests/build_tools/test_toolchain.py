"""Which nvcc a build uses, and its advice where none suits the installed torch."""

import pytest
from support.sources import find_torch, toolchain


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without any nvcc; machine(folder, release) puts one of that release into folder/bin."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda *_: str(tmp_path / "site"))

    def install(folder, release):
        nvcc = tmp_path / folder / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.99'\n")
        nvcc.chmod(0o755)
        return str(nvcc)

    return install


def for_cuda(release, tmp_path):
    return find_torch.Torch(tmp_path / "site" / "torch", "2.10.0", release)


def test_an_nvcc_of_torch_s_cuda_release_is_found_wherever_it_is(machine, monkeypatch, tmp_path):
    machine("path", "12.4")
    wheel = machine("site/nvidia/cu13", "13.2")
    assert toolchain.find_nvcc(for_cuda("13.0", tmp_path)) == wheel
    in_home = machine("other", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "other"))
    assert toolchain.find_nvcc(for_cuda("13.0", tmp_path)) == in_home


@pytest.mark.parametrize(
    ("release", "reason", "mend"),
    [
        ("13.2", "none was found", "pip install 'cuda-toolkit[cccl,nvcc]==13.2.*'"),
        # No wheel of CUDA 12 holds nvcc, so pip could not install it.
        ("12.8", "none was found; CUDA 12.8 is in https://", "export CUDA_HOME=/usr/local/cuda-12.8"),
    ],
)
def test_without_an_nvcc_it_says_where_to_get_one(machine, tmp_path, release, reason, mend):
    with pytest.raises(find_torch.BuildProblem) as problem:
        toolchain.find_nvcc(for_cuda(release, tmp_path))
    assert f"torch 2.10.0 needs an nvcc of CUDA {release[:2]}: {reason}" in problem.value.reason
    assert problem.value.mend == mend


def test_an_nvcc_of_another_release_is_named(machine, tmp_path):
    other = machine("path", "11.8")
    with pytest.raises(find_torch.BuildProblem) as problem:
        toolchain.find_nvcc(for_cuda("12.8", tmp_path))
    assert f"needs an nvcc of CUDA 12: {other} is of CUDA 11.8; CUDA 12.8 is in" in problem.value.reason
