"""DeepSpeed's silent swaps are refused before anything starts; tests/test_multiprocess.py runs the real one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hf_warmup import WarmupTrainer, create_optimizer_and_scheduler
from hf_warmup._deepspeed import before_engine_step, check_deepspeed_config

from .testing_utils import arguments, tiny_bert


OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"optimizer": {"type": "AdamW"}},
            r"the optimizer 'AdamW', which would replace optim='radam': remove its \"op",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, r"the scheduler 'WarmupLR', which would replace .*'noam': remove its"),
        (
            OFFLOAD,
            r"offload_optimizer='cpu' makes DeepSpeed replace optim='radam'.*zero_force_ds_cpu_optimizer\": false",
        ),
    ],
)
def test_each_swap_is_refused_by_both_doors(tmp_path, config, sentence):
    args = arguments(tmp_path, optim="radam", lr_scheduler_type="noam", warmup_steps=2)
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config=config)
    with pytest.raises(ValueError, match=sentence):
        create_optimizer_and_scheduler(tiny_bert(), args, 8)
    with pytest.raises(ValueError, match=sentence):
        WarmupTrainer(tiny_bert(), args)


def test_what_the_user_leaves_to_deepspeed_is_its_own(tmp_path):
    check_deepspeed_config({"optimizer": {"type": "AdamW"}, "scheduler": {}}, optimizer=None, scheduler=None)
    check_deepspeed_config(
        {**OFFLOAD, "zero_force_ds_cpu_optimizer": False}, optimizer="optim='radam'", scheduler="a schedule"
    )
    args = arguments(tmp_path)  # adamw_torch and linear: transformers' own
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={"optimizer": {"type": "AdamW"}, "scheduler": {}})
    with pytest.raises(ValueError, match="use WarmupTrainer"):
        create_optimizer_and_scheduler(tiny_bert(), args, 8)


class Engine:
    def __init__(self):
        self.said = []
        self.boundary = True

    def is_gradient_accumulation_boundary(self):
        return self.boundary

    def step(self):
        self.said.append("step")


def test_the_engine_is_wrapped_for_as_long_as_the_context():
    engine = Engine()
    for engine.boundary in (False, True):
        with before_engine_step(engine, lambda: engine.said.append("recorded")):
            engine.step()
    engine.step()
    assert engine.said == ["step", "recorded", "step", "step"]
    assert "step" not in vars(engine)
