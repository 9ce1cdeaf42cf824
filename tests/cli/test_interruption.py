"""The command as a process that is interrupted or killed half-way: nothing half-written, and resuming completes it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from PIL import Image
from support.red_or_blue import photo
from support.soak import numbers

COUNT = 300
SUPPORT = Path(__file__).parents[1] / "support"
NETWORK = ["--model", "red_or_blue:model", "--size", "56", "--crop", "none", "--mean", "0", "0", "0", "--std", *"111"]

# A job in the background of a shell is started with SIGINT ignored, which its children inherit.
RUN = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "runpy.run_module('gradcam_fast', run_name='__main__')"
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        photo("red", (number % 7, number // 7 % 7), scale=8).save(folder / f"{number:03}.png")
    return folder


def start(photos, out, *options):
    command = [sys.executable, "-c", RUN, "explain", photos, "--out", out, *NETWORK, *options]
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def overlays(out):
    return sorted(path.name for path in out.glob("*.overlay.jpg"))


@pytest.mark.parametrize("number", numbers(short=1, full=10))
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_what_is_left_is_whole_and_resuming_completes_it(photos, tmp_path, sent, number):
    least = 20 + number % 10 * 15
    options = ["--format", "overlay,parquet", "--batch-size", "8"]
    process = start(photos, tmp_path, *options)
    while len(overlays(tmp_path)) < least and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    errors = [line for line in err.splitlines() if "warning:" not in line and "note:" not in line]
    left = overlays(tmp_path)
    assert least <= len(left) < COUNT
    for name in left:
        with Image.open(tmp_path / name) as picture:
            picture.load()
    table = tmp_path / "maps.parquet"
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert out == "" and len(errors) == 1 and errors[0].startswith("gradcam-fast: interrupted after ")
        assert 0 < len(pandas.read_parquet(table)) <= len(left)
    else:
        assert process.returncode == -signal.SIGKILL
    resumed = start(photos, tmp_path, *options, "--resume")
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert len(overlays(tmp_path)) == COUNT
    assert not list(tmp_path.glob(".*"))
    paths = pandas.read_parquet(table)["path"].tolist()
    assert sorted(paths) == sorted(map(str, photos.iterdir()))
    explained = int(out.split()[0])
    assert explained == COUNT if sent == signal.SIGKILL else 0 < explained < COUNT
