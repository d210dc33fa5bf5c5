"""Act on the rules while a run trains: warn, stop, or rewind and warm up longer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback

from .._logging import get_logger
from .._validation import check_name, check_number
from ..norms import GradientNormRecorder, growing_stacks
from ..norms.measure import local_shard
from ..optim import AdamFamily, AdamWarmup
from ..report.findings import Finding, apply
from ..report.run import LOG_PREFIX, UPDATE_PREFIXES
from ..schedules import WithWarmupLR, linear_warmup, no_warmup, unwrap_optimizer
from .rules import DANGER_RATIO, RULES, Records, smooth


logger = get_logger(__name__)

ACTIONS = ("warn", "stop", "rewind")
GUARD_FILE = "warmup_guard.pt"  # in a checkpoint
SHARD_FILE = "warmup_guard_shard-{}-of-{}.pt"  # the snapshot of a sharded model, one for each process
FIRST_WARMUP = 25  # updates of warmup after the first rewind of a run that had none
KEPT_ROWS = 128  # records that rules look back on; 32 of them are saved in a checkpoint, more than acting rules need
KEPT_LOSSES = 64  # losses that are kept until they are counted together
# A snapshot is taken only while the last/first-block ratio is below a third of the limit; runs that learned stay below.
SOUND_RATIO = DANGER_RATIO / 3


class RestartedWarmup:
    """A multiplier of the learning rate that is 1 until the run is rewound, and then a linear warmup from there.

    It is divided by `own`, the warmup of the schedule that it multiplies, so that the two ramps are not multiplied.
    """

    def __init__(self, own: Callable[[int], float] = no_warmup) -> None:
        self.own = own
        self.start = self.length = 0

    def __call__(self, step: int) -> float:
        """Return the multiplier at the 0-based `step`."""
        if not self.length or step < self.start:
            return 1.0
        return linear_warmup(step - self.start, num_warmup_steps=self.length) / (self.own(step) or 1.0)

    def state_dict(self) -> dict[str, int]:
        return {"start": self.start, "length": self.length}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        self.start, self.length = state_dict["start"], state_dict["length"]


def _own_warmup(lr_scheduler: Any, group: int) -> tuple[Callable[[int], float], int]:
    """Return the warmup of a scheduler without its decay, and its length in updates; no warmup if that is unknown."""
    curves = getattr(lr_scheduler, "warmups", None) or getattr(lr_scheduler, "lr_lambdas", None)
    curve = curves[group] if curves else no_warmup
    parts = getattr(curve, "keywords", {}).get("schedules")
    warmup, length = parts[0] if parts else curve, _bound_length(parts[0] if parts else curve)
    peak = warmup(length)
    if parts or hasattr(lr_scheduler, "warmups"):  # a warmup times a decay
        return warmup, length
    return lambda step: warmup(step) / peak if step < length and peak else 1.0, length


def _bound_length(curve: Any) -> int:
    """Return the warmup length that is bound to a curve, or 0 if the curve does not show one."""
    keywords = getattr(curve, "keywords", {})
    beta2, inner = keywords.get("beta2", 0), keywords.get("curve")
    own = keywords.get("num_warmup_steps") or (round(2 / (1 - beta2)) if beta2 else 0)
    return int(own or (_bound_length(inner) if inner else 0))


def check_guard(args: Any, optimizer: Optimizer | None, lr_scheduler: LRScheduler | None) -> None:
    """Raise a `ValueError` if a run with these training arguments cannot be rewound.

    Args:
        args ([`WarmupTrainingArguments`]): The arguments of the run.
        optimizer (`Optimizer`, *optional*): The optimizer that was passed via `optimizers=`.
        lr_scheduler (`LRScheduler`, *optional*): The scheduler that was passed via `optimizers=`.
    """
    if args.guard_action == "rewind" and args.deepspeed_plugin is not None:
        raise ValueError(_NOT_RESTORABLE.format("a DeepSpeed optimizer, which keeps its state itself"))
    own = lr_scheduler or (optimizer if isinstance(optimizer, AdamWarmup) else None)
    if args.warmup_type == "auto" and own is not None:
        raise ValueError(
            f"warmup_type='auto' chooses the warmup, and {type(own).__name__}, which has its own, was passed via "
            "`optimizers=`. Use guard='rewind' with it, or leave it out."
        )


_NOT_RESTORABLE = "guard='rewind' cannot restore {}. Use guard='stop', and a warmup in place of 'auto'."


def _check_restorable(model: nn.Module, optimizer: Any) -> None:
    """Raise a `ValueError` for parameters or optimizers that a snapshot cannot restore."""
    if type(model).__module__.startswith("deepspeed"):
        raise ValueError(_NOT_RESTORABLE.format("a DeepSpeed optimizer, which keeps its state itself"))
    if any(p.is_meta for p in model.parameters()):
        raise ValueError(_NOT_RESTORABLE.format("parameters that are offloaded"))
    if hasattr(optimizer, "optimizer_dict") or type(optimizer).__module__.startswith("lomo_optim"):
        raise ValueError(_NOT_RESTORABLE.format("a layer-wise optimizer, which steps in the backward pass"))


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return local_shard(value.detach()).clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return deepcopy(value)


def _restored(saved: Any, present: Any) -> Any:
    """Return a value of the optimizer's state, written into the tensor `present` where there is one."""
    if isinstance(saved, Tensor) and isinstance(present, Tensor) and saved.shape == local_shard(present).shape:
        local_shard(present).copy_(saved)
        return present
    return _copy(saved)


