"""The same work over and over, with new random cases: results stay right, memory does not grow, bad files are refused.

SOAK says how much: 1 for `make test-all`, 100 for `make soak`. SOAK_SEED begins other cases; a failure prints its own.
"""

import gc
import io
import os
import random
import resource
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from support.networks import ConvNet
from support.op_cases import assert_agrees, inputs
from support.tolerances import SAME_INPUTS
from support.unchanged import unchanged

import gradcam_fast
from gradcam_fast.cli.networks.weights import read_weights
from gradcam_fast.cli.photo_files import UnreadablePhotoError, own_pixel_limit, read_photo
from gradcam_fast.ops.arguments import METHODS, NORMALIZATIONS

SOAK = float(os.environ.get("SOAK") or 1)
SEED = int(os.environ.get("SOAK_SEED") or 0)
RSS_UNIT = 2**20 if sys.platform == "darwin" else 2**10

pytestmark = pytest.mark.slow


def times(count):
    """The numbers of the cases, each of which is its own seed."""
    return range(SEED, SEED + max(1, round(count * SOAK)))


def resident():
    """MB of this process that are in memory now; on systems without /proc, at most so far."""
    if Path("/proc/self/statm").exists():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_UNIT


def laid_out(maps, chance):
    """The same values in another memory layout."""
    axes = list(range(maps.dim()))
    kind = chance.choice(["contiguous", "permuted", "strided", "expanded"])
    if kind == "permuted":
        chance.shuffle(axes)
        return maps.permute(axes).contiguous().permute([axes.index(axis) for axis in range(maps.dim())])
    if kind == "strided":
        padded = maps.new_zeros(*maps.shape[:-1], 2 * maps.shape[-1])
        padded[..., ::2] = maps
        return padded[..., ::2]
    return maps[..., :1, :1].expand(maps.shape) if kind == "expanded" else maps


def test_the_operator_agrees_with_the_reference():
    for number in times(2000):
        chance = random.Random(number)
        torch.manual_seed(number)
        sides = [chance.choice([1, 2, 3, 7, 14, chance.randint(1, 40)]) for _ in range(2)]
        shape = (chance.randint(1, 4), chance.randint(0, 3), chance.choice([1, 3, 16, 17, 130]), *sides)
        dtype = chance.choice([torch.float32, torch.float16, torch.bfloat16])
        activations, gradients = (laid_out(maps, chance) for maps in inputs(shape, dtype))
        options = {
            "method": chance.choice(METHODS),
            "normalize": chance.choice(NORMALIZATIONS),
            "relu": chance.random() < 0.5,
        }
        if options["normalize"] == "max":
            # Far below zero, the quotient by a small maximum magnifies rounding twice, which the bound does not cover.
            options["relu"] = True
        size = chance.randint(1, 60), chance.randint(1, 60)
        torch.set_num_threads(chance.choice([1, 2, 3, 7]))
        try:
            assert_agrees(activations, gradients, size, SAME_INPUTS[dtype], **options)
        except AssertionError as error:
            raise AssertionError(f"SOAK_SEED={number}: {shape}, {dtype}, {size}, {options}") from error
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layer", ["features.3", None])
def test_explanations_do_not_grow(layer, training):
    model = ConvNet().train(training)
    images = torch.rand(2, 3, 32, 32)
    explainer = gradcam_fast.Explainer(model, layer=layer)

    def explain(number):
        shape = (1 + number % 3, 3, 16 + number % 32, 32)
        explainer(images if training else torch.rand(shape), topk=1 + number % 3)

    with unchanged(model):
        for number in range(2 * 96):  # all shapes: libraries below PyTorch keep something for each
            explain(number)
        gc.collect()
        before = resident()
        for number in times(100):
            explain(number)
        gc.collect()
        grown = resident() - before
    assert grown < 5, f"{grown:.1f} MB"


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "TGA", "PPM", "JPEG2000"])
def test_a_damaged_photo_is_read_or_refused(tmp_path, format):
    whole, path = photo_bytes(format), tmp_path / "photo.jpg"
    with own_pixel_limit():
        for number in times(100):
            path.write_bytes(damaged(whole, random.Random(number)))
            try:
                photo = read_photo(path, max_pixels=2**20)
            except UnreadablePhotoError as error:
                assert str(error).startswith(f"{path}: "), f"SOAK_SEED={number}"
            else:
                assert photo.mode == "RGB" and photo.width * photo.height <= 2**20, f"SOAK_SEED={number}"


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
    for number in times(100):
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
