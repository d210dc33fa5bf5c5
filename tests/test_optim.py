"""Optimizers against float64 transcriptions of the papers, torch's own classes, and their defining properties."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch

from hf_warmup import OPTIMIZERS, AdamWarmup, GIAdam, RAdam
from hf_warmup.optim import (
    COUNT,
    FLAG,
    NUMBER,
    OPTIONAL_FLAG,
    AdamFamily,
    effective_learning_rates,
    get_optimizer_spec,
    optimizer_kwargs,
    parse_optim_args,
    update_norms,
)

from .reference import optimizers as reference
from .stepping import through_file


pytestmark = pytest.mark.filterwarnings("ignore:AdamWarmup with warmup_steps=0")
CLASSES = [RAdam, AdamWarmup, GIAdam]
REFERENCE = {RAdam: reference.radam, AdamWarmup: reference.adam_warmup, GIAdam: reference.gi_adam}
# An eps and a decay large enough that a mistake in their scaling by r_t or the bias corrections shows, and a factor
# 1 - lr weight_decay that float32 holds exactly: torch's own AdamW drifts by 3e-6 in 200 updates where it is rounded.
HYPER = {"lr": 2.0**-7, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 2.0**-3}
VARIANTS = [
    (RAdam, {}),
    (RAdam, {"degenerated_to_sgd": True}),
    (RAdam, {"decoupled_weight_decay": False}),
    (RAdam, {"decoupled_weight_decay": False, "degenerated_to_sgd": True}),
    (AdamWarmup, {}),
    (AdamWarmup, {"warmup_steps": 50}),
    (GIAdam, {}),
]
FORMS = [{}, {"fused": True}, {"foreach": True}, {"foreach": False}]
variants = pytest.mark.parametrize(("cls", "kwargs"), VARIANTS)
classes = pytest.mark.parametrize("cls", CLASSES)


def problem(n=200, dtype=torch.float64, shapes=((3,), (4, 5), (2, 3, 4), ())):
    """Start values and, for each of n updates, gradients whose size changes a hundredfold."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    sizes = 10.0 ** torch.linspace(0, -2, n, dtype=torch.float64)
    draws = [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(n)]
    return start, [[(size * (draw + 0.3)).to(dtype) for draw in row] for size, row in zip(sizes, draws, strict=True)]


def parameters(start):
    return [torch.nn.Parameter(value.clone()) for value in start]


def train(optimizer, grads, scheduler=None):
    """One update for each row of gradients (None: the parameter has none); returns the parameters."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for row in grads:
        for p, grad in zip(params, row, strict=True):
            p.grad = None if grad is None else grad.clone()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return params


def expected(cls, start, grads, **kwargs):
    """The reference's path of each parameter, (updates, *shape)."""
    paths = []
    for p, column in zip(start, zip(*grads, strict=True), strict=True):
        path = REFERENCE[cls](p.double().numpy(), [g.double().numpy() for g in column], **kwargs)
        paths.append(torch.from_numpy(np.asarray(path)))
    return paths


def last(paths):
    return [path[-1] for path in paths]


def assert_close(params, wanted, tolerance):
    """Norm of the error over all elements, relative to the norm of the parameters."""
    ours, wanted = (torch.cat([value.detach().double().flatten() for value in side]) for side in (params, wanted))
    error = ((ours - wanted).norm() / wanted.norm()).item()
    assert error <= tolerance, error


def same(params, others):
    return all(torch.equal(p, other) for p, other in zip(params, others, strict=True))


# float32: each of 200 subtractions rounds p by up to 2^-24 = 6e-8, together about sqrt(200) / 2 of that, 4e-7.
# float64: the same 2^29 times smaller, and r_6 has lost three digits to rho_t being a difference near rho_inf.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["f32", "f64"])
@pytest.mark.parametrize("form", FORMS, ids=str)
@variants
def test_step_equals_the_paper(cls, kwargs, form, dtype, tolerance):
    start, grads = problem(dtype=dtype)
    params = train(cls(parameters(start), **HYPER, **kwargs, **form), grads)
    assert_close(params, last(expected(cls, start, grads, **HYPER, **kwargs)), tolerance)


@classes
def test_defaults_are_those_of_the_docstring(cls):
    start, grads = problem(20)
    assert_close(train(cls(parameters(start)), grads), last(expected(cls, start, grads)), 1e-12)


