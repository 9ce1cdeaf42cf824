"""Packages: what is exported explains like the model, runs without its code, and refuses what it was not made for."""

import json
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace

import pytest
import torch
from support import networks, packages
from support.tolerances import RECIPE_PARITY

import gradcam_fast
from gradcam_fast import Explainer, exceptions
from gradcam_fast._compiled.package_info import PackageInfo
from gradcam_fast.packages import package_info

LOGITS = 1e-4


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    return packages.package(tmp_path_factory, "dynamic")


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    return packages.package(tmp_path_factory, "fixed")


@pytest.fixture(scope="module")
def classes_come_in(tmp_path_factory):
    return packages.package(tmp_path_factory, "classes come in")


def random_images(batch):
    return torch.randn(batch, 3, 16, 16)


def assert_same(result, expected):
    assert result.layer == expected.layer
    for name in ("target", "valid", "reason_codes"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name
    torch.testing.assert_close(result.heatmap, expected.heatmap, rtol=0, atol=RECIPE_PARITY)
    for name in ("logits", "score", "raw_min", "raw_max"):
        torch.testing.assert_close(getattr(result, name), getattr(expected, name), rtol=1e-4, atol=LOGITS)


def run_python(program, *arguments):
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_a_package_explains_like_the_model_for_every_batch_in_its_range(dynamic, batch):
    images = random_images(batch)
    assert_same(gradcam_fast.load(dynamic)(images), packages.explainer("dynamic")(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many convolutions", "patches"])
def test_packages_of_other_networks_explain_like_these(tmp_path_factory, name):
    loaded, explainer = gradcam_fast.load(packages.package(tmp_path_factory, name)), packages.explainer(name)
    for batch in (1, 3):
        images = random_images(batch)
        explanation = explainer(images)
        assert explanation.valid.all()
        assert_same(loaded(images), explanation)


@pytest.mark.slow
def test_a_package_of_a_fixed_batch_explains_like_the_model(fixed):
    images = random_images(3)
    assert_same(gradcam_fast.load(fixed)(images, topk=2), packages.explainer("fixed")(images, topk=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "numbers"),
    [
        (3, 3),
        ([0, 4, 2], [0, 4, 2]),
        ("Bee", 1),
        (["cat", "hound", "eel"], [2, 3, 4]),
        (torch.tensor([1, 1, 0]), [1, 1, 0]),
    ],
    ids=["number", "numbers", "name", "names", "tensor"],
)
def test_classes_can_come_in_with_the_call_by_number_or_name(classes_come_in, target, numbers):
    images = random_images(3)
    expected = packages.explainer("classes come in")(images, numbers)
    assert_same(gradcam_fast.load(classes_come_in)(images, target), expected)


@pytest.mark.slow
def test_models_of_several_inputs_and_classes_take_them_by_name(tmp_path_factory):
    path = packages.package(tmp_path_factory, "two inputs")
    inputs = {"images": random_images(5), "shift": torch.rand(5)}
    result = gradcam_fast.load(path)(inputs)
    assert_same(result, packages.explainer("two inputs")(inputs, [[1, 3]]))
    assert result.heatmap.shape == (5, 2, 20, 12)
    with pytest.raises(ValueError, match=r"the inputs given are 'images'; model.pt2 takes 'images': float32"):
        gradcam_fast.load(path)({"images": random_images(5)})


@pytest.mark.slow
def test_the_layers_own_maps_are_in_the_package_too(dynamic):
    images = random_images(4)
    result = gradcam_fast.load(dynamic, layer_maps=True)(images)
    assert_same(result, Explainer(packages.model(), size=4)(images))


@pytest.mark.slow
@pytest.mark.parametrize("layer_maps", [False, True])
def test_an_image_that_is_not_finite_has_no_map_in_a_package(dynamic, layer_maps):
    images = random_images(3)
    images[1, 0, 2, 2] = torch.nan
    result = gradcam_fast.load(dynamic, layer_maps=layer_maps)(images)
    assert result.reason[1] == "not finite" and result.raw_max[1].isnan() and not result.heatmap[1].any()
    assert result.raw_max[[0, 2]].isfinite().all()


@pytest.mark.slow
def test_a_package_runs_without_the_models_code(dynamic, tmp_path):
    images = random_images(3)
    torch.save(images, tmp_path / "images.pt")
    run_python(
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torchvision', 'timm', 'support', 'sympy'))); import torch, gradcam_fast\n"
        "images = torch.load(sys.argv[2])\n"
        "explanation = gradcam_fast.load(sys.argv[1])(images)\n"
        "torch.save([explanation.heatmap, explanation.logits], sys.argv[3])\n",
        dynamic,
        tmp_path / "images.pt",
        tmp_path / "result.pt",
    )
    heatmap, logits = torch.load(tmp_path / "result.pt")
    expected = packages.explainer("dynamic")(images)
    torch.testing.assert_close(heatmap, expected.heatmap, rtol=0, atol=RECIPE_PARITY)
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=LOGITS)


@pytest.mark.slow
def test_a_self_contained_package_needs_torch_alone(fixed, tmp_path):
    images = random_images(3)
    torch.save(images, tmp_path / "images.pt")
    run_python(
        "import sys, torch\n"
        "results = torch._inductor.aoti_load_package(sys.argv[1])(torch.load(sys.argv[2]))\n"
        "assert 'gradcam_fast' not in sys.modules and not hasattr(torch.ops.gradcam_fast, 'cam')\n"
        "torch.save(list(results[:2]), sys.argv[3])\n",
        fixed,
        tmp_path / "images.pt",
        tmp_path / "result.pt",
    )
    heatmap, logits = torch.load(tmp_path / "result.pt")
    expected = packages.explainer("fixed")(images, topk=2)
    torch.testing.assert_close(heatmap, expected.heatmap, rtol=0, atol=RECIPE_PARITY)
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=LOGITS)


@pytest.mark.slow
def test_a_package_says_what_it_does(dynamic, fixed):
    info = package_info(dynamic)
    assert (info.record.layer, info.record.method, info.batch) == ("features", "gradcam", (1, 8))
    assert (info.class_names, info.layer_size, info.self_contained) == (packages.NAMES, (4, 4), False)
    assert info.preprocessing == {"size": [16, 16], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "crop": None}
    assert (info.images.shape, info.images.dtype) == ((None, 3, 16, 16), torch.float32)
    assert (info.gradcam_fast, info.torch) == (gradcam_fast.__version__, str(torch.__version__))
    assert (package_info(fixed).batch, package_info(fixed).self_contained) == ((3, 3), True)


TAKES = r"model\.pt2 takes float32 \(B, 3, 16, 16\) on cpu, B from 1 to 8$"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (random_images(2).double(), TypeError, rf"images has dtype float64; {TAKES}"),
        (torch.randn(2, 3, 16, 17), ValueError, rf"images has shape \(2, 3, 16, 17\); {TAKES}"),
        (torch.randn(2, 3, 2, 16, 16), ValueError, rf"images has shape \(2, 3, 2, 16, 16\); {TAKES}"),
        (random_images(9), ValueError, rf"the batch has 9 images; {TAKES}"),
        (random_images(0), ValueError, rf"the batch has 0 images; {TAKES}"),
        (random_images(2).to("meta"), ValueError, rf"images is on meta; {TAKES}"),
        (random_images(2).numpy(), TypeError, rf"images is a ndarray; {TAKES}"),
        ((random_images(2), random_images(2)), ValueError, rf"the inputs given are 0, 1; {TAKES}"),
        (["photo.jpg"], TypeError, rf"images is a str; {TAKES}"),
    ],
    ids=["dtype", "sides", "rank", "too many", "none", "device", "array", "two inputs", "text"],
)
def test_images_that_the_package_does_not_take_are_refused(dynamic, images, error, message):
    with pytest.raises(error, match=message):
        gradcam_fast.load(dynamic)(images)


