"""A folder of 512 photos through the command line's pipeline, beside the same pipeline that only reads and predicts.

    make bench

Goal: overlays cost at most 15 % more, with ResNet-18 at batch 32 on two cores. No test fails because of a time.
"""

import itertools
import random

import pytest
import torch

pytest.importorskip("torchvision")
data = pytest.importorskip("skimage.data")
from PIL import Image, ImageEnhance  # noqa: E402
from torchvision.models import resnet18  # noqa: E402

from gradcam_fast.cli.console import Report  # noqa: E402
from gradcam_fast.cli.photo_pipeline import RunSettings, explain_photos  # noqa: E402
from gradcam_fast.pipeline.networks import Network  # noqa: E402
from gradcam_fast.pipeline.photo_files import find_photos  # noqa: E402
from gradcam_fast.pipeline.photo_reading import read_photo  # noqa: E402
from gradcam_fast.pipeline.processors import cores  # noqa: E402
from gradcam_fast.pipeline.question import Question  # noqa: E402
from gradcam_fast.pipeline.stages import run_stages  # noqa: E402
from gradcam_fast.preprocess import Preprocess  # noqa: E402

COUNT, SIDE, BATCH = 512, 512, 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Crops of real photos, so that their JPEGs take as long to read as real ones."""
    folder = tmp_path_factory.mktemp("photos")
    generator = random.Random(0)
    sources = [Image.fromarray(pixels).convert("RGB") for pixels in (data.astronaut(), data.chelsea(), data.coffee())]
    for number, source in zip(range(COUNT), itertools.cycle(sources)):
        side = generator.randrange(200, min(source.size))
        left, top = (generator.randrange(length - side + 1) for length in source.size)
        photo = source.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        photo = ImageEnhance.Brightness(photo).enhance(generator.uniform(0.7, 1.3))
        photo.save(folder / f"{number:03}.jpg", quality=90)
    return folder


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    preprocess = Preprocess((224, 224), crop=224 / 256)
    return Network("ResNet-18", resnet18(weights=None).eval(), preprocess, tuple(map(str, range(1000))))


def predict(network, photos):
    """The pipeline with nothing after the forward."""

    def forward(inputs):
        with torch.no_grad():
            logits = network.model(torch.cat(inputs))
        return lambda: list(logits)

    results = run_stages(
        [photo.path for photo in photos],
        lambda path: network.preprocess(read_photo(path)).images,
        forward,
        lambda _, logits: logits,
        batch=BATCH,
        workers=cores(),
        skip=(),
    )
    assert sum(logits.isfinite().all().item() for _, logits in results) == COUNT


def explain(network, photos, out):
    settings = RunSettings(formats=("overlay",), batch_size=BATCH)
    report = Report(tell=lambda _: None, complain=pytest.fail)
    assert explain_photos(network, photos, out, Question(topk=1), settings, report) == 0
    assert report.done == COUNT


def test_a_folder_of_photos_against_predicting_alone(compare, network, photos, tmp_path):
    found_photos = find_photos([photos], tmp_path, pytest.fail)
    compare(
        "a folder of photos on the command line",
        "512 JPEGs of 512x512, ResNet-18, batch 32",
        {
            "overlays": lambda: explain(network, found_photos, tmp_path),
            "predict": lambda: predict(network, found_photos),
        },
        ("overlays/predict",),
        rounds=2,
    )
