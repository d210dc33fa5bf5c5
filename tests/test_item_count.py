"""Gradient accumulation: a head that accepts `num_items_in_batch` and ignores it gives the loss of the whole batch."""

from __future__ import annotations

import copy
import inspect
from collections import Counter

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
)
from transformers.models.auto import modeling_auto

from hf_warmup import WarmupTrainer
from hf_warmup.item_count import honor_item_count

from .testing_utils import arguments, tiny_config, train


HEADS = {
    "bert-mlm": lambda: BertForMaskedLM(tiny_config(BertConfig())),
    "distilbert-mlm": lambda: DistilBertForMaskedLM(tiny_config(DistilBertConfig())),
    "llama-classifier": lambda: LlamaForSequenceClassification(tiny_config(LlamaConfig(num_labels=2))),
    "llama-honest": lambda: LlamaForCausalLM(tiny_config(LlamaConfig())),
}


counts_items = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5"), reason="transformers 4.57 gives BERT's heads no count of items"
)


def rows(kind: str, count: int = 8) -> list[dict[str, torch.Tensor]]:
    """Return `count` rows of 8 tokens with labels for the head `kind`."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 48, (count, 8), generator=generator)
    labels = torch.randint(0, 2, (count,), generator=generator) if "classifier" in kind else tokens
    return [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]


def first_log(folder, model, data, accumulation, cls=WarmupTrainer, **kwargs):
    """Train one update of all `data` in `accumulation` micro-batches; return its loss and gradient norm."""
    sizes = {"per_device_train_batch_size": len(data) // accumulation, "gradient_accumulation_steps": accumulation}
    args_cls = {} if issubclass(cls, WarmupTrainer) else {"cls": TrainingArguments}
    trainer_kwargs = {"compute_loss_func": kwargs.pop("compute_loss_func")} if "compute_loss_func" in kwargs else {}
    args = arguments(folder, **args_cls, max_steps=1, **sizes, **kwargs)
    log = train(cls(model=model, args=args, train_dataset=data, **trainer_kwargs))[0]
    return log["loss"], log["grad_norm"]


def seeded(make):
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("kind", HEADS)
def test_warmup_trainer_accumulation_gives_loss_of_whole_batch(tmp_path, kind):
    logs = [first_log(tmp_path, seeded(HEADS[kind]), rows(kind), steps) for steps in (1, 2, 4)]
    plain = first_log(tmp_path, seeded(HEADS[kind]), rows(kind), 1, Trainer)
    assert logs[0] == plain  # without accumulation the count changes no bit
    torch.testing.assert_close(torch.tensor(logs), torch.tensor([plain] * 3))  # fp32: another order of summation


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by peft
def test_warmup_trainer_peft_model_accumulation_gives_loss_of_whole_batch(tmp_path):
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")

    def make():
        config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False)
        return peft.get_peft_model(HEADS["bert-mlm"](), config)

    logs = [first_log(tmp_path, seeded(make), rows("bert-mlm"), steps) for steps in (1, 4)]
    torch.testing.assert_close(torch.tensor(logs[1]), torch.tensor(logs[0]))


@counts_items
def test_warmup_trainer_uneven_label_counts_give_loss_of_whole_batch(tmp_path):
    def make():
        return BertForTokenClassification(tiny_config(BertConfig()))

    data = rows("bert")
    for i, row in enumerate(data):  # 1 to 8 labelled tokens
        row["labels"] = torch.where(torch.arange(8) <= i, row["labels"] % 2, -100)
    logs = [first_log(tmp_path, seeded(make), data, steps) for steps in (1, 2, 8)]
    torch.testing.assert_close(torch.tensor(logs), torch.tensor([logs[0]] * 3))
    plain = [first_log(tmp_path, seeded(make), data, steps, Trainer)[0] for steps in (1, 8)]
    assert plain == pytest.approx([0.697, 5.646], abs=5e-3)  # the figures of docs/explanation/how-it-works.md


class OwnLoss(WarmupTrainer):
    """A Trainer with a loss of its own that needs the count."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / num_items_in_batch


def sum_over_count(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits.flatten(0, 1)
    return nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        pytest.param(OwnLoss, {}, marks=counts_items),
        (WarmupTrainer, {"compute_loss_func": sum_over_count}),
        (WarmupTrainer, {"label_smoothing_factor": 0.1}),
    ],
    ids=["compute_loss", "compute_loss_func", "label_smoothing"],
)
def test_warmup_trainer_loss_outside_the_model_is_left_alone(tmp_path, cls, kwargs):
    logs = [first_log(tmp_path, seeded(HEADS["bert-mlm"]), rows("mlm"), steps, cls, **kwargs) for steps in (1, 4)]
    torch.testing.assert_close(torch.tensor(logs[1]), torch.tensor(logs[0]))


