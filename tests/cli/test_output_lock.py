"""One run at a time writes to a folder, nothing is lost or left behind, and a crash releases the folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from support.red_or_blue import photo
from support.soak import numbers

from gradcam_fast.pipeline.output_lock import PART_SUFFIX, lock_folder

COUNT = 40
SUPPORT = Path(__file__).parents[1] / "support"
NETWORK = ["--model", "red_or_blue:model", "--size", "56", "--crop", "none", "--mean", *"000", "--std", *"111"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")


def start(photos, out):
    command = [sys.executable, "-m", "gradcam_fast", "explain", photos, "--out", out, *NETWORK]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--format", "overlay,parquet"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", numbers(short=1, full=10))
def test_two_processes_with_one_folder_lose_no_row_and_no_picture(tmp_path, number):
    out = tmp_path / "out"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(COUNT):
            photo(cell=(number % 7, 0), scale=4).save(tmp_path / folder / f"{number:02}.png")
    processes = {folder: start(tmp_path / folder, out) for folder in ("a", "b")}
    errors = {folder: process.communicate(timeout=120)[1] for folder, process in processes.items()}
    done = [folder for folder, process in processes.items() if process.returncode == 0]
    for folder in processes.keys() - done:
        assert processes[folder].returncode == 2
        assert f"another gradcam-fast is writing to {out}; wait" in errors[folder] or "--resume" in errors[folder]
    expected = sorted(str(path) for folder in done for path in (tmp_path / folder).iterdir())
    assert done and sorted(pandas.read_parquet(out / "maps.parquet")["path"]) == expected
    assert len(list(out.glob("*.overlay.jpg"))) == len(expected)
    assert not list(out.rglob(".*"))


def test_a_second_run_is_refused_and_a_crash_releases_the_folder(tmp_path):
    holder = "import sys, time; from pathlib import Path; from gradcam_fast.pipeline.output_lock import lock_folder\n"
    holder += "with lock_folder(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", holder, str(tmp_path / "out")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(RuntimeError, match="another gradcam-fast is writing to"), lock_folder(tmp_path / "out"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with lock_folder(tmp_path / "out") as is_locked:
                assert is_locked and not list((tmp_path / "out").iterdir())
                return
        except RuntimeError:
            time.sleep(0.05)
    pytest.fail("still locked")


def test_what_a_killed_process_left_half_written_is_removed(run, small, tmp_path):
    photos = small(2)
    left = [tmp_path / "out" / f".x{PART_SUFFIX}", tmp_path / "out" / "maps.parquet" / f".y{PART_SUFFIX}"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert run("explain", *photos, "--out", tmp_path / "out", "--format", "overlay,parquet")[0] == 0
    assert not list((tmp_path / "out").rglob(".*"))
