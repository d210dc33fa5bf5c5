"""Properties of the optimizers and the gradient norms for random gradients and histories."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_warmup import AdamWarmup, GIAdam, GradientNormRecorder, RAdam
from hf_warmup.accelerate_utils import create_optimizer
from hf_warmup.norms import GROUPINGS, gradient_norms, group_names, read_gradient_norms

from .stepping import through_file


CLASSES = [RAdam, AdamWarmup, GIAdam]
classes = pytest.mark.parametrize("cls", CLASSES)
pytestmark = pytest.mark.filterwarnings("ignore:AdamWarmup with warmup_steps=0")
SHAPES = st.sampled_from([(), (0,), (1,), (3,), (2, 0), (2, 3)])


def parameter(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))


def gradient(shape, t):
    generator = torch.Generator().manual_seed(1000 + t)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


FACTORS = st.sampled_from([1.0, 1.0, 1.0, math.nan, math.inf, -math.inf])


def torchs(cls, params):
    """torch's optimizer with the same updates as `cls`."""
    if cls is RAdam:
        return torch.optim.RAdam(params, lr=0.01, decoupled_weight_decay=True)
    theirs = torch.optim.AdamW(params, lr=0.01, weight_decay=0.0)
    if cls is GIAdam:
        for p in params:
            square = gradient(p.shape, 0).square() if p.grad is None else p.grad.square()
            theirs.state[p] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": square}
    return theirs


@classes
@given(st.lists(st.tuples(FACTORS, FACTORS, FACTORS), min_size=1))
def test_nan_and_inf_gradients_have_the_effect_that_they_have_in_torch(cls, rows):
    ours, theirs, alone = parameter((3,)), parameter((3,)), [parameter((2,)), parameter((2,))]
    own = {"degenerated_to_sgd": True} if cls is RAdam else {}
    optimizer = cls([ours, alone[0]], lr=0.01, **own)
    other = lone = None
    for t, row in enumerate(rows):
        ours.grad = gradient((3,), t) * torch.tensor(row, dtype=torch.float64)
        theirs.grad, alone[0].grad, alone[1].grad = ours.grad.clone(), gradient((2,), t), gradient((2,), t)
        if other is None:
            other, lone = torchs(cls, [theirs]), cls([alone[1]], lr=0.01, **own)
        for each in (optimizer, other, lone):
            each.step()
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    good = ours.isfinite()
    torch.testing.assert_close(ours[good], theirs[good], rtol=1e-12, atol=1e-14)
    assert torch.equal(*alone)  # another parameter is not affected


