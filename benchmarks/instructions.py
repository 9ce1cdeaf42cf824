"""Counts the instructions of calls of the op with callgrind, which a busy machine does not change.

    python benchmarks/instructions.py             prints them as JSON
    python benchmarks/instructions.py --store     stores them as the baseline of this compiler and machine

Needs valgrind with its headers (Debian: apt-get install valgrind), and a minute or two.
"""

import ctypes
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BASELINES = HERE / "instructions.json"
COMPILER = shlex.split(os.environ.get("CXX", "c++"))

# (shape of the activations, targets, size of the heatmap, dtype, method, layout)
CASES = {
    "gradcam 2048x7x7": ((1, 2048, 7, 7), 1, 224, "float32", "gradcam", "planes"),
    "gradcam 512x14x14": ((1, 512, 14, 14), 1, 224, "float32", "gradcam", "planes"),
    "gradcam 64x128x128": ((1, 64, 128, 128), 1, 512, "float32", "gradcam", "planes"),
    "ten targets": ((1, 512, 7, 7), 10, 56, "float32", "gradcam", "planes"),
    "channels last": ((1, 512, 14, 14), 1, 224, "float32", "gradcam", "channels last"),
    "gradcam++ channels last": ((1, 512, 14, 14), 1, 224, "float32", "gradcam++", "channels last"),
    "expanded gradients": ((1, 2048, 7, 7), 1, 224, "float32", "gradcam", "expanded"),
    "bfloat16": ((1, 2048, 7, 7), 1, 224, "bfloat16", "gradcam", "planes"),
    "float16": ((1, 2048, 7, 7), 1, 224, "float16", "gradcam", "planes"),
    **{
        method: ((1, 512, 7, 7), 1, 224, "float32", method, "planes")
        for method in ("gradcam++", "xgradcam", "hirescam", "elementwise", "layercam")
    },
    "layercam 512x14x14": ((1, 512, 14, 14), 1, 224, "float32", "layercam", "planes"),
    "a call": ((1, 8, 2, 2), 1, 2, "float32", "gradcam", "planes"),
}
# (rows, inner, columns); every other number of a row is zero.
SKINNY = {"skinny_mm": (2, 1024, 4096)}


def missing():
    """What is missing for counting, in a sentence; None if nothing is."""
    if platform.system() != "Linux":
        return "callgrind counts on Linux only"
    if shutil.which("valgrind") is None:
        return "valgrind is not installed; on Debian, run: apt-get install valgrind"
    return None


def machine():
    """What the counts depend on besides the sources: the compiler and the processor type."""
    version = subprocess.run([*COMPILER, "--version"], capture_output=True, text=True, check=True).stdout
    return f"{version.splitlines()[0]}, {platform.machine()}"


def counted():
    """Instructions by case: of one call, on one thread, after warm-up calls."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder, "marks.so")
        subprocess.run([*COMPILER, "-x", "c", "-shared", "-fPIC", HERE / "instructions.c", "-o", marks], check=True)
        out = Path(folder, "out")
        callgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        subprocess.run(
            [*callgrind, sys.executable, __file__, "--calls", marks],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=True,
        )
        totals = {}
        for dump in Path(folder).glob("out.*"):
            text = dump.read_text()
            name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
            total = re.search(r"^summary: (\d+)$", text, re.MULTILINE)
            if name and total:
                totals[name[1]] = int(total[1])
        return {name: totals[name] for name in (*CASES, *SKINNY)}


def call_all(marks):
    import torch

    import gradcam_fast

    library = ctypes.CDLL(marks)

    def count(name, function, *args, **choices):
        for _ in range(3):
            function(*args, **choices)
        library.begin()
        function(*args, **choices)
        library.end(name.encode())

    torch.manual_seed(0)
    for name, (shape, targets, size, dtype, method, layout) in CASES.items():
        activations = torch.randn(shape).relu().to(getattr(torch, dtype))
        gradients = torch.randn(shape if targets == 1 else (shape[0], targets, *shape[1:])).to(activations)
        if layout == "expanded":
            gradients = gradients[..., :1, :1].expand(gradients.shape)
        if layout == "channels last":
            activations, gradients = (maps.to(memory_format=torch.channels_last) for maps in (activations, gradients))
        count(name, gradcam_fast.cam, activations, gradients, size, method=method)
    for name, (rows, inner, columns) in SKINNY.items():
        left = torch.randn(rows, inner) * (torch.arange(inner) % 2)
        count(name, gradcam_fast.ops.skinny_mm.mm, left, torch.randn(inner, columns))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--calls"]:
        call_all(sys.argv[2])
    elif reason := missing():
        sys.exit(reason)
    else:
        counts = counted()
        print(json.dumps(counts, indent=1))
        if sys.argv[1:] == ["--store"]:
            stored = json.loads(BASELINES.read_text()) if BASELINES.exists() else {}
            BASELINES.write_text(json.dumps({**stored, machine(): counts}, indent=1) + "\n")
