"""Every frame of a file is explained where it is, as large, as long and in the colours it was; errors leave nothing."""

import threading
from fractions import Fraction

import av
import numpy
import pytest
import torch
from support.films import GROUND, SIDE, TOP, bright_network, centre, heat, load, pictures, save
from support.refusals import assert_says

from gradcam_fast.cli.video import UnreadableVideoError, explain_video
from gradcam_fast.cli.video.writer import VideoFormat, VideoWriter
from gradcam_fast.pipeline.question import Question

BRIGHT = Question(target=0)


@pytest.fixture
def explain(tmp_path):
    """Explain a video into a file or a callable; return how many frames, and the lines that were printed."""

    def explain(source, out, network=None, options=BRIGHT, **choices):
        lines = []
        count = explain_video(network or bright_network(), source, out, options, tell=lines.append, **choices)
        return count, lines

    yield explain
    assert [path.name for path in tmp_path.rglob("*partial*")] == []


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_the_heat_is_on_the_square_in_every_frame(tmp_path, explain, suffix, batch_size):
    source = save(tmp_path / "in.mp4", pictures())
    count, lines = explain(source, tmp_path / f"out{suffix}", batch_size=batch_size)
    frames, times = load(tmp_path / f"out{suffix}")
    assert count == len(frames) == 48 and frames.shape[1:] == (64, 96, 3)
    assert lines == ["48 frames explained at layer brightness; class bright (0) in 48 of them"]
    numpy.testing.assert_allclose(times, numpy.arange(48) / 24, atol=0.0006)  # Matroska counts milliseconds
    for i, picture in enumerate(frames):
        assert centre(heat(picture)) == pytest.approx((i + SIDE / 2, TOP + SIDE / 2), abs=0.6)
    # Half of what was there, half of jet's hottest and coldest; the codec may be off by a few levels.
    hot, cold = frames[20, TOP + 8, 28], frames[20, 5, 5]
    numpy.testing.assert_allclose(hot, (255 + 128) / 2 * numpy.array([1, 0, 0]) + [0, 127.5, 127.5], atol=8)
    numpy.testing.assert_allclose(cold, numpy.array(GROUND) / 2 + [0, 0, 64], atol=8)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_changing_frame_rate_is_kept(tmp_path, explain, suffix):
    times = [0, 40, 200, 210, 500, 1500]
    source = save(tmp_path / f"in{suffix}", pictures(6), times=times)
    explain(source, tmp_path / f"out{suffix}", batch_size=4)
    numpy.testing.assert_allclose(load(tmp_path / f"out{suffix}")[1], numpy.array(times) / 1000, atol=1e-6)


