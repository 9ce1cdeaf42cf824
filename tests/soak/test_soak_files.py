"""Damaged files of strangers are read, or refused in a sentence that names the file; none runs code."""

import io
import json
import random
import zipfile

import numpy
import pytest
import torch
from PIL import Image, features
from support.networks import ConvNet
from support.red_or_blue import network, photo
from support.soak import numbers

import gradcam_fast
from gradcam_fast import Explanation
from gradcam_fast.class_names import read_class_names
from gradcam_fast.cli.console import Report
from gradcam_fast.cli.photo_pipeline import RunSettings, explain_photos
from gradcam_fast.exceptions import UnreadablePhotoError
from gradcam_fast.photo_decoding import own_pixel_limit
from gradcam_fast.pipeline import map_table
from gradcam_fast.pipeline.networks.weights import read_weights
from gradcam_fast.pipeline.photo_files import PhotoFile
from gradcam_fast.pipeline.photo_reading import read_photo
from gradcam_fast.pipeline.question import Question

pytestmark = pytest.mark.slow


def damaged(data, chance):
    """The bytes with some of them changed, left out, doubled or cut off."""
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place, length = chance.randrange(len(data) or 1), chance.choice([1, 4, 64])
        kind = chance.randrange(5)
        if kind == 0:
            data[place : place + length] = chance.randbytes(length)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + length]
        elif kind == 3 and data:
            data[place] ^= 1 << chance.randrange(8)
        else:
            del data[max(1, place) :]
    return bytes(data)


def photo_bytes(format, **options):
    pixels = numpy.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=numpy.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


FORMATS = ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "TGA", "PPM", "JPEG2000"]
FORMATS += ["AVIF"] if "avif" in features.modules and features.check("avif") else []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_photo_is_read_or_refused(tmp_path, format):
    whole, path = photo_bytes(format), tmp_path / "photo.jpg"
    with own_pixel_limit():
        for number in numbers(short=100, full=5000):
            path.write_bytes(damaged(whole, random.Random(number)))
            try:
                read = read_photo(path, max_pixels=2**20)
            except UnreadablePhotoError as error:
                assert str(error).startswith(f"{path}: "), f"SOAK_SEED={number}"
            else:
                assert read.mode == "RGB" and read.width * read.height <= 2**20, f"SOAK_SEED={number}"


def weight_bytes(kind):
    state, file = ConvNet().state_dict(), io.BytesIO()
    if kind == "safetensors":
        from safetensors.torch import save

        return save(state)
    torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_weights_are_read_or_refused(tmp_path, kind):
    whole, path = weight_bytes(kind), tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    for number in numbers(short=100, full=5000):
        path.write_bytes(damaged(whole, random.Random(number)))
        try:
            weights = read_weights(path)
        except ValueError as error:
            assert str(path) in str(error), f"SOAK_SEED={number}"
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values()), f"SOAK_SEED={number}"


class Runs:
    """An object that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_would_run_code_do_not(tmp_path, zipped):
    path, written = tmp_path / "w.pth", tmp_path / "written"
    torch.save({"a": Runs(written)}, path, _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(path) == zipped
    with pytest.raises(ValueError, match="could run code"):
        read_weights(path)
    assert not written.exists()


def table_of_one_part(folder):
    """A table with the maps of two photos; returns its only file."""
    for number in range(2):
        photo(cell=(number, 0), scale=1).save(folder / f"{number}.png")
    options, settings = Question(topk=2), RunSettings(("parquet",))
    photos = [PhotoFile(folder / f"{number}.png") for number in range(2)]
    explain_photos(network(), photos, folder / "out", options, settings, Report(verbose=False, summary=False))
    (part,) = (folder / "out" / "maps.parquet").iterdir()
    return part


def test_a_damaged_table_is_read_or_refused(tmp_path):
    part = table_of_one_part(tmp_path)
    whole = part.read_bytes()
    for number in numbers(short=300, full=15_000):
        part.write_bytes(damaged(whole, random.Random(number)))
        try:
            map_table.contents(part.parent)
            list(map_table.read(part.parent))
        except ValueError as error:
            assert part.name in str(error) or str(part.parent) in str(error), f"SOAK_SEED={number}"


def test_a_damaged_explanation_is_read_or_refused(tmp_path):
    path = tmp_path / "explanation.npz"
    gradcam_fast.explain(ConvNet(), torch.rand(1, 3, 16, 16), layer="features.3").save(path)
    whole = path.read_bytes()
    for number in numbers(short=300, full=15_000):
        path.write_bytes(damaged(whole, random.Random(number)))
        try:
            Explanation.load(path)
        except ValueError as error:
            assert str(path) in str(error), f"SOAK_SEED={number}"


@pytest.mark.parametrize("suffix", [".json", ".txt"])
def test_damaged_class_names_are_read_or_refused(tmp_path, suffix):
    names = {str(number): f"größe {number}" for number in range(20)}
    text = json.dumps(names) if suffix == ".json" else "\n".join(names.values())
    path = tmp_path / f"names{suffix}"
    for number in numbers(short=300, full=15_000):
        path.write_bytes(damaged(text.encode(), random.Random(number)))
        try:
            read = read_class_names(path)
        except ValueError as error:
            assert str(path) in str(error), f"SOAK_SEED={number}"
        else:
            assert all(isinstance(name, str) and name for name in read), f"SOAK_SEED={number}"
