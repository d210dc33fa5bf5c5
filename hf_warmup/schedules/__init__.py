"""Learning-rate schedules: functions `step -> multiplier of the base learning rate`.

`step` counts optimizer updates from 0 (the papers' `t` is `step + 1`), `W` is `num_warmup_steps`, `T` is
`num_training_steps`. A warmup ends at `W` and a decay begins there, so any warmup in front of any decay is their
product. All are closed forms, finite and non-negative at every step; bound with `functools.partial` they pickle and
survive a `weights_only` load.
"""

from .composition import (
    METRIC_SCHEDULERS,
    NAMES_WITHOUT_WARMUP,
    Schedule,
    check_length,
    check_schedule,
    get_schedule,
    host_scheduler_names,
    join,
    multiply,
    schedule_keywords,
)
from .decays import DECAYS, NOAM_PEAK, exponential_decay, inverse_time_decay, noam_decay, power_decay, sine_decay
from .schedulers import (
    WarmupLR,
    check_scheduler,
    get_scheduler,
    optimizer_warms_up,
    scheduler_warms_up,
    unwrap_optimizer,
    with_warmup,
)
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


__all__ = [
    "DECAYS",
    "METRIC_SCHEDULERS",
    "NAMES_WITHOUT_WARMUP",
    "NOAM_PEAK",
    "WARMUPS",
    "Schedule",
    "WarmupLR",
    "check_length",
    "check_schedule",
    "check_scheduler",
    "constant_warmup",
    "cosine_warmup",
    "exponential_decay",
    "exponential_warmup",
    "get_schedule",
    "get_scheduler",
    "host_scheduler_names",
    "inverse_time_decay",
    "join",
    "linear_warmup",
    "multiply",
    "no_warmup",
    "noam_decay",
    "optimizer_warms_up",
    "power_decay",
    "radam_warmup",
    "schedule_keywords",
    "scheduler_warms_up",
    "sine_decay",
    "untuned_exponential_warmup",
    "untuned_linear_warmup",
    "unwrap_optimizer",
    "with_warmup",
]
