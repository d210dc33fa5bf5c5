"""Other Trainers: each with the mixin gives its plain Trainer's numbers, and resumes to the same bits."""

from __future__ import annotations

from dataclasses import make_dataclass

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from hf_warmup import (
    RAdam,
    WarmupArgumentsMixin,
    WarmupSeq2SeqTrainer,
    WarmupSeq2SeqTrainingArguments,
    WarmupTrainer,
    WarmupTrainerMixin,
    get_scheduler,
)
from hf_warmup.norms import GRADIENT_NORMS_FILE, read_gradient_norms
from hf_warmup.report import read_run

from .testing_utils import (
    TINY,
    arguments,
    column,
    examples,
    sentences,
    tiny_bert,
    tiny_config,
    tiny_gpt2,
    tiny_tokenizer,
    train,
)


TEXTS = ["warm up the rate slowly", "the rate", "slowly warm up", "up the rate"] * 8
OTHERS = TEXTS[1:] + TEXTS[:1]


def seq2seq(folder):
    """Build the arguments of `Seq2SeqTrainer`, apart from `args`."""
    config = tiny_config(BartConfig())
    tokens = torch.randint(4, 48, (32, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": x, "labels": x.flip(0)} for x in tokens]
    return {"model": BartForConditionalGeneration(config), "train_dataset": data, "eval_dataset": data[:8]}


def sft(folder):
    return {"model": tiny_gpt2(), "train_dataset": sentences(), "processing_class": tiny_tokenizer()}


def sft_with_lora(folder):
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    return {**sft(folder), "peft_config": peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)}


def preferences(folder):
    """Build the arguments of `DPOTrainer`, whose second positional argument is not `args`."""
    data = Dataset.from_dict({"prompt": TEXTS, "chosen": OTHERS, "rejected": TEXTS[::-1]})
    return {"model": tiny_gpt2(), "ref_model": tiny_gpt2(), "train_dataset": data, "processing_class": tiny_tokenizer()}


def kto(folder):
    data = Dataset.from_dict({"prompt": TEXTS, "completion": OTHERS, "label": [True, False] * 16})
    return {"model": tiny_gpt2(), "ref_model": tiny_gpt2(), "train_dataset": data, "processing_class": tiny_tokenizer()}


def reward(folder):
    config = GPT2Config(vocab_size=8, n_embd=16, n_layer=2, n_head=2, n_positions=32, num_labels=1, pad_token_id=0)
    data = Dataset.from_dict({"chosen": TEXTS, "rejected": OTHERS})
    model = GPT2ForSequenceClassification(config)
    return {"model": model, "train_dataset": data, "processing_class": tiny_tokenizer()}


def length(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def online(folder):
    """Build the arguments of `GRPOTrainer` and `RLOOTrainer`."""
    data = Dataset.from_dict({"prompt": TEXTS})
    return {"model": tiny_gpt2(), "reward_funcs": length, "train_dataset": data, "processing_class": tiny_tokenizer()}


def sentence_pairs():
    return Dataset.from_dict({"first": TEXTS, "second": OTHERS, "label": [0, 1] * 16})


def sentence_transformer(folder):
    """Build the arguments of `SentenceTransformerTrainer`, with a loss that has a classifier of its own."""
    library = pytest.importorskip("sentence_transformers", reason="the extra `sentence-transformers` is not installed")
    from sentence_transformers.sentence_transformer import losses, modules

    module = modules.StaticEmbedding(tiny_tokenizer(), embedding_dim=16)
    model = library.SentenceTransformer(modules=[module], device="cpu")
    return {"model": model, "train_dataset": sentence_pairs(), "loss": losses.SoftmaxLoss(model, 16, num_labels=2)}


class ScaledLoss(nn.Module):
    """A loss with a parameter."""

    def __init__(self, model):
        super().__init__()
        from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

        self.inner, self.scale = BinaryCrossEntropyLoss(model), nn.Parameter(torch.ones(()))

    def forward(self, *args, **kwargs):
        return self.scale * self.inner(*args, **kwargs)


def cross_encoder(folder):
    library = pytest.importorskip("sentence_transformers", reason="the extra `sentence-transformers` is not installed")
    BertForSequenceClassification(BertConfig(**TINY, num_labels=1, pad_token_id=0)).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    model = library.CrossEncoder(str(folder / "model"), device="cpu")
    data = Dataset.from_dict({"first": TEXTS, "second": OTHERS, "label": [0.0, 1.0] * 16})
    return {"model": model, "train_dataset": data, "loss": ScaledLoss(model)}


def classes(name):
    """Return the Trainer and the arguments class `name` of the library that has them."""
    library, trainer, config = {
        "Seq2Seq": ("transformers", "Seq2SeqTrainer", "Seq2SeqTrainingArguments"),
        "SFT": ("trl", "SFTTrainer", "SFTConfig"),
        "DPO": ("trl", "DPOTrainer", "DPOConfig"),
        "KTO": ("trl", "KTOTrainer", "KTOConfig"),
        "Reward": ("trl", "RewardTrainer", "RewardConfig"),
        "GRPO": ("trl", "GRPOTrainer", "GRPOConfig"),
        "RLOO": ("trl", "RLOOTrainer", "RLOOConfig"),
        "SentenceTransformer": (
            "sentence_transformers", "SentenceTransformerTrainer", "SentenceTransformerTrainingArguments"
        ),
        "CrossEncoder": (
            "sentence_transformers.cross_encoder", "CrossEncoderTrainer", "CrossEncoderTrainingArguments"
        ),
    }[name]  # fmt: skip
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    return getattr(module, trainer), getattr(module, config)


ONLINE = {"max_completion_length": 4, "num_generations": 4}
HOSTS = {
    # Without accumulation: BART ignores the count of items, which the mixin corrects.
    "Seq2Seq": (seq2seq, {"gradient_accumulation_steps": 1}),
    "SFT": (sft, {"max_length": 16}),
    "SFT+LoRA": (sft_with_lora, {"max_length": 16}),
    "DPO": (preferences, {"max_length": 16}),
    "KTO": (kto, {"max_length": 16}),
    "Reward": (reward, {"max_length": 16}),
    "GRPO": (online, ONLINE),
    "RLOO": (online, {**ONLINE, "beta": 0.0}),
    "SentenceTransformer": (sentence_transformer, {}),
    "SentenceTransformer+mapping": (sentence_transformer, {"learning_rate_mapping": {"classifier": 1e-3}}),
    "CrossEncoder": (cross_encoder, {}),
}


def build(name, folder, ours, **kwargs):
    """Build the Trainer `name`, plain or with the mixin, on the same seed."""
    host, config = classes(name.partition("+")[0])
    make, own = HOSTS[name]
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    built = make(folder)
    if ours:
        host = type("WithWarmup", (WarmupTrainerMixin, host), {})
        config = make_dataclass(
            "Arguments", [], bases=(WarmupArgumentsMixin, config), namespace={"__module__": __name__}
        )
        globals()["Arguments"] = config  # checkpoints hold the arguments as a pickle
    kwargs = {"max_steps": 4, "per_device_train_batch_size": 4, "bf16": False, **kwargs, **own}
    return host(args=arguments(folder, config, **kwargs), **built)


QUICK = ("SFT", "SentenceTransformer+mapping")


@pytest.mark.filterwarnings("ignore")  # of the other libraries
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in HOSTS]
)
def test_trainer_of_another_library_equals_its_plain_trainer_and_resumes(tmp_path, name):
    kwargs = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "gradient_accumulation_steps": 2}
    plain, ours = (train(build(name, tmp_path, ours, optim="adamw_torch", **kwargs)) for ours in (False, True))
    for key in ("loss", "grad_norm", "learning_rate"):
        assert column(ours, key) == column(plain, key)

    kwargs |= {"optim": "radam", "warmup_type": "linear", "save_strategy": "steps", "save_steps": 2}
    complete = build(name, tmp_path / "complete", True, **kwargs)
    log = train(complete)
    loss = getattr(complete, "loss", None)
    if isinstance(loss, nn.Module):  # its own parameters are optimized too
        held = {id(p) for group in complete.optimizer.param_groups for p in group["params"]}
        assert {id(p) for p in loss.parameters() if p.requires_grad} == held
    recorded = read_gradient_norms(tmp_path / "complete")
    assert column(recorded, "grad_norm") == pytest.approx(column(log, "grad_norm"), rel=1e-5)

    resumed = build(name, tmp_path / "complete", True, **kwargs)
    resumed_log = train(resumed, resume_from_checkpoint=str(tmp_path / "complete" / "checkpoint-2"))
    assert column(resumed_log, "loss") == column(log, "loss")
    assert read_gradient_norms(tmp_path / "complete") == recorded


