"""Checks of a DeepSpeed configuration, and the wrapped engine. `tests/test_multiprocess.py` runs the real DeepSpeed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hf_warmup import WarmupTrainer, create_optimizer_and_scheduler
from hf_warmup._deepspeed import before_engine_step, check_deepspeed_config
from hf_warmup.guard.callback import check_guard

from .testing_utils import arguments, tiny_bert


OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
SECTIONS = {"optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupLR"}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"optimizer": SECTIONS["optimizer"]},
            r"optimizer 'AdamW', which would replace optim='radam'. Remove its \"opt",
        ),
        ({"scheduler": SECTIONS["scheduler"]}, r"scheduler 'WarmupLR', which would replace .*'noam'. Remove its \"sch"),
        (OFFLOAD, r"offload_optimizer='cpu' makes DeepSpeed replace optim='radam'.*force_ds_cpu_optimizer\": false"),
    ],
)
def test_a_deepspeed_config_that_replaces_optimizer_or_schedule_raises(tmp_path, config, message):
    args = arguments(tmp_path, optim="radam", lr_scheduler_type="noam", warmup_steps=2)
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config=config)
    with pytest.raises(ValueError, match=message):
        create_optimizer_and_scheduler(tiny_bert(), args, 8)
    with pytest.raises(ValueError, match=message):
        WarmupTrainer(tiny_bert(), args)


def test_a_deepspeed_config_may_replace_what_the_user_did_not_choose(tmp_path):
    check_deepspeed_config(SECTIONS, optimizer=None, scheduler=None)
    kept = {**OFFLOAD, "zero_force_ds_cpu_optimizer": False}
    check_deepspeed_config(kept, optimizer="optim='radam'", scheduler="a schedule")
    args = arguments(tmp_path)  # adamw_torch and linear, transformers' own names
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config=SECTIONS)
    with pytest.raises(ValueError, match="Use `WarmupTrainer`"):
        create_optimizer_and_scheduler(tiny_bert(), args, 8)


@pytest.mark.parametrize("kwargs", [{"guard": "rewind"}, {"warmup_type": "auto"}])
def test_rewind_with_deepspeed_raises_before_training(tmp_path, kwargs):
    args = arguments(tmp_path, **kwargs)
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={})
    with pytest.raises(ValueError, match=r"guard='rewind' cannot restore a DeepSpeed optimizer.*Use guard='stop'"):
        check_guard(args, None, None)


class Engine:
    def __init__(self):
        self.calls = []
        self.boundary = True

    def is_gradient_accumulation_boundary(self):
        return self.boundary

    def step(self):
        self.calls.append("step")


def test_before_engine_step_wraps_the_engine_while_the_context_is_open():
    engine = Engine()
    for engine.boundary in (False, True):
        with before_engine_step(engine, lambda: engine.calls.append("recorded")):
            engine.step()
    engine.step()
    assert engine.calls == ["step", "recorded", "step", "step"]
    assert "step" not in vars(engine)
