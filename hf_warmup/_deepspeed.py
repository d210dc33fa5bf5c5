"""What DeepSpeed needs: a check of what its configuration would replace, and a way to its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def check_deepspeed_config(config: dict[str, Any], *, optimizer: str | None, scheduler: str | None) -> None:
    """Raise an error if a DeepSpeed configuration would silently replace the optimizer or the schedule.

    Args:
        config (`dict`): The configuration, as in its JSON file.
        optimizer (`str`, *optional*): The optimizer of this package that the user chose, for the message.
        scheduler (`str`, *optional*): The schedule of this package that the user chose, for the message.

    Raises:
        `ValueError`: If there is such a section, or an offload that swaps the optimizer.
    """
    for section, chosen in (("optimizer", optimizer), ("scheduler", scheduler)):
        if section in config and chosen:
            configured = config[section].get("type") if isinstance(config[section], dict) else config[section]
            raise ValueError(
                f"The DeepSpeed configuration has the {section} {configured!r}, which would replace {chosen}. "
                f'Remove its "{section}" section.'
            )
    offload = config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
    if optimizer and offload != "none" and config.get("zero_force_ds_cpu_optimizer", True):
        raise ValueError(
            f"offload_optimizer={offload!r} makes DeepSpeed replace {optimizer} by its own CPU Adam. Set "
            '"zero_force_ds_cpu_optimizer": false in its configuration.'
        )


def named_gradient_norms(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the gradient norm of each parameter. A sharded gradient is gathered, one at a time."""
    from deepspeed.utils import safe_get_full_grad

    for name, p in model.named_parameters():
        if p.requires_grad and (gradient := safe_get_full_grad(p)) is not None:
            yield name, gradient.float().norm()


@contextmanager
def before_engine_step(engine: Any, call: Callable[[], None]) -> Iterator[None]:
    """Run `call` when the gradients are reduced, and before DeepSpeed clips them, updates and frees them.

    Accelerate calls `engine.step` inside `backward`. It is wrapped on this one engine while the context is open.
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
            del engine.step  # uncover the method of the class
