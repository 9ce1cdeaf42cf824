"""How much a run prints: results of few photos, a line about many, a progress bar beside both."""

import re

import pytest

from gradcam_fast.cli.console import Report, photo_count


def test_quiet_tells_nothing_and_verbose_everything(run, small, tmp_path):
    assert run("explain", *small(20), "--out", tmp_path, "--quiet") == (0, [], [])
    out = run("explain", *small(20), "--out", tmp_path, "--verbose")[1]
    assert sum(line.endswith("%  red (0)") for line in out) == 20
    assert out[-1].startswith("20 photos explained in ")
    assert run("explain", *small(2), "--out", tmp_path, "--quiet") == (0, [], [])


def test_a_progress_bar_shows_photos_a_second_on_standard_error(run, small, tmp_path):
    status, out, err = run("explain", *small(3), "--out", tmp_path, "--format", "npy", "--progress")
    assert status == 0
    assert re.search(r"3/3 [\d.]+ photos/s 0:00:\d\d elapsed, 0:00:00 left", "\n".join(err))
    assert sum(line.startswith("  map: ") for line in out) == 3


@pytest.mark.parametrize(
    ("seconds", "words"), [(1.26, "1.3 s"), (59.9, "59.9 s"), (125, "2 min 05 s"), (3 * 3600 + 240, "3 h 04 min")]
)
def test_the_last_line_says_how_long_it_took(tmp_path, seconds, words):
    lines = []
    report = Report(summary=True, tell=lines.append)
    report.begin(0, 1)
    report.end(seconds, tmp_path)
    assert lines == [f"0 photos explained in {words}, 1 already done; see {tmp_path}"]


def test_one_photo_is_singular():
    assert [photo_count(count) for count in (0, 1, 2048)] == ["0 photos", "1 photo", "2,048 photos"]


def test_lines_are_printed_whole_beside_the_bar(capsys):
    report = Report(bar=True)
    with report:
        report.begin(2, 2)
        report.photo_skipped(OSError("a.png: no such file"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b[2Kgradcam-fast: a.png: no such file; skipped\n" in err
    assert "1/2" in err.splitlines()[-2]
