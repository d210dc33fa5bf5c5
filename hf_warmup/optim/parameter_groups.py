"""Parameter groups of an optimizer: where weight decay applies, and learning rates by name or by depth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .._validation import check_number, closest
from ..norms.grouping import find_stacks, layer_names


if TYPE_CHECKING:
    from torch import nn


def layer_depths(names: Iterable[str]) -> dict[str, int]:
    """Return the depth of each parameter: 0 for the embeddings, 1 to `n` for `n` blocks, `n + 1` for what follows.

    Everything before the first block belongs to the embeddings, and so does every module with "embed" in its name. Each
    stack of blocks, such as encoder and decoder, is counted on its own.

    Args:
        names (`Iterable[str]`): The names of all parameters of a model, in the order of the model.

    Raises:
        `ValueError`: If the model has no stack of numbered blocks.

    Example:

    ```python
    >>> layer_depths(["embeddings.weight", "encoder.layer.0.weight", "encoder.layer.1.weight", "classifier.weight"])
    {'embeddings.weight': 0, 'encoder.layer.0.weight': 1, 'encoder.layer.1.weight': 2, 'classifier.weight': 3}

    ```
    """
    layers = layer_names(names)
    stacks = find_stacks(dict.fromkeys(layers.values()))
    if not stacks:
        raise ValueError("layerwise_lr_decay needs a model with numbered blocks, but this one has none.")
    block_depths = {block: i for stack in stacks.values() for i, block in enumerate(stack, start=1)}
    head, depths, seen_block = max(block_depths.values()) + 1, dict[str, int](), False
    for name, layer in layers.items():
        seen_block = seen_block or layer in block_depths
        depths[name] = block_depths.get(layer, head if seen_block and "embed" not in layer else 0)
    return depths


def check_learning_rates(
    learning_rate_mapping: Mapping[str, float] | None = None, layerwise_lr_decay: float | None = None
) -> None:
    """Raise a `ValueError` for an invalid regular expression, a negative learning rate, or a factor outside (0, 1]."""
    for pattern, learning_rate in (learning_rate_mapping or {}).items():
        check_number(f"learning_rate_mapping[{pattern!r}]", learning_rate)
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"learning_rate_mapping: {pattern!r} is not a regular expression ({error}).") from None
    if layerwise_lr_decay is not None:
        check_number("layerwise_lr_decay", layerwise_lr_decay, 0.0, 1.0, open_low=True)


def learning_rates(
    names: Iterable[str],
    learning_rate: float,
    learning_rate_mapping: Mapping[str, float] | None = None,
    layerwise_lr_decay: float | None = None,
) -> dict[str, float]:
    """Return the learning rate of each parameter.

    A parameter at depth `d` of `n` blocks, see [`layer_depths`], gets `learning_rate * layerwise_lr_decay^(n + 1 - d)`.
    A parameter whose name contains a regular expression of `learning_rate_mapping` gets the learning rate of the last
    such expression.

    Args:
        names (`Iterable[str]`): The names of all parameters of a model, in the order of the model.
        learning_rate (`float`): At least 0.
        learning_rate_mapping (`Mapping[str, float]`, *optional*): Regular expression -> learning rate.
        layerwise_lr_decay (`float`, *optional*): In (0, 1].

    Returns:
        `dict[str, float]`: Parameter name -> learning rate.

    Raises:
        `ValueError`: If an expression matches no parameter, the model has no blocks for a layer-wise decay, or a value
            is invalid.

    Example:

    ```python
    >>> names = ["embeddings.weight", "layer.0.weight", "layer.1.weight", "classifier.weight"]
    >>> learning_rates(names, 0.8, {"classifier": 2.0}, layerwise_lr_decay=0.5)
    {'embeddings.weight': 0.1, 'layer.0.weight': 0.2, 'layer.1.weight': 0.4, 'classifier.weight': 2.0}

    ```
    """
    check_learning_rates(learning_rate_mapping, layerwise_lr_decay)
    rates = dict.fromkeys(names, learning_rate)
    if layerwise_lr_decay is not None:
        depths = layer_depths(rates)
        head = max(depths.values(), default=0)
        rates = {name: learning_rate * layerwise_lr_decay ** (head - depth) for name, depth in depths.items()}
    for pattern, rate in (learning_rate_mapping or {}).items():
        matching = [name for name in rates if re.search(pattern, name)]
        if not matching:
            close = closest(pattern, rates)
            hint = f" Did you mean {close!r}?" if close else ""
            raise ValueError(f"learning_rate_mapping: {pattern!r} matches no parameter of the model.{hint}")
        rates |= dict.fromkeys(matching, rate)
    return rates


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    learning_rate: float | None = None,
    learning_rate_mapping: Mapping[str, float] | None = None,
    layerwise_lr_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer; biases and normalization layers have no weight decay, as in transformers.

    Args:
        model (`nn.Module`): Its parameters that require a gradient are trained.
        weight_decay (`float`): At least 0.
        learning_rate (`float`, *optional*): Needed with one of the following two, as in [`learning_rates`].
        learning_rate_mapping (`Mapping[str, float]`, *optional*): Regular expression -> learning rate.
        layerwise_lr_decay (`float`, *optional*): In (0, 1].

    Returns:
        `list[dict]`: Without different learning rates the two groups of the Trainer; else two groups, with a key `lr`,
        for each learning rate, without those that are empty.
    """  # noqa: E501
    from transformers import Trainer

    # A method of the Trainer that uses nothing of the instance: its groups and these have to be the same.
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def split(names: Iterable[str], **options: float) -> list[dict[str, Any]]:
        names = list(names)
        return [
            {"params": [trained[name] for name in names if name in decayed], **options, "weight_decay": weight_decay},
            {"params": [trained[name] for name in names if name not in decayed], **options, "weight_decay": 0.0},
        ]

    if not learning_rate_mapping and layerwise_lr_decay is None:
        return split(trained)
    if learning_rate is None:
        raise ValueError("learning_rate=None: expected a number, since the parameter groups differ in it.")
    rates = learning_rates(
        (name for name, _ in model.named_parameters()), learning_rate, learning_rate_mapping, layerwise_lr_decay
    )
    by_rate: dict[float, list[str]] = {}
    for name in trained:
        by_rate.setdefault(rates[name], []).append(name)
    return [group for lr, names in by_rate.items() for group in split(names, lr=lr) if group["params"]]
