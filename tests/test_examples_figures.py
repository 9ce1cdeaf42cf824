"""The figures that examples/ draws equal those of the published recipes, drawn with OpenCV, matplotlib and Pillow."""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from gradcam_fast.visual.figures.sizing import resize_photo

cv2 = pytest.importorskip("cv2")
pytest.importorskip("torchvision.models", exc_type=Exception)
image_module = pytest.importorskip("PIL.Image")

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import chest_xray  # noqa: E402
import demystified_vgg16  # noqa: E402
import every_figure  # noqa: E402
import explainable_resnet152  # noqa: E402
import from_scratch_vgg16  # noqa: E402
import pictures  # noqa: E402
from support.recipes import recipe_a, recipe_b, recipe_c, recipe_d, scaled, upsampled  # noqa: E402


@pytest.fixture
def drawn(tmp_path, monkeypatch, request):
    """Run an example on a photo of noise; return the photo (1,3,H,W), and the figures it wrote, by file name."""

    def draw(example, builder, model, side):
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "noise.png"), noise)
        figures, save = {}, pictures.save

        def keep(figure, path, **options):
            figures[path.name] = figure
            save(figure, path, **options)

        monkeypatch.setattr(example, "save", keep)
        monkeypatch.setattr(example, builder, lambda: request.getfixturevalue(model))
        example.main([str(tmp_path / "noise.png"), "--out", str(tmp_path / "explained")])
        assert sorted(figures) == sorted(path.name for path in (tmp_path / "explained").iterdir())
        return pictures.read(tmp_path / "noise.png", side), figures

    return draw


def contents(figure):
    """The figure's texts, and its pictures as arrays (h,w,3)."""
    pictures_shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    return [text.get_text() for text in figure.texts], pictures_shown


def looks_like(actual, expected):
    """Whether pictures differ by at most 8 levels: maps that differ by rounding may get the next of 256 colours."""
    return np.abs(actual.astype(int) - expected.astype(int)).max() <= 8


def enlarged(heatmap, side=384):
    return cv2.resize(np.float32(heatmap), (side, side), interpolation=cv2.INTER_LINEAR)


def jet(heatmap):
    return cv2.applyColorMap(np.uint8(255 * heatmap), cv2.COLORMAP_JET)[..., ::-1]


def test_recipe_a_draws_the_map_over_edges_the_classes_the_relu_and_the_channels(drawn, vgg):
    photo, figures = drawn(from_scratch_vgg16, "vgg16", "vgg", 224)
    texts, (_, colored, blended) = contents(figures["from_scratch_noise.png"])
    heatmap = enlarged(scaled(recipe_a(vgg, pictures.imagenet(photo))))
    coolwarm = matplotlib.colormaps["coolwarm"](heatmap, bytes=True)[..., :3]
    edges = 255 - cv2.Canny(photo[0].permute(1, 2, 0).contiguous().numpy(), 100, 200) // 2
    edges = cv2.resize(edges, (384, 384), interpolation=cv2.INTER_NEAREST_EXACT)[..., None]
    assert looks_like(colored, coolwarm)
    assert looks_like(blended, 0.5 * edges + 0.5 * coolwarm)

    with torch.no_grad():
        probabilities, best = vgg(pictures.imagenet(photo))[0].softmax(0).topk(5)
    assert texts[3].startswith(from_scratch_vgg16.NAMES[best[0]])
    lines, _ = contents(figures["from_scratch_noise_classes.png"])
    assert lines == [
        f"{100 * share:.1f} %  {from_scratch_vgg16.NAMES[index]} ({index})"
        for share, index in zip(probabilities, best, strict=True)
    ]
    signed = recipe_a(vgg, pictures.imagenet(photo), relu=False)
    _, before, after = contents(figures["from_scratch_noise_relu.png"])[0]
    low, high = float(before.split()[2]), float(before.split()[4])
    assert [low, high] == pytest.approx([signed.min(), signed.max()], abs=0.05 * float(np.ptp(signed)))
    assert after.split()[2:] == [f"{max(low, 0):.3g}", "to", f"{high:.3g}"]
    _, channels = contents(figures["from_scratch_noise_channels.png"])
    assert len(channels) == 24


