"""DeepSpeed: what it would swap without a word, and where its gradients can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def check_deepspeed_config(config: dict[str, Any], *, optimizer: str | None, scheduler: str | None) -> None:
    """Refuse a DeepSpeed configuration that would replace our optimizer or schedule.

    Args:
        config (`dict`): The configuration, as JSON has it.
        optimizer (`str`, *optional*): What the user asked us for; `None` if it is not ours.
        scheduler (`str`, *optional*): The same.

    Raises:
        `ValueError`: With the section to remove or the switch to set.
    """
    for section, asked in (("optimizer", optimizer), ("scheduler", scheduler)):
        if section in config and asked:
            theirs = config[section].get("type") if isinstance(config[section], dict) else config[section]
            raise ValueError(
                f"The DeepSpeed configuration has the {section} {theirs!r}, which would replace {asked}: "
                f'remove its "{section}" section.'
            )
    offload = config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
    if optimizer and offload != "none" and config.get("zero_force_ds_cpu_optimizer", True):
        raise ValueError(
            f"offload_optimizer={offload!r} makes DeepSpeed replace {optimizer} by its own CPU Adam: set "
            '"zero_force_ds_cpu_optimizer": false in its configuration.'
        )


def named_gradient_norms(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The L2 norm of each parameter's whole gradient, one at a time: sharded gradients are gathered for it."""
    from deepspeed.utils import safe_get_full_grad

    for name, p in model.named_parameters():
        if p.requires_grad and (gradient := safe_get_full_grad(p)) is not None:
            yield name, gradient.float().norm()


@contextmanager
def before_engine_step(engine: Any, call: Callable[[], None]) -> Iterator[None]:
    """`call` after the backward pass and its reductions, before DeepSpeed clips, steps and forgets the gradients.

    Accelerate runs `engine.step` inside `backward`, so it is wrapped on this one engine, for as long as the context.
    """
    step, on_instance = engine.step, "step" in vars(engine)

    def call_and_step(*args: Any, **kwargs: Any) -> Any:
        if engine.is_gradient_accumulation_boundary():
            call()
        return step(*args, **kwargs)

    engine.step = call_and_step
    try:
        yield
    finally:
        if on_instance:
            engine.step = step
        else:
            del engine.step  # the class's own is there again
