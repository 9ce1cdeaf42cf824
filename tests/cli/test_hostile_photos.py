"""No photo sinks a run: each that fails has its line and its row, and the others are explained."""

import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy
import pandas
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from support.red_or_blue import network, photo

from gradcam_fast import Preprocess
from gradcam_fast._preprocessing import steps
from gradcam_fast.cli.console import printable
from gradcam_fast.exceptions import UnreadablePhotoError
from gradcam_fast.pipeline import networks
from gradcam_fast.pipeline.photo_reading import read_photo

pytestmark = pytest.mark.skipif(os.name != "posix", reason="names and pipes of POSIX")


@pytest.fixture
def folder(small, tmp_path):
    """A folder of two good photos, to which a test adds a bad one."""
    return small(2)[0].parent


def maps_of(out):
    return pandas.read_parquet(out / "maps.parquet")


def explain(run, folder, out, *options):
    return run("explain", folder, "--out", out, "--format", "overlay,parquet", *options)


def png(width, height, *, bits=16):
    """A gray PNG of these sides, all black: a few hundred kilobytes, however large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compress = zlib.compressobj(1)
    row = bytes(1 + width * bits // 8)
    rows = b"".join(compress.compress(row) for _ in range(height)) + compress.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"\xff\xfe.png", "日".encode() * 80 + b".png", b"x" * 232 + b".png"])
def test_any_name_that_a_file_system_takes_is_explained(run, folder, tmp_path, name):
    path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
    photo(scale=1).save(path)
    out = tmp_path / "out"
    assert explain(run, folder, out)[0] == 0
    assert len(list(out.glob("*.overlay.jpg"))) == len(maps_of(out)) == 3
    rows = maps_of(out)
    stored = [data or os.fsencode(text) for text, data in zip(rows["path"], rows["path_bytes"], strict=True)]
    assert os.fsencode(path) in stored
    _, lines, _ = explain(run, folder, out, "--resume")
    assert lines[0].startswith("0 photos explained") and "3 already done" in lines[0]
    assert run("render", out / "maps.parquet", "--out", tmp_path / "again")[0] == 0
    assert len(list((tmp_path / "again").glob("*.overlay.jpg"))) == 3


def test_a_bad_photo_has_a_line_and_a_row_and_is_tried_again(run, folder, tmp_path):
    bad = folder / "bad.png"
    bad.write_bytes(b"no photo")
    for options in ((), ("--resume",)):
        status, _, err = explain(run, folder, tmp_path / "out", *options)
        assert status == 1 and err == [f"gradcam-fast: {bad}: not a photo in a format that Pillow reads; skipped"]
    rows = maps_of(tmp_path / "out")
    (row,) = rows[rows["error"].notna()].itertuples()
    assert (row.path, row.error) == (str(bad), f"{bad}: not a photo in a format that Pillow reads")
    assert rows["class"].tolist() == [0, 0, -1] and rows["class"].dtype == numpy.int32
    photo("blue", scale=1).save(bad)
    assert explain(run, folder, tmp_path / "out", "--resume")[0] == 0
    assert maps_of(tmp_path / "out")["class"].tolist() == [0, 0, -1, 1]
    assert run("render", tmp_path / "out" / "maps.parquet", "--out", tmp_path / "again")[0] == 0
    assert len(list((tmp_path / "again").iterdir())) == 3


@pytest.mark.parametrize("name", ["p.jpg", "p-gradcam.jpg"])
def test_a_pipe_is_not_opened(run, folder, tmp_path, name):
    os.mkfifo(folder / name)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(explain(run, folder, tmp_path / "out")), daemon=True)
    thread.start()
    thread.join(60)
    ((status, _, err),) = answers
    assert status == 1 and err == [f"gradcam-fast: {folder / name}: not a regular file; skipped"]
    assert len(maps_of(tmp_path / "out")) == 3


def test_a_device_is_not_read():
    with pytest.raises(UnreadablePhotoError, match="/dev/zero: not a regular file"):
        read_photo("/dev/zero")


def test_a_photo_of_too_many_pixels_is_refused_by_its_header(run, folder, tmp_path):
    (folder / "large.png").write_bytes(png(300, 200))
    status, _, err = explain(run, folder, tmp_path / "out", "--max-pixels", 59_999)
    assert status == 1
    assert err == [
        f"gradcam-fast: {folder / 'large.png'}: has 300 x 200 pixels, more than 59,999; make it smaller, or raise "
        "--max-pixels; skipped"
    ]
    assert explain(run, folder, tmp_path / "out", "--max-pixels", 60_000, "--resume")[0] == 0


def test_the_limit_is_ours_and_not_that_of_pillow(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    status, _, err = explain(run, folder, tmp_path / "out")
    assert (status, err, Image.MAX_IMAGE_PIXELS) == (0, [], 1000)


def test_a_file_that_is_too_large_for_its_pixels_is_not_read(tmp_path):
    path = tmp_path / "sparse.jpg"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnreadablePhotoError, match="too large for a photo"):
        read_photo(path)


MEMORY = """
import re, resource, sys
from gradcam_fast import Preprocess
from gradcam_fast.photo_decoding import own_pixel_limit
from gradcam_fast.pipeline.photo_reading import read_photo