@st.composite
def histories(draw):
    """Parameters with a shape, the update at which each joins, and the updates at which each has a gradient."""
    n = draw(st.integers(1, 12))
    joins = st.sampled_from([0, 0, n // 2])
    parts = draw(st.lists(st.tuples(SHAPES, joins, st.sets(st.integers(0, n - 1)), st.booleans()), max_size=4))
    return n, parts, draw(st.integers(0, n))


@classes
@given(histories())
def test_each_parameter_is_updated_independently(cls, history):
    """With missing gradients, frozen parameters, empty groups, groups added later, and a checkpoint at any update."""
    n, parts, saved_at = history
    params = [parameter(shape, i) for i, (shape, _, _, _) in enumerate(parts)]
    for p, (_, _, _, frozen) in zip(params, parts, strict=True):
        p.requires_grad_(not frozen)

    def groups_at(t):
        return [{"params": [p]} for p, (_, joins, _, _) in zip(params, parts, strict=True) if joins == t]

    optimizer = cls([{"params": []}, *groups_at(0)], lr=0.1)
    for t in range(n):
        for group in groups_at(t) if t else []:
            optimizer.add_param_group(group)
        if t == saved_at:
            state, groups = through_file(optimizer.state_dict()), [g["params"] for g in optimizer.param_groups]
            optimizer = cls([{"params": group} for group in groups])
            optimizer.load_state_dict(state)
            optimizer.defaults["lr"] = 0.1
        for p, (shape, joins, present, frozen) in zip(params, parts, strict=True):
            p.grad = gradient(shape, t) if t in present and t >= joins and not frozen else None
        optimizer.step()

    for i, (p, (shape, joins, present, frozen)) in enumerate(zip(params, parts, strict=True)):
        twin = parameter(shape, i)
        alone = cls([twin], lr=0.1)
        updates = [] if frozen else [t for t in sorted(present) if t >= joins]
        for t in updates:
            twin.grad = gradient(shape, t)
            alone.step()
        assert torch.equal(p, twin)
        assert (p in optimizer.state) == bool(updates)


@pytest.mark.parametrize("cls", [*CLASSES, torch.optim.AdamW])
def test_duplicate_or_missing_parameters_raise_as_in_torch(cls):
    p = parameter((3,))
    with pytest.raises(ValueError, match="more than one parameter group"):
        cls([{"params": [p]}, {"params": [p]}])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        cls([p, p])
    with pytest.raises(ValueError, match="empty parameter list"):
        cls([])


@pytest.mark.parametrize("name", ["radam", "adam_warmup", "gi_adam"])
def test_tied_weights_of_a_model_are_updated_once(name):
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    twin = torch.nn.Parameter(model["head"].weight.detach().clone())
    optimizer, alone = create_optimizer(model, name, 0.1), create_optimizer(torch.nn.ParameterList([twin]), name, 0.1)
    tokens = torch.tensor([0, 3])
    for _ in range(7):
        model["head"](model["embed"](tokens)).square().sum().backward()
        (twin[tokens] @ twin.T).square().sum().backward()  # the gradient of both uses
        for each in (optimizer, alone):
            each.step()
            each.zero_grad()
    assert torch.equal(model["embed"].weight, twin)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1


SPECIAL = st.sampled_from([0.0, math.nan, math.inf, -math.inf])
ELEMENTS = st.one_of(
    *[st.floats(2.0**-20, 2.0**20, width=32)] * 12, SPECIAL
)  # their squares are far from float32's ends
GRADIENTS = st.none() | ELEMENTS.map(torch.tensor) | st.lists(ELEMENTS, max_size=4).map(torch.tensor)
NAMES = st.text(max_size=12) | st.from_regex(
    r"(module\.|bert\.|layer\.|h\.|[0-9]\.|emb\.){0,4}(weight|bias)", fullmatch=True
)
GROUP_BY = st.sampled_from([*GROUPINGS, len, hash, lambda name: None, lambda name: name[:1], lambda name: (name, "ø")])


@settings(max_examples=100)
@given(st.dictionaries(NAMES, GRADIENTS, max_size=6), GROUP_BY)
def test_gradient_norms_of_any_gradients_and_names(tmp_path_factory, gradients, group_by):
    params = {
        name: torch.nn.Parameter(torch.zeros_like(g if g is not None else torch.zeros(1)))
        for name, g in gradients.items()
    }
    for name, g in gradients.items():
        params[name].grad = g
    present = [g for g in gradients.values() if g is not None]
    norms = gradient_norms(params.items(), group_by)
    assert len(norms) <= len(present)
    groups = group_names(gradients, group_by)
    for group, norm in norms.items():
        parts = [g.flatten() for name, g in gradients.items() if g is not None and groups[name] == group]
        torch.testing.assert_close(norm, torch.cat(parts).norm(), rtol=1e-5, atol=0.0, equal_nan=True)
    total = torch.stack([torch.zeros(()), *norms.values()]).norm()
    expected = torch.nn.utils.get_total_norm(present)
    assert bool(total.isfinite()) == bool(expected.isfinite())
    if expected.isfinite():
        torch.testing.assert_close(total, expected.float(), rtol=1e-5, atol=0.0)

    recorder = GradientNormRecorder(tmp_path_factory.mktemp("norms") / "norms.jsonl", group_by)
    recorder.record(params.items(), step=1)
    (record,) = recorder.flush()
    broken = {group for group, norm in norms.items() if not norm.isfinite()}
    assert set(record.get("nonfinite", [])) == broken
    assert {f"grad_norm/{group}" for group in norms} <= record.keys()
    assert (record["grad_norm"] is None) == bool(broken)
    assert read_gradient_norms(recorder.path) == [record]
    json.loads(recorder.path.read_text(), parse_constant=pytest.fail)  # strict JSON: no NaN, no Infinity
