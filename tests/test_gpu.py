"""Tests on a GPU: the same numbers, no host synchronization, no extra memory, no CUDA graph."""

from __future__ import annotations

import pytest
import torch

from hf_warmup import AdamWarmup, GradientNormRecorder, WarmupGuard, get_scheduler

from .test_optim import (
    FORMS,
    HYPER,
    assert_close,
    check_that_a_nonfinite_update_is_skipped,
    classes,
    expected,
    last,
    parameters,
    problem,
    train,
    variants,
)


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:AdamWarmup with warmup_steps=0"),
]
forms = pytest.mark.parametrize("form", FORMS, ids=str)


def problem_on_the_gpu(*args, **kwargs):
    start, grads = problem(*args, **kwargs)
    return [p.cuda() for p in start], [[g.cuda() for g in row] for row in grads]


# 1e-6 for float32: as on a CPU, tests/test_optim.py.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["f32", "f64"])
@forms
@variants
def test_step_equals_the_paper(cls, kwargs, form, dtype, tolerance):
    start, grads = problem(dtype=dtype)
    wanted = last(expected(cls, start, grads, **HYPER, **kwargs))
    start, grads = problem_on_the_gpu(dtype=dtype)
    params = train(cls(parameters(start), **HYPER, **kwargs, **form), grads)
    assert_close([p.cpu() for p in params], wanted, tolerance)


@forms
@classes
def test_grad_scaler_skips_an_update_that_is_not_finite(cls, form):
    check_that_a_nonfinite_update_is_skipped(cls, form, "cuda")


def prepared(cls, shapes, **kwargs):
    """An optimizer on the GPU after 8 updates, and its named parameters with gradients."""
    start, grads = problem_on_the_gpu(8, torch.float32, shapes)
    optimizer = cls(parameters(start), **HYPER, **kwargs)
    params = train(optimizer, grads)
    return optimizer, [(f"layer.{i}.weight", p) for i, p in enumerate(params)]


@forms
@variants
def test_recording_and_step_do_not_synchronize(cls, kwargs, form):
    optimizer, named = prepared(cls, [(64, 64)] * 20, **kwargs, **form)
    scheduler, recorder = get_scheduler("noam", optimizer, 10, 100), GradientNormRecorder(None)
    recorder.record(named, 1)  # sends the index of the groups to the device
    scale = torch.tensor(2.0, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 20):
            recorder.record(named, step, scale)
            assert recorder.clip_recorded_([p for _, p in named], 1.0) is not None
            optimizer.step()
            scheduler.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(recorder.flush()) == 19


@pytest.mark.parametrize("action", ["warn", "stop", "rewind"])
@pytest.mark.parametrize("cls", [torch.optim.AdamW, AdamWarmup], ids=lambda cls: cls.__name__)
def test_guard_does_not_synchronize_between_checks(cls, action):
    fused = {"fused": True} if cls is torch.optim.AdamW else {}
    optimizer, named = prepared(cls, [(64, 64)] * 20, **fused)
    recorder = GradientNormRecorder(None)
    guard = WarmupGuard(action, recorder, check_steps=10)
    scheduler = guard.wrap_scheduler(get_scheduler("noam", optimizer, 10, 100))
    model = torch.nn.ParameterList([p for _, p in named])
    guard.start(model, optimizer, scheduler)
    recorder.record(named, 1)  # sends the index of the groups to the device
    loss = torch.tensor(1.0, device="cuda")
    for step in range(2, 100):
        torch.cuda.set_sync_debug_mode("default" if step % guard.check_steps == 0 else "error")
        try:
            recorder.record(named, step)
            guard.count_loss(loss)  # 64 losses are counted together, on the device
            guard.before_step(step)
            optimizer.step()
            scheduler.step()
            guard.after_step(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@classes
def test_step_allocates_no_memory(cls):
    optimizer, _ = prepared(cls, [(1024, 1024)] * 8)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    assert torch.cuda.max_memory_allocated() - before <= 512  # the update count takes the allocator's smallest block


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@classes
def test_step_in_a_cuda_graph_raises(cls):
    optimizer, _ = prepared(cls, [(3,)])
    with (
        pytest.raises(RuntimeError, match=f"{cls.__name__}.step.. cannot be captured: updates are counted on the CPU"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()


def test_load_state_dict_of_a_capturable_adamw_moves_steps_to_the_host():
    start, grads = problem_on_the_gpu(20, torch.float32)
    params, twins = parameters(start), parameters(start)
    theirs, ours = torch.optim.AdamW(params, **HYPER, capturable=True), AdamWarmup(params)
    train(theirs, grads[:10])
    ours.load_state_dict(theirs.state_dict())
    assert {state["step"].device.type for state in ours.state.values()} == {"cpu"}
    assert_close(train(ours, grads[10:]), train(torch.optim.AdamW(twins, **HYPER), grads), 1e-6)