@pytest.mark.slow
def test_other_classes_than_the_packages_are_refused(dynamic, classes_come_in):
    load = gradcam_fast.load
    with pytest.raises(ValueError, match=r'target=3 was given, but model.pt2 explains the highest logit; .*"input"'):
        load(dynamic)(random_images(2), 3)
    with pytest.raises(ValueError, match=r"topk=2 was given, but model.pt2 explains the highest logit"):
        load(dynamic)(random_images(2), topk=2)
    with pytest.raises(ValueError, match=r"explains classes that come in; give target=, class indices \(B,\)"):
        load(classes_come_in)(random_images(2))
    with pytest.raises(ValueError, match=r"target has shape \(2, 2\); model.pt2 takes class indices \(B,\)"):
        load(classes_come_in)(random_images(2), [[1, 2], [0, 1]])
    with pytest.raises(ValueError, match=r"target 5 is out of range for a model with 5 classes \(0 to 4\)"):
        load(classes_come_in)(random_images(2), [5, 0])
    with pytest.raises(TypeError, match="target is a function"):
        load(classes_come_in)(random_images(2), lambda logits: logits[:, 0])


@pytest.mark.slow
def test_one_image_needs_no_axis_for_the_batch(dynamic):
    images = random_images(1)
    assert torch.equal(gradcam_fast.load(dynamic)(images[0]).heatmap, gradcam_fast.load(dynamic)(images).heatmap)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        lambda images: images.to(memory_format=torch.channels_last),
        lambda images: images.flip(-1).flip(-1),
        lambda images: images.mT.contiguous().mT,
        lambda images: images.requires_grad_(),
    ],
    ids=["channels last", "copy", "transposed", "requires grad"],
)
def test_images_lie_in_memory_as_they_like(dynamic, changed):
    images = random_images(3)
    explainer = gradcam_fast.load(dynamic)
    expected = explainer(images.clone())
    result = explainer(changed(images))
    assert torch.equal(result.heatmap, expected.heatmap)
    assert not result.heatmap.requires_grad and not result.logits.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize(
    "context",
    [torch.inference_mode, torch.enable_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["inference mode", "grad mode", "autocast"],
)
def test_the_callers_modes_change_nothing(dynamic, context):
    images = random_images(3)
    explainer = gradcam_fast.load(dynamic)
    expected = explainer(images)
    with context():
        result = explainer(images)
    assert torch.equal(result.heatmap, expected.heatmap) and torch.equal(result.logits, expected.logits)
    assert not result.heatmap.is_inference()


@pytest.mark.slow
def test_threads_share_a_loaded_package(dynamic):
    explainer = gradcam_fast.load(dynamic)
    batches = [random_images(1 + number % 4) for number in range(16)]
    expected = [explainer(images).heatmap for images in batches]
    results = [None] * len(batches)

    def work(first):
        for number in range(first, len(batches), 4):
            results[number] = explainer(batches[number]).heatmap

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, results, expected))


