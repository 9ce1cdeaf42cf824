"""Models wrapped for several processes or devices: those whole in each process are explained, sharded ones are refused.

The process group has one member, this process; it is formed through a file.
"""

import pytest
import torch
from support.networks import ConvNet, stateless
from support.refusals import assert_says
from support.unchanged import unchanged
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gradcam_fast import Explainer, explain

pytestmark = [
    pytest.mark.skipif(
        not (distributed.is_available() and distributed.is_gloo_available()), reason="PyTorch was built without gloo"
    ),
    pytest.mark.filterwarnings("ignore"),  # the wrappers warn about training on a CPU
]


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    store = distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def gradients_of_a_step(model, images):
    model.zero_grad()
    model.train()(images).logsumexp(1).sum().backward()
    model.eval()
    return [parameter.grad.clone() for parameter in model.parameters()]


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPINGS = {
    "DDP": DistributedDataParallel,
    "compiled DDP": lambda model: compiled(DistributedDataParallel(model)),
    "DDP of a compiled model": lambda model: DistributedDataParallel(compiled(model)),
}


@pytest.mark.parametrize("choices", [{}, {"target": 1}, {"topk": 3}], ids=str)
@pytest.mark.parametrize("layer", ["features.3", "features.1", None])
@pytest.mark.parametrize("wrap", WRAPPINGS)
def test_a_data_parallel_model_has_the_explanation_of_the_model_inside(wrap, layer, choices, images):
    torch._dynamo.reset()
    model = stateless()
    expected = explain(model, images, layer=layer, relu=False, **choices)
    wrapped = WRAPPINGS[wrap](model)
    with unchanged(wrapped):
        explanation = explain(wrapped, images, layer=layer, relu=False, **choices)
    assert explanation.layer == expected.layer and expected.valid.all()
    assert torch.equal(explanation.heatmap, expected.heatmap) and torch.equal(explanation.logits, expected.logits)


def test_a_layer_of_a_data_parallel_model_may_be_given_as_the_module(images):
    model = ConvNet()
    expected = explain(model, images, layer="features.3").heatmap
    explanation = explain(DistributedDataParallel(model), images, layer=model.features[3])
    assert explanation.layer == "features.3" and torch.equal(explanation.heatmap, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", ["features.3", None])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_explanation_between_training_steps_changes_no_step(steps, layer, training, images):
    torch.manual_seed(1)
    expected_model = DistributedDataParallel(ConvNet())
    torch.manual_seed(1)
    model = DistributedDataParallel(ConvNet())
    for _ in range(steps):  # DDP rearranges its gradients after the first step
        gradients_of_a_step(expected_model, images)
        gradients_of_a_step(model, images)
    explain(model.train(training), images, layer=layer)
    for _ in range(2):
        pairs = zip(gradients_of_a_step(model, images), gradients_of_a_step(expected_model, images), strict=True)
        assert all(torch.equal(gradient, expected) for gradient, expected in pairs)


@pytest.mark.parametrize("layer", ["0.module.3", "0", None])
def test_data_parallel_over_at_most_one_device_may_wrap_a_part(layer, images):
    model = stateless()
    expected = explain(model, images, topk=2, layer="features.3" if layer == "0.module.3" else "features")
    parts = nn.Sequential(nn.DataParallel(model.features), model.head)
    with unchanged(parts):
        explanation = explain(parts, images, topk=2, layer=layer)
    assert torch.equal(explanation.heatmap, expected.heatmap) and explanation.layer == (layer or "0")


def hooked(model):
    model.register_forward_pre_hook(lambda _, args: args)
    return model


def fully_sharded(part=""):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = stateless()
    if not part:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    setattr(model, part, FullyShardedDataParallel(model.get_submodule(part), device_id=torch.device("cpu")))
    return model


def fully_sharded_in_place(part="", run=False):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = stateless()
    fully_shard(model.get_submodule(part), mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=False)
    if run:  # afterwards the parameters are ordinary ones
        with torch.no_grad():
            model(torch.zeros(1, 3, 16, 16))
    return model


def tensor_parallel():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    return parallelize_module(stateless(), init_device_mesh("cpu", (1,)), {"head.4": ColwiseParallel()})


SHARDED = ("in each process", "state dict", "nn.Module")
WAITING = ("DistributedDataParallel", "gradients", ".module")
REFUSED = {
    "FSDP": (fully_sharded, ("is a FullyShardedDataParallel", *SHARDED)),
    "FSDP, compiled": (lambda: compiled(fully_sharded()), ("is a FullyShardedDataParallel", *SHARDED)),
    "FSDP of a part": (lambda: fully_sharded("head"), ("has a FullyShardedDataParallel at 'head'", *SHARDED)),
    "FSDP2": (fully_sharded_in_place, ("is a FSDPSequential", *SHARDED)),
    "FSDP2 after a forward": (lambda: fully_sharded_in_place(run=True), ("is a FSDPSequential", *SHARDED)),
    "FSDP2 of a part": (lambda: fully_sharded_in_place("head"), ("has a FSDPSequential at 'head'", *SHARDED)),
    "a tensor-parallel head": (tensor_parallel, ("has a DTensor at 'head.4.weight'", *SHARDED)),
    "DDP of a part": (lambda: nn.Sequential(DistributedDataParallel(ConvNet())), ("at '0'", *WAITING)),
    "DDP with hooks": (lambda: hooked(DistributedDataParallel(ConvNet())), ("is a ", *WAITING)),
    "hooked compiled DDP": (lambda: hooked(compiled(DistributedDataParallel(ConvNet()))), ("has a ", *WAITING)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_sharded_model_is_refused_when_the_explainer_is_made(kind):
    make, parts = REFUSED[kind]
    with pytest.raises(TypeError) as refusal:
        Explainer(make())
    assert_says(refusal, TypeError, parts)
