"""The demonstration: a real network names a real cat, its heatmap lies on the cat's face, and the report is honest."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

import gradcam_fast
from gradcam_fast.cli import demo, main
from gradcam_fast.pipeline.networks import load_network
from gradcam_fast.pipeline.photo_reading import read_photo

EGYPTIAN_CAT, ESPRESSO = 285, 967
# (x, y) as shares of chelsea's width and height.
EYES_AND_NOSE = [(0.38, 0.37), (0.70, 0.455), (0.58, 0.81)]
BLANKET = [(0.95, 0.55), (0.95, 0.9)]


@pytest.fixture(scope="module")
def network():
    return load_network("efficientnet_lite0")


@pytest.fixture(scope="module")
def cat(network):
    return network.preprocess([read_photo(demo.sample_photos()[0][0])]).images


def at(heatmap, places):
    height, width = heatmap.shape
    return torch.stack([heatmap[int(y * height), int(x * width)] for x, y in places])


def face_over_surroundings(heatmap):
    """How much hotter the face is than what surrounds it, on average."""
    height, width = heatmap.shape
    face = torch.zeros(height, width, dtype=torch.bool)
    face[int(0.12 * height) : int(0.86 * height), int(0.16 * width) : int(0.76 * width)] = True
    return float(heatmap[face].mean() / heatmap[~face].mean())


def test_the_cat_is_an_egyptian_cat(network, cat):
    probabilities = gradcam_fast.explain(network.model, cat).logits.softmax(1)[0]
    assert probabilities.argmax() == EGYPTIAN_CAT
    assert network.class_names[EGYPTIAN_CAT] == "Egyptian cat"
    assert float(probabilities[EGYPTIAN_CAT]) == pytest.approx(0.77, abs=0.02)


def test_the_heatmap_of_the_cat_lies_on_its_face(network, cat):
    heatmap = gradcam_fast.explain(network.model, cat).heatmap[0]
    assert at(heatmap, EYES_AND_NOSE).min() > 0.6
    assert at(heatmap, BLANKET).max() < 0.2
    assert face_over_surroundings(heatmap) > 2.7


def test_the_measure_of_the_face_tells_maps_apart(network, cat):
    cat_map, espresso_map = gradcam_fast.explain(network.model, cat, target=[[EGYPTIAN_CAT, ESPRESSO]]).heatmap[0]
    assert face_over_surroundings(espresso_map) < 1
    for shift in (-32, 32):
        for dim in (0, 1):
            assert face_over_surroundings(cat_map.roll(shift, dim)) < 2.7


def test_the_network_sees_what_its_authors_fed_it(network):
    levels = torch.tensor([0, 127, 255])
    photo = Image.new("RGB", (5, 7), tuple(levels.tolist()))
    expected = ((levels - 127) / 128)[:, None, None].expand(3, 224, 224)
    torch.testing.assert_close(network.preprocess([photo]).images[0], expected)


def test_loading_the_network_is_silent_and_gives_a_network_in_eval_mode(capsys):
    network = load_network("efficientnet_lite0")
    assert capsys.readouterr() == ("", "")
    assert not any(module.training for module in network.model.modules())
    assert len(network.class_names) == 1000


def test_the_command_names_the_photos_classes_draws_them_and_reports(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "REPETITIONS", 2)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    paths = demo.sample_photos()[0]
    best = {
        "chelsea": "Egyptian cat",
        "coffee": "espresso",
        "imagenet_00_243": "bull mastiff",
        "imagenet_10_541": "drum",
    }
    for path in paths:
        lines = text.split(f"{path}\n")[1].splitlines()
        assert all(re.match(r" +\d+\.\d %  \S", line) for line in lines[:5])
        assert best[path.stem] in lines[0]
        picture = tmp_path / "out" / f"{path.stem}-gradcam.jpg"
        assert lines[5] == f"  picture: {picture}"
        with Image.open(picture) as opened:
            opened.load()
            assert opened.width == 1200 and opened.height > 600
    assert float(re.search(r"([\d.]+) %  Egyptian cat", text)[1]) == pytest.approx(77, abs=2)
    assert str((tmp_path / "out").resolve()) in text
    assert str(gradcam_fast.backend()) in text
    threads = torch.get_num_threads()
    assert f"on the CPU, {threads} {'thread' if threads == 1 else 'threads'}, fastest of 2 alternating runs" in text
    bare, explained = map(float, re.findall(r"([\d.]+) ms", text))
    assert 0 < bare < 20 * explained and explained < 20 * bare


def test_without_foolbox_the_other_photos_are_explained_and_it_is_said(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "foolbox" else find_spec(name))
    paths, notes = demo.sample_photos()
    assert [path.name for path in paths] == ["chelsea.png", "coffee.png"]
    assert notes == ["The photos of foolbox, which is not installed, are left out; run pip install --no-deps foolbox"]


def test_without_any_photos_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "gradcam-fast: none of the sample photos is installed; run pip install 'gradcam-fast[demo]'\n"
    )


def test_the_packages_that_ship_photos_are_not_imported():
    program = (
        "import sys; from gradcam_fast.cli.demo import sample_photos; assert sample_photos()[0];"
        "sys.exit(bool({'skimage', 'foolbox', 'eagerpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_times_are_the_least_of_runs_taken_in_turn(monkeypatch):
    clock = [0.0]
    seconds = {"a": iter([9.0, 3.0, 1.0, 2.0]), "b": iter([9.0, 5.0, 6.0, 4.0])}
    order = []

    def spend(name):
        order.append(name)
        clock[0] += next(seconds[name])

    monkeypatch.setattr(demo.time, "perf_counter", lambda: clock[0])
    assert demo.fastest_runs(lambda: spend("a"), lambda: spend("b"), repetitions=3) == [1.0, 4.0]
    assert "".join(order) == "abababab"