def rewritten(path, folder, **changes):
    """A copy of a package with other entries in its table; None removes one."""

    copy = folder / "model.pt2"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("_metadata.json"):
                table = {**json.loads(data), **changes}
                data = json.dumps({name: text for name, text in table.items() if text is not None}).encode()
            new.writestr(entry.filename, data)
    return copy


@pytest.fixture(scope="module")
def table_only(tmp_path_factory):
    """A package with a table and no code: nothing is compiled for it."""

    from gradcam_fast._compiled.record import ExplanationRecord, TensorInput, TracedTarget

    images = TensorInput(0, (None, 3, 16, 16), torch.float32, torch.device("cpu"), False, True)
    record = ExplanationRecord(
        layer="features",
        method="gradcam",
        size=None,
        normalize="minmax",
        relu=True,
        target=TracedTarget("highest"),
        inputs=(images,),
        images_at=0,
        batch=(1, 8),
        logits=torch.empty(0),
        logit_tensors=1,
        class_count=5,
    )
    info = PackageInfo(record, "net", (), None, "auto", None, False, "0.1.0", str(torch.__version__), "DEFAULT")
    path = tmp_path_factory.mktemp("table") / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
        archive.writestr("model/data/aotinductor/model/a.wrapper_metadata.json", json.dumps(info.to_texts()))
    return path


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"format": "2", "gradcam_fast": '"9.0"'},
            "UnreadablePackage",
            r"format 2, of gradcam_fast \"9.0\"; .* upgrade",
        ),
        ({"layer": None}, "UnreadablePackage", r"cannot be read \(KeyError: 'layer'\); export it again"),
        ({"inputs": "[{}]"}, "UnreadablePackage", r"cannot be read \(KeyError: .*\); export it again"),
        ({"gradcam_fast": None}, "UnreadablePackage", "is a .pt2 package, but not one of gradcam_fast"),
        ({"torch": '"2.0.1"'}, "IncompatiblePackage", r"was made with torch 2.0.1, but this is torch .* same release"),
        ({"instruction_set": '"AVX999"'}, "IncompatiblePackage", "made for processors with AVX999, and this one has"),
        ({}, "UnreadablePackage", "cannot be loaded .*export it again"),
    ],
    ids=["newer format", "no layer", "other inputs", "foreign", "torch", "processor", "no code"],
)
def test_packages_that_do_not_fit_are_refused(table_only, tmp_path, changes, error, message):
    path = rewritten(table_only, tmp_path, **changes)
    with pytest.raises(getattr(exceptions, error), match=message) as refusal:
        gradcam_fast.load(path)
    assert isinstance(refusal.value, exceptions.PackageError)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a CUDA device")
