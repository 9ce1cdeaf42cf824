"""The report of `backend()` where kernels are missing: the reason, the command that fixes it, and one warning.

Every test loads its own copy of ``gradcam_fast/ops/backend.py`` with a build.json of its own; nothing is compiled.
"""

import ctypes
import importlib.util
import json
import re
import sys
import types
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import gradcam_fast
from gradcam_fast.exceptions import LibraryMissing
from gradcam_fast.ops.backend import __file__ as BACKEND_FILE

BUILT = {"file": "libgradcam_fast_cpu.so", "reason": "built", "chosen": False, "log": []}
NO_COMPILER = {**BUILT, "file": None, "reason": "no C++ compiler was found", "mend": "apt-get install g++"}
REFUSED = {**NO_COMPILER, "reason": "the C++ compiler failed", "mend": None, "log": ["error: no"]}
CHOSEN = {**NO_COMPILER, "mend": "unset GRADCAM_FAST_BUILD", "chosen": True}


@pytest.fixture
def built_with(tmp_path, monkeypatch):
    """Load a backend whose build left these libraries behind."""
    monkeypatch.delenv("GRADCAM_FAST_BACKEND", raising=False)

    def load(**libraries):
        spec = importlib.util.spec_from_file_location("gradcam_fast.ops.backend_under_test", BACKEND_FILE)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        module.LIBRARY_FOLDER = tmp_path
        if libraries:
            record = {"torch": {"version": "2.10.0", "cuda": "13.0"}, "libraries": {"cuda": NO_COMPILER, **libraries}}
            (tmp_path / "build.json").write_text(json.dumps(record))
        return module

    return load


@pytest.fixture
def loaded(monkeypatch):
    paths = []
    monkeypatch.setattr(torch.ops, "load_library", paths.append)
    monkeypatch.setattr(
        ctypes, "CDLL", lambda path: types.SimpleNamespace(gradcam_fast_instruction_set=lambda: b"x86-64")
    )
    return paths


def cpu(module):
    return module.backend().kernels[0]


def cuda(module):
    return module.backend().kernels[1]


def warnings_of(module, *devices):
    module.load()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for device in devices:
            module.warn_if_reference(device)
    return [str(warning.message) for warning in caught]


def test_a_missing_compiler_is_named_with_the_command_that_installs_it(built_with):
    kernel = cpu(built_with(cpu=NO_COMPILER))
    assert not kernel.fused
    assert kernel.why == "no C++ compiler was found"
    assert kernel.fix.startswith("apt-get install g++ && pip install ")


def test_after_a_failed_compilation_the_command_shows_all_of_its_output(built_with):
    assert cpu(built_with(cpu=REFUSED)).fix.startswith("GRADCAM_FAST_BUILD=require pip install ")


def test_a_package_that_was_never_built_says_so(built_with):
    kernel = cpu(built_with())
    assert (kernel.fused, kernel.why) == (False, "gradcam_fast was not built")
    assert kernel.fix.startswith("pip install ")


def test_a_library_that_does_not_load_is_reported_and_raises_nothing(built_with, tmp_path):
    (tmp_path / "libgradcam_fast_cpu.so").write_text("not a library")
    kernel = cpu(built_with(cpu=BUILT))
    assert not kernel.fused
    assert kernel.why.startswith("libgradcam_fast_cpu.so does not load: ")


def test_a_library_that_lacks_an_operator_is_to_be_built_again(built_with, loaded):
    module = built_with(cpu=BUILT)
    module.OPERATORS = {"cpu": ("cam", "of_tomorrow"), "cuda": ("cam",)}
    kernel = cpu(module)
    assert not kernel.fused
    assert kernel.why == "libgradcam_fast_cpu.so is loaded, but registers no kernel for of_tomorrow"
    assert kernel.fix.startswith("pip install ")


def test_one_warning_says_what_is_missing_and_what_to_run(built_with):
    (message,) = warnings_of(built_with(cpu=NO_COMPILER), "cpu", "cpu", "cuda", "cpu")
    assert "reference on cpu: no C++ compiler was found." in message
    assert "To fix this, run: apt-get install g++ && pip install " in message


def test_torch_compile_traces_past_the_warning_and_still_gives_it_once(built_with):
    module = built_with(cpu=NO_COMPILER)
    module.load()

    @torch.compile(fullgraph=True, backend="eager")
    def doubled(x):
        module.warn_if_reference("cpu")
        return x if module.kernel_for("cpu") else x * 2

    with pytest.warns(RuntimeWarning, match="reference on cpu") as caught:
        assert [doubled(torch.tensor(3.0)).item() for _ in range(2)] == [6.0, 6.0]
    assert len(caught) == 1


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_devices_for_which_no_kernel_exists_warn_of_nothing(built_with, device):
    module = built_with(cpu=NO_COMPILER)
    assert warnings_of(module, device) == []
    assert not module.kernel_for(device)


def test_users_who_chose_to_build_no_kernel_are_not_warned(built_with):
    module = built_with(cpu=CHOSEN)
    assert warnings_of(module, "cpu") == []
    assert cpu(module).fix.startswith("unset GRADCAM_FAST_BUILD && pip install ")


