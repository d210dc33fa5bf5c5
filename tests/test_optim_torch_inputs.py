"""The optimizers with the inputs by which torch tests its own: the `OptimizerInfo` of RAdam and AdamW."""

from __future__ import annotations

import copy
import re
import warnings
from itertools import chain

import pytest
import torch
from torch import nn

from hf_warmup import AdamWarmup, GIAdam, RAdam


pytest.importorskip("expecttest", reason="torch's test utilities need expecttest")
from torch.testing._internal.common_optimizers import optim_db


pytestmark = pytest.mark.filterwarnings("ignore")  # about duplicate parameters, which torch's inputs have on purpose
INFOS = {info.optim_cls.__name__: info for info in optim_db}
OURS = [(RAdam, INFOS["RAdam"]), (AdamWarmup, INFOS["AdamW"]), (GIAdam, INFOS["AdamW"])]
OWN = {RAdam: {"degenerated_to_sgd": True}, AdamWarmup: {"warmup_steps": 1}, GIAdam: {"betas": (0.9, 0.9)}}
CASES = [
    pytest.param(cls, info, dict(each.kwargs), id=f"{cls.__name__}-{each.desc.replace(' ', '_')}")
    for cls, info in OURS
    for each in info.optim_inputs_func("cpu")
    if "amsgrad" not in each.kwargs  # an option that these classes do not have
]


def build(cls, kwargs, groups=False):
    """Return an optimizer of a bias and a weight that is not contiguous, and the closure of a least-squares loss."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(10, 5, 2)[..., 0])
    bias, inputs = nn.Parameter(torch.randn(10)), torch.randn(5)
    params = [{"params": [weight]}, {"params": [bias], "lr": 0.02}] if groups else [weight, bias]
    optimizer = cls(params, **{**OWN[cls], **kwargs})

    def closure():
        optimizer.zero_grad()
        loss = (weight.mv(inputs) + bias).square().sum()
        loss.backward()
        return loss

    return optimizer, closure


def values(optimizer):
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize(("cls", "info", "kwargs"), CASES)
def test_loss_decreases_alone_in_groups_and_under_each_scheduler(cls, info, kwargs):
    schedulers = {tuple(each) for each in info.scheduler_inputs} | {()}
    for groups in (False, True):
        for makers in schedulers:
            optimizer, closure = build(cls, kwargs, groups)
            made = [make(optimizer) for make in makers]
            first = closure().item()
            for _ in range(20):
                loss = optimizer.step(closure)
                for scheduler in made:
                    plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                    scheduler.step(*([loss] if plateau else []))
            last = closure().item()
            assert last > first if kwargs.get("maximize") else last < first


@pytest.mark.parametrize(("cls", "info", "kwargs"), CASES)
@pytest.mark.parametrize("form", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_every_kernel_gives_the_same_parameters(cls, info, kwargs, form):
    results = []
    for each in ({}, form):
        optimizer, closure = build(cls, {**kwargs, **each})
        for _ in range(7):
            optimizer.step(closure)
        results.append(values(optimizer))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("cls", "info", "kwargs"), CASES)
def test_state_survives_a_copy_an_older_state_and_hooks(cls, info, kwargs):
    optimizer, closure = build(cls, kwargs)
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *args: calls.append("post"))
    for _ in range(3):
        optimizer.step(closure)
    assert calls == ["pre", "post"] * 3
    state = copy.deepcopy(optimizer.state_dict())
    older = copy.deepcopy(state)  # from before torch's optimizers had these keys
    for key, group in ((key, group) for group in older["param_groups"] for key in info.not_og_supported_flags):
        group.pop(key, None)
    optimizer.step(closure)
    for saved in (state, older):
        fresh, fresh_closure = build(cls, kwargs)
        for p, value in zip(chain(*(g["params"] for g in fresh.param_groups)), values(optimizer), strict=True):
            p.data.copy_(value)
        fresh.load_state_dict(saved)
        fresh.step(fresh_closure)
        assert int(fresh.state_dict()["state"][0]["step"]) == 4
    assert set(state["param_groups"][0]) >= {"foreach", "maximize", "capturable", "differentiable", "fused"}


ERRORS = [
    pytest.param(cls, each, id=f"{cls.__name__}-{i}")
    for cls, info in OURS
    for i, each in enumerate(info.optim_error_inputs_func("cpu", torch.float32))
]


@pytest.mark.parametrize(("cls", "error"), ERRORS)
def test_invalid_options_raise_the_errors_of_torch(cls, error):
    inputs = error.optimizer_error_input
    expected = Warning if issubclass(error.error_type, Warning) else (TypeError, ValueError)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(expected) as caught:
            cls(inputs.params, **inputs.kwargs)
    own_words = any(key in inputs.kwargs for key in ("lr", "betas", "weight_decay"))
    assert own_words or re.search(error.error_regex, str(caught.value))