@dataclass
class Snapshot:
    """A copy of everything that an update changes: trained parameters, buffers, and the optimizer's state.

    It lies on the parameters' device and takes the memory of the trained parameters, and after the first update that of
    the optimizer's state as well. Of a sharded model each process copies its own shards.
    """

    step: int
    params: list[list[Tensor]]
    state: list[list[dict[str, Any]]]
    groups: list[dict[str, Any]]
    buffers: dict[str, Tensor]
    is_sharded: bool = False  # whether other processes hold other parts

    @classmethod
    def take(cls, step: int, model: nn.Module, optimizer: Optimizer) -> Snapshot:
        """Copy the state after `step` updates."""
        _confirm_updates(optimizer)
        groups = optimizer.param_groups
        return cls(
            step,
            params=[[_copy(p) for p in group["params"]] for group in groups],
            state=[[_copy(dict(optimizer.state.get(p, {}))) for p in group["params"]] for group in groups],
            groups=[_copy(_options(group)) for group in groups],
            buffers={name: _copy(buffer) for name, buffer in model.named_buffers()},
            is_sharded=any(isinstance(p, DTensor) for group in groups for p in group["params"]),
        )

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Restore parameters, buffers and the optimizer's state, bit for bit. Learning rates stay as they are.

        A parameter that joined the run after the snapshot keeps its value.
        """
        _confirm_updates(optimizer)
        kept = zip(optimizer.param_groups, self.params, self.state, self.groups, strict=False)
        for group, params, states, options in kept:
            group.update(_copy(options))
            for p, saved, saved_state in zip(group["params"], params, states, strict=False):
                local_shard(p).copy_(saved)
                present = optimizer.state.pop(p, {})
                if saved_state:
                    optimizer.state[p] = {key: _restored(v, present.get(key)) for key, v in saved_state.items()}
        for name, buffer in model.named_buffers():
            if name in self.buffers:
                local_shard(buffer).copy_(self.buffers[name])


def _shard_file() -> str:
    return SHARD_FILE.format(*(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1))


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a parameter group that an optimizer may change, without the schedule's learning rate."""
    return {key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")}


def _confirm_updates(optimizer: Optimizer) -> None:
    if isinstance(optimizer, AdamFamily):
        optimizer.confirm_updates()


class WarmupGuard(TrainerCallback):
    """Judge a run while it trains by the rules of `hf_warmup.guard.rules`, and act.

    Every `check_steps` updates the recorded norms are fetched and the rules are checked. `"warn"` logs a finding at the
    update at which it is found, once per kind. `"stop"` ends training without saving a checkpoint. `"rewind"` restores
    the last sound snapshot, continues with the next batches, and warms up linearly again, for twice as many updates as
    before and at least 25. This warmup multiplies the schedule, whose decay and number of updates are not moved. With
    both, an update whose gradient is not finite is skipped.

    [`WarmupTrainer`] adds a guard by itself, see `--guard`. A loop calls `wrap_scheduler`, `start`, `before_step` and
    `after_step`.

    Args:
        action (`str`, defaults to `"warn"`): `"warn"`, `"stop"` or `"rewind"`.
        recorder ([`GradientNormRecorder`], *optional*): The recorder of the run. Without one only the loss is judged.
        max_rewinds (`int`, defaults to 5): Rewinds after which the run is stopped instead.
        check_steps (`int`, defaults to 5): Updates between two checks.
        snapshot_steps (`int`, defaults to 500): Updates between two snapshots, which are taken of a sound run only. The
            first is taken before training.
        num_warmup_steps (`int`, defaults to 0): Updates of warmup that the run has to begin with.

    Raises:
        `ValueError`: If an argument is invalid.

    Example:

    ```py
    guard = WarmupGuard("rewind", recorder, num_warmup_steps=100)
    scheduler = guard.wrap_scheduler(scheduler)
    guard.start(model, optimizer, scheduler)
    for step, batch in enumerate(loader, start=1):
        with record_gradient_norms(recorder, accelerator, model, step):
            accelerator.backward(model(**batch).loss)
        guard.before_step(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if guard.after_step(step):
            break
    ```
    """

    def __init__(
        self,
        action: str = "warn",
        recorder: GradientNormRecorder | None = None,
        *,
        max_rewinds: int = 5,
        check_steps: int = 5,
        snapshot_steps: int = 500,
        num_warmup_steps: int = 0,
    ):
        self.action = check_name("guard", action, ACTIONS)
        self.max_rewinds = check_number("max_rewinds", max_rewinds, integer=True)
        self.check_steps = check_number("check_steps", check_steps, 1, integer=True)
        self.snapshot_steps = check_number("snapshot_steps", snapshot_steps, 1, integer=True)
        self._first_length = check_number("num_warmup_steps", num_warmup_steps, integer=True)
        self.num_warmup_steps = self._first_length
        self.recorder = recorder
        if recorder is not None:
            recorder.listener = self._add_rows
        self.log: Callable[[dict[str, float]], None] = lambda logs: None
        self.checkpoint: str | None = None  # that training resumes from
        self._warmups: list[RestartedWarmup] = []
        self._reset()

    def _reset(self) -> None:
        self.rewinds: list[dict[str, int]] = []
        self.stopped_by: Finding | None = None
        self.snapshot: Snapshot | None = None
        self.settings: dict[str, Any] = {}
        self.num_training_steps: int | None = None
        self._rows: list[dict[str, Any]] = []
        self._log: dict[str, tuple[list[int], list[float]]] = {}
        self._told: set[str] = set()
        self._judged = 0  # the last update at which the rules were checked
        self._losses: list[Tensor] = []
        self._nonfinite_losses: Tensor | None = None

    # Called by a loop, and by the events of a Trainer below

    def wrap_scheduler(self, lr_scheduler: LRScheduler) -> LRScheduler:
        """Return `lr_scheduler` multiplied by the warmup that a rewind starts; other guards return it unchanged."""
        outer, inner = _unwrap_scheduler(lr_scheduler)
        warmups = getattr(inner, "warmups", ())
        if self.action != "rewind" or any(isinstance(each, RestartedWarmup) for each in warmups):
            return lr_scheduler
        follows_metric = hasattr(getattr(inner, "lr_scheduler", inner), "num_bad_epochs")
        if follows_metric or any(hasattr(each, "state_dict") for each in warmups):
            raise ValueError(
                "guard='rewind' restarts the warmup of a schedule that follows the number of updates, and this one "
                "follows a metric. Use guard='stop' or another schedule."
            )
        own = [_own_warmup(inner, i) for i in range(len(inner.optimizer.param_groups))]
        self.num_warmup_steps = max([self._first_length, *(length for _, length in own)])
        self._warmups = [RestartedWarmup(warmup) for warmup, _ in own]
        wrapped = WithWarmupLR(inner, self._warmups)
        if outer is None:
            return wrapped
        setattr(*outer, wrapped)  # Accelerate's wrapper, or that of `per_update`, stays outside
        return lr_scheduler

    def start(self, model: nn.Module, optimizer: Any, lr_scheduler: Any, step: int = 0) -> None:
        """Take the first snapshot, after `step` updates.

        Raises:
            `ValueError`: If `action` is `rewind` and the run cannot be rewound.
        """
        self._model = model
        self._optimizer: Any = unwrap_optimizer(optimizer)  # `found_inf` is an attribute that kernels read
        self._scheduler = _unwrap_scheduler(lr_scheduler)[1]
        if self.action != "rewind":
            return
        if not any(isinstance(each, RestartedWarmup) for each in getattr(self._scheduler, "warmups", ())):
            raise ValueError(
                "guard='rewind' restarts the warmup, and the scheduler was not passed through the guard. Use the one "
                "that `guard.wrap_scheduler(lr_scheduler)` returns."
            )
        _check_restorable(model, self._optimizer)
        if not self.rewinds:  # the length of a warmup that the optimizer has
            lengths = [int(group.get("warmup_steps") or 0) for group in self._optimizer.param_groups]
            self.num_warmup_steps = max([self.num_warmup_steps, *lengths])
        if self.snapshot is None:
            self._take_snapshot(step)

    def count_loss(self, loss: Tensor) -> None:
        """Count a loss that is not finite, on its device; the Trainer replaces such a loss before it is logged."""
        self._losses.append(loss.detach())
        if len(self._losses) == KEPT_LOSSES:
            self._count_losses()

    def _count_losses(self) -> None:
        bad = (~torch.isfinite(torch.stack([loss.float() for loss in self._losses]))).sum()
        self._nonfinite_losses = bad if self._nonfinite_losses is None else self._nonfinite_losses + bad
        self._losses.clear()

    def take_nonfinite_losses(self) -> int:
        """Return how many losses of this process were not finite since the last call."""
        if self._losses:
            self._count_losses()
        count, self._nonfinite_losses = self._nonfinite_losses, None
        return 0 if count is None else int(count)

    def before_step(self, step: int) -> None:
        """Skip update `step` if its gradient is not finite: its parameters, moments and counts stay as they are.

        torch's fused Adam and AdamW and the optimizers of hf_warmup decide on the device. With other optimizers the CPU
        waits for one number per update. An fp16 loss scaler skips such updates itself; do not call this method with
        one.
        """
        if self.action == "warn":
            return
        optimizer = self._optimizer
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = None if self.recorder is None else self.recorder.norms_on_device(step)
        if norms is None:
            grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in params]
            norms = torch.nn.utils.get_total_norm(grads)
            norms = norms.full_tensor() if isinstance(norms, DTensor) else norms
        finite = torch.isfinite(norms).all()
        fused_adam = isinstance(optimizer, torch.optim.Adam) and all(group["fused"] for group in optimizer.param_groups)
        if fused_adam or isinstance(optimizer, AdamFamily):
            optimizer.found_inf = (~finite).float()
        elif not finite:
            for p in params:
                p.grad = None

    def after_step(self, step: int) -> bool:
        """Check the rules after update `step`, and act.

        Returns:
            `bool`: Whether training should stop.
        """
        with suppress(AttributeError):
            del self._optimizer.found_inf
        if step % self.check_steps:
            return False
        if self.recorder is not None:
            self.recorder.flush()
        try:
            return self._check(step)
        except Exception:  # a guard that cannot judge or act does not end the run
            if "broken" not in self._told:
                logger.exception(f"The guard could not check the rules or act at update {step}. Training continues.")
            self._told.add("broken")
            return False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to decide as this one: recent records, rewinds and the snapshot.

        The snapshot of a sharded model is left out, because each process has another part of it.
        """
        state = {
            "rewinds": self.rewinds,
            "num_warmup_steps": self.num_warmup_steps,
            "rows": self._rows[:1] + self._rows[1:][-31:],
            "told": sorted(self._told),
        }
        if self.snapshot is not None and not self.snapshot.is_sharded:
            state["snapshot"] = vars(self.snapshot)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.rewinds = list(state_dict["rewinds"])
        self.num_warmup_steps = state_dict["num_warmup_steps"]
        self._rows, self._told = list(state_dict["rows"]), set(state_dict["told"])
        if "snapshot" in state_dict and self.action == "rewind":
            self.snapshot = Snapshot(**state_dict["snapshot"])

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint. Every process calls this method."""
        if self._is_main:
            torch.save(self.state_dict(), folder / GUARD_FILE)
        if self.snapshot is not None and self.snapshot.is_sharded:
            torch.save(vars(self.snapshot), folder / _shard_file())

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint, if it has the state of a guard."""
        if (folder / GUARD_FILE).is_file():
            self.load_state_dict(torch.load(folder / GUARD_FILE, map_location="cpu", weights_only=True))
            shard = folder / _shard_file()  # of another number of processes there is none: `start` takes a new snapshot
            if shard.is_file() and self.action == "rewind":
                self.snapshot = Snapshot(**torch.load(shard, map_location="cpu", weights_only=True))

    # Judging

    def _add_rows(self, rows: list[dict[str, Any]]) -> None:
        self._rows += rows
        self._rows[1:-KEPT_ROWS] = []  # the first record shows whether a ratio is high by design

    def _records(self, step: int) -> Records:
        keys = dict.fromkeys(key for row in self._rows for key in row if key.startswith(LOG_PREFIX))
        norms = {key: [nan if row.get(key) is None else row[key] for row in self._rows] for key in keys}
        steps, total = [row["step"] for row in self._rows], norms.pop(LOG_PREFIX, None)
        return Records(
            steps=steps,
            norms={key.removeprefix(f"{LOG_PREFIX}/"): column for key, column in norms.items()},
            nonfinite={row["step"]: row["nonfinite"] for row in self._rows if row.get("nonfinite")},
            log=self._log if total is None else self._log | {LOG_PREFIX: (steps, total)},
            settings=self.settings,
            num_training_steps=self.num_training_steps,
            updates=step,
            start=self._start,
            judged=self._judged,
        )

    @property
    def _start(self) -> int:
        """The update after which the run was rewound last."""
        return self.rewinds[-1]["step"] if self.rewinds else 0

    def _is_sound(self, records: Records) -> bool:
        if self.action != "rewind" or any(
            self._scheduler.last_epoch < each.start + each.length for each in self._warmups
        ):
            return False
        latest = [ratios[0] > DANGER_RATIO or smooth(ratios)[-1] < SOUND_RATIO for _, ratios in records.ratios.values()]
        return all(latest) and not any(step in records.nonfinite for step in records.steps[-self.check_steps :])

    @property
    def _is_main(self) -> bool:
        return not dist.is_initialized() or dist.get_rank() == 0

    # Acting

    def _check(self, step: int) -> bool:
        """Check the rules and act; return whether training should stop."""
        records = self._records(step)
        if self._rows and not records.ratios:
            self._tell_without_blocks()
        found = apply(_LIVE, records)
        self._judged = step
        can_act = self.action == "stop" or self.snapshot is not None
        acting = next((finding for finding in found if finding.rule in _ACTING), None)
        for finding in found:
            if finding is not acting or not can_act:
                self._tell(finding, step)
        if acting is None and step % self.snapshot_steps == 0 and self._is_sound(records):
            self._take_snapshot(step)
        if acting is None or not can_act:
            return False
        if self.action == "rewind" and len(self.rewinds) < self.max_rewinds:
            self._rewind(step, acting)
            return False
        self._stop(step, acting)
        return True

    def _take_snapshot(self, step: int) -> None:
        try:
            self.snapshot = Snapshot.take(step, self._model, self._optimizer)
        except Exception as error:  # most likely, there is no memory for it
            logger.warning(
                f"No snapshot could be taken at update {step}. The guard continues with "
                f"{'the one of update ' + str(self.snapshot.step) if self.snapshot else 'warnings only'}. "
                f"The error was {type(error).__name__}: {error}"
            )

    def _tell(self, finding: Finding, step: int, what: str = "") -> None:
        """Log a finding, once per rule, and send it as an alert of the trackers."""
        is_new = what or finding.rule not in self._told
        self._told.add(finding.rule)
        if not is_new or not self._is_main:
            return
        text = f"Update {step}: {finding.sentence} {what or finding.advice}"
        logger.warning(text)
        for name, run_in_progress in _TRACKER_RUNS.items():
            try:
                tracker: Any = sys.modules.get(name)
                if tracker and (run := run_in_progress(tracker)) is not None:
                    run.alert(title=f"{finding.rule} at update {step}", text=text, level=tracker.AlertLevel.WARN)
            except Exception as error:  # an alert that fails does not end the run
                logger.warning(f"{name} did not take the alert of update {step}: {type(error).__name__}: {error}")

    def _tell_without_blocks(self) -> None:
        if "blocks" not in self._told and self._is_main:
            unchecked, checked = (
                ", ".join(rule.name for rule in _LIVE if ("blocks" in rule.needs) is needed) for needed in (True, False)
            )
            (logger.info if self.action == "warn" else logger.warning)(
                "The recorded layers have no stack of numbered blocks, so the guard cannot check the rule "
                f"{unchecked}. It checks {checked}."
            )
        self._told.add("blocks")

    def _rewind(self, step: int, finding: Finding) -> None:
        assert self.snapshot is not None
        length = max(FIRST_WARMUP, 2 * self.num_warmup_steps)
        self.snapshot.restore(self._model, self._optimizer)
        for group in self._optimizer.param_groups:
            if group.get("warmup_steps"):
                group["warmup_steps"] = 1  # the new warmup replaces the optimizer's own
        for warmup in self._warmups:
            warmup.start, warmup.length = self._scheduler.last_epoch, length
        self._scheduler.refresh()
        self.num_warmup_steps = length
        self.rewinds.append({"step": step, "to": self.snapshot.step, "warmup_steps": length})
        self._rows.clear()
        self._log.clear()
        note = {"rewound_to": self.snapshot.step, "rewound_warmup_steps": length}
        if self.recorder is not None:
            self.recorder.write([{"step": step, **note}])
        self.log(note)
        self._tell(
            finding, step,
            f"Rewound to update {self.snapshot.step} (rewind {len(self.rewinds)} of at most {self.max_rewinds}); the "
            f"next {length} updates are a warmup.",
        )  # fmt: skip

    def _stop(self, step: int, finding: Finding) -> None:
        self.stopped_by = finding
        advice = finding.advice
        if count := len(self.rewinds):
            advice = (
                f"{count} rewind{'s' if count > 1 else ''} and a warmup of {self.num_warmup_steps} updates did not "
                "help: lower the learning rate, use RAdam, or a Pre-LN model where there is one."
            )
        self._tell(finding, step, f"Training stops here and saves no checkpoint. {advice}")

    # Events of a Trainer

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """Read the settings and, in a resumed run, the state in the checkpoint."""
        self._reset()
        config: Any = getattr(model, "config", None)
        self.settings = (config.to_dict() if hasattr(config, "to_dict") else {}) | args.to_dict()
        if model is not None:
            self.settings["growing_stacks"] = growing_stacks({name: p.shape for name, p in model.named_parameters()})
        self.num_training_steps = state.max_steps
        if hasattr(args, "get_warmup_steps"):
            self.settings["num_warmup_steps"] = args.get_warmup_steps(state.max_steps)
        if state.global_step and self.checkpoint:
            self.load(Path(self.checkpoint))
            for entry in state.log_history:
                self._add_logs(entry, entry["step"])
        self.start(model, optimizer, lr_scheduler, state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Skip an update whose gradient is not finite."""
        if not args.fp16:
            self.before_step(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the rules, and act."""
        should_log, rewinds = control.should_log, len(self.rewinds)
        if self.after_step(state.global_step):
            control.should_training_stop = True
        if len(self.rewinds) > rewinds and (state.best_global_step or 0) > self.rewinds[-1]["to"]:
            # The best model is not looked for among the weights that were given up.
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None
        control.should_log = should_log  # the log of a rewind does not replace the log of the loss
        self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save no checkpoint of a run that was stopped."""
        if self.stopped_by is not None:
            control.should_save = control.should_evaluate = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep what was logged for the rules about the loss."""
        self._add_logs(logs, state.global_step)

    def _add_logs(self, logs: Mapping[str, Any], step: int) -> None:
        for key, value in logs.items() if step > self._start else ():
            if isinstance(value, (int, float)) and key != "step" and not key.startswith(_NORMS):
                steps, values = self._log.setdefault(key, ([], []))
                steps.append(step)
                values.append(float(value))
                del steps[: -2 * KEPT_ROWS], values[: -2 * KEPT_ROWS]


def _unwrap_scheduler(lr_scheduler: Any) -> tuple[tuple[Any, str] | None, Any]:
    """Return who holds the scheduler, if it is wrapped by Accelerate or by `per_update`, and the scheduler itself."""
    outer = None
    while not isinstance(lr_scheduler, WithWarmupLR):
        name = next((each for each in ("scheduler", "lr_scheduler") if hasattr(lr_scheduler, each)), None)
        if name is None:
            break
        outer, lr_scheduler = (lr_scheduler, name), getattr(lr_scheduler, name)
    return outer, lr_scheduler


# The trackers that have alerts, and where each keeps its run.
_TRACKER_RUNS: dict[str, Callable[[Any], Any]] = {
    "trackio": lambda trackio: trackio.context_vars.current_run.get(),
    "wandb": lambda wandb: wandb.run,
}
_NORMS = (LOG_PREFIX, *UPDATE_PREFIXES)
_LIVE = [rule for rule in RULES if rule.live]
_ACTING = {rule.name for rule in RULES if rule.acts}