@variants
def test_step_under_a_schedule_equals_the_paper(cls, kwargs):
    start, grads = problem(60)
    hyper = HYPER | kwargs | {"lr": lambda t: HYPER["lr"] * 0.9 ** (t - 1)}
    optimizer = cls(parameters(start), **HYPER, **kwargs)
    params = train(optimizer, grads, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9))
    assert_close(params, last(expected(cls, start, grads, **hyper)), 1e-12)


@pytest.mark.parametrize("decoupled", [True, False])
def test_radam_equals_torchs_radam(decoupled):
    start, grads = problem()
    ours = RAdam(parameters(start), **HYPER, degenerated_to_sgd=True, decoupled_weight_decay=decoupled)
    theirs = torch.optim.RAdam(parameters(start), **HYPER, decoupled_weight_decay=decoupled)
    assert_close(train(ours, grads), train(theirs, grads), 1e-12)


@pytest.mark.filterwarnings("error")
def test_adam_warmup_without_a_length_warns_at_the_first_update():
    params = parameters(problem()[0])
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.warns(UserWarning, match="^AdamWarmup with warmup_steps=0 does not warm up: expected at least 1"):
        AdamWarmup(params).step()
    AdamWarmup(params, warmup_steps=1).step()
    set_later = AdamWarmup(params)
    for group in set_later.param_groups:
        group["warmup_steps"] = 3
    set_later.step()


@pytest.mark.parametrize("warmup_steps", [0, 1, 70])
def test_adam_warmup_equals_torchs_adamw_with_a_linear_warmup(warmup_steps):
    start, grads = problem()
    theirs = torch.optim.AdamW(parameters(start), **HYPER)
    warmup = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: min(1, (step + 1) / max(1, warmup_steps)))
    ours = AdamWarmup(parameters(start), **HYPER, warmup_steps=warmup_steps)
    assert_close(train(ours, grads), train(theirs, grads, warmup), 1e-12)


def test_gi_adam_equals_torchs_adamw_started_at_g1_squared():
    start, grads = problem()
    params = parameters(start)
    theirs = torch.optim.AdamW(params, **HYPER)
    for p, g in zip(params, grads[0], strict=True):
        theirs.state[p] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(g), "exp_avg_sq": g**2}
    assert_close(train(GIAdam(parameters(start), **HYPER), grads), train(theirs, grads), 1e-12)


@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999])
def test_first_update_of_gi_adam_is_lr_sqrt_1_minus_beta2(beta2):
    start, grads = problem(1)
    params = train(GIAdam(parameters(start), lr=0.1, betas=(0.9, beta2), eps=0.0), grads)
    for p, before in zip(params, start, strict=True):
        torch.testing.assert_close((p - before).abs(), torch.full_like(before, 0.1 * (1 - beta2) ** 0.5))


@pytest.mark.parametrize(("degenerated_to_sgd", "end"), [(False, 0.955), (True, 0.905)])
def test_radam_on_a_constant_gradient_ends_where_the_authors_code_does(degenerated_to_sgd, end):
    optimizer = RAdam(parameters([torch.ones(1)]), lr=0.01, degenerated_to_sgd=degenerated_to_sgd)
    (p,) = train(optimizer, [[torch.ones(1)]] * 50)
    assert round(p.item(), 3) == end


@pytest.mark.parametrize("decoupled", [True, False])
def test_radam_first_moves_a_parameter_at_update_6(decoupled):
    start, grads = problem(6)
    optimizer = RAdam(parameters(start), weight_decay=0.1, decoupled_weight_decay=decoupled)
    assert same(train(optimizer, grads[:5]), start)
    assert all((p != before).all() for p, before in zip(train(optimizer, grads[5:]), start, strict=True))


def test_effective_learning_rate_is_lr_times_the_warmup():
    start, grads = problem(12)
    for t in range(1, 13):
        r = reference.rectification(t, 0.999)
        for cls, kwargs, factor in [
            (RAdam, {}, r),
            (RAdam, {"degenerated_to_sgd": True}, r or 1.0),
            (AdamWarmup, {"warmup_steps": 8}, min(1, t / 8)),
            (GIAdam, {}, 1.0),
        ]:
            optimizer = cls(parameters(start), lr=0.5, **kwargs)
            train(optimizer, grads[:t])
            assert effective_learning_rates(optimizer) == [pytest.approx(0.5 * factor, rel=1e-9)]
            assert optimizer.effective_lr({**optimizer.param_groups[0], "lr": 3.0}, t) == pytest.approx(3.0 * factor)