def test_recipe_b_draws_the_xray_the_raw_map_and_the_squared_map_over_the_xray(drawn, pneumonia_net):
    photo, figures = drawn(chest_xray, "PneumoniaNet", "pneumonia_net", 256)
    texts, (xray, coarse, blended) = contents(figures["chest_xray_noise.png"])
    heatmap = recipe_b(pneumonia_net, (photo / 255 - 0.5) / 0.5)
    bicubic = image_module.fromarray(heatmap).resize((256, 256), resample=image_module.BICUBIC)
    squared = jet(np.asarray(bicubic).clip(0, 1) ** 2)
    pixels = photo[0].permute(1, 2, 0).numpy()
    expected = torch.from_numpy(np.rint(0.6 * pixels + 0.4 * squared).astype(np.uint8)).permute(2, 0, 1)
    with torch.no_grad():
        probability = pneumonia_net((photo / 255 - 0.5) / 0.5).item()
    assert texts[0] == f"noise: pneumonia {probability:.1%}"
    assert looks_like(coarse, cv2.resize(jet(heatmap), (384, 384), interpolation=cv2.INTER_NEAREST_EXACT))
    assert looks_like(blended, resize_photo(expected, (384, 384)).permute(1, 2, 0).numpy())
    assert np.array_equal(xray, resize_photo(photo[0], (384, 384)).permute(1, 2, 0).numpy())


def test_recipe_c_draws_photo_map_overlay_and_the_maps_of_five_depths(drawn, vgg):
    photo, figures = drawn(demystified_vgg16, "vgg16", "vgg", 224)
    texts, (shown, colored, blended) = contents(figures["demystified_noise.png"])
    heatmap = enlarged(scaled(upsampled(recipe_c(vgg, pictures.imagenet(photo), -1)))[0, 0].numpy())
    assert texts[3].startswith("bull mastiff (243), ")
    assert looks_like(colored, jet(heatmap))
    assert looks_like(blended, cv2.addWeighted(shown, 0.5, jet(heatmap), 0.5, 0))

    texts, (_, *maps) = contents(figures["demystified_noise_depths.png"])
    sides = (112, 56, 28, 14, 7)
    assert texts[1:] == [f"{name}\n{side} x {side}" for name, side in zip(demystified_vgg16.POOLS, sides, strict=True)]
    deep = scaled(recipe_c(vgg, pictures.imagenet(photo), 23))[0, 0].numpy()
    assert looks_like(maps[3], cv2.resize(jet(deep), (192, 192), interpolation=cv2.INTER_NEAREST_EXACT))


def test_recipe_d_draws_both_classes_over_the_photo_with_id_name_and_score(drawn, resnet):
    photo, figures = drawn(explainable_resnet152, "resnet152", "resnet", 224)
    texts, blended = contents(figures["explainable.png"])
    for rank, (text, picture) in enumerate(zip(texts, blended, strict=True)):
        target, cam = recipe_d(resnet, pictures.imagenet(photo), lambda s, r=rank: s[0].argsort()[-1 - r].item())
        expected = cv2.addWeighted(photo[0].permute(1, 2, 0).contiguous().numpy(), 0.5, jet(cam), 0.5, 0)
        expected = resize_photo(torch.from_numpy(expected).permute(2, 0, 1), (384, 384)).permute(1, 2, 0).numpy()
        assert f"({target})" in text and "score" in text
        assert looks_like(picture, expected)
    assert len(texts) == 2


def test_every_figure_is_drawn_from_a_photo_of_a_cat_and_trained_weights(tmp_path, monkeypatch):
    figures = {}
    monkeypatch.setattr(every_figure, "save", lambda figure, path: figures.update({path: figure}))
    every_figure.main(["--out", str(tmp_path)])
    kinds = ("explained", "edges", "classes", "layers", "relu", "channels")
    assert list(figures) == [tmp_path / f"chelsea-{kind}.jpg" for kind in kinds]
    texts = [[text.get_text() for text in figure.texts] for figure in figures.values()]
    assert texts[0][3].startswith("Egyptian cat (285), 77.") and texts[1] == texts[0]
    assert texts[2][0] == "77.1 %  Egyptian cat (285)"
    assert texts[3][-1] == "_blocks.15\n7 x 7"
    assert len(figures[tmp_path / "chelsea-channels.jpg"].axes) == 25


def test_an_unreadable_photo_is_named_in_the_message(tmp_path):
    (tmp_path / "text.png").write_text("not a photo")
    with pytest.raises(SystemExit, match=r"text\.png"):
        pictures.read(tmp_path / "text.png", 224)


def test_pictures_of_random_weights_say_so(tmp_path):
    figures = pytest.importorskip("gradcam_fast.visual.figures")
    for weights, words in ((None, ["random weights"]), (tmp_path, [])):
        figure = figures.gallery(torch.zeros(1, 3, 60, 80, dtype=torch.uint8), ["black"])
        pictures.save(figure, tmp_path / "a.png", weights=weights)
        assert [artist.get_text() for artist in figure.artists] == words
