"""The callback of Lightning: a fixed batch is explained every few epochs, and the pictures reach any logger."""

import sys
from importlib import import_module
from io import BytesIO

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

import gradcam_fast

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger  # noqa: E402

from gradcam_fast.lightning import HeatmapLogger  # noqa: E402

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PLAIN = {"mean": 0.0, "std": 1.0}


def classifier(base=lightning.LightningModule):
    class Classifier(base):
        """A small network with dropout and batch-norm, whose second batch-norm is frozen."""

        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
                nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8).eval(), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
            )  # fmt: skip
            self.modes = []

        def forward(self, images):
            return self.net(images)

        def training_step(self, batch, index):
            self.modes.append([part.training for part in self.net])
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Classifier()


def loader():
    dataset = torch.utils.data.TensorDataset(torch.rand(8, 3, 16, 16), torch.arange(8) % 3)
    return torch.utils.data.DataLoader(dataset, batch_size=4)


def fit(folder, callback, logger, epochs=4, **options):
    torch.manual_seed(0)
    module = classifier()
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[callback] if callback else [], logger=logger, accelerator="cpu",
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        **options,
    )  # fmt: skip
    trainer.fit(module, loader())
    return module, trainer


class PictureLogger(CSVLogger):
    """Takes pictures as the logger of Weights & Biases does."""

    def __init__(self, folder):
        super().__init__(folder)
        self.images = []

    def log_image(self, key, images, step=None):
        self.images.append((key, images, step))


def test_tensorboard_gets_the_overlays_before_training_and_every_second_epoch(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    module, trainer = fit(
        tmp_path, HeatmapLogger(IMAGES, every_n_epochs=2, name="looks", **PLAIN), TensorBoardLogger(tmp_path)
    )
    events = accumulators.EventAccumulator(trainer.log_dir)
    events.Reload()
    # Two steps an epoch; TensorBoard puts the two pictures side by side.
    assert [(image.step, image.width, image.height) for image in events.Images("looks")] == [
        (0, 32, 16),
        (4, 32, 16),
        (8, 32, 16),
    ]
    explanation = gradcam_fast.explain(module.eval(), IMAGES)
    expected = gradcam_fast.overlay(IMAGES, explanation.heatmap)
    with Image.open(BytesIO(events.Images("looks")[-1].encoded_image_string)) as last:
        picture = torch.from_numpy(numpy.array(last)).permute(2, 0, 1)
    assert torch.equal(picture, torch.cat(list(expected), 2))


def test_a_logger_of_images_gets_one_for_each_class(tmp_path):
    logger = PictureLogger(tmp_path)
    fit(tmp_path, HeatmapLogger(IMAGES, target=[[0, 2]], method="layercam", **PLAIN), logger, epochs=1)
    assert [(key, len(images), step) for key, images, step in logger.images] == [("heatmaps", 4, 0), ("heatmaps", 4, 2)]
    assert logger.images[0][1][0].shape == (16, 16, 3)


@pytest.mark.parametrize("logger", [CSVLogger, None], ids=["without pictures", "none"])
def test_where_no_logger_takes_pictures_they_become_files(tmp_path, logger):
    _, trainer = fit(tmp_path, HeatmapLogger(IMAGES, **PLAIN), logger(tmp_path) if logger else False, epochs=1)
    folder = tmp_path if logger is None else type(tmp_path)(trainer.log_dir)
    assert sorted(path.name for path in (folder / "heatmaps").iterdir()) == [
        "step0-0.png", "step0-1.png", "step2-0.png", "step2-1.png",
    ]  # fmt: skip


def test_several_loggers_get_them_and_your_own_function_may_write_them(tmp_path):
    loggers, written = [CSVLogger(tmp_path, "a"), CSVLogger(tmp_path, "b")], []
    fit(tmp_path, HeatmapLogger(IMAGES, write=lambda *given: written.append(given), **PLAIN), loggers, epochs=1)
    assert [(logger, name, step) for logger, name, _, step in written] == [
        (logger, "heatmaps", step) for step in (0, 2) for logger in loggers
    ]
    assert written[0][2].shape == (2, 3, 16, 16) and written[0][2].dtype == torch.uint8


def test_training_does_not_notice_it(tmp_path):
    alone, _ = fit(tmp_path, None, False)
    watched, _ = fit(tmp_path, HeatmapLogger(IMAGES, **PLAIN), False)
    assert watched.modes == alone.modes and watched.modes[0][1] and not watched.modes[0][5]
    for name, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_photos_are_prepared_once_and_shown_as_the_model_sees_them(tmp_path):
    preprocess = gradcam_fast.Preprocess(16, fit="letterbox")
    photos, written = [Image.new("RGB", (40, 20), "red"), Image.new("RGB", (20, 30), "red")], []
    callback = HeatmapLogger(photos, preprocess=preprocess, module="net", write=lambda *given: written.append(given[2]))
    module, _ = fit(tmp_path, callback, False, epochs=1)
    images = preprocess(photos).images
    expected = gradcam_fast.overlay(
        images, gradcam_fast.explain(module.net.eval(), images).heatmap, mean=preprocess.mean, std=preprocess.std
    )
    assert torch.equal(written[-1], expected)


def test_reduced_precision_is_the_trainers(tmp_path):
    types = []
    callback = HeatmapLogger(IMAGES, target=lambda output: types.append(output.dtype) or output[:, 0], **PLAIN)
    fit(tmp_path, callback, False, epochs=1, precision="bf16-mixed")
    assert set(types) == {torch.bfloat16}


def test_without_lightning_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "gradcam_fast.lightning")
    with pytest.raises(ImportError, match="run pip install lightning"):
        import_module("gradcam_fast.lightning")


def test_a_trainer_of_the_older_package_takes_it_too(tmp_path):
    older = pytest.importorskip("pytorch_lightning")
    written = []
    callback = HeatmapLogger(IMAGES, write=lambda *given: written.append(given[3]), **PLAIN)
    older.Trainer(
        max_epochs=1, callbacks=[callback], logger=False, accelerator="cpu", default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    ).fit(classifier(older.LightningModule), loader())  # fmt: skip
    assert written == [0, 2]


def test_what_cannot_work_is_told_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="every_n_epochs=0 is never reached"):
        HeatmapLogger(IMAGES, every_n_epochs=0)
    with pytest.raises(AttributeError, match="head"):
        fit(tmp_path, HeatmapLogger(IMAGES, module="head", **PLAIN), False)
    with pytest.raises(ValueError, match="mean and std"):
        fit(tmp_path, HeatmapLogger(10 * IMAGES - 5, **PLAIN), False)
