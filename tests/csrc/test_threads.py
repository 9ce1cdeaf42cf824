"""The CPU operators have no data race, and give the bits of one thread, however many threads call and run them.

They are built without PyTorch, on the threads of tests/csrc/threads.h, with ThreadSanitizer.
"""

import os
import subprocess
from functools import partial

import pytest
from support.installs import needs_compiler
from support.shared import folder_filled_once
from support.soak import numbers
from support.sources import CSRC, ROOT, find_torch, toolchain

# Compiles the kernels for each instruction set.
pytestmark = [pytest.mark.slow, needs_compiler]

SOURCES = [*sorted((CSRC / "cpu").glob("*.cpp")), *sorted((ROOT / "tests" / "csrc").glob("threads*.cpp"))]


def build(sanitizer, folder):
    """Compile the sources at the same time, and link them into ``folder/threads``."""
    include = find_torch.find_torch().include
    # -g1 names functions and lines; -g, which also follows variables, takes many times as long.
    flags = [*toolchain.COMMON_FLAGS, *toolchain.CPU_FLAGS, "-O1", "-g1", f"-fsanitize={sanitizer}"]
    command = [*toolchain._cxx(), *flags, f"-I{CSRC}", f"-isystem{include}"]
    objects = [folder / f"{source.stem}-{source.parent.name}.o" for source in SOURCES]
    compilers = [
        subprocess.Popen([*command, "-c", source, "-o", target])
        for source, target in zip(SOURCES, objects, strict=True)
    ]
    assert [compiler.wait() for compiler in compilers] == [0] * len(SOURCES)
    subprocess.run([*command, *objects, "-pthread", "-o", folder / "threads"], check=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return folder_filled_once(tmp_path_factory, "threads", partial(build, "thread")) / "threads"


def run(program, *arguments, **environment):
    done = subprocess.run(
        # Without randomised addresses: ThreadSanitizer of GCC 12 does not start with those of newer kernels.
        ["setarch", "-R", program, *map(str, arguments)],
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66", **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("instructions", ["default", "avx2", "avx512"])
def test_no_race_and_the_same_bits_on_any_number_of_threads(program, instructions):
    cases = numbers(short=150, full=5_000)
    status, output = run(program, len(cases), cases.start, ATEN_CPU_CAPABILITY=instructions)
    assert (status, output) == (0, f"{len(cases)} cases\n"), output[-3000:]


def test_a_race_is_found(program):
    status, output = run(program, 1, 0, GRADCAM_FAST_RACE="1")
    assert status == 66 and "data race" in output