def memory(kind):  # the peak that getrusage tells begins with that of the process that started this one
    try:
        return int(re.search(kind + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

preprocess = Preprocess((224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.875)
before = memory("VmRSS")
with own_pixel_limit():
    preprocess([read_photo(sys.argv[1])])
print(memory("VmHWM") - before)
"""


def memory_to_read(path):
    """How many MB reading and resizing one photo adds to a process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEMORY, str(path)]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout) / 1024


@pytest.mark.parametrize(("width", "height"), [(65000, 1), (1, 30000)])
def test_a_strip_takes_little_memory_under_a_network_that_crops(tmp_path, width, height):
    Image.new("RGB", (width, height), "red").save(tmp_path / "strip.png")
    assert memory_to_read(tmp_path / "strip.png") < 200


def test_a_large_photo_of_16_bits_takes_less_than_20_bytes_a_pixel(tmp_path):
    (tmp_path / "large.png").write_bytes(png(6000, 5000))
    assert memory_to_read(tmp_path / "large.png") < 20 * 30


def test_a_strip_shows_its_middle():
    strip = Image.new("RGB", (40_000, 1), "black")
    strip.paste("red", (20_000, 0, 20_001, 1))
    preprocess = Preprocess(224, mean=(0,) * 3, std=(1,) * 3, crop=0.875, interpolation="box")
    red = preprocess([strip]).images[0, 0, 0]
    assert not red[:110].any() and (red[114:] == 1).all()


@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_the_middle_of_a_strip_is_what_resizing_the_whole_would_give(monkeypatch, crop):
    strip = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (8, 900, 3), dtype=numpy.uint8))
    preprocess = Preprocess(32, mean=(0,) * 3, std=(1,) * 3, crop=crop, interpolation="bicubic")
    whole = preprocess([strip]).images
    monkeypatch.setattr(steps, "MAX_RESIZED_PIXELS", 1)
    assert (preprocess([strip]).images - whole).abs().max() < 0.05


def test_a_strip_too_long_for_jpeg_is_told_in_its_line(run, folder, tmp_path):
    Image.new("RGB", (70_000, 1)).save(folder / "strip.png")
    status, _, err = explain(run, folder, tmp_path / "out", "--max-side", 100_000)
    assert status == 1 and len(err) == 1 and "strip.png: its pictures cannot be made" in err[0]
    assert maps_of(tmp_path / "out")["class"].tolist() == [0, 0, -1]


def test_an_eps_file_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadablePhotoError, match="not a photo in a format that Pillow reads"):
        read_photo(path)


def test_only_plugins_of_raster_formats_are_loaded():
    read = "import sys\nfrom gradcam_fast.pipeline.photo_reading import read_photo\n"
    read += "try:\n    read_photo(sys.argv[1])\nexcept Exception:\n    pass\n"
    read += "print({'PIL.EpsImagePlugin', 'PIL.WmfImagePlugin', 'PIL.FpxImagePlugin'} & sys.modules.keys())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", read, __file__], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_a_name_cannot_steer_the_terminal(run, folder, tmp_path):
    photo(scale=1).save(folder / "\x1b[31mred\u202e.png")
    (folder / "\x1b]0;bad\x07.png").touch()
    _, out, err = explain(run, folder, tmp_path / "out", "--verbose")
    assert len(out) > 3 and all(line.isprintable() for line in [*out, *err])
    assert any("\\x1b[31mred\\u202e.png" in line for line in out) and "\\x1b]0;bad\\x07.png" in err[0]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_encode_is_escaped(encoding):
    stream = type("Stream", (), {"encoding": encoding})
    shown = printable("é\udce9日\x1b", stream)
    assert shown.encode(encoding).decode(encoding) == shown and "\x1b" not in shown and "\\x1b" in shown


def test_a_class_name_of_100000_characters_stalls_nothing(run, small, tmp_path, monkeypatch):
    long = network()
    object.__setattr__(long, "class_names", ("r " * 50_000, "blue"))
    photos = small(1)
    monkeypatch.setattr(networks, "load_network", lambda name, **_: long)
    status, out, _ = run("explain", *photos, "--out", tmp_path / "out", "--format", "panels,parquet")
    assert status == 0 and max(map(len, out)) < 200
    with Image.open(next((tmp_path / "out").glob("*.jpg"))) as picture:
        assert picture.height < 2000
    assert set(map(len, maps_of(tmp_path / "out")["class_name"])) == {100_000, 4}


