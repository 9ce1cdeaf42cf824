"""The search for a layer draws no number from PyTorch's generators, so that no thread draws one twice."""

import threading

import pytest
import torch
from support.networks import ConvNet
from torch import nn

import gradcam_fast
from gradcam_fast._layer_search import memory
from gradcam_fast._random_numbers import OwnRandomNumbers

DRAWS = {
    "dropout": lambda x: nn.functional.dropout(x, 0.5),
    "dropout in place": lambda x: nn.functional.dropout(x.clone(), 0.5, inplace=True),
    "feature dropout": lambda x: nn.functional.dropout2d(x, 0.5),
    "alpha dropout": lambda x: nn.functional.alpha_dropout(x, 0.5, training=True),
    "native dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "rrelu": lambda x: nn.functional.rrelu(x, training=True),
    "rand": lambda x: x + torch.rand(x.shape),
    "randn_like": lambda x: x + torch.randn_like(x),
    "rand_like": lambda x: x + torch.rand_like(x),
    "randint": lambda x: x + torch.randint(3, x.shape),
    "randint low": lambda x: x + torch.randint(1, 3, x.shape),
    "randperm": lambda x: x[:, torch.randperm(x.shape[1])],
    "normal": lambda x: torch.normal(x, 1.0),
    "normal_": lambda x: x + torch.empty_like(x).normal_(),
    "uniform_": lambda x: x + torch.empty_like(x).uniform_(),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "bernoulli_": lambda x: x * torch.empty_like(x).bernoulli_(0.5),
    "multinomial": lambda x: x + torch.multinomial(torch.ones(4000), 1),
    "gumbel": lambda x: nn.functional.gumbel_softmax(x, dim=1),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
}


class Draws(nn.Module):
    """Draws random numbers in every forward, between two convolutions."""

    def __init__(self, draw):
        super().__init__()
        self.draw, self.at_head = draw, lambda _: None
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    def forward(self, images):
        maps = self.second(self.draw(self.first(images)))
        self.at_head(maps)
        return self.head(maps)


def state_after(work):
    torch.manual_seed(1)
    work()
    return torch.get_rng_state()


@pytest.mark.parametrize("name", DRAWS)
def test_a_search_draws_nothing(name, images):
    model = Draws(DRAWS[name]).eval()

    def found():
        memory._MEMORY.clear()
        gradcam_fast.explain(model, images)

    named = state_after(lambda: gradcam_fast.explain(model, images, layer="second"))
    assert not torch.equal(named, state_after(lambda: None))
    assert torch.equal(named, state_after(found))


def test_other_threads_draw_each_number_once(images):
    model = Draws(lambda maps: maps).eval()
    drawn, search_is_halted, release = [], threading.Event(), threading.Event()
    explaining = []

    def halt(_):
        if threading.get_ident() in explaining and not release.is_set():
            search_is_halted.set()
            assert release.wait(30)

    model.at_head = halt

    def explain():
        explaining.append(threading.get_ident())
        gradcam_fast.explain(model, images)

    thread = threading.Thread(target=explain)
    thread.start()
    assert search_is_halted.wait(30)
    drawn += [torch.rand(()).item() for _ in range(50)]
    release.set()
    thread.join(30)
    drawn += [torch.rand(()).item() for _ in range(50)]
    assert len(set(drawn)) == 100


def test_what_is_drawn_is_random_and_the_same_in_every_run():
    values, maps = [], torch.randn(2, 8, 8, 8)
    for _ in range(2):
        with OwnRandomNumbers():
            values.append([DRAWS[name](maps) for name in DRAWS])
    for name, first, second in zip(DRAWS, *values, strict=True):
        assert torch.equal(first, second), name
        assert not torch.equal(first, maps), name
    mask = torch.native_dropout(torch.ones(10_000), 0.25, True)
    with OwnRandomNumbers():
        ours = torch.native_dropout(torch.ones(10_000), 0.25, True)
    assert ours[0].unique().tolist() == pytest.approx(mask[0].unique().tolist())
    assert 0.7 < ours[1].float().mean() < 0.8


def test_a_generator_of_the_models_is_not_advanced():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    with OwnRandomNumbers():
        first, second = (torch.rand(3, generator=generator) for _ in range(2))
    assert torch.equal(generator.get_state(), before)
    assert not torch.equal(first, second) and torch.equal(first, torch.rand(3, generator=generator))


def test_the_mode_is_left_when_the_model_raises():
    with pytest.raises(ZeroDivisionError), OwnRandomNumbers():
        raise ZeroDivisionError
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


@pytest.mark.parametrize("found", [True, False])
def test_an_explanation_in_eval_mode_draws_nothing(found, images):
    model = ConvNet(dropout=0.5)
    before = torch.get_rng_state()
    gradcam_fast.explain(model, images, layer=None if found else "features.3")
    assert torch.equal(torch.get_rng_state(), before)