def test_a_package_for_a_device_that_is_not_there_is_refused(table_only, tmp_path):

    with zipfile.ZipFile(table_only) as archive:
        table = json.loads(archive.read("model/data/aotinductor/model/a.wrapper_metadata.json"))
    path = rewritten(table_only, tmp_path, inputs=table["inputs"].replace('"cpu"', '"cuda"'))
    with pytest.raises(exceptions.IncompatiblePackage, match="made for a CUDA device, and torch finds none"):
        gradcam_fast.load(path)


def test_a_package_does_not_run_on_another_device(table_only):
    with pytest.raises(exceptions.IncompatiblePackage, match="was made for cpu and does not run on cuda:1"):
        gradcam_fast.load(table_only, device="cuda:1")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing.pt2: no such file"):
        gradcam_fast.load(tmp_path / "missing.pt2")


def test_files_that_are_no_packages_are_refused(table_only, tmp_path):
    path = tmp_path / "model.pt2"
    for content in (b"", b"no zip", table_only.read_bytes()[:-30]):
        path.write_bytes(content)
        with pytest.raises(exceptions.UnreadablePackage, match=r"is cut off, damaged, or no .pt2 package"):
            gradcam_fast.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing")
    with pytest.raises(exceptions.UnreadablePackage, match="is a zip file, but no package"):
        gradcam_fast.load(path)


def test_a_package_with_a_flipped_bit_is_refused(table_only, tmp_path):
    path = tmp_path / "model.pt2"
    content = bytearray(table_only.read_bytes())
    with zipfile.ZipFile(table_only) as archive:
        entry = archive.getinfo("model/archive_format")
    content[entry.header_offset + 30 + len(entry.filename)] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        exceptions.UnreadablePackage, match="is damaged at model/archive_format; copy or export it again"
    ):
        gradcam_fast.load(path)