@pytest.mark.parametrize("still", [0, 1])
@variants
def test_each_group_has_its_own_arguments(cls, kwargs, still):
    start, grads = problem(30)
    groups = [{"params": parameters(start[:2])}, {"params": parameters(start[2:])}]
    groups[still]["lr"] = 0.0
    groups[1 - still] |= {"betas": (0.8, 0.95)}
    params = train(cls(groups, **HYPER, **kwargs), grads)
    halves = slice(0, 2), slice(2, 4)
    assert same(params[halves[still]], start[halves[still]])
    moving = halves[1 - still]
    alone = cls(parameters(start[moving]), **HYPER | {"betas": (0.8, 0.95)}, **kwargs)
    assert same(params[moving], train(alone, [row[moving] for row in grads]))


@variants
def test_a_parameter_with_gradients_from_later_on_starts_at_update_1(cls, kwargs):
    start, grads = problem(140)
    late = [[*row[:2], None, None] for row in grads[:100]] + grads[100:]
    params = train(cls(parameters(start), **HYPER, **kwargs), late)
    fresh = train(cls(parameters(start[2:]), **HYPER, **kwargs), [row[2:] for row in grads[100:]])
    from_the_start = train(cls(parameters(start[:2]), **HYPER, **kwargs), [row[:2] for row in grads])
    assert same(params, from_the_start + fresh)


@classes
def test_step_skips_a_missing_gradient_but_not_a_zero_gradient(cls):
    start, grads = problem(20, shapes=((3,),))
    params = parameters(start)
    optimizer = cls(params, **HYPER)
    train(optimizer, grads[:10])
    before, state = params[0].detach().clone(), copy.deepcopy(optimizer.state[params[0]])
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert same(params, [before])
    assert same(optimizer.state[params[0]].values(), state.values())
    params[0].grad = torch.ones_like(params[0])
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    with_zero = [*grads[:10], [torch.zeros_like(before)]]
    assert_close(params, last(expected(cls, start, with_zero, **HYPER)), 1e-12)


@classes
def test_maximize_equals_minimizing_with_negated_gradients(cls):
    start, grads = problem(30)
    up = train(cls(parameters(start), **HYPER, maximize=True), grads)
    assert same(up, train(cls(parameters(start), **HYPER), [[-g for g in row] for row in grads]))


@classes
def test_step_calls_the_closure_and_returns_its_loss(cls):
    start, grads = problem(1)
    params, twins = parameters(start), parameters(start)
    optimizer = cls(params, **HYPER)

    def closure():
        optimizer.zero_grad()
        loss = sum((p * g).sum() for p, g in zip(params, grads[0], strict=True))
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(8)]
    assert losses[0] == sum((p * g).sum() for p, g in zip(start, grads[0], strict=True)).item()
    assert losses[7] < losses[0]
    assert same(params, train(cls(twins, **HYPER), grads * 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@classes
def test_16_bit_parameters_are_rounded_once_per_update(cls, dtype):
    start, grads = problem(60, dtype)
    params = parameters(start)
    optimizer = cls(params, lr=0.05)
    paths = expected(cls, start, grads, lr=0.05)  # without decay an update does not depend on the parameter
    half_ulp = torch.finfo(dtype).eps / 2  # relative; after n updates the error is at most n of these
    for t, row in enumerate(grads):
        before = [p.detach().double() for p in params]
        train(optimizer, [row])
        for p, old, first, path in zip(params, before, start, paths, strict=True):
            exact = old + path[t] - (path[t - 1] if t else first.double())
            # 1e-6: the float32 arithmetic of the update
            assert ((p.double() - exact).abs() <= half_ulp * exact.abs() * 1.001 + 1e-6).all()
    assert {state[key].dtype for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")} == {
        torch.float32
    }


@classes
def test_squares_of_small_fp16_gradients_do_not_vanish(cls):
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))
    optimizer = cls([p])
    train(optimizer, [[torch.full((1,), 2.0**-13, dtype=torch.float16)]])  # its square: below float16's 2^-24
    squared = 2.0**-26 if cls is GIAdam else 2.0**-26 * 0.001
    assert optimizer.state[p]["exp_avg_sq"].item() == pytest.approx(squared, rel=1e-5)


