"""Recording and clipping share one pass over the gradients, with the results of the plain Trainer and of Accelerate."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainingArguments

from hf_warmup import GradientNormRecorder, WarmupTrainer, WarmupTrainingArguments, record_gradient_norms

from .testing_utils import arguments, examples, tiny_bert, train


class NormReads(TorchDispatchMode):
    """Counts the elements of which a norm is computed."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._foreach_norm, torch.ops.aten.linalg_vector_norm, torch.ops.aten.dot):
            tensors = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            self.elements += sum(tensor.numel() for tensor in tensors)
        return func(*args, **(kwargs or {}))


def trained(trainer_class, args):
    """The weights after training, the logged total norms, and the number of elements read for norms."""
    trainer = trainer_class(model=tiny_bert(), args=args, train_dataset=examples())
    with NormReads() as reads:
        log = train(trainer)
    return trainer.model.state_dict(), [entry.get("grad_norm") for entry in log], reads.elements


def test_transformers_has_both_private_methods_or_neither():
    assert hasattr(Trainer, "_clip_grad_norm") == hasattr(Trainer, "_get_grad_norm")


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.05, 0.0])
def test_recording_trainer_equals_the_plain_trainer_bit_for_bit_in_as_many_passes(tmp_path, max_grad_norm):
    chosen = {"max_grad_norm": max_grad_norm, "optim": "adamw_torch", "gradient_accumulation_steps": 1}
    plain, plain_norms, plain_reads = trained(Trainer, arguments(tmp_path / "a", TrainingArguments, **chosen))
    ours, norms, reads = trained(WarmupTrainer, arguments(tmp_path / "b", **chosen))
    assert norms == plain_norms
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    if hasattr(Trainer, "_clip_grad_norm"):
        few = 8 * len(plain)  # the total is the norm of the tensors' norms
        assert plain_reads <= reads <= plain_reads + few


class ScalesGradients:
    """Changes the gradients after `training_step` in a way that torch does not notice."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad.data.mul_(3.0)
        return loss


def test_recording_trainer_equals_the_plain_trainer_if_a_subclass_changes_the_gradients(tmp_path):
    classes = [type("Scaled", (ScalesGradients, base), {}) for base in (Trainer, WarmupTrainer)]
    plain, ours = (
        trained(cls, arguments(tmp_path / name, args, optim="adamw_torch", max_steps=2))
        for cls, name, args in zip(classes, "ab", (TrainingArguments, WarmupTrainingArguments), strict=True)
    )
    assert ours[1] == plain[1]
    assert all(torch.equal(ours[0][name], plain[0][name]) for name in plain[0])


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("max_norm", [1.0, 0.05])
def test_clip_equals_accelerates_clip_bit_for_bit(max_norm, every):
    def weights_and_norms(clip_by_recorder):
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True)
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
        recorder, totals = GradientNormRecorder(None, every=every), []
        for step in range(1, 9):
            with record_gradient_norms(recorder, accelerator, model, step):
                accelerator.backward(model(torch.randn(4, 8)).square().sum())
            if clip_by_recorder:
                totals.append(recorder.clip_(model, max_norm, accelerator))
            else:
                totals.append(accelerator.clip_grad_norm_(model.parameters(), max_norm))
            optimizer.step()
            optimizer.zero_grad()
        return [*model.parameters(), *totals]

    pairs = zip(weights_and_norms(True), weights_and_norms(False), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def measured(gradients, **kwargs):
    """A recorder that has just measured these gradients, and their parameters."""
    params = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient.clone()
    recorder = GradientNormRecorder(None, **kwargs)
    recorder.record([(str(i), p) for i, p in enumerate(params)], step=1)
    return recorder, params


THREE_FOUR = [torch.tensor([3.0]), torch.tensor([4.0, 0.0])]


def test_clip_recorded_uses_the_norms_once():
    recorder, params = measured(THREE_FOUR)
    with NormReads() as reads:
        assert recorder.clip_recorded_(params, 1.0).item() == 5.0
    assert reads.elements == len(params)
    assert [p.grad.tolist() for p in params] == [[pytest.approx(0.6)], [pytest.approx(0.8), 0.0]]
    assert recorder.clip_recorded_(params, 1.0) is None


def test_clip_recorded_multiplies_nothing_on_the_cpu_if_the_norm_is_small():
    recorder, params = measured(THREE_FOUR)
    versions = [p.grad._version for p in params]
    assert recorder.clip_recorded_(params, 6.0).item() == 5.0
    assert [p.grad._version for p in params] == versions


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_clip_of_a_gradient_that_is_not_finite_equals_torchs(value):
    recorder, params = measured([torch.tensor([value, 1.0]), torch.tensor([2.0])])
    _, theirs = measured([torch.tensor([value, 1.0]), torch.tensor([2.0])])
    totals = recorder.clip_recorded_(params, 1.0), torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    torch.testing.assert_close(*totals, rtol=0, atol=0, equal_nan=True)
    for p, other in zip(params, theirs, strict=True):
        torch.testing.assert_close(p.grad, other.grad, rtol=0, atol=0, equal_nan=True)


def changed_in_place(params):
    params[0].grad.mul_(2.0)


def replaced(params):
    params[0].grad = params[0].grad.clone()


def dropped(params):
    params[0].grad = None


@pytest.mark.parametrize("change", [changed_in_place, replaced, dropped])
def test_clip_of_gradients_changed_since_the_recording_measures_them_again(change):
    recorder, params = measured(THREE_FOUR)
    change(params)
    _, theirs = measured(THREE_FOUR)
    change(theirs)
    assert recorder.clip_(torch.nn.ParameterList(params), 1.0) == torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    for p, other in zip(params, theirs, strict=True):
        assert p.grad is None or torch.equal(p.grad, other.grad)


@pytest.mark.parametrize(
    "gradients",
    [
        [torch.ones(2, dtype=torch.float64)],
        [torch.ones(2, dtype=torch.bfloat16)],
        [torch.ones(2), torch.ones(2, dtype=torch.bfloat16)],
        [],
    ],
    ids=["float64", "bfloat16", "two kinds", "none"],
)
def test_gradients_that_a_clip_measures_in_another_way_are_not_shared(gradients):
    recorder, params = measured(gradients)
    assert recorder.clip_recorded_(params, 1.0) is None


@pytest.mark.parametrize(
    ("kind", "scaler", "shared"),
    [
        (DistributedType.NO, None, True),
        (DistributedType.MULTI_GPU, None, True),
        (DistributedType.MULTI_CPU, None, True),
        (DistributedType.FSDP, None, False),
        (DistributedType.DEEPSPEED, None, False),
        (DistributedType.XLA, None, False),
        (DistributedType.NO, object(), False),
    ],
)
def test_an_engine_with_a_clip_of_its_own_clips_by_itself(kind, scaler, shared):
    recorder, params = measured(THREE_FOUR)
    accelerator = SimpleNamespace(distributed_type=kind, scaler=scaler)
    assert (recorder.clip_recorded_(params, 1.0, accelerator) is not None) == shared


def test_share_with_clip_false_is_more_accurate_than_foreach_norm():
    torch.manual_seed(0)
    gradient = torch.randn(4_000_000)
    exact = gradient.double().norm().item()
    recorder, params = measured([gradient], share_with_clip=False)
    assert recorder.flush()[0]["grad_norm"] == pytest.approx(exact, rel=1e-5)
    assert recorder.clip_recorded_(params, 1.0) is None
