"""Parameter groups: weight decay as in the Trainer, learning rates by name and by depth, all computed by hand."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import Trainer

from hf_warmup import WarmupTrainer, create_optimizer, create_optimizer_and_scheduler
from hf_warmup.optim.parameter_groups import layer_depths, learning_rates, parameter_groups

from .testing_utils import arguments, examples, tiny_bert, tiny_gpt2


ENCODER_DECODER = [
    "shared.weight",
    "encoder.embed_positions.weight",
    "encoder.block.0.w",
    "encoder.block.1.w",
    "encoder.final_norm.weight",
    "decoder.embed_positions.weight",
    "decoder.block.0.w",
    "decoder.block.1.w",
    "lm_head.weight",
]


def test_layer_depths_of_an_encoder_decoder_count_each_stack():
    assert [*layer_depths(ENCODER_DECODER).values()] == [0, 0, 1, 2, 3, 0, 1, 2, 3]


def test_layer_depths_of_gpt2_begin_with_its_embeddings():
    depths = layer_depths(name for name, _ in tiny_gpt2().named_parameters())
    assert depths["transformer.wte.weight"] == depths["transformer.wpe.weight"] == 0
    assert depths["transformer.h.1.mlp.c_fc.weight"] == 2
    assert depths["transformer.ln_f.weight"] == 3


def test_layer_depths_raise_without_blocks():
    with pytest.raises(ValueError, match=r"^layerwise_lr_decay needs a model with numbered blocks"):
        layer_depths(["weight", "bias"])


def test_learning_rates_fall_with_depth_and_the_last_match_counts():
    rates = learning_rates(ENCODER_DECODER, 0.8, {"block": 3.0, r"block\.1": 4.0}, layerwise_lr_decay=0.5)
    assert [*rates.values()] == [0.1, 0.1, 3.0, 4.0, 0.8, 0.1, 3.0, 4.0, 0.8]


def test_learning_rates_raise_for_an_expression_without_a_match():
    with pytest.raises(
        ValueError, match=r"^learning_rate_mapping: 'lm_haed.weight' matches no .* Did you mean 'lm_head.weight'"
    ):
        learning_rates(ENCODER_DECODER, 0.8, {"lm_haed.weight": 1.0})


def test_parameter_groups_are_those_of_the_trainer(tmp_path):
    model = tiny_bert()
    model.bert.embeddings.requires_grad_(False)
    theirs = Trainer(model, arguments(tmp_path)).create_optimizer().param_groups
    ours = parameter_groups(model, 0.0)
    assert [[*map(id, group["params"])] for group in ours] == [[*map(id, group["params"])] for group in theirs]


def described(optimizer, model):
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }


EXPECTED = {  # two blocks, factor 0.5, learning rate 0.8
    "bert.embeddings.word_embeddings.weight": (0.1, 0.01),
    "bert.embeddings.LayerNorm.bias": (0.1, 0.0),
    "bert.encoder.layer.0.output.dense.weight": (0.2, 0.01),
    "bert.encoder.layer.1.output.dense.bias": (0.4, 0.0),
    "bert.pooler.dense.weight": (0.8, 0.01),
    "classifier.weight": (2.0, 0.01),
    "classifier.bias": (2.0, 0.0),
}
BY_NAME = {"layerwise_lr_decay": 0.5, "learning_rate_mapping": {"classifier": 2.0}}


def loop_optimizer(model, args):
    return create_optimizer(model, args.optim.value, 0.8, 0.01, **BY_NAME)


DOORS = {
    "trainer": lambda model, args: WarmupTrainer(model, args, train_dataset=examples(8)).create_optimizer(),
    "pair": lambda model, args: create_optimizer_and_scheduler(model, args, 8)[0],
    "loop": loop_optimizer,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("optim", ["radam", "adamw", "adamw_torch"])
def test_every_door_gives_the_same_learning_rates(tmp_path, door, optim):
    if (door, optim) == ("loop", "adamw_torch"):
        pytest.skip("a name of transformers")
    kwargs = {"optim": optim, "learning_rate": 0.8, "weight_decay": 0.01, "lr_scheduler_type": "constant", **BY_NAME}
    model = tiny_bert()
    found = described(DOORS[door](model, arguments(tmp_path, **kwargs)), model)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, expected in EXPECTED.items():
        assert found[name] == pytest.approx(expected), name


def test_every_group_follows_the_schedule(tmp_path):
    args = arguments(
        tmp_path, learning_rate=0.8, warmup_type="linear", warmup_steps=4, lr_scheduler_type="constant", **BY_NAME
    )
    optimizer, scheduler = create_optimizer_and_scheduler(tiny_bert(), args, 8)
    shares = []
    for _ in range(5):
        shares.append({round(group["lr"] / group["initial_lr"], 12) for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    assert shares == [{0.25}, {0.5}, {0.75}, {1.0}, {1.0}]


def test_learning_rates_by_name_need_a_learning_rate():
    with pytest.raises(ValueError, match=r"^learning_rate=None: expected a number"):
        parameter_groups(nn.Linear(1, 1), 0.0, None, {"bias": 1.0})
