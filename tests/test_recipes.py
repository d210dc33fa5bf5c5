"""docs/how-to/schedules.md: each known snippet against the line that replaces it, over 1,000 updates in float64."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_warmup import preview

from .stepping import through_file
from .testing_utils import column, train


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "how-to" / "schedules.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
W, T = 400, 1000
TOLERANCE = {"rel": 1e-12, "abs": 1e-15}  # float64


def blocks(text, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


IMPORTS = blocks(PAGE.split("\n## ")[0])[0]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 1)
        self.double()

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def execute(block, namespace=None, **more):
    """The names that a block of the page defines, on a new model; 12 batches are an epoch."""
    namespace = {} if namespace is None else namespace
    namespace.update({"model": Model(), "W": W, "T": T, "loader": range(12), **more})
    exec(compile(IMPORTS + block, "recipes.md", "exec"), namespace)
    return namespace


def update(namespace, t):
    """One update on batch `t`; the lr of each group that it used."""
    optimizer, model = namespace["optimizer"], namespace["model"]
    inner = getattr(optimizer, "optimizer", optimizer)
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    inner.zero_grad()
    (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
    lrs = [group["lr"] for group in inner.param_groups]
    optimizer.step()
    if "scheduler" in namespace:
        namespace["scheduler"].step()
        return lrs
    return [group.get("scheduled_lr", group["lr"]) for group in inner.param_groups]  # set in the step


def parameters(namespace):
    return torch.cat([p.detach().flatten() for p in namespace["model"].parameters()])


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def compare(snippet, ours, updates=T):
    for t in range(updates):
        assert update(ours, t) == pytest.approx(update(snippet, t), **TOLERANCE), t
    torch.testing.assert_close(parameters(ours), parameters(snippet), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(parameters(ours), parameters({"model": Model()}), atol=1e-3)  # it trained


@pytest.mark.parametrize(
    "title",
    ["NoamOpt", "Linear warmup, linear decay to zero", "Linear warmup, then flat", "A warmup for each parameter group"],
)
def test_the_snippet_and_our_line_train_the_same_parameters(title):
    snippet, ours, *_ = blocks(SECTIONS[title])
    compare(execute(snippet), execute(ours))


def test_adam_warmup_equals_the_snippet():
    compare(*map(execute, blocks(SECTIONS["An Adam with a built-in warmup"])))


@pytest.mark.parametrize("name", ["sgd", "sgdm", "nag", "adagrad", "rmsprop", "adadelta", "adam", "nadam", "adamw"])
def test_from_sgd_to_adamw(name, on_cpu):
    snippet, ours = (execute(block, name=name) for block in blocks(SECTIONS["From SGD to AdamW"]))
    scheduler = ours.pop("scheduler")
    assert len(scheduler.get_last_lr()) == 2  # the Trainer's decay groups
    for t in range(T):
        assert set(update(ours, t)) == set(update(snippet, t)) == {1e-2}
    torch.testing.assert_close(parameters(ours), parameters(snippet), rtol=1e-12, atol=1e-12)
    assert not torch.equal(parameters(ours), parameters({"model": Model()}))


def test_noam_saved_and_loaded_in_the_middle():
    snippet, ours = map(execute, blocks(SECTIONS["NoamOpt"]))
    for t in range(500):
        update(snippet, t)
        update(ours, t)
    fresh = execute(blocks(SECTIONS["NoamOpt"])[1])
    fresh["model"].load_state_dict(ours["model"].state_dict())
    for name in ("optimizer", "scheduler"):
        fresh[name].load_state_dict(through_file(ours[name].state_dict()))
    for t in range(500, T):
        assert update(fresh, t) == pytest.approx(update(snippet, t), **TOLERANCE)
    torch.testing.assert_close(parameters(fresh), parameters(snippet), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "title",
    [
        "Gradual warmup, then sine, then power decay",
        "Epochs of warmup before any torch scheduler",
        "Large batches",
    ],
)
def test_the_snippets_loop_and_our_line_give_the_same_lr(title):
    loop, ours, *_ = blocks(SECTIONS[title])
    expected = execute(loop)["learning_rates"]
    assert len(expected) >= T
    ours = execute(ours)
    for t, lr in enumerate(expected):
        (group,) = ours["optimizer"].param_groups
        assert group["lr"] == pytest.approx(lr, **TOLERANCE), t
        ours["optimizer"].step()
        ours["scheduler"].step()


def test_either_decay_alone_behind_the_warmup():
    from hf_warmup import get_schedule

    for name, decay in {"sine": torch.sin, "power": lambda lr: lr**1.0001}.items():
        schedule, lr = get_schedule(name, W, base_lr=0.1), torch.tensor(0.1, dtype=torch.float64)
        for step in range(T):
            lr = decay(lr) if step > W else lr
            assert 0.1 * schedule(step) == pytest.approx(min(1.0, (step + 1) / W) * lr.item(), rel=1e-12), (name, step)


def test_a_plateau_behind_epochs_of_warmup():
    ours = execute(blocks(SECTIONS["Epochs of warmup before any torch scheduler"])[2])
    twin = torch.optim.SGD(Model().parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(twin, factor=0.5, patience=3)
    for t in range(1, T + 1):
        expected = twin.param_groups[0]["lr"] * min(1.0, t / (5 * 12))
        assert ours["scheduler"].get_last_lr() == pytest.approx([expected], **TOLERANCE)
        ours["optimizer"].step()
        ours["scheduler"].step()
        if t % 12 == 0:  # a loss that falls for 8 epochs
            loss = max(0.2, 1 - t / 120)
            plateau.step(loss)
            ours["scheduler"].step(loss)
    assert twin.param_groups[0]["lr"] < 0.001


def test_layer_wise_learning_rates():
    layerwise = execute(blocks(SECTIONS["A warmup for each parameter group"])[2])
    for t in range(1, T + 1):
        factor = min(t / W, (W / t) ** 0.5)  # Noam's, peak 1
        assert update(layerwise, t) == pytest.approx([1e-3 * factor, 0.8e-3 * factor], **TOLERANCE)


def test_a_group_that_joins(monkeypatch):
    used = []
    step = torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        used.append([group["lr"] for group in self.param_groups])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    execute(blocks(SECTIONS["A warmup for each parameter group"])[3])
    assert len(used) == T
    for t, lrs in enumerate(used, 1):
        decay = (T - (t - 1)) / T
        expected = [1e-3 * min(1, t / W) * decay]
        if t > T // 4:
            expected.append(1e-4 * min(1, (t - T // 4) / W) * decay)
        assert lrs == pytest.approx(expected, **TOLERANCE), t


def digits_run(folder, updates, train_too=True):
    """The page's run on real images, shorter; its block's names."""
    block = blocks(SECTIONS["A low learning rate until the error falls"])[1]
    assert "max_steps=1000" in block
    block = block.replace("max_steps=1000", f"max_steps={updates}")
    return execute(block if train_too else block.replace("trainer.train()", ""), output_dir=str(folder))["trainer"]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # torch's, on a machine without a GPU
@pytest.mark.parametrize("updates", [140, pytest.param(T, marks=pytest.mark.slow)])
def test_a_low_lr_until_the_training_error_falls(tmp_path, monkeypatch, updates):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    history = digits_run(tmp_path, updates).state.log_history

    # He et al.'s rule, followed by the snippet on the errors that the run logged.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    rule = execute(blocks(SECTIONS["A low learning rate until the error falls"])[0])["adjust_learning_rate"]
    used, expected, switched = [], [], None
    for entry in history:
        if "loss" in entry:
            used.append(entry["learning_rate"])
            expected.append(optimizer.param_groups[0]["lr"])
        if "eval_train_error" in entry:
            rule(optimizer, entry["eval_train_error"])
            switched = switched or (entry["step"] if optimizer.param_groups[0]["lr"] == 0.1 else None)
    assert used == pytest.approx(expected, **TOLERANCE)
    assert len(used) == updates
    assert 20 <= switched < 100  # by the error, not by the cap
    assert [entry["eval_train_error"] for entry in history if "eval_train_error" in entry][-1] < 0.3  # it learned

    losses = column([entry for entry in history if "loss" in entry], "loss")
    for stop in (switched // 20 * 20 - 20 or 20, 120):  # before and after the change
        resumed = digits_run(tmp_path, updates, train_too=False)
        log = train(resumed, resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
        assert column(log, "learning_rate") == used
        assert column(log, "loss") == losses


def test_saving_and_resuming(tmp_path):
    (block,) = blocks(SECTIONS["Saving and resuming"])
    ours = execute(blocks(SECTIONS["A warmup for each parameter group"])[1])
    for t in range(5):
        update(ours, t)
    before = ours["scheduler"].get_last_lr()
    exec(compile(block, "recipes.md", "exec"), {**ours, "output_dir": str(tmp_path)})
    assert ours["scheduler"].get_last_lr() == before


def test_commands_run_and_print_what_the_page_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    commands = [command for block in blocks(PAGE, "bash") for command in block.replace("\\\n", " ").splitlines()]
    assert len(commands) >= 4
    outputs = []
    for command in commands:
        python, m, module, *flags = shlex.split(command)
        assert (python, m, module) == ("python", "-m", "hf_warmup.preview")
        preview.main(flags)
        outputs.append(capsys.readouterr().out)
    assert outputs[0].startswith(blocks(PAGE, "text")[0])
    drawn = {path.name for path in (tmp_path / "docs" / "images").iterdir()}
    assert drawn == {Path(link).name for link in re.findall(r"!\[.*?\]\((../images/.+?)\)", PAGE)}


def test_the_python_preview_and_the_flags_of_the_prose():
    block = blocks(SECTIONS["Look before you train"])[0]
    curves = execute(block)["preview"].curves
    assert [curve.label for curve in curves] == ["cosine, radam", "linear, radam"]
    prose = [
        flags for flags in re.findall(r"`(--[^`]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)) if " " in flags
    ]
    assert len(prose) >= 4
    for flags in prose:
        preview.main([*shlex.split(flags), "--num_training_steps", "900", "--num_train_epochs", "90"])


def test_constant_with_linear_warmup_equals_the_optimizer_step_override_of_lightning_users():
    ours = execute(
        "optimizer = SGD(model.parameters(), lr=0.3)\n"
        'scheduler = get_scheduler("constant", optimizer, 500, warmup_type="linear")'
    )
    for global_step in range(T):
        assert update(ours, global_step) == pytest.approx([0.3 * min(1.0, (global_step + 1) / 500)], **TOLERANCE)
