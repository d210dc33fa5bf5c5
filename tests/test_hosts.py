"""Where people train: Seq2SeqTrainer, TRL, Optuna through the Trainer, and Lightning."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from hf_warmup import GIAdam, WarmupArgumentsMixin, WarmupTrainer, WarmupTrainerMixin, get_scheduler
from hf_warmup.norms import GRADIENT_NORMS_FILE, read_gradient_norms

from .testing_utils import arguments, column, examples, sentences, tiny_bert, tiny_gpt2, tiny_tokenizer, train


RECIPE = {"optim": "radam", "lr_scheduler_type": "noam", "warmup_steps": 3, "max_steps": 6}
SCHEDULED = [1e-2 * min(t / 3, (3 / t) ** 0.5) for t in range(1, 7)]  # Noam's, peak 1e-2


def check_run(trainer, folder, layer):
    log = train(trainer)
    assert column(log, "learning_rate") == pytest.approx(SCHEDULED, rel=1e-12)
    assert [entry["scheduled_lr"] for entry in log[:5]] == [0.0] * 5  # RAdam's first rectified update is the sixth
    assert log[5]["scheduled_lr"] == pytest.approx(0.02582 * SCHEDULED[5], rel=1e-3)
    records = read_gradient_norms(folder)
    assert [record["step"] for record in records] == list(range(1, 7))
    for entry, record in zip(log, records, strict=True):
        assert record["grad_norm"] == pytest.approx(entry["grad_norm"], rel=1e-5)
        assert entry[f"grad_norm/{layer}"] == record[f"grad_norm/{layer}"]


@dataclass
class Seq2SeqArguments(WarmupArgumentsMixin, Seq2SeqTrainingArguments):
    pass


class WarmupSeq2SeqTrainer(WarmupTrainerMixin, Seq2SeqTrainer):
    pass


def test_seq2seq_trainer(tmp_path):
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=32,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=16,
    )
    tokens = torch.randint(4, 32, (32, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": x, "labels": x.flip(0)} for x in tokens]
    args = arguments(tmp_path, Seq2SeqArguments, **RECIPE, predict_with_generate=True)
    trainer = WarmupSeq2SeqTrainer(
        model=BartForConditionalGeneration(config), args=args, train_dataset=data, eval_dataset=data[:8]
    )
    check_run(trainer, tmp_path, "decoder.layers.1")
    assert trainer.evaluate(max_length=8)["eval_loss"] > 0


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL's own default
def test_sft_trainer(tmp_path):
    trl = pytest.importorskip("trl", reason="the extra `trl` is not installed")

    @dataclass
    class Arguments(WarmupArgumentsMixin, trl.SFTConfig):
        pass

    class Trainer(WarmupTrainerMixin, trl.SFTTrainer):
        pass

    args = arguments(tmp_path, Arguments, **RECIPE, max_length=16)
    trainer = Trainer(model=tiny_gpt2(), args=args, train_dataset=sentences(), processing_class=tiny_tokenizer())
    check_run(trainer, tmp_path, "h.1")


def test_hyperparameter_search_over_kind_and_length(tmp_path):
    optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    chosen = [
        {"optim": "radam", "lr_scheduler_type": "noam", "warmup_steps": 3, "warmup_type": "exponential"},
        {"optim": "adamw_torch", "lr_scheduler_type": "cosine", "warmup_steps": 0.5, "warmup_type": "linear"},
        {"optim": "gi_adam", "lr_scheduler_type": "sine", "warmup_steps": 2, "warmup_type": "constant"},
    ]
    seen = []

    class Trainer(WarmupTrainer):
        def create_scheduler(self, *args, **kwargs):
            scheduler = super().create_scheduler(*args, **kwargs)
            own = getattr(self.optimizer, "optimizer", self.optimizer)  # out of Accelerate's wrapper
            seen.append((type(own).__name__, scheduler.get_last_lr()[0], self.args.learning_rate))
            return scheduler

    def hp_space(trial):
        i = trial.suggest_categorical("recipe", [0, 1, 2])
        return {**chosen[i], "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2, log=True)}

    args = arguments(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=4)
    trainer = Trainer(model_init=lambda: tiny_bert(), args=args, train_dataset=examples(), eval_dataset=examples(8))
    best = trainer.hyperparameter_search(
        hp_space,
        n_trials=3,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"recipe": [0, 1, 2], "learning_rate": [2e-3]}),
    )
    assert set(best.hyperparameters) == {"recipe", "learning_rate"}
    # linear: ceil(0.5 * 4) = 2 updates; exponential: 1 - exp(-1 / 3); constant: 0.1
    first = {"RAdam": 0.28346868942621073, "AdamW": 0.5, "GIAdam": 0.1}
    assert {name for name, *_ in seen} == set(first)
    for name, lr, learning_rate in seen:
        assert lr == pytest.approx(first[name] * learning_rate, rel=1e-12)


def test_a_trial_with_a_name_that_there_is_not(tmp_path):
    pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    trainer = WarmupTrainer(model_init=lambda: tiny_bert(), args=arguments(tmp_path), train_dataset=examples())
    with pytest.raises(ValueError, match=r"optim='radm' is unknown. Did you mean 'radam'"):
        trainer.hyperparameter_search(lambda trial: {"optim": "radm"}, n_trials=1, backend="optuna")


@pytest.mark.filterwarnings(r"ignore::Warning:lightning.*")  # its advice, and torch's about it
class TestLightning:
    """Lightning's own loop with our optimizer, schedule and recording."""

    @pytest.fixture(autouse=True)
    def _lightning(self):
        self.L = pytest.importorskip("lightning.pytorch", reason="the extra `lightning` is not installed")

    def fit(self, folder, ckpt_path=None, accumulate=1, seed=0):
        """6 updates at 4 an epoch; the lr that each used, its total norm before clipping, and the metrics logged."""
        from hf_warmup.lightning import GradientNormCallback

        L, lrs, norms = self.L, [], []

        class Module(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = tiny_bert(seed)

            def training_step(self, batch, index):
                return self.model(**batch).loss

            def configure_optimizers(self):
                optimizer = GIAdam(self.parameters(), lr=1e-2)
                scheduler = get_scheduler("noam", optimizer, 3)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

            def configure_gradient_clipping(self, optimizer, *args, **kwargs):
                # torch's clipping says what the total norm was before it, Lightning's does not.
                norms.append(torch.nn.utils.clip_grad_norm_(self.parameters(), 0.01).item())
                lrs.append(optimizer.param_groups[0]["lr"])

        monitor = L.callbacks.LearningRateMonitor(logging_interval="step")
        checkpoints = L.callbacks.ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, filename="{step}")
        trainer = L.Trainer(
            max_steps=6,
            accelerator="cpu",
            logger=L.loggers.CSVLogger(folder),
            log_every_n_steps=1,
            default_root_dir=folder,
            accumulate_grad_batches=accumulate,
            callbacks=[monitor, GradientNormCallback(), checkpoints],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = torch.utils.data.DataLoader(examples(32), batch_size=8 // accumulate)
        trainer.fit(Module(), loader, ckpt_path=ckpt_path)
        with open(f"{trainer.logger.log_dir}/metrics.csv", encoding="utf-8") as file:
            return lrs, norms, list(csv.DictReader(file))

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_the_lr_shown_is_the_one_used_and_norms_are_before_clipping(self, tmp_path, accumulate):
        lrs, norms, metrics = self.fit(tmp_path, accumulate=accumulate)
        assert lrs == pytest.approx(SCHEDULED, rel=1e-12)
        shown = {int(row["step"]): float(row["lr-GIAdam"]) for row in metrics if row["lr-GIAdam"]}
        assert sorted(set(shown.values())) == sorted(set(lrs))
        assert min(norms) > 0.02  # clipping was active
        records = read_gradient_norms(tmp_path)
        assert [record["grad_norm"] for record in records] == pytest.approx(norms, rel=1e-5)
        key = "grad_norm/encoder.layer.1"
        assert {float(row[key]) for row in metrics if row[key]} == {record[key] for record in records}

    def test_a_resumed_run_is_the_run_that_never_stopped(self, tmp_path):
        lrs, norms, _ = self.fit(tmp_path)
        records = (tmp_path / GRADIENT_NORMS_FILE).read_text()
        again = self.fit(tmp_path, ckpt_path=tmp_path / "step=4.ckpt", seed=9)
        assert again[:2] == (lrs[4:], norms[4:])
        assert (tmp_path / GRADIENT_NORMS_FILE).read_text() == records
        assert json.loads(records.splitlines()[-1])["step"] == 6