@pytest.mark.parametrize("updates_before", [0, 1])
@classes
def test_sparse_gradients_raise(cls, updates_before):
    p = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = cls([p])
    train(optimizer, [[torch.ones(3, 2)]] * updates_before)
    p.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match=f"{cls.__name__} does not support sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize("to_torch", [True, False])
@pytest.mark.parametrize(
    ("cls", "kwargs", "reference_cls", "reference_kwargs"),
    [
        (AdamWarmup, {}, torch.optim.AdamW, {"fused": True}),
        (AdamWarmup, {}, torch.optim.AdamW, {"foreach": True}),
        (RAdam, {"degenerated_to_sgd": True}, torch.optim.RAdam, {"decoupled_weight_decay": True}),
        (RAdam, {"degenerated_to_sgd": True, "decoupled_weight_decay": False}, torch.optim.RAdam, {}),
    ],
)
@pytest.mark.parametrize("switch", [3, 20])  # before and after RAdam's first rectified update
def test_state_dict_moves_to_and_from_torchs_optimizers(cls, kwargs, reference_cls, reference_kwargs, to_torch, switch):
    start, grads = problem(40)
    uninterrupted = train(reference_cls(parameters(start), **HYPER, **reference_kwargs), grads)
    params = parameters(start)
    ours, other = cls(params, **HYPER, **kwargs), reference_cls(params, **HYPER, **reference_kwargs)
    first, second = (ours, other) if to_torch else (other, ours)
    train(first, grads[:switch])
    second.load_state_dict(through_file(first.state_dict()))
    assert_close(train(second, grads[switch:]), uninterrupted, 1e-12)


