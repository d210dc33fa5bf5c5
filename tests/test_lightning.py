"""Lightning's and Fabric's own loops with an optimizer, a schedule and the recording of hf_warmup."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from hf_warmup import GIAdam, GradientNormRecorder, get_scheduler
from hf_warmup.guard import callback
from hf_warmup.norms import GRADIENT_NORMS_FILE, read_gradient_norms
from hf_warmup.report.findings import Finding
from scripts.benchmarks.runs import recipe

from .testing_utils import examples, run, tiny_bert


SCHEDULED = [1e-2 * min(t / 3, (3 / t) ** 0.5) for t in range(1, 7)]  # Noam's curve with peak 1e-2 at update 3


@pytest.mark.filterwarnings(r"ignore::Warning:lightning.*")  # its advice, and torch's about it
class TestLightning:
    @pytest.fixture(autouse=True)
    def _lightning(self):
        self.L = pytest.importorskip("lightning.pytorch", reason="the extra `lightning` is not installed")

    def fit(self, folder, ckpt_path=None, accumulate=1, seed=0, dropout=0.0):
        """Train 6 updates in 2 epochs; return their learning rates, norms before clipping, and logged metrics."""
        from hf_warmup.lightning import GradientNormCallback

        L, lrs, norms = self.L, [], []

        class Module(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = tiny_bert(seed, hidden_dropout_prob=dropout)

            def training_step(self, batch, index):
                return self.model(**batch).loss

            def configure_optimizers(self):
                optimizer = GIAdam(self.parameters(), lr=1e-2)
                scheduler = get_scheduler("noam", optimizer, 3)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

            def configure_gradient_clipping(self, optimizer, *args, **kwargs):
                # torch's clipping returns the total norm before it, Lightning's does not.
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
        torch.manual_seed(seed)
        loader_class, order = recipe("how-to/lightning.md", "ResumableLoader"), torch.Generator().manual_seed(seed)
        loader = loader_class(examples(32), 8 // accumulate, shuffle=dropout > 0, generator=order)
        trainer.fit(Module(), loader, ckpt_path=ckpt_path)
        with open(f"{trainer.logger.log_dir}/metrics.csv", encoding="utf-8") as file:
            return lrs, norms, list(csv.DictReader(file))

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_gradient_norm_callback_logs_learning_rates_and_norms_before_clipping(self, tmp_path, accumulate):
        lrs, norms, metrics = self.fit(tmp_path, accumulate=accumulate)
        assert lrs == pytest.approx(SCHEDULED, rel=1e-12)
        shown = {int(row["step"]): float(row["lr-GIAdam"]) for row in metrics if row["lr-GIAdam"]}
        assert sorted(set(shown.values())) == sorted(set(lrs))
        assert min(norms) > 0.02  # clipping was active
        records = read_gradient_norms(tmp_path)
        assert [record["grad_norm"] for record in records] == pytest.approx(norms, rel=1e-5)
        key = "grad_norm/encoder.layer.1"
        assert {float(row[key]) for row in metrics if row[key]} == {record[key] for record in records}

    @pytest.mark.parametrize("update", [2, 4])  # within an epoch, and at its end
    def test_resumed_run_equals_run_never_stopped(self, tmp_path, update):
        lrs, norms, _ = self.fit(tmp_path, dropout=0.1)
        records = (tmp_path / GRADIENT_NORMS_FILE).read_text()
        again = self.fit(tmp_path, ckpt_path=tmp_path / f"step={update}.ckpt", seed=9, dropout=0.1)
        assert again[:2] == (lrs[update:], norms[update:])
        assert (tmp_path / GRADIENT_NORMS_FILE).read_text() == records
        assert json.loads(records.splitlines()[-1])["step"] == 6

    def test_fabric_loop_has_the_rates_layers_and_norms_of_lightning_and_the_trainer(self, tmp_path):
        from lightning.fabric import Fabric

        fabric, model = Fabric(accelerator="cpu", devices=1), tiny_bert()
        optimizer = GIAdam(model.parameters(), lr=1e-2)
        scheduler = get_scheduler("noam", optimizer, 3)
        recorder = GradientNormRecorder(None)
        model, optimizer = fabric.setup(model, optimizer)
        loader = fabric.setup_dataloaders(torch.utils.data.DataLoader(examples(32), batch_size=8))
        lrs = []
        for step, batch in enumerate([*loader, *loader][:6], 1):
            fabric.backward(model(**batch).loss)
            recorder.record(model.named_parameters(), step)
            fabric.clip_gradients(model, optimizer, max_norm=0.01)
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        assert lrs == pytest.approx(SCHEDULED, rel=1e-12)
        norms = [{k: v for k, v in row.items() if k.startswith("grad_norm")} for row in recorder.flush()]
        self.fit(tmp_path / "lightning")
        for ours, theirs in zip(norms, read_gradient_norms(tmp_path / "lightning"), strict=True):
            assert ours == pytest.approx({key: theirs[key] for key in ours}, rel=1e-4)  # float32, other order of sums
        run(tmp_path / "trainer", max_steps=1)
        (row,) = read_gradient_norms(tmp_path / "trainer")
        assert {key for key in row if key.startswith("grad_norm")} == norms[0].keys()

    def fit_guarded(self, folder, guard, ckpt_path=None):
        """Train 12 updates, 11 of them in the first epoch; return guard, Trainer, learning rates and weights."""
        from hf_warmup.lightning import GradientNormCallback

        L, rates = self.L, []

        class Module(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = tiny_bert(0)

            def training_step(self, batch, index):
                return self.model(**batch).loss

            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.parameters(), lr=1e-2)
                scheduler = get_scheduler("constant", optimizer)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

            def on_train_batch_start(self, *args):
                rates.append(self.optimizers().param_groups[0]["lr"])

        norms = GradientNormCallback(guard=guard)
        checkpoints = L.callbacks.ModelCheckpoint(folder, every_n_train_steps=11, save_top_k=-1, filename="{step}")
        trainer = L.Trainer(
            max_steps=12,
            accelerator="cpu",
            logger=False,
            default_root_dir=folder,
            callbacks=[norms, checkpoints],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Module()
        trainer.fit(module, torch.utils.data.DataLoader(examples(88), batch_size=8), ckpt_path=ckpt_path)
        return norms.guard, trainer, rates, torch.cat([p.detach().flatten() for p in module.parameters()])

    def test_guard_stops(self, tmp_path, stalls_at_10):
        guard, trainer, _, _ = self.fit_guarded(tmp_path, "stop")
        assert (guard.stopped_by.rule, trainer.global_step) == ("stalling", 10)

    def test_guard_rewinds_and_a_resumed_run_has_the_same_bits(self, tmp_path, stalls_at_10):
        guard, _, rates, weights = self.fit_guarded(tmp_path, "rewind")
        assert guard.rewinds == [{"step": 10, "to": 0, "warmup_steps": 25}]
        assert rates == pytest.approx([1e-2] * 10 + [1e-2 / 25, 2e-2 / 25])
        again, _, later, resumed = self.fit_guarded(tmp_path, "rewind", ckpt_path=tmp_path / "step=11.ckpt")
        assert (again.rewinds, later) == (guard.rewinds, rates[11:])
        assert torch.equal(resumed, weights)


@pytest.fixture
def stalls_at_10(monkeypatch):
    stalling = Finding("stalling", True, "The run is stalling.", {"update": 10}, "", None, 30.0, "a test")
    monkeypatch.setattr(
        callback, "apply", lambda rules, records: [stalling] * (records.updates == 10 == len(records.steps))
    )