def test_a_network_that_returns_nan_is_told(run, folder, tmp_path, monkeypatch):
    broken = network()
    torch.nn.init.constant_(broken.model[0].weight, float("nan"))
    monkeypatch.setattr(networks, "load_network", lambda name, **_: broken)
    status, _, err = explain(run, folder, tmp_path / "out")
    assert status == 1 and len(err) == 2
    assert err[0].endswith("the network returns nan for it; check the weights, or give --dtype float32; skipped")


def test_a_full_disk_leaves_no_half_written_file(run, folder, tmp_path, monkeypatch):
    def full(path, data):
        with open(path, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert explain(run, folder, tmp_path / "out")[0] == 2
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("map", [b"\0" * 7] * 2, "7 levels for a map of 7 x 7"),
        ("map_height", [0, 0], "a map of 0 x 7"),
        ("left", [-5, -5], "left -5 and right 56 of 56 pixels"),
        ("bottom", [999, 999], "top 0 and bottom 999 of 56 pixels"),
        ("class_name", [None, None], "class_name is empty"),
        ("map", [None, None], "map is empty"),
    ],
)
def test_a_damaged_row_is_told_in_its_line(run, folder, tmp_path, column, values, said):
    explain(run, folder, tmp_path / "out")
    for part in (tmp_path / "out" / "maps.parquet").iterdir():
        rows = pyarrow.parquet.read_table(part)
        place = rows.schema.get_field_index(column)
        rows = rows.set_column(place, column, pyarrow.array(values, rows.schema.field(column).type))
        pyarrow.parquet.write_table(rows, part)
    status, _, err = run("render", tmp_path / "out" / "maps.parquet", "--out", tmp_path / "again")
    assert status == 1 and len(err) == 2
    assert err[0].endswith(f"00.png: its row in the table is damaged ({said}); skipped")


VALUES = {
    "text": ["a", "b"],
    "bytes": [b"a", b"b"],
    "numbers": [1.5, 2.5],
    "whole numbers": [1, 2],
    "lists": [[1], [2]],
    "structures": [{"a": 1}, {"a": 2}],
    "nothing": [None, None],
}


@pytest.mark.parametrize(
    ("column", "kind"),
    [("path", "text"), ("width", "whole numbers"), ("class_name", "text"), ("score", "numbers"), ("map", "bytes")],
)
def test_a_column_of_another_type_is_told_by_name(run, folder, tmp_path, column, kind):
    explain(run, folder, tmp_path / "out")
    (part,) = (tmp_path / "out" / "maps.parquet").iterdir()
    rows = pyarrow.parquet.read_table(part)
    for name, values in VALUES.items():
        array = pyarrow.array(values)
        changed = rows.set_column(rows.schema.get_field_index(column), column, array)
        pyarrow.parquet.write_table(changed.replace_schema_metadata(rows.schema.metadata), part)
        status, _, err = run("render", tmp_path / "out" / "maps.parquet", "--out", tmp_path / name)
        is_told = f" in the column '{column}', which holds {kind};" in " ".join(err)
        assert (status == 2 and is_told) == (name != kind), (name, err)


@pytest.mark.parametrize("settings", [b"{}", b"[]", b"7", b'{"input": 3}', b'{"input": [0, 1]}', b"\xff", b"null"])
def test_a_table_with_damaged_settings_is_refused(run, folder, tmp_path, settings):
    explain(run, folder, tmp_path / "out")
    (part,) = (tmp_path / "out" / "maps.parquet").iterdir()
    rows = pyarrow.parquet.read_table(part)
    pyarrow.parquet.write_table(rows.replace_schema_metadata({b"gradcam_fast": settings}), part)
    status, _, (err,) = run("render", tmp_path / "out" / "maps.parquet", "--out", tmp_path / "again")
    assert status == 2 and err.endswith("is not part of a table of maps; give the maps.parquet that explain wrote")


@pytest.mark.parametrize("cut", [1, 100, 1500, -1, -200])
def test_a_table_that_is_cut_or_overwritten_is_refused_by_name(run, folder, tmp_path, cut):
    explain(run, folder, tmp_path / "out")
    (part,) = (tmp_path / "out" / "maps.parquet").iterdir()
    part.write_bytes(part.read_bytes()[:cut])
    status, _, (err,) = run("render", tmp_path / "out" / "maps.parquet", "--out", tmp_path / "again")
    assert status == 2 and part.name in err
    status, _, (err,) = explain(run, folder, tmp_path / "out", "--resume")
    assert status == 2 and part.name in err
