"""Networks by name: torchvision's, timm's, one's own, the built-in; with their preprocessing, classes and weights."""

import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from support.refusals import assert_says
from torchvision.models import ResNet18_Weights

import gradcam_fast
from gradcam_fast.pipeline.networks import IMAGENET, load_network
from gradcam_fast.preprocess import Preprocess

FACTORY = """
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
import width_of_the_network

class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.features = nn.Conv2d(3, width_of_the_network.WIDTH, 3)
        self.head = nn.Linear(width_of_the_network.WIDTH, num_classes)

    def forward(self, images):
        return self.head(self.features(images).relu().mean((2, 3)))

def fixed():
    import width_of_the_network
    return Net(5)

def of_timm():
    import timm
    return timm.create_model("test_vit", num_classes=4)

def framing():
    model = of_timm()
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_pct": 1.15}
    return model

def seeded():
    torch.manual_seed(7)
    return Net()

DRAWN = []

def while_another_thread_draws():
    model = Net()
    with ThreadPoolExecutor(1) as other:
        DRAWN.append(other.submit(torch.rand, 3).result())
    return model

def thousand(): return Net(1000)
def needy(width): ...
def wrong(): return 3
def segments(): return nn.Conv2d(3, 2, 3)
def small(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6))
number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module with factories in the current folder, which Python does not look into by itself."""
    (tmp_path / "own_networks.py").write_text(FACTORY)
    (tmp_path / "width_of_the_network.py").write_text("WIDTH = 8")
    monkeypatch.chdir(tmp_path)
    for name in ("own_networks", "width_of_the_network"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    path = list(sys.path)
    yield "own_networks"
    assert sys.path == path
    for name in ("own_networks", "width_of_the_network"):
        sys.modules.pop(name, None)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's and Hugging Face's folders, empty; whatever would be downloaded fails."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("a download was tried"))
    folder = tmp_path / "hub" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def logits(network, fill=0.5):
    with torch.no_grad():
        return network.model(torch.full((1, 3, *network.preprocess.size), fill))


def test_a_network_of_torchvision_takes_its_weights_classes_and_preprocessing(tmp_path):
    model = torchvision.models.resnet18().eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    network = load_network("resnet18", weights=tmp_path / "w.pt")
    assert network.title == "resnet18 of torchvision (weights of w.pt)"
    assert network.notes == ()
    assert not network.model.training
    assert network.class_names[285] == "Egyptian cat"
    photo = Image.effect_noise((320, 240), 60).convert("RGB")
    images = network.preprocess([photo]).images
    assert torch.equal(images[0], ResNet18_Weights.DEFAULT.transforms()(photo))
    with torch.no_grad():
        assert torch.equal(network.model(images), model(images))


def test_a_network_of_timm_takes_its_weights_classes_and_preprocessing(tmp_path):
    model = timm.create_model("test_vit").eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    for name in ("test_vit", "timm:test_vit"):
        network = load_network(name, weights=tmp_path / "w.safetensors")
        assert network.title.endswith("test_vit of timm (weights of w.safetensors)")
        images = network.preprocess([Image.effect_noise((320, 240), 60).convert("RGB")]).images
        assert images.shape == (1, *model.pretrained_cfg["input_size"])
        with torch.no_grad():
            assert torch.equal(network.model(images), model(images))
    assert network.preprocess == Preprocess.of(model.pretrained_cfg)
    assert network.class_names[967] == "espresso"


def test_where_both_have_a_name_torchvisions_is_meant():
    assert load_network("resnet18", weights="random").title == "resnet18 of torchvision (random weights)"
    assert load_network("timm:resnet18", weights="random").title == "resnet18 of timm (random weights)"
    assert load_network("resnet18d", weights="random").title == "resnet18d of timm (random weights)"


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18", "resnet18d"])
def test_nothing_is_downloaded(hub, name):
    with pytest.raises(FileNotFoundError) as refusal:
        load_network(name)
    assert_says(refusal, FileNotFoundError, [name.removeprefix("timm:"), "--download", "python -c", "--weights FILE"])


def test_weights_that_torchvision_downloaded_earlier_are_used(hub):
    model = torchvision.models.resnet50().eval()
    torch.save(model.state_dict(), hub / "resnet50-0676ba61.pth")  # the older of two, prepared for 224 of 256 pixels
    network = load_network("resnet50")
    assert network.title == "resnet50 of torchvision (IMAGENET1K_V1)"
    assert network.preprocess.crop == pytest.approx(224 / 256)
    assert torch.equal(logits(network), model(torch.full((1, 3, 224, 224), 0.5)).detach())
    torch.save(model.state_dict(), hub / "resnet50-11ad3fa6.pth")  # the better one, 224 of 232
    assert load_network("resnet50").preprocess.crop == pytest.approx(224 / 232)
    assert load_network("resnet50", weights=hub / "resnet50-0676ba61.pth").preprocess.crop == pytest.approx(224 / 256)


def test_weights_that_timm_downloaded_earlier_are_used(hub, tmp_path):
    model = timm.create_model("test_vit").eval()
    repository = tmp_path / "hf" / f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    save_file(model.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    network = load_network("test_vit")
    assert network.title == f"test_vit of timm ({model.pretrained_cfg['tag']})"
    assert torch.equal(logits(network), model(torch.full((1, 3, *network.preprocess.size), 0.5)).detach())


def test_densenets_own_old_names_are_understood(tmp_path):
    weights = torchvision.models.densenet121().state_dict()
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2.") if "denselayer" in name else name: tensor
        for name, tensor in weights.items()
    }
    assert old.keys() != weights.keys()
    torch.save(old, tmp_path / "w.pt")
    loaded = load_network("densenet121", weights=tmp_path / "w.pt").model.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_a_googlenet_without_its_training_heads_is_complete_and_transforms_its_input(tmp_path):
    weights = torchvision.models.googlenet(aux_logits=False, init_weights=False, num_classes=5).state_dict()
    torch.save(weights, tmp_path / "w.pt")
    network = load_network("googlenet", weights=tmp_path / "w.pt")
    assert network.model.transform_input
    assert network.class_names == tuple(f"class {i}" for i in range(5))


def test_the_number_of_classes_follows_the_weights(tmp_path, own_module):
    cases = {
        "resnet18": torchvision.models.resnet18(num_classes=7),
        "test_vit": timm.create_model("test_vit", num_classes=7),
        f"{own_module}:Net": load_network(f"{own_module}:Net").model.__class__(7),
    }
    for name, model in cases.items():
        torch.save({"model": model.state_dict()}, tmp_path / "w.pt")
        network = load_network(name, weights=tmp_path / "w.pt")
        assert network.class_names == tuple(f"class {i}" for i in range(7))
        expected = model.eval()(torch.full((1, 3, *network.preprocess.size), 0.5)).detach()
        assert torch.equal(logits(network), expected)


def test_random_weights_are_the_same_in_every_run_and_leave_the_random_numbers_alone():
    state = torch.random.get_rng_state()
    first = load_network("resnet18", weights="random")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(logits(first), logits(load_network("resnet18", weights=Path("random"))))


def test_other_threads_draw_each_number_once_while_a_network_is_loaded(tmp_path, own_module):
    torch.manual_seed(0)
    expected = torch.rand(3, 3)
    torch.manual_seed(0)
    name = f"{own_module}:while_another_thread_draws"
    torch.save(load_network(name, weights="random").model.state_dict(), tmp_path / "w.pt")
    load_network(name, weights=tmp_path / "w.pt")
    assert torch.equal(torch.stack([*sys.modules[own_module].DRAWN, torch.rand(3)]), expected)


def test_a_factory_may_seed_its_own_weights(own_module):
    torch.manual_seed(7)
    expected = torch.nn.Conv2d(3, 8, 3).weight
    assert torch.equal(load_network(f"{own_module}:seeded").model.features.weight, expected)


def test_the_built_in_network_takes_other_weights(tmp_path):
    trained = load_network("efficientnet_lite0")
    assert trained.title == "EfficientNet-Lite0 (ImageNet, 1000 classes)"
    torch.save({f"module.{k}": v * 0.5 for k, v in trained.model.state_dict().items()}, tmp_path / "w.pt")
    other = load_network("efficientnet_lite0", weights=tmp_path / "w.pt")
    assert torch.equal(other.model._fc.weight, trained.model._fc.weight * 0.5)


def test_a_factory_of_the_current_folder_makes_the_network(own_module):
    network = load_network(f"{own_module}:fixed", probabilities="softmax")
    assert network.probabilities == "softmax"
    assert network.title == "own_networks:fixed"
    assert network.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert network.preprocess == IMAGENET
    assert len(network.notes) == 1
    assert (
        "224x224" in network.notes[0]
        and "--size, --mean, --std not given, so ImageNet's values are used" in network.notes[0]
    )
    explanation = gradcam_fast.explain(network.model, network.preprocess([Image.new("RGB", (300, 200), "red")]).images)
    assert explanation.layer == "features"


def test_a_factorys_network_that_carries_timms_configuration_is_shown_photos_accordingly(own_module):
    network = load_network(f"{own_module}:of_timm", probabilities="sigmoid")
    assert network.preprocess == Preprocess.of(timm.get_pretrained_cfg("test_vit").to_dict())
    assert network.notes == () and len(network.class_names) == 4


def test_a_network_that_frames_its_photos_sees_their_frame(own_module):
    left, top, right, bottom = load_network(f"{own_module}:framing").preprocess.seen_box((300, 300))
    assert left < 0 and top < 0 and right > 300 and bottom > 300
    assert load_network(f"{own_module}:framing", crop=None).preprocess.seen_box((300, 200)) == (0, 0, 300, 200)
    assert load_network(f"{own_module}:framing", crop=0.9).preprocess.crop == pytest.approx(0.9, abs=0.01)


def test_a_thousand_classes_of_ones_own_are_not_taken_for_imagenets(own_module):
    assert load_network(f"{own_module}:thousand").class_names[:2] == ("class 0", "class 1")


def test_flags_say_how_photos_are_prepared(own_module):
    flags = {"size": (48, 64), "mean": [0.5] * 3, "std": (0.25,) * 3, "crop": None}
    network = load_network(f"{own_module}:Net", **flags)
    assert network.preprocess == Preprocess((48, 64), mean=(0.5,) * 3, std=(0.25,) * 3, fit="stretch")
    assert "ImageNet" not in network.notes[0]
    assert load_network("resnet18", weights="random", size=(96, 96)).preprocess.crop == pytest.approx(96 / 109)
    assert load_network("test_vit", weights="random", crop=0.5).preprocess.crop == 0.5


@pytest.mark.parametrize("name", ["vit_b_32", "timm:vit_tiny_patch16_224"])
def test_transformers_are_built_for_the_size_that_is_asked_for(name):
    network = load_network(name, weights="random", size=(96, 96))
    assert logits(network).shape == (1, 1000)


def test_classes_are_named_by_a_file(tmp_path, own_module):
    (tmp_path / "names.txt").write_text("cat\ndog\nwolf in the snow\n")
    network = load_network(f"{own_module}:Net", classes=tmp_path / "names.txt")
    assert network.class_names == ("cat", "dog", "wolf in the snow")


def test_a_missing_file_is_named_before_anything_is_built(tmp_path):
    for option in ("weights", "classes"):
        with pytest.raises(FileNotFoundError, match=f"{option} .*nothing: no such file"):
            load_network("resnet18", **{"weights": "random", option: tmp_path / "nothing"})


@pytest.mark.parametrize(
    ("name", "error", "parts"),
    [
        ("resnet_18", ValueError, ["model 'resnet_18' is unknown", "did you mean resnet18", "efficientnet_lite0"]),
        ("timm:resnet_18", ValueError, ["model 'timm:resnet_18' is unknown", "did you mean"]),
        ("timm:resnet18.nonsense", ValueError, ["model 'timm:resnet18.nonsense' is unknown"]),
        ("fasterrcnn_resnet50_fpn", ValueError, ["is unknown"]),
        ("", ValueError, ["model '' is unknown"]),
        ("no_such.module:net", ImportError, ["importing no_such.module failed", "no_such"]),
        ("own_networks:nothing", ValueError, ["own_networks has no function 'nothing'"]),
        ("own_networks:number", ValueError, ["own_networks has no function 'number'"]),
        ("own_networks:", ValueError, ["own_networks has no function ''"]),
        ("own_networks:needy", ValueError, ["'width'", "needs no arguments"]),
        ("own_networks:wrong", TypeError, ["wrong returned a int", "nn.Module"]),
        ("own_networks:segments", ValueError, ["is not a classifier", "(1, 2, 222, 222)"]),
        ("own_networks:small", ValueError, ["does not run on an input of shape (1, 3, 224, 224)", "size"]),
    ],
)
def test_networks_that_cannot_be_are_refused(own_module, name, error, parts):
    with pytest.raises(error) as refusal:
        load_network(name, weights=None if ":" in name and "timm" not in name else "random")
    assert_says(refusal, error, [repr(name) if "timm" not in name else "timm", *parts])


def test_the_size_that_a_network_runs_on_mends_it(own_module):
    assert len(load_network(f"{own_module}:small", size=(8, 8)).class_names) == 6


def test_weights_of_another_network_are_refused_with_both_names(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError) as refusal:
        load_network("resnet50", weights=tmp_path / "w.pt")
    assert_says(refusal, ValueError, ["w.pt do not fit resnet50 of torchvision", "missing: layer1.0.conv3.weight"])


@pytest.mark.parametrize("name", ["resnet18d", "timm:resnet18"])
def test_without_timm_its_names_are_unknown(monkeypatch, name):
    real = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr(
        "gradcam_fast.pipeline.networks.architectures.find_spec",
        lambda module: real(module) if module != "timm" else None,
    )
    with pytest.raises(ValueError, match=r"is unknown.*if they are installed"):
        load_network(name, weights="random")


def test_what_is_not_known_of_the_outputs_is_said_in_a_note(own_module):
    network = load_network(f"{own_module}:fixed")
    assert network.probabilities == "auto"
    assert "--probabilities softmax or sigmoid" in network.notes[-1] and "own_networks:fixed" in network.notes[-1]
    assert load_network("resnet18", weights="random").probabilities == "classifier"


def test_weights_are_downloaded_only_if_that_is_asked_for(hub, monkeypatch):
    model = torchvision.models.squeezenet1_1().eval()
    asked = []

    def fetch(url, **_):
        asked.append(url)
        torch.save(model.state_dict(), hub / url.rsplit("/", 1)[1])
        return model.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    with pytest.raises(FileNotFoundError, match=r"from torchvision.models import get_model; .*'squeezenet1_1'"):
        load_network("squeezenet1_1")
    network = load_network("squeezenet1_1", download=True)
    assert network.title == "squeezenet1_1 of torchvision (IMAGENET1K_V1)" and len(asked) == 1
    assert torch.equal(logits(network), model(torch.full((1, 3, 224, 224), 0.5)).detach())
    load_network("squeezenet1_1", download=True)
    assert len(asked) == 1


def test_a_download_that_fails_is_said_in_a_sentence(hub, monkeypatch):
    def fail(url, **_):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(
        OSError, match=r"squeezenet1_1 of torchvision could not be downloaded \(no route to host\); give"
    ):
        load_network("squeezenet1_1", download=True)
