"""docs/how-to/by-name.md: each recipe with the real tool where it is installed, else with a stand-in of it."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_warmup import RAdam, WarmupLR

from .testing_utils import arguments, column, examples, tiny_bert, train


PAGE = (Path(__file__).parent.parent / "docs" / "how-to" / "by-name.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL))


def used_lrs(optimizer, scheduler, count=4):
    lrs = []
    for _ in range(count):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that imports a file of the page, after `modules` have been put in the place of a tool's."""

    def load_file(name, **modules):
        for path, names in modules.items():
            parts = path.split("__")
            for i in range(1, len(parts) + 1):
                module = sys.modules.get(".".join(parts[:i])) or ModuleType(".".join(parts[:i]))
                monkeypatch.setitem(sys.modules, module.__name__, module)
            vars(module).update(names)
        (tmp_path / name).write_text(FILES[name])
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
        return importlib.import_module(name.removesuffix(".py"))

    return load_file


@pytest.mark.filterwarnings(r"ignore::Warning:lightning.*")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance")
def test_lightning_cli_builds_both_classes_and_steps_after_each_update(load, tmp_path):
    pytest.importorskip("jsonargparse", reason="jsonargparse is not installed")
    lightning = pytest.importorskip("lightning.pytorch", reason="the extra `lightning` is not installed")
    lrs = []

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            lrs.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return self.linear(batch).mean()

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4)

    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    config = {"trainer": {"max_steps": 4, "accelerator": "cpu", **quiet}, **yaml.safe_load(FILES["cli.yaml"])}
    (tmp_path / "cli.yaml").write_text(yaml.safe_dump(config))
    cli = load("my_cli.py").CLI
    cli(Model, args=["fit", "--config", str(tmp_path / "cli.yaml")], save_config_callback=None)
    assert lrs == pytest.approx([0.005, 0.01, 0.01, 0.005])


def test_hydra_builds_both_classes():
    instantiate = pytest.importorskip("hydra.utils", reason="hydra-core is not installed").instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.create(FILES["hydra.yaml"])
    optimizer = instantiate(config.optimizer, params=[torch.zeros(1, requires_grad=True)])
    scheduler = instantiate(config.scheduler, optimizer=optimizer)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    assert used_lrs(optimizer, scheduler) == pytest.approx([0.005, 0.005, 0.01, 0.005])


def test_kohyas_flags_build_both_classes():
    """sd-scripts reads each value with `ast.literal_eval`, and imports what precedes the last dot of a type."""
    words = shlex.split(re.search(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL).group(1))
    flags, flag = {}, ""
    for word in words:
        if word.startswith("--"):
            flags[flag := word] = []
        else:
            flags[flag].append(word)

    def build(kind, first, **more):
        module, _, name = flags[f"--{kind}_type"][0].rpartition(".")
        keywords = {
            key: ast.literal_eval(value) for key, value in (each.split("=") for each in flags[f"--{kind}_args"])
        }
        return getattr(importlib.import_module(module), name)(first, **more, **keywords)

    optimizer = build("optimizer", [torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = build("lr_scheduler", optimizer)
    assert (type(optimizer), type(scheduler)) == (RAdam, WarmupLR)
    assert used_lrs(optimizer, scheduler, 100)[::33] == pytest.approx([0.001, 0.034, 0.067, 0.1])


class Config(dict):
    """axolotl's configuration: a missing key is `None`."""

    __getattr__ = dict.get


def test_axolotl_plugin_trains_with_its_trainer_and_arguments(load, tmp_path):
    """The stand-in has what axolotl 0.19 asks of a plugin: paths as text, keywords from the configuration, a class."""
    pytest.importorskip("pydantic", reason="the plugin describes its key with pydantic, which axolotl installs")

    class AxolotlTrainer(Trainer):
        pass

    plugin = load(
        "hf_warmup_axolotl.py",
        axolotl__integrations__base={"BasePlugin": object},
        axolotl__core__trainers={"AxolotlTrainer": AxolotlTrainer},
    ).WarmupPlugin()
    config = Config(yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]))
    assert plugin.get_trainer_cls(Config(rl="dpo")) is None
    module, _, name = plugin.get_training_args_mixin().rpartition(".")
    mixin = getattr(importlib.import_module(module), name)
    mixed = dataclass(type("Arguments", (mixin, TrainingArguments), {"__module__": __name__}))
    module, _, name = plugin.get_input_args().rpartition(".")
    getattr(importlib.import_module(module), name)(**config)
    args = arguments(tmp_path, mixed, max_steps=3, warmup_steps=2, **plugin.get_training_args(config))
    trainer = plugin.get_trainer_cls(config)(model=tiny_bert(), args=args, train_dataset=examples())
    log = train(trainer)
    assert issubclass(type(trainer), AxolotlTrainer)
    assert column(log, "learning_rate") == pytest.approx([0.005, 0.01, 0.01 * (2 / 3) ** 0.5])
    assert "grad_norm/embeddings" in log[0]


def test_ms_swift_plugin_registers_an_optimizer_that_trains(load, tmp_path):
    """The stand-in has what ms-swift 4.6 asks of a plugin: a callback with two methods in `optimizers_map`."""

    class OptimizerCallback:
        def __init__(self, args, trainer):
            self.args, self.trainer = args, trainer

    optimizers_map = {}
    load(
        "warmup_plugin.py",
        swift__optimizers={"OptimizerCallback": OptimizerCallback, "optimizers_map": optimizers_map},
    )

    class SwiftTrainer(Trainer):
        def create_optimizer(self, model=None):
            self.callback = optimizers_map["radam_noam"](self.args, self)
            self.optimizer = self.callback.create_optimizer(model=model)
            return self.optimizer

        def create_scheduler(self, num_training_steps, optimizer=None):
            self.lr_scheduler = self.callback.create_scheduler(num_training_steps, self.optimizer)
            return self.lr_scheduler

    args = arguments(tmp_path, TrainingArguments, max_steps=3, warmup_steps=2)
    trainer = SwiftTrainer(model=tiny_bert(), args=args, train_dataset=examples())
    assert column(train(trainer), "learning_rate") == pytest.approx([0.005, 0.01, 0.01 * (2 / 3) ** 0.5])
    assert isinstance(trainer.optimizer.optimizer, RAdam)
