"""Which settings runs share and in which they differ."""

from __future__ import annotations

from collections.abc import Sequence

from .reading import Run


# What every run has and no reader compares.
_NO_SETTINGS = {
    "output_dir", "logging_dir", "run_name", "seed", "data_seed", "local_rank", "_name_or_path", "architectures",
    "transformers_version", "project", "trackio_space_id", "hub_model_id", "num_training_steps",
}  # fmt: skip
MAIN_SETTINGS = (
    "model_type", "norm_placement", "num_hidden_layers", "hidden_size", "optim", "optim_args", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_type", "warmup_steps", "num_warmup_steps", "max_steps",
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16",
)  # fmt: skip


def known_settings(run: Run) -> dict[str, str]:
    """Settings as text; lists and tables have no place in a cell, and the resolved warmup's length stands for both."""
    resolved = {"warmup_steps", "warmup_epochs"} if "num_warmup_steps" in run.settings else set()
    return {
        key: f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in run.settings.items()
        if key not in _NO_SETTINGS | resolved and not isinstance(value, (list, dict))
    }


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Names of the settings in which runs that know them differ, the main ones first."""
    known = [known_settings(run) for run in runs]
    names = dict.fromkeys(key for settings in known for key in (*MAIN_SETTINGS, *sorted(settings)))
    return [key for key in names if len({settings[key] for settings in known if key in settings}) > 1]


def shared_settings(runs: Sequence[Run]) -> dict[str, str]:
    """The main settings that every run which knows them has."""
    found = {key: {known_settings(run)[key] for run in runs if key in known_settings(run)} for key in MAIN_SETTINGS}
    return {key: min(values) for key, values in found.items() if len(values) == 1 and values != {"None"}}
