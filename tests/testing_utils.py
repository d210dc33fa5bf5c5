"""A BERT small enough to train in a second, data that it can learn, and quiet runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
)

from hf_warmup import WarmupTrainer, WarmupTrainingArguments


TINY = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def tiny_bert(seed: int = 0, **config: Any) -> BertForSequenceClassification:
    """transformers' own BERT, whose head ignores `num_items_in_batch`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(BertConfig(**{**TINY, **config}))


# Sizes that make most of transformers' architectures small, by the name of the configuration's field.
SMALL = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "projection_dim"], 16),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"], 1),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"], 2),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads", "num_local_experts", "num_experts"], 2),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"], 32),
    **dict.fromkeys(["d_kv", "d_head", "head_dim"], 8),
    **{"vocab_size": 48, "max_position_embeddings": 64, "n_positions": 64, "image_size": 32, "patch_size": 8},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
}


def tiny_config(config: PretrainedConfig) -> PretrainedConfig:
    """Make `config` and the configurations inside it small, without dropout."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            tiny_config(value)
        elif name in SMALL and isinstance(value, (int, type(None))):
            setattr(config, name, SMALL[name])
        elif isinstance(value, float) and any(word in name for word in ("drop", "pdrop", "mask_")):
            setattr(config, name, 0.0)
    return config


def tiny_gpt2() -> GPT2LMHeadModel:
    """A decoder for the words of `tiny_tokenizer`."""
    config = GPT2Config(vocab_size=8, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, without the hub."""
    words = ["<pad>", "</s>", "warm", "up", "the", "rate", "slowly"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="the"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def sentences() -> Dataset:
    """Texts in the words of `tiny_tokenizer`."""
    return Dataset.from_dict({"text": ["warm up the rate slowly", "the rate", "slowly warm up", "up the rate"] * 8})


def examples(count: int = 64, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Sequences of 8 tokens; the label says whether the first is in the upper half."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, TINY["vocab_size"], (count, 8), generator=generator)
    return [{"input_ids": x, "labels": (x[0] >= TINY["vocab_size"] // 2).long()} for x in tokens]


WORDS = ["good", "fine", "great", "bad", "poor", "dull", "film", "a", "the", "very"]
FROM_SCRATCH = ("--num_hidden_layers", 2, "--hidden_size", 16, "--num_attention_heads", 2, "--intermediate_size", 32)


def write_task(folder: Path) -> None:
    """A vocabulary, and files like SST-2's in which six words decide."""
    (folder / "vocabulary").mkdir()
    (folder / "vocabulary" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    rows = [f"a {very} {word} film\t{int(i < 3)}" for i, word in enumerate(WORDS[:6]) for very in ("very", "the")]
    (folder / "train.tsv").write_text("sentence\tlabel\n" + "\n".join(rows * 8) + "\n")
    (folder / "dev.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")


def arguments(output_dir: Path | str, cls: type = WarmupTrainingArguments, **kwargs: Any) -> Any:
    """Arguments of a quiet run of 8 updates on the CPU that logs each of them."""
    defaults = {
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    return cls(output_dir=str(output_dir), **{**defaults, **kwargs})


def train(trainer: Any, **kwargs: Any) -> list[dict[str, float]]:
    """Train without printing; the log of each update."""
    trainer.remove_callback(PrinterCallback)
    trainer.train(**kwargs)
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def run(output_dir: Path | str, model: Any = None, **kwargs: Any) -> list[dict[str, float]]:
    """The log of a `WarmupTrainer` on the tiny task."""
    trainer = WarmupTrainer(model=model or tiny_bert(), args=arguments(output_dir, **kwargs), train_dataset=examples())
    return train(trainer)


def column(log: list[dict[str, float]], key: str) -> list[float]:
    return [entry[key] for entry in log]