def test_state_dict_of_adamw_continues_within_the_warmup():
    start, grads = problem(11)
    params = parameters(start)
    reference_cls, ours = torch.optim.AdamW(params, lr=0.1), AdamWarmup(params, lr=0.1, warmup_steps=40)
    train(reference_cls, grads[:10])
    ours.load_state_dict(reference_cls.state_dict())
    train(ours, grads[10:])
    assert ours.param_groups[0]["scheduled_lr"] == pytest.approx(0.1 * 11 / 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stop", [3, 20])
@variants
def test_a_resumed_optimizer_has_the_same_bits(cls, kwargs, stop, dtype):
    start, grads = problem(40, dtype)
    optimizer = cls(parameters(start), **HYPER, **kwargs)
    params = train(optimizer, grads[:stop])
    fresh = cls(parameters(params), **HYPER, **kwargs)
    fresh.load_state_dict(through_file(optimizer.state_dict()))
    assert same(train(fresh, grads[stop:]), train(optimizer, grads[stop:]))
    for state, other in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert same(state.values(), other.values())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
@variants
def test_deepcopy_and_pickle_share_nothing(cls, kwargs, clone):
    start, grads = problem(20)
    optimizer = cls(parameters(start), **HYPER, **kwargs)
    params = train(optimizer, grads[:8])
    before, twin = [p.detach().clone() for p in params], clone(optimizer)
    moved = train(twin, grads[8:])
    assert same(params, before)  # nothing is shared
    assert same(moved, train(optimizer, grads[8:]))


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": float("nan")}, {"weight_decay": -0.1}])
@classes
def test_add_param_group_of_a_running_optimizer(cls, bad):
    start, grads = problem(30)
    optimizer = cls(parameters(start[:2]), **HYPER)
    train(optimizer, [row[:2] for row in grads[:10]])
    before, late = copy.deepcopy(optimizer.state_dict()), parameters(start[2:])
    with pytest.raises(ValueError, match=next(iter(bad))):
        optimizer.add_param_group({"params": late, **bad})
    assert str(optimizer.state_dict()) == str(before)
    optimizer.add_param_group({"params": late, "lr": 0.5})
    params = train(optimizer, grads[10:])
    assert same(params[:2], train(cls(parameters(start[:2]), **HYPER), [row[:2] for row in grads]))
    alone = cls(parameters(start[2:]), **HYPER | {"lr": 0.5})
    assert same(params[2:], train(alone, [row[2:] for row in grads[10:]]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1.0}, r"lr=-1\.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"lr": "0.1"}, r"lr='0\.1'"),
        ({"eps": -1e-8}, "eps=-1e-08"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1"),
        ({"betas": (1.0, 0.999)}, r"betas.*1\.0"),
        ({"betas": (0.9, -0.5)}, r"betas.*-0\.5"),
        ({"betas": (0.9, float("nan"))}, "betas.*nan"),
        ({"betas": 0.9}, r"betas=0\.9"),
        ({"foreach": True, "fused": True}, "foreach=True.*fused=True"),
    ],
)
@classes
def test_invalid_arguments_raise_with_name_and_value(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(parameters([torch.ones(1)]), **kwargs)
    if "foreach" not in kwargs:
        with pytest.raises(ValueError, match=message):
            cls([{"params": parameters([torch.ones(1)]), **kwargs}])


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (AdamWarmup, {"warmup_steps": 0.06}, r"warmup_steps=0\.06"),
        (AdamWarmup, {"warmup_steps": -1}, "warmup_steps=-1"),
        (RAdam, {"betas": (0.9, 0.5)}, r"betas.*0\.5"),
    ],
)
def test_invalid_arguments_of_one_class_raise(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(parameters([torch.ones(1)]), **kwargs)


def test_load_state_dict_with_amsgrad_raises_and_loads_nothing():
    start, grads = problem(3)
    params = parameters(start)
    theirs, ours = torch.optim.AdamW(params, amsgrad=True), RAdam(params)
    train(theirs, grads)
    before = ours.state_dict()
    with pytest.raises(ValueError, match="amsgrad=True in the loaded state: expected False"):
        ours.load_state_dict(theirs.state_dict())
    assert ours.state_dict() == before


def test_load_state_dict_of_a_capturable_adamw_moves_steps_to_the_host():
    start, grads = problem(20)
    uninterrupted = train(torch.optim.AdamW(parameters(start), **HYPER), grads)
    params = parameters(start)
    theirs, ours = torch.optim.AdamW(params, **HYPER), AdamWarmup(params)
    train(theirs, grads[:10])
    saved = theirs.state_dict()
    saved["param_groups"][0] |= {"capturable": True, "lr": torch.tensor(HYPER["lr"])}  # in a step these ask for a GPU
    ours.load_state_dict(saved)
    group = ours.param_groups[0]
    assert (group["capturable"], group["lr"], type(group["lr"])) == (False, HYPER["lr"], float)
    assert_close(train(ours, grads[10:]), uninterrupted, 1e-12)


@pytest.mark.parametrize("key", ["capturable", "differentiable"])
@classes
def test_capturable_and_differentiable_are_keys_of_a_group_and_only_false(cls, key):
    assert cls(parameters([torch.ones(1)])).param_groups[0][key] is False
    with pytest.raises(ValueError, match=f"^{key}=True: expected False, since "):
        cls(parameters([torch.ones(1)]), **{key: True})
    with pytest.raises(ValueError, match=f"^{key}=True: expected False, since "):
        cls([{"params": parameters([torch.ones(1)]), key: True}])


@classes
def test_tensor_learning_rates_and_complex_parameters_are_not_supported(cls):
    with pytest.raises(ValueError, match=r"^lr=tensor\(0\.1000\): lr as a Tensor is not supported"):
        cls(parameters([torch.ones(1)]), lr=torch.tensor(0.1))
    with pytest.raises(ValueError, match=rf"^A parameter of shape \(2,\) is complex, which {cls.__name__} does not"):
        cls(parameters([torch.ones(2, dtype=torch.complex64)]))


@pytest.fixture
def mesh():
    """A device mesh of this process alone."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@classes
def test_step_of_sharded_and_plain_parameters_in_one_group(cls, mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    start, grads = problem(8, torch.float32, ((4, 2), (4, 2), (3,)))
    params = parameters([distribute_tensor(start[0], mesh, [Shard(0)]), *start[1:]])
    grads_of_a_shard = [[distribute_tensor(row[0], mesh, [Shard(0)]), *row[1:]] for row in grads]
    params = train(cls(params, **HYPER), grads_of_a_shard)
    assert same([params[0].full_tensor(), *params[1:]], train(cls(parameters(start), **HYPER), grads))


@variants
def test_step_of_other_memory_layouts_equals_that_of_contiguous_tensors(cls, kwargs):
    start, grads = problem(8, torch.float32, ((4, 5), (4, 5), (2, 3, 4, 5), (4, 5)))
    view = torch.empty(4, 5, 2)[..., 0].copy_(start[0])  # with gaps in memory
    other = [view, start[1].T.contiguous().T, start[2].to(memory_format=torch.channels_last), start[3].clone()]
    others = [[*row[:3], row[3].T.contiguous().T] for row in grads]  # the last has only a gradient of another layout
    params = train(cls([torch.nn.Parameter(p) for p in other], **HYPER, **kwargs), others)
    assert [p.stride() for p in params] == [p.stride() for p in other]
    assert same(params, train(cls(parameters(start), **HYPER, **kwargs), grads))


@classes
def test_step_of_meta_and_plain_parameters_in_one_group(cls):
    start, grads = problem(8, torch.float32)
    twice = [[*row, *(g.to("meta") for g in row)] for row in grads]
    params = train(cls(parameters([*start, *(p.to("meta") for p in start)]), **HYPER), twice)
    assert same(params[: len(start)], train(cls(parameters(start), **HYPER), grads))


@pytest.mark.parametrize("form", FORMS, ids=str)
@variants
def test_step_reads_no_value_from_the_device(cls, kwargs, form):
    start, grads = problem(8)
    optimizer = cls(parameters([p.to("meta") for p in start]), **HYPER, **kwargs, **form)  # a device without values
    train(
        optimizer,
        [[g.to("meta") for g in row] for row in grads],
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    )
    assert {(state["step"].device.type, state["step"].item()) for state in optimizer.state.values()} == {("cpu", 8.0)}


def test_step_in_a_cuda_graph_raises(monkeypatch):
    # Without a GPU: a parameter with a CUDA device, during a capture.
    class OnCuda(torch.nn.Parameter):
        device = torch.device("cuda")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    p = OnCuda(torch.ones(1))
    p.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match=r"RAdam\.step\(\) cannot be captured: updates are counted on the CPU"):
        RAdam([p]).step()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@classes
def test_compiled_step_has_the_same_bits(cls, backend):
    start, grads = problem(20)
    eager, compiled, looped = (cls(parameters(start), **HYPER) for _ in range(3))
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.9) for each in (eager, compiled, looped)]
    torch.compiler.reset()
    step = torch.compile(compiled.step, backend=backend)

    @torch.compile(backend=backend)
    def update(params, row):
        sum((p * g).sum() for p, g in zip(params, row, strict=True)).backward()
        looped.step()
        looped.zero_grad()

    train(eager, grads, schedulers[0])
    for row in grads:
        for p, g in zip(compiled.param_groups[0]["params"], row, strict=True):
            p.grad = g.clone()
        step()
        update(looped.param_groups[0]["params"], row)
        for scheduler in schedulers[1:]:
            scheduler.step()
    for other in (compiled, looped):
        assert same(other.param_groups[0]["params"], eager.param_groups[0]["params"])


def scaled_update(optimizer, scaler, row, factor=1.0):
    params = optimizer.param_groups[0]["params"]
    optimizer.zero_grad()
    scaler.scale(sum((factor * p * g).sum() for p, g in zip(params, row, strict=True))).backward()
    scaler.step(optimizer)
    scaler.update()


def check_that_a_nonfinite_update_is_skipped(cls, form, device):
    start, grads = problem(20, torch.float32)
    start, grads = [p.to(device) for p in start], [[g.to(device) for g in row] for row in grads]
    optimizer, scaler = cls(parameters(start), **HYPER, **form), torch.amp.GradScaler(device, init_scale=2.0)
    params = optimizer.param_groups[0]["params"]
    scaled_update(optimizer, scaler, grads[0], factor=float("inf"))  # before there is any state
    assert same(params, start)
    assert not optimizer.state
    for row in grads[:10]:
        scaled_update(optimizer, scaler, row)
    before, state = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict()["state"])
    scaled_update(optimizer, scaler, grads[10], factor=float("inf"))
    assert same(params, before)
    for i, saved in state.items():
        assert saved["step"] == 10
        assert same(optimizer.state_dict()["state"][i].values(), saved.values())
    for row in grads[10:]:
        scaled_update(optimizer, scaler, row)  # scaling by powers of 2 is exact
    assert same(params, train(cls(parameters(start), **HYPER, **form), grads))


@pytest.mark.parametrize("form", FORMS, ids=str)
@classes
def test_grad_scaler_skips_an_update_that_is_not_finite(cls, form):
    # Without this attribute, a GradScaler divides the gradients and skips the call. With it, the kernel would skip on
    # the device, and the count on the CPU would be wrong.
    assert not getattr(cls(parameters([torch.ones(1)]), **form), "_step_supports_amp_scaling", False)
    check_that_a_nonfinite_update_is_skipped(cls, form, "cpu")


# Two updates from 1 with gradient 1 and lr 0.1, computed by hand.
TWO_UPDATES = {"sgd": 0.8, "sgdm": 0.71, "nag": 0.539, "adam": 0.8, "adamw": 0.8, "adam_warmup": 0.8, "radam": 1.0}
OTHERS = ["gi_adam", "nadam", "adadelta", "adagrad", "rmsprop"]


@pytest.mark.parametrize("name", [*TWO_UPDATES, *OTHERS])
def test_every_name_builds_an_optimizer_that_descends(name):
    spec, kwargs = OPTIMIZERS[name], optimizer_kwargs(name, lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    groups = [{"params": parameters([torch.ones(1)]), "weight_decay": 0.0}]  # as the Trainer makes them
    optimizer = spec.cls(groups, **kwargs)
    assert optimizer.defaults["lr"] == 0.1
    assert optimizer.defaults.get("betas", (0.9, 0.99)) == (0.9, 0.99)
    after_two = train(optimizer, [[torch.ones(1)]] * 2)[0].item()
    assert after_two == pytest.approx(TWO_UPDATES.get(name, after_two), abs=1e-6)
    assert train(optimizer, [[torch.ones(1)]] * 5)[0].item() < 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_of_a_name_are_keywords_of_its_class(name):
    spec = OPTIMIZERS[name]
    keywords = {}
    for cls in (AdamFamily, spec.cls)[not issubclass(spec.cls, AdamFamily) :]:
        keywords |= inspect.signature(cls.__init__).parameters
    given = {"self", "params", "lr", "betas", "weight_decay", "own", "options"}
    assert set(spec.options) == keywords.keys() - given
    assert ("betas" in keywords) == spec.takes_betas
    for key, kind in spec.options.items():
        kinds = {bool: FLAG, type(None): OPTIONAL_FLAG, int: NUMBER, float: NUMBER}
        assert kind == (COUNT if key == "warmup_steps" else kinds[type(keywords[key].default)]), key


def test_an_import_path_stands_for_its_class():
    spec = get_optimizer_spec("torch.optim:Adamax")
    assert (spec.cls, spec.takes_betas) == (torch.optim.Adamax, True)
    kwargs = optimizer_kwargs("torch.optim:ASGD", lr=0.1, betas=(0.9, 0.99), eps=1e-8, optim_args="alpha=0.5")
    assert kwargs == {"lr": 0.1, "alpha": 0.5}
    with pytest.raises(ValueError, match=r"optim='torch.optim:Adamaxx'.*Adamax"):
        get_optimizer_spec("torch.optim:Adamaxx")
    with pytest.raises(ValueError, match=r"optim='radm' is unknown\. Did you mean 'radam'"):
        get_optimizer_spec("radm")


@pytest.mark.parametrize(
    ("name", "text", "parsed"),
    [
        ("radam", None, {}),
        ("radam", "", {}),
        ("radam", "degenerated_to_sgd=False,eps=1e-6", {"degenerated_to_sgd": False, "eps": 1e-6}),
        ("adam_warmup", "warmup_steps=100", {"warmup_steps": 100}),
        ("sgd", "momentum=0.5, nesterov=true", {"momentum": 0.5, "nesterov": True}),
        ("adamw", "fused=none", {"fused": None}),
        ("radam", {"eps": 1e-6}, {"eps": 1e-6}),
    ],
)
def test_parse_optim_args_returns_keywords(name, text, parsed):
    assert parse_optim_args(name, text) == parsed


def test_optimizer_kwargs_prefer_optim_args():
    kwargs = optimizer_kwargs("radam", lr=0.1, betas=(0.9, 0.99), eps=1e-8, optim_args="eps=1e-6")
    assert kwargs == {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6}
    assert optimizer_kwargs("sgdm", lr=0.1, betas=(0.9, 0.99), eps=1e-8, optim_args="momentum=0.5")["momentum"] == 0.5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("radam", "degenerate_to_sgd=true", "'degenerate_to_sgd'.*'degenerated_to_sgd'"),
        ("sgd", "degenerated_to_sgd=true", "'degenerated_to_sgd'"),
        ("radam", "eps", "'eps'"),
        ("radam", "eps=", "'eps='"),
        ("radam", "=1", "'=1'"),
        ("radam", "eps=small", "eps in optim_args='small': expected a finite number"),
        ("radam", "eps=true", "eps in optim_args=True: expected a finite number"),
        ("radam", "degenerated_to_sgd=1", "degenerated_to_sgd in optim_args=1: expected True or False"),
        ("radam", "degenerated_to_sgd=yes", "degenerated_to_sgd in optim_args='yes': expected True or False"),
        ("radam", "fused=1", "fused in optim_args=1: expected True, False or None"),
        ("radam", "lr=0.1", "lr"),
        ("radam", "betas=0.9", "betas"),
        ("sgd", "weight_decay=0.1", "weight_decay"),
    ],
)
def test_parse_optim_args_of_an_invalid_option_raises(name, text, message):
    with pytest.raises(ValueError, match=message):
        parse_optim_args(name, text)


names = pytest.mark.parametrize("name", OPTIMIZERS)


def build(name, *values):
    """The optimizer that `optim=name` builds, with one parameter for each value."""
    params = [torch.nn.Parameter(torch.full((3,), value)) for value in values]
    kwargs = optimizer_kwargs(name, lr=0.1, betas=(0.9, 0.98), eps=1e-8)
    return OPTIMIZERS[name].cls(params, **kwargs), params


def descend(optimizer, params, updates):
    """Make updates on the sum of squares, and return the loss before each."""

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    return [optimizer.step(closure).item() for _ in range(updates)]


@names
def test_every_name_descends_with_a_closure(name):
    optimizer, params = build(name, 1.0)
    losses = descend(optimizer, params, 30)
    assert losses[0] == 3.0  # at the values before the update
    assert losses[-1] < losses[0]


@names
def test_every_name_resumes_with_the_same_bits(name):
    optimizer, params = build(name, 1.0, -2.0)
    descend(optimizer, params, 10)
    other, others = build(name, 0.0, 0.0)
    for mine, theirs in zip(others, params, strict=True):
        mine.data.copy_(theirs.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert descend(other, others, 10) == descend(optimizer, params, 10)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@names
def test_every_name_updates_a_group_added_later_with_its_learning_rate(name):
    optimizer, params = build(name, 1.0)
    descend(optimizer, params, 5)
    later, frozen = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer.add_param_group({"params": [later]})
    optimizer.add_param_group({"params": [frozen], "lr": 0.0})
    descend(optimizer, [*params, later, frozen], 10)
    assert (later < 1).all()
    assert torch.equal(frozen, torch.ones(3))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


@names
def test_every_name_sets_gradients_to_none_or_zero(name):
    optimizer, (p,) = build(name, 1.0)
    p.square().sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(3))
    optimizer.zero_grad(set_to_none=True)
    assert p.grad is None
    before = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, before)


WD = {"weight_decay": 0.1}


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True, **WD),
        lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True, amsgrad=True, **WD),
        lambda p: torch.optim.Adam(p, lr=0.1, **WD),
        lambda p: torch.optim.RAdam(p, lr=0.1, decoupled_weight_decay=True, **WD),
        lambda p: torch.optim.SGD(p, lr=0.1, **WD),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True, **WD),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, maximize=True, **WD),
        lambda p: RAdam(p, lr=0.1, **WD),
        lambda p: RAdam(p, lr=0.1, foreach=True, degenerated_to_sgd=True, **WD),
        lambda p: RAdam(p, lr=0.1, decoupled_weight_decay=False, **WD),
        lambda p: AdamWarmup(p, lr=0.1, warmup_steps=4, foreach=True, **WD),
        lambda p: GIAdam(p, lr=0.1, **WD),
    ],
)
def test_update_norms_are_those_of_the_difference_of_the_weights(make, monkeypatch):
    monkeypatch.setattr("hf_warmup.optim.updates._PIECE", 5)  # several pieces for each parameter
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).double()) for shape in ((4, 3), (7,))]
    optimizer = make(params)
    for _ in range(9):
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).double()
        optimizer.step()
        norms = update_norms(optimizer)
        for p, old in zip(params, before, strict=True):
            expected = (p - old).norm().item(), p.norm().item()
            # 1e-5: the norms are computed in float32.
            assert [each.item() for each in norms[p]] == pytest.approx(expected, rel=1e-5, abs=1e-7)
