"""A live source is seen as it is now: however slow the network, nothing old is shown, and the end is clean."""

import itertools
import os
import signal
import threading
import time

import numpy
import pytest
from support.films import SIDE, TOP, bright_network, centre, heat, load, pictures, save

from gradcam_fast.cli.video import explain_video, is_live
from gradcam_fast.pipeline.question import Question

# Named, for to find the layer the network is run once more.
BRIGHT = Question(target=0, layer="brightness")
PAUSE = 0.03


@pytest.fixture(scope="module", autouse=True)
def everything_imported(tmp_path_factory):
    """The first explanation and the first film of a process take longer than a frame lasts here."""
    film = tmp_path_factory.mktemp("first") / "out.mp4"
    explain_video(bright_network(), iter(pictures(2)), film, BRIGHT, tell=lambda _: None)


@pytest.fixture(autouse=True)
def interrupts():
    """A job in the background of a shell is started with SIGINT ignored, and Python then leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def slow(pause=PAUSE):
    """A network that takes its time, and the numbers of the frames it was shown."""
    network, seen = bright_network(), []

    def wait(_, inputs, __):
        seen.append(number(inputs[0][0].permute(1, 2, 0).numpy()))
        time.sleep(pause)

    network.model.register_forward_hook(wait)
    return network, seen


def numbered(i):
    """A picture in which its own number, below 10,000, can be read."""
    picture = numpy.zeros((64, 96, 3), numpy.uint8)
    picture[:, :48], picture[:, 48:] = 2 * (i // 100), 2 * (i % 100)
    return picture


def number(picture):
    levels = picture[32, [10, 80], 0]
    if picture.dtype != numpy.uint8:  # the network's input
        levels = levels * 255 + 73
    return int(round(float(levels[0]) / 2) * 100 + round(float(levels[1]) / 2))


def test_the_lag_is_bounded_however_fast_the_source(tmp_path):
    network, seen = slow()
    newest, lags = [0], []

    def fast():
        for i in range(600):
            newest[0] = i
            yield numbered(i)
            time.sleep(0.001)

    network.model.register_forward_pre_hook(lambda _, inputs: lags.append(newest[0]))
    count = explain_video(network, fast(), lambda *_: None, BRIGHT, tell=lambda _: None)
    behind = [now - shown for now, shown in zip(lags, seen, strict=True)]
    # While one is explained thirty come; a backlog would grow to hundreds. Some come between taking and explaining,
    # more of them where the machine is busy.
    assert max(behind) < 100, behind
    assert 5 < count < 200
    assert seen[-1] == 599


def test_what_is_shown_moves_forward_and_carries_the_time_of_its_arrival():
    network, seen = slow(0.005)
    shown = []

    def source():
        for i in range(100):
            time.sleep(0.002)
            yield numbered(i)

    explain_video(network, source(), lambda _, seconds: shown.append(seconds), BRIGHT, tell=lambda _: None)
    assert seen == sorted(set(seen)) and seen[-1] == 99
    assert all(seconds >= 0.002 * i for i, seconds in zip(seen, shown, strict=True))


def test_a_slow_source_is_shown_frame_by_frame(tmp_path):
    frames = pictures(10)

    def source():
        for frame in frames:
            yield frame
            time.sleep(0.1)

    lines = []
    assert explain_video(bright_network(), source(), tmp_path / "out.mp4", BRIGHT, tell=lines.append) == 10
    shown, times = load(tmp_path / "out.mp4")
    assert lines == ["10 frames explained at layer brightness; class bright (0) in 10 of them"]
    for i, picture in enumerate(shown):
        assert centre(heat(picture)) == pytest.approx((i + SIDE / 2, TOP + SIDE / 2), abs=0.6)
    gaps = numpy.diff(times)
    # A busy machine makes them longer, never shorter.
    assert gaps.min() > 0.05 and gaps.mean() > 0.09


def test_control_c_ends_an_endless_source_and_completes_the_file(tmp_path):
    network, seen = slow(0.01)
    network.model.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT) if len(seen) == 20 else None)
    count = explain_video(
        network, map(numbered, itertools.cycle(range(10))), tmp_path / "out.mkv", BRIGHT, tell=lambda _: None
    )
    assert count == len(load(tmp_path / "out.mkv")[0])
    assert 15 <= count <= 20
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]


def test_control_c_ends_a_source_that_says_nothing(tmp_path):
    silent = threading.Event()

    def source():
        yield numbered(1)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        silent.wait(30)

    start = time.monotonic()
    assert explain_video(bright_network(), source(), tmp_path / "out.mp4", BRIGHT, tell=lambda _: None) == 1
    assert time.monotonic() - start < 10
    assert len(load(tmp_path / "out.mp4")[0]) == 1
    silent.set()


def test_a_source_that_fails_is_heard():
    def source():
        yield numbered(1)
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"):
        explain_video(bright_network(), source(), lambda *_: None, BRIGHT, tell=lambda _: None)


def test_a_source_without_frames_is_no_error_and_writes_nothing(tmp_path):
    lines = []
    assert explain_video(bright_network(), iter(()), tmp_path / "out.mp4", BRIGHT, tell=lines.append) == 0
    assert lines == ["the source sent no frames"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frame", [numpy.zeros((4, 4)), numpy.zeros((4, 4, 3)), numpy.zeros((4, 4, 4), numpy.uint8)])
def test_frames_that_are_no_rgb_pictures_are_refused(frame):
    with pytest.raises(ValueError, match=r"a frame has shape \(4, 4.*expected \(H,W,3\) uint8 RGB"):
        explain_video(bright_network(), [frame], lambda *_: None, BRIGHT, tell=lambda _: None)


def test_cameras_streams_and_iterators_are_live_and_files_are_not(tmp_path):
    path = save(tmp_path / "in.mp4", pictures(2))
    assert not is_live(path) and not is_live(str(path)) and not is_live("https://example.org/film.mp4")
    assert (
        is_live("rtsp://camera/1") and is_live(iter(())) and is_live("/dev/null")
    )  # a character device, as cameras are