def test_a_package_that_calls_the_operator_asks_for_it_where_it_is_missing(table_only, monkeypatch):
    monkeypatch.setattr("gradcam_fast._compiled.loading.kernel_for", lambda device: False)
    with pytest.raises(
        exceptions.IncompatiblePackage, match=r"calls the compiled operator for cpu, .*self_contained=True"
    ):
        gradcam_fast.load(table_only)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "model.pt"}, ValueError, "does not end in .pt2"),
        ({"path": "folder/model.pt2"}, FileNotFoundError, "there is no folder .*folder; make it first"),
        ({"batch": (0, 3)}, ValueError, r"batch=\(0, 3\) is no range"),
        ({"batch": (3, 2)}, ValueError, r"batch=\(3, 2\) is no range"),
        ({"batch": "8"}, TypeError, "batch='8' is no number of images"),
        ({"batch": (1, 2, 3)}, TypeError, r"batch=\(1, 2, 3\) is no number of images"),
        ({"names": "abcde"}, TypeError, "names='abcde' is no list of names"),
        ({"names": ["ant"]}, ValueError, "names has 1 names, but the model has 5 outputs"),
        ({"preprocessing": [1]}, TypeError, r"preprocessing=\[1\] is no dict of plain values"),
        ({"preprocessing": {"mean": torch.ones(3)}}, TypeError, "is no dict of plain values"),
        ({"target": [0, 1]}, ValueError, "names a class for each image, but a package explains the same"),
        ({"topk": 9}, ValueError, "topk=9 exceeds the model's 5 classes"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_refused_before_anything_is_compiled(
    tmp_path, monkeypatch, arguments, error, message
):
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", lambda *_, **__: pytest.fail("it was compiled"))
    path = tmp_path / arguments.pop("path", "model.pt2")
    with pytest.raises(error, match=message):
        gradcam_fast.export(Explainer(packages.model()), random_images(2), path, **arguments)
    assert not list(tmp_path.iterdir())


def test_the_line_of_the_model_that_fixes_the_number_of_images_is_named(tmp_path):
    explainer = gradcam_fast.Explainer(networks.PatchNet(1))
    message = r"at 4 \(in embedded, .*networks.py:\d+: .*len\(images\).*; give batch=4, or let that line"
    with pytest.raises(ValueError, match=message):
        gradcam_fast.export(explainer, torch.randn(2, 3, 16, 16), tmp_path / "model.pt2", batch=(1, 4))


def test_an_explainer_of_chosen_images_is_not_exported(tmp_path):
    explainer = Explainer(packages.model(), when=lambda logits: logits[:, 0] > 0)
    with pytest.raises(exceptions.CannotCompile, match="an explanation with when= cannot be compiled"):
        gradcam_fast.export(explainer, random_images(2), tmp_path / "model.pt2")


def test_an_export_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    def fail(*_, package_path, **__):
        with open(package_path, "w") as file:
            file.write("half")
        raise RuntimeError("the compiler failed")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    path = tmp_path / "model.pt2"
    path.write_text("earlier")
    with pytest.raises(exceptions.CannotCompile, match="the compiler failed"):
        gradcam_fast.export(Explainer(packages.model()), random_images(2), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"] and path.read_text() == "earlier"


@pytest.mark.parametrize("wrong", ["score", "heatmap"])
def test_a_package_that_explains_something_else_is_not_kept(tmp_path, monkeypatch, wrong):
    explainer = Explainer(packages.model())

    class Loader:
        def __init__(self, *_):
            pass

        def boxed_run(self, tensors):
            true = explainer(tensors[0])
            results = [true.heatmap, true.logits, true.target, true.score, true.raw_min, true.raw_max, true.valid]
            place = {"heatmap": 0, "score": 3}[wrong]
            results[place] = results[place].flip(-1) + 0.1
            return [*results, true.reason_codes, None, None, None]

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", lambda *_, **__: None)
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", Loader)
    with pytest.raises(exceptions.CannotCompile, match="the compiled explanation of 1 images is not that of the model"):
        gradcam_fast.export(explainer, random_images(2), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_the_table_of_a_package_reads_back(table_only):
    info = package_info(table_only)
    logits = {"out": torch.empty(0), "others": [torch.empty(0), None, (torch.empty(0),)]}
    inputs = (*info.record.inputs, replace(info.images, at="target", dtype=torch.int64, shape=(None, 2)))
    record = replace(
        info.record,
        layer=("a", "b"),
        size=(20, 12),
        target=replace(info.record.target, kind="classes", targets=2, classes=(1, 4)),
        inputs=inputs,
        logits=logits,
        logit_tensors=3,
    )
    info = replace(
        info, record=record, class_names=("ant", "Bär", 'a "b"'), preprocessing={"crop": 0.5, "squeeze": True}
    )
    again = PackageInfo.from_texts(info.to_texts())
    assert replace(again, record=replace(again.record, logits=None)) == replace(
        info, record=replace(record, logits=None)
    )
    assert again.record.logits.keys() == logits.keys() and again.record.logits["others"][1] is None
    assert isinstance(again.record.logits["others"][2], tuple)


def test_outputs_of_classes_that_the_reader_may_not_have_are_refused(tmp_path):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = packages.model()

        def forward(self, images):
            return {"out": self.inner(images), "name": "net"}

    explainer = Explainer(Wrapped().eval())
    with pytest.raises(TypeError, match="the model returns a str, which a package cannot return"):
        gradcam_fast.export(
            explainer, random_images(2), tmp_path / "model.pt2", target=lambda output: output["out"][:, 0]
        )