@pytest.mark.parametrize("rate", [10, 25, "30000/1001"])
def test_the_frame_rate_is_kept_exactly(tmp_path, explain, rate):
    source = save(tmp_path / "in.mp4", pictures(10), rate=Fraction(rate))
    explain(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(rate)


@pytest.mark.parametrize(("size", "format"), [((97, 65), "yuv444p"), ((96, 65), "yuv444p"), ((96, 64), "yuv420p")])
def test_odd_sizes_are_kept_to_the_pixel(tmp_path, explain, size, format):
    source = save(tmp_path / "in.mp4", pictures(4, size), format="yuv444p")
    for suffix in (".mp4", ".webm"):
        explain(source, tmp_path / f"out{suffix}")
        frames, _ = load(tmp_path / f"out{suffix}")
        assert frames.shape == (4, size[1], size[0], 3)
        assert centre(heat(frames[3])) == pytest.approx((3 + SIDE / 2, TOP + SIDE / 2), abs=0.6)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == format


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_a_video_of_a_turned_camera_is_explained_and_written_upright(tmp_path, explain, rotation):
    upright = pictures(4, (80, 96))
    stored = numpy.ascontiguousarray(numpy.rot90(upright, -rotation // 90, (1, 2)))
    source = save(tmp_path / "in.mp4", stored, rotation=rotation)
    network = bright_network((96, 80))
    explain(source, tmp_path / "out.mp4", network)
    frames, _ = load(tmp_path / "out.mp4")
    assert frames.shape == upright.shape
    # Colours are stored at half the resolution, twice, and not always in the middle of their pixels.
    assert centre(heat(frames[2])) == pytest.approx((2 + SIDE / 2, TOP + SIDE / 2), abs=1)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


@pytest.mark.parametrize("matrix", [None, 1, 5])  # none said, BT.709, BT.601
@pytest.mark.parametrize("format", ["yuv420p", "yuvj420p"])
def test_colours_come_out_as_they_went_in(tmp_path, explain, matrix, format):
    frames = numpy.empty((3, 64, 96, 3), numpy.uint8)
    colours = numpy.array([[200, 30, 60], [30, 180, 40], [20, 40, 220], [128, 128, 128]])
    for i, colour in enumerate(colours):
        frames[:, :, 24 * i : 24 * i + 24] = colour
    source = save(tmp_path / "in.mp4", frames, matrix=matrix, format=format)
    explain(source, tmp_path / "out.mp4", alpha=0)
    before, after = load(source)[0][1, 32, 12::24], load(tmp_path / "out.mp4")[0][1, 32, 12::24]
    numpy.testing.assert_allclose(before.astype(int), colours, atol=5)
    numpy.testing.assert_allclose(after.astype(int), colours, atol=5)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == (matrix or 2)


def test_frames_that_change_their_size_and_tell_no_time_take_the_first_ones(tmp_path, explain):
    first, second = save(tmp_path / "a.h264", pictures(5)), save(tmp_path / "b.h264", pictures(5, (192, 128)))
    (tmp_path / "in.h264").write_bytes(first.read_bytes() + second.read_bytes())
    explain(tmp_path / "in.h264", tmp_path / "out.mp4")
    frames, times = load(tmp_path / "out.mp4")
    assert frames.shape == (10, 64, 96, 3)
    numpy.testing.assert_allclose(numpy.diff(times), 1 / 24, atol=0.002)
    assert centre(heat(frames[7])) == pytest.approx((1 + SIDE / 4, TOP / 2 + SIDE / 4), abs=1)


def test_the_sound_is_left_out(tmp_path, explain):
    source = save(tmp_path / "in.mp4", pictures(5), sound=True)
    with av.open(str(source)) as container:
        assert len(container.streams.audio) == 1
    assert explain(source, tmp_path / "out.mp4")[0] == 5
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_what_the_network_does_not_see_is_left_as_it_was(tmp_path, explain):
    source = save(tmp_path / "in.mp4", pictures(8, (128, 64)))
    network = bright_network((32, 32), crop=0.75)  # of 64 rows the middle 48, of 128 columns the middle 48, from 40 on
    explain(source, tmp_path / "out.mkv", network)
    before, after = (load(path)[0].astype(int) for path in (source, tmp_path / "out.mkv"))
    for outside in (numpy.s_[:, :, :36], numpy.s_[:, :, 92:], numpy.s_[:, :4], numpy.s_[:, 60:]):
        assert abs(after[outside] - before[outside]).mean() < 3
    assert abs(after[:, 12:52, 44:84, 2] - before[:, 12:52, 44:84, 2]).mean() > 30


def test_pictures_can_be_given_to_a_callable_in_the_callers_thread(tmp_path, explain):
    source = save(tmp_path / "in.mp4", pictures(5))
    shown = []
    explain(source, lambda picture, seconds: shown.append((picture, seconds, threading.current_thread())))
    assert [seconds for _, seconds, _ in shown] == pytest.approx([i / 24 for i in range(5)])
    assert {thread for _, _, thread in shown} == {threading.current_thread()}
    assert shown[3][0].dtype == torch.uint8 and shown[3][0].shape == (3, 64, 96)
    assert centre(heat(shown[3][0].permute(1, 2, 0).numpy())) == pytest.approx((3 + SIDE / 2, TOP + SIDE / 2), abs=0.6)


def test_decoding_and_encoding_have_threads_of_their_own(tmp_path, explain, monkeypatch):
    source = save(tmp_path / "in.mp4", pictures(5))
    network, threads = bright_network(), {}
    prepare, write = type(network.preprocess).__call__, VideoWriter.write
    monkeypatch.setattr(
        type(network.preprocess),
        "__call__",
        lambda *a: threads.setdefault("prepare", threading.get_ident()) and prepare(*a),
    )
    monkeypatch.setattr(
        VideoWriter, "write", lambda *a: threads.setdefault("write", threading.get_ident()) and write(*a)
    )
    network.model.register_forward_hook(lambda *_: threads.setdefault("explain", threading.get_ident()) and None)
    explain(source, tmp_path / "out.mp4", network)
    assert threads["explain"] == threading.get_ident()
    assert len(set(threads.values())) == 3


def test_progress_counts_to_the_number_of_frames(tmp_path, explain):
    source = save(tmp_path / "in.mp4", pictures(10))
    progress = []
    explain(source, tmp_path / "out.mp4", batch_size=4, progress=lambda *counts: progress.append(counts))
    assert progress == [(4, 10), (8, 10), (10, 10)]


def test_the_predicted_class_of_each_frame_is_explained_and_counted(tmp_path, explain):
    frames = pictures(5)
    frames[3:] = 0
    source = save(tmp_path / "in.mp4", frames)
    network = bright_network()
    for options in (Question(), Question(topk=1)):
        assert explain(source, tmp_path / "out.mp4", network, options)[1] == [
            "5 frames explained at layer brightness; class bright (0) in 3 of them"
        ]


def test_a_model_that_fails_leaves_no_file_and_the_old_one_as_it_was(tmp_path, explain):
    source = save(tmp_path / "in.mp4", pictures(80))
    (tmp_path / "out.mp4").write_text("old")
    for error in (RuntimeError, KeyboardInterrupt):
        network, calls = bright_network(), []

        def fail(*_, calls=calls, error=error):
            calls.append(1)
            if len(calls) > 38:  # by then the encoder has begun to write
                raise error("now")

        network.model.register_forward_hook(fail)
        with pytest.raises(error, match="now"):
            explain(source, tmp_path / "out.mp4", network, batch_size=2)
        assert (tmp_path / "out.mp4").read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_a_disk_that_is_full_is_told_and_leaves_nothing(tmp_path, explain, monkeypatch):
    def full(self, picture, time):
        write(self, picture, time)
        if time > 3:
            assert list(tmp_path.glob(".*.partial.mp4"))
            raise OSError(28, "No space left on device")

    write = VideoWriter.write
    monkeypatch.setattr(VideoWriter, "write", full)
    source = save(tmp_path / "in.mp4", pictures(80))
    with pytest.raises(OSError, match="No space left"):
        explain(source, tmp_path / "out.mp4", batch_size=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]


def test_pictures_of_one_time_follow_upon_each_other(tmp_path):
    with VideoWriter(tmp_path / "out.mkv", VideoFormat(clock=Fraction(1, 1000))) as writer:
        for picture, time in zip(pictures(4), (0, 1, 1, Fraction(1, 2)), strict=True):
            writer.write(picture, Fraction(time))
    frames, times = load(tmp_path / "out.mkv")
    assert times == [0, 1, 1.001, 1.002] and len(frames) == 4


def test_two_videos_of_one_name_may_be_written_at_once_and_the_one_that_ends_last_stays(tmp_path):
    path = tmp_path / ("n" * 245 + ".mkv")
    with VideoWriter(path, VideoFormat()) as first, VideoWriter(path, VideoFormat()) as second:
        for number, picture in enumerate(pictures(80)):  # so many that both are open
            first.write(picture, Fraction(number, 24))
            second.write(255 - picture, Fraction(number, 24))
        assert len([*tmp_path.iterdir()]) == 2
    frames, _ = load(path)
    assert [*tmp_path.iterdir()] == [path] and len(frames) == 80
    numpy.testing.assert_allclose(frames[0, 5, 80], GROUND, atol=12)


def test_an_unknown_colormap_is_told_before_anything_is_read(tmp_path, explain):
    with pytest.raises(ValueError, match="virdis"):
        explain(tmp_path / "missing.mp4", tmp_path / "out.mp4", colormap="virdis")


@pytest.mark.parametrize(
    ("choices", "parts"),
    [
        ({"out": "out.gif"}, ["out.gif", ".mp4, .m4v, .mov, .mkv, .webm"]),
        ({"out": "missing/out.mp4"}, ["missing: no such folder"]),
        ({"out": "in.mp4"}, ["in.mp4 is the source itself"]),
        ({"options": Question(topk=2)}, ["topk=2", "give topk=1, or one target class"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"colormap": "virdis"}, ["virdis", "did you mean viridis"]),
        ({"options": Question(target=7)}, ["target 7", "2 classes"]),
        ({"options": Question(layer="nowhere")}, ["nowhere"]),
        ({"alpha": 2}, ["alpha=2"]),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing(tmp_path, explain, choices, parts):
    source = save(tmp_path / "in.mp4", pictures(2))
    content = source.read_bytes()
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        explain(source, tmp_path / choices.pop("out", "out.mp4"), **choices)
    message = str(refusal.value)
    assert not [part for part in parts if part not in message], message
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"] and source.read_bytes() == content


@pytest.mark.parametrize("name", ["in.mkv", "in.mp4"])
def test_what_is_left_of_a_file_that_was_cut_off_is_explained_and_it_is_said(tmp_path, explain, name):
    source = save(tmp_path / name, pictures(80, (128, 64)))
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 3 // 4])
    count, lines = explain(source, tmp_path / "out.mp4")
    assert 10 < count < 70
    assert len(load(tmp_path / "out.mp4")[0]) == count
    assert lines[1] == f"{source}: {count} of about 80 frames could be decoded; only these were explained"


def test_frames_that_cannot_be_decoded_are_counted_and_skipped(tmp_path, explain):
    source = save(tmp_path / "in.mkv", pictures(48), codec="ffv1")
    content = bytearray(source.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 300] = numpy.random.default_rng(0).bytes(300)
    source.write_bytes(content)
    count, lines = explain(source, tmp_path / "out.mp4")
    assert 20 < count < 48
    assert lines[1] == f"{source}: {count} of about 48 frames could be decoded; only these were explained"


def test_a_disk_that_fails_while_it_is_read_ends_the_video_and_is_told(tmp_path, explain, monkeypatch):
    class Failing:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def demux(self, stream):
            for i, packet in enumerate(self.container.demux(stream)):
                if i == 10:
                    raise av.FFmpegError(5, "Input/output error")
                yield packet

    opened = av.open
    source = save(tmp_path / "in.mkv", pictures(30), codec="ffv1")
    monkeypatch.setattr(
        av,
        "open",
        lambda name, mode, **options: (Failing if mode == "r" else (lambda c: c))(opened(name, mode, **options)),
    )
    count, lines = explain(source, tmp_path / "out.mp4")
    assert count == 10
    assert lines[1] == f"{source}: reading stopped after 10 frames (Input/output error); only these were explained"


def test_what_is_no_video_is_refused_by_name(tmp_path, explain):
    text, empty, sound, cut = (tmp_path / name for name in ("text.mp4", "empty.mp4", "sound.mp4", "cut.mov"))
    text.write_text("no video")
    empty.touch()
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(numpy.zeros((1, 8000), numpy.float32), "fltp", "mono")
        samples.sample_rate = 8000
        container.mux([*stream.encode(samples), *stream.encode()])
    save(cut, pictures(20))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])  # where the frames are is said at the end
    reasons = {
        text: "not a video",
        empty: "not a video",
        sound: "has no video in it",
        cut: "damaged from its beginning",
        tmp_path / "missing.mp4": "no such file",
        tmp_path: "Is a directory",
    }
    for path, reason in reasons.items():
        with pytest.raises(UnreadableVideoError) as refusal:
            explain(path, tmp_path / "out.mp4")
        assert_says(refusal, UnreadableVideoError, [f"{path}: ", reason])
    assert not (tmp_path / "out.mp4").exists()
