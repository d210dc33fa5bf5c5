"""Learning-rate schedules: functions `step -> multiplier of the base learning rate`.

`step` counts optimizer updates from 0 (the papers' `t` is `step + 1`), `W` is `num_warmup_steps`, `T` is
`num_training_steps`. A warmup ends at `W` and a decay begins there, so any warmup goes with any decay: the schedule is
their product. All are closed forms, finite and non-negative at every step. Bound with `functools.partial` they pickle
and survive a `weights_only` load. Only the schedulers of torch, in `schedulers.py`, import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .._validation import updates_of_share
from .composition import (
    METRIC_SCHEDULERS,
    TRANSFORMERS_SCHEDULES,
    Schedule,
    TransformersSchedule,
    check_length,
    check_schedule,
    find_schedule,
    find_warmup,
    get_schedule,
    join,
    multiply,
    plain_name,
    schedule_keywords,
    schedule_names,
)
from .curve import Curve
from .decays import DECAYS, NOAM_PEAK, exponential_decay, inverse_time_decay, noam_decay, power_decay, sine_decay
from .warmups import (
    WARMUPS,
    constant_warmup,
    cosine_warmup,
    exponential_warmup,
    linear_warmup,
    no_warmup,
    radam_warmup,
    untuned_exponential_warmup,
    untuned_linear_warmup,
)


if TYPE_CHECKING:
    from .schedulers import PlateauWithWarmupLR as PlateauWithWarmupLR
    from .schedulers import UpdateCounter as UpdateCounter
    from .schedulers import WarmupLR as WarmupLR
    from .schedulers import WithWarmupLR as WithWarmupLR
    from .schedulers import check_scheduler as check_scheduler
    from .schedulers import get_scheduler as get_scheduler
    from .schedulers import optimizer_warms_up as optimizer_warms_up
    from .schedulers import scheduler_warms_up as scheduler_warms_up
    from .schedulers import unwrap_optimizer as unwrap_optimizer
    from .schedulers import with_warmup as with_warmup

_OF_SCHEDULERS = (
    "PlateauWithWarmupLR",
    "UpdateCounter",
    "WarmupLR",
    "WithWarmupLR",
    "check_scheduler",
    "get_scheduler",
    "optimizer_warms_up",
    "scheduler_warms_up",
    "unwrap_optimizer",
    "with_warmup",
)

__all__ = [
    "DECAYS",
    "METRIC_SCHEDULERS",
    "NOAM_PEAK",
    "TRANSFORMERS_SCHEDULES",
    "WARMUPS",
    "Curve",
    "Schedule",
    "TransformersSchedule",
    "check_length",
    "check_schedule",
    "constant_warmup",
    "cosine_warmup",
    "exponential_decay",
    "exponential_warmup",
    "find_schedule",
    "find_warmup",
    "get_schedule",
    "inverse_time_decay",
    "join",
    "linear_warmup",
    "multiply",
    "no_warmup",
    "noam_decay",
    "plain_name",
    "power_decay",
    "radam_warmup",
    "schedule_keywords",
    "schedule_names",
    "sine_decay",
    "untuned_exponential_warmup",
    "untuned_linear_warmup",
    "updates_of_share",
    *_OF_SCHEDULERS,
]


def __getattr__(name: str) -> Any:
    if name not in _OF_SCHEDULERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".schedulers", __name__), name)
