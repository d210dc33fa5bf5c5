"""What every optimizer of the table owes its users: torch's own interface, whole."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_warmup import OPTIMIZERS
from hf_warmup.optim import optimizer_kwargs


pytestmark = pytest.mark.filterwarnings("ignore:AdamWarmup with warmup_steps=0")  # as the name alone builds it
names = pytest.mark.parametrize("name", OPTIMIZERS)


def make(name, *values):
    """The optimizer called `name` as `optim=` builds it, over one parameter of each value."""
    params = [torch.nn.Parameter(torch.full((3,), value)) for value in values]
    kwargs = optimizer_kwargs(name, lr=0.1, betas=(0.9, 0.98), eps=1e-8)
    return OPTIMIZERS[name].cls(params, **kwargs), params


def descend(optimizer, params, updates):
    """Updates on the sum of squares; the loss of each."""

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    return [optimizer.step(closure).item() for _ in range(updates)]


@names
def test_step_with_a_closure_descends(name):
    optimizer, params = make(name, 1.0)
    losses = descend(optimizer, params, 30)
    assert losses[0] == 3.0  # what the closure returned, at the values before the update
    assert losses[-1] < losses[0]


@names
def test_saved_and_loaded_it_goes_on_as_if_never_stopped(name):
    optimizer, params = make(name, 1.0, -2.0)
    descend(optimizer, params, 10)
    other, others = make(name, 0.0, 0.0)
    for mine, theirs in zip(others, params, strict=True):
        mine.data.copy_(theirs.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert descend(other, others, 10) == descend(optimizer, params, 10)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@names
def test_a_group_added_later_is_updated_with_its_own_learning_rate(name):
    optimizer, params = make(name, 1.0)
    descend(optimizer, params, 5)
    later, frozen = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer.add_param_group({"params": [later]})
    optimizer.add_param_group({"params": [frozen], "lr": 0.0})
    descend(optimizer, [*params, later, frozen], 10)
    assert (later < 1).all()
    assert torch.equal(frozen, torch.ones(3))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


@names
def test_zero_grad_sets_to_none_or_to_zero(name):
    optimizer, (p,) = make(name, 1.0)
    p.square().sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(3))
    optimizer.zero_grad(set_to_none=True)
    assert p.grad is None
    before = p.detach().clone()
    optimizer.step()  # nothing has a gradient: nothing moves
    assert torch.equal(p, before)