def test_warmup_trainer_that_scales_its_loss_itself_is_left_alone():
    class Host(Trainer):
        loss_is_scaled_for_ga = True

    class Ours(WarmupTrainer, Host):
        pass

    model = HEADS["bert-mlm"]()
    Ours(model=model, args=arguments("unused"))
    assert not model._forward_hooks


@pytest.mark.parametrize(("head", "corrected"), [("ForCTC", False), ("ForSequenceClassification", True)])
def test_honor_item_count_leaves_a_summed_loss_alone(head, corrected):
    model = getattr(transformers, f"Wav2Vec2{head}")(tiny_config(transformers.Wav2Vec2Config()))
    honor_item_count(model)
    assert bool(model._forward_hooks) == corrected


def batch_for(name: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a batch of 4 for the head class `name`, with labels of the shape that its task expects."""
    torch.manual_seed(0)
    shape = (4, 2, 8) if "MultipleChoice" in name else (4, 8)
    inputs = {"input_ids": lambda: torch.randint(3, 48, shape), "pixel_values": lambda: torch.randn(4, 3, 32, 32)}
    inputs["input_values"] = lambda: torch.randn(4, 2000)
    main = model.main_input_name
    if any(word in name for word in ("TokenClassification", "ElectraForPreTraining")):
        labels = torch.randint(0, 2, (4, 8))
    elif any(word in name for word in ("Classification", "MultipleChoice", "NextSentence", "XVector")):
        labels = torch.randint(0, 2, (4,))
    elif "Segmentation" in name:
        labels = torch.randint(0, 2, (4, 32, 32))
    else:
        labels = torch.randint(3, 20, (4, 3) if "CTC" in name else (4, 8))
    return {main: inputs[main](), "labels": labels}


def with_lora(model: nn.Module) -> nn.Module | None:
    """Return a copy of `model` in a PEFT wrapper, or `None` if PEFT finds no layer to adapt."""
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    try:
        return peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=linear[:1], r=2)).eval()
    except Exception:
        return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # about sizes that nobody trains with
def test_honor_item_count_every_head_gives_the_loss_of_the_whole_batch():
    """Every class of transformers' auto mappings that can be built tiny from its default configuration, and in PEFT."""
    names = {
        name
        for key, mapping in vars(modeling_auto).items()
        if key.startswith("MODEL_FOR_") and key.endswith("_MAPPING_NAMES")
        for names in mapping.values()
        for name in ([names] if isinstance(names, str) else names)
    }
    counts, wrong = Counter(), {}
    for name in sorted(names):
        try:
            cls = getattr(transformers, name)
            parameters = inspect.signature(cls.forward).parameters
            if "labels" not in parameters or not getattr(cls, "accepts_loss_kwargs", True):
                continue
            torch.manual_seed(0)
            plain = cls(tiny_config(cls.config_class())).eval()
            batch = batch_for(name, plain)
            loss_of(plain, batch)
        except Exception:
            continue  # not small enough, or it needs other inputs
        for kind, model in {"peft": with_lora(plain), "plain": plain}.items():
            if model is None:
                continue
            whole = loss_of(model, batch)
            honor_item_count(model)
            shifted = getattr(model, "_item_count_is_shifted", False)
            count = (batch["labels"][..., 1:] if shifted else batch["labels"]).ne(-100).sum().float()
            halves = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 2), slice(2, 4))]
            try:
                total = sum(loss_of(model, half, num_items_in_batch=count) for half in halves)
                if getattr(model, "_ignores_item_count", None) is False:  # it divides by the count that it is given
                    whole = loss_of(model, batch, num_items_in_batch=count)
            except TypeError:
                continue  # takes no further keywords
            counts[kind, getattr(model, "_ignores_item_count", None)] += 1
            # Mixture-of-experts heads add a loss per micro-batch. The sum of a CTC head needs no count.
            if total != pytest.approx(whole, rel=1e-3):
                wrong[kind, name] = (whole, total)
    print(counts)
    assert not wrong
    assert counts["plain", True] > 320
    assert counts["peft", True] > 320


@torch.no_grad()
def loss_of(model, batch, **kwargs):
    torch.manual_seed(1)
    outputs = model(**batch, **kwargs)
    return (outputs["loss"] if isinstance(outputs, dict) else outputs[0]).item()