def test_users_who_chose_the_reference_get_it_without_a_warning(built_with, monkeypatch):
    monkeypatch.setenv("GRADCAM_FAST_BACKEND", "reference")
    module = built_with(cpu=BUILT)
    assert cpu(module) == module.Kernel(
        "cpu", False, "GRADCAM_FAST_BACKEND=reference is set", "unset GRADCAM_FAST_BACKEND", True
    )
    assert warnings_of(module, "cpu") == []
    assert not module.kernel_for("cpu")


def test_an_unknown_backend_is_refused_with_the_choices(built_with, monkeypatch):
    monkeypatch.setenv("GRADCAM_FAST_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"GRADCAM_FAST_BACKEND='fast' is unknown; choose one of auto, reference"):
        built_with().load()


def test_many_threads_load_the_library_once(built_with, loaded):
    module = built_with(cpu=BUILT)
    with ThreadPoolExecutor(8) as threads:
        assert len({id(report) for report in threads.map(lambda _: module.load(), range(8))}) == 1
    assert [path.name for path in loaded] == ["libgradcam_fast_cpu.so"]
    assert cpu(module).why == "libgradcam_fast_cpu.so is loaded and uses x86-64"


def test_the_cuda_library_is_not_loaded_by_a_torch_without_cuda(built_with, loaded, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    kernel = cuda(built_with(cpu=NO_COMPILER, cuda={**BUILT, "file": "libgradcam_fast_cuda.so"}))
    assert kernel.why == f"torch {torch.__version__} is not a CUDA build"
    assert loaded == []


def test_a_cuda_library_of_another_major_release_is_not_loaded(built_with, loaded, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    module = built_with(cpu=NO_COMPILER, cuda={**BUILT, "file": "libgradcam_fast_cuda.so"})
    assert cuda(module).why == "its library was built for CUDA 13, but torch uses CUDA 12"
    assert loaded == []


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file:///src/my%20copy", "dir_info": {}}, "'/src/my copy'"),
        ({"url": "https://x/y.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}, "git+https://x/y.git@abc"),
        ({"url": "file:///y.whl", "archive_info": {}}, "--no-cache-dir --no-binary gradcam-fast gradcam-fast"),
        (None, "--no-cache-dir --no-binary gradcam-fast gradcam-fast"),
    ],
)
def test_the_command_installs_from_where_the_package_came(built_with, monkeypatch, origin, command):
    class Installed:
        def read_text(self, name):
            assert name == "direct_url.json"
            return json.dumps(origin) if origin else None

    module = built_with(cpu=NO_COMPILER)
    monkeypatch.setattr(module, "__file__", "/environment/site-packages/gradcam_fast/ops/backend.py")
    monkeypatch.setattr(module, "distribution", lambda name: Installed())
    assert module._reinstall() == f"pip install --force-reinstall --no-deps {command}"


def test_a_checkout_is_reinstalled_in_its_place(built_with, monkeypatch, tmp_path):
    (tmp_path / "setup.py").touch()
    module = built_with(cpu=NO_COMPILER)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "gradcam_fast/ops/backend.py"))
    assert module._reinstall() == f"pip install --force-reinstall --no-deps -e {tmp_path}"


def test_the_path_of_a_library_is_the_file_that_was_built(built_with, tmp_path):
    (tmp_path / BUILT["file"]).touch()
    assert built_with(cpu=BUILT).library_path("cpu") == tmp_path / BUILT["file"]


@pytest.mark.parametrize(
    ("libraries", "message"),
    [
        ({}, r"there is no library for cpu: gradcam_fast was not built\. To build it, run: pip install .*"),
        ({"cpu": NO_COMPILER}, r".*no C\+\+ compiler was found\. To build it, run: apt-get install g\+\+ && pip .*"),
        ({"cpu": BUILT}, r".*libgradcam_fast_cpu\.so is gone\. To build it, run: pip install .*"),
    ],
)
def test_the_path_of_a_library_that_is_missing_is_refused_with_the_command_that_builds_it(
    built_with, libraries, message
):
    with pytest.raises(LibraryMissing) as refusal:
        built_with(**libraries).library_path("cpu")
    assert re.fullmatch(message, str(refusal.value))


def test_a_device_without_kernels_has_no_library(built_with):
    with pytest.raises(ValueError, match="device='mps' is unknown; choose one of 'cpu', 'cuda'"):
        built_with(cpu=BUILT).library_path("mps")


def test_the_report_reads_line_by_line(built_with):
    module = built_with()
    cpu = module.Kernel("cpu", True, "libgradcam_fast_cpu.so is loaded")
    cuda = module.Kernel("cuda", False, "no nvcc", "pip install x")
    report = module.Backend((cpu, cuda), "2.14.1", "2.10.0")
    assert str(report).splitlines() == [
        "gradcam_fast on torch 2.14.1; libraries built against torch 2.10.0",
        "cpu   fused: libgradcam_fast_cpu.so is loaded",
        "cuda  reference: no nvcc",
        "      to fix this, run: pip install x",
    ]


def test_an_interactive_session_shows_the_report():
    report = gradcam_fast.backend()
    assert repr(report) == str(report) and repr(report.kernels[0]) == str(report.kernels[0])
    assert repr(report).startswith(f"gradcam_fast on torch {torch.__version__}")
