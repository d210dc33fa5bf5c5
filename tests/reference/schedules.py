"""Learning-rate schedules as in their papers; `t` counts updates from 1."""

import math

from .optimizers import rectification


# Multiplier at update t; W is the number of warmup updates.
WARMUPS = {
    "none": lambda t, W, beta2: 1.0,
    "linear": lambda t, W, beta2: t / W if t < W else 1.0,  # Goyal et al. 2017
    "constant": lambda t, W, beta2: 0.1 if t <= W else 1.0,  # He et al. 2015
    "cosine": lambda t, W, beta2: (1 - math.cos(math.pi * t / W)) / 2 if t < W else 1.0,
    "exponential": lambda t, W, beta2: 1 - math.exp(-t / W) if W else 1.0,  # Ma & Yarats 2019
    "untuned_exponential": lambda t, W, beta2: 1 - math.exp(-(1 - beta2) * t),
    "untuned_linear": lambda t, W, beta2: min(1.0, (1 - beta2) * t / 2),
    "radam": lambda t, W, beta2: rectification(t, beta2),  # Liu et al. 2020
}


def noam(t, W, d_model):
    """Return the multiplier of Vaswani et al. 2017, section 5.3."""
    return d_model**-0.5 * min(t**-0.5, t * W**-1.5)


def iterate(update, lr, n):
    """Return `[lr, update(lr), update(update(lr)), ...]`, the learning rates of updates 1 to n."""
    lrs = [lr]
    while len(lrs) < n:
        lrs.append(update(lrs[-1]))
    return lrs


# name -> (keywords, the recursion whose closed form the schedule is)
RECURSIONS = {
    "sine": ({}, math.sin),
    "power": ({"power": 1.0001}, lambda lr: lr**1.0001),
    "exponential": ({"gamma": 0.99}, lambda lr: 0.99 * lr),
}
