"""What `make demo` would do: it says beforehand what it loads, shows progress, and ends with what to try next.

Nothing is installed: `make -n` prints the commands.
"""

import re
import shutil
import subprocess
import sys

import pytest
from support.installs import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments, folder):
    command = ["make", "-n", "demo", f"VENV={folder}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_size_is_told_before_anything_is_loaded(tmp_path):
    _, lines = make(folder=tmp_path / "venv")
    told, loaded = lines.index("about 3 GB to load"), lines.index("install")
    assert told < loaded
    assert [int(number) for number in re.findall(r"\[(\d)/3\]", lines)] == [1, 2, 3]


def test_pip_shows_its_progress_and_the_source_stays_editable(tmp_path):
    _, lines = make(folder=tmp_path / "venv")
    assert not re.search(r"pip install -q", lines)
    assert re.search(r"pip install +-c constraints.txt --no-build-isolation -e '\.\[demo\]'", lines)


def test_three_commands_are_named_to_try_next_and_exist(tmp_path, run):
    _, lines = make(folder=tmp_path / "venv")
    commands = re.findall(rf'echo "  {tmp_path}/venv/bin/(.+)"', lines)
    assert len(commands) == 3 and lines.index("Try next") > lines.index("gradcam-fast demo")
    for program, *arguments in map(str.split, commands):
        if program == "python":
            assert (ROOT / arguments[0]).is_file()
        else:
            _, help_text, _ = run(arguments[0], "--help")
            options = [argument for argument in arguments if argument.startswith("--")]
            assert all(option in "\n".join(help_text) for option in options)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has builds of PyTorch with CUDA")
def test_pytorch_without_cuda_may_come_from_another_index(tmp_path):
    status, lines = make("TORCH=cpu", "TORCH_INDEX=https://index.example/cpu", folder=tmp_path / "venv")
    assert status == 0 and "about 0.3 GB to load" in lines
    assert re.search(
        r"--extra-index-url https://index.example/cpu setuptools torch==[\d.]+\+cpu torchvision==[\d.]+\+cpu", lines
    )


def test_another_torch_is_refused_with_the_choices(tmp_path):
    status, lines = make("TORCH=gpu", folder=tmp_path / "venv")
    assert status != 0 and "TORCH=gpu is unknown; give TORCH=cpu, or leave it out" in lines
