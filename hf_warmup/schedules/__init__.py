"""Learning-rate schedules: functions `step -> multiplier of the base learning rate`.

`step` counts optimizer updates from 0 (the papers' `t` is `step + 1`), `W` is `num_warmup_steps`, `T` is
`num_training_steps`. A warmup ends at `W` and a decay begins there, so any warmup goes with any decay: the schedule is
their product. All are closed forms, finite and non-negative at every step. Bound with `functools.partial` they pickle
and survive a `weights_only` load. Only the schedulers of torch, in `schedulers.py`, import torch.
"""

from .._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