def test_warmup_seq2seq_trainer_evaluates_by_generating(tmp_path):
    kwargs = {"optim": "radam", "warmup_steps": 2, "max_steps": 2, "predict_with_generate": True}
    args = arguments(tmp_path, WarmupSeq2SeqTrainingArguments, **kwargs)
    trainer = WarmupSeq2SeqTrainer(args=args, **seq2seq(tmp_path))
    train(trainer)
    assert [record["step"] for record in read_gradient_norms(tmp_path)] == [1, 2]
    assert trainer.evaluate(max_length=8)["eval_loss"] > 0


@pytest.fixture
def optuna():
    optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def test_hyperparameter_search_trials_use_their_arguments_and_record_in_their_folders(tmp_path, optuna):
    chosen = [
        {"optim": "radam", "lr_scheduler_type": "noam", "warmup_steps": 3, "warmup_type": "exponential"},
        {"optim": "adamw_torch", "lr_scheduler_type": "cosine", "warmup_steps": 0.5, "warmup_type": "linear"},
        {"optim": "radam", "warmup_type": "radam"},  # the optimizer warms up already
    ]
    seen = []

    class Trainer(WarmupTrainer):
        def create_scheduler(self, *args, **kwargs):
            scheduler = super().create_scheduler(*args, **kwargs)
            own = getattr(self.optimizer, "optimizer", self.optimizer)  # out of Accelerate's wrapper
            seen.append((type(own).__name__, scheduler.get_last_lr()[0]))
            return scheduler

    def hp_space(trial):
        return {**chosen[trial.suggest_categorical("recipe", [0, 1, 2])], "learning_rate": 2e-3}

    args = arguments(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=4)
    trainer = Trainer(model_init=lambda: tiny_bert(), args=args, train_dataset=examples(), eval_dataset=examples(8))
    sampler = optuna.samplers.GridSampler({"recipe": [0, 1, 2]})
    best = trainer.hyperparameter_search(hp_space, n_trials=3, backend="optuna", sampler=sampler)
    assert best.hyperparameters["recipe"] in (0, 1)  # the combination that excludes itself is pruned
    # exponential: 1 - exp(-1 / 3); linear: 1 of the ceil(0.5 * 4) = 2 updates
    assert dict(seen) == pytest.approx({"RAdam": 2e-3 * 0.28346868942621073, "AdamW": 2e-3 * 0.5})
    runs = [read_run(folder) for folder in tmp_path.glob("run-*") if (folder / GRADIENT_NORMS_FILE).exists()]
    assert {str(run.settings["optim"]) for run in runs} == {"radam", "adamw_torch"}
    assert [(run.updates, run.end) for run in runs] == [(4, "finished")] * 2


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft uses the former name
def test_loraplus_optimizer_of_peft_with_radam_trains_each_group_at_its_own_rate(tmp_path):
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    from peft.optimizers import create_loraplus_optimizer

    lora = peft.get_peft_model(tiny_bert(), peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    optimizer = create_loraplus_optimizer(lora, RAdam, lr=1e-3, loraplus_lr_ratio=16, betas=(0.9, 0.98))
    scheduler = get_scheduler("constant", optimizer, 8, 8, warmup_type="linear")
    before = {name: p.detach().clone() for name, p in lora.named_parameters() if p.requires_grad}
    args = arguments(tmp_path, max_steps=8)
    log = train(WarmupTrainer(lora, args, train_dataset=examples(), optimizers=(optimizer, scheduler)))
    assert len(log) == 8
    rates_used = {group["lr"] for group in optimizer.param_groups if group["params"]}
    assert rates_used == {1e-3, 16e-3}  # the warmup is over
    moved = {name: not torch.equal(p, before[name]) for name, p in lora.named_parameters() if p.requires_grad}
    assert all(moved.values())
    at = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: at[id(p)] for name, p in lora.named_parameters() if "lora_" in name}
    assert {("lora_B" in name, lr) for name, lr in rates.items()} == {(False, 1e-3), (True, 16e-3)}


def test_hyperparameter_search_unknown_name_raises(tmp_path, optuna):
    trainer = WarmupTrainer(model_init=lambda: tiny_bert(), args=arguments(tmp_path), train_dataset=examples())
    with pytest.raises(ValueError, match=r"optim='radm' is unknown. Did you mean 'radam'"):
        trainer.hyperparameter_search(lambda trial: {"optim": "radm"}, n_trials=1, backend="optuna")


def test_hyperparameter_search_unknown_argument_raises(tmp_path, optuna):
    """transformers logs a warning and trains every trial alike."""
    trainer = WarmupTrainer(model_init=lambda: tiny_bert(), args=arguments(tmp_path), train_dataset=examples())
    with pytest.raises(ValueError, match=r"hp_space='warmup_step' is unknown. Did you mean 'warmup_steps'"):
        trainer.hyperparameter_search(lambda trial: {"warmup_step": 0.1}, n_trials=1, backend="optuna")
