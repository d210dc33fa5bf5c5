"""Transcriptions of the papers' optimizers for one tensor in float64.

Each function takes the initial value `p`, the gradients of updates 1, 2, ... and a learning rate (a number or a
function of t), and returns the parameter after each update.
"""

from decimal import Decimal, localcontext
from functools import cache

import numpy as np


@cache
def rectification(t, beta2):
    """`r_t` of Liu et al. 2020 in 50 decimal digits, 0 while `rho_t <= 5` (the authors' threshold)."""
    with localcontext() as context:
        context.prec = 50
        beta2 = Decimal(beta2)
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho <= 5:
            return 0.0
        return float(((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)).sqrt())


def radam(
    p,
    grads,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decoupled_weight_decay=True,
    degenerated_to_sgd=False,
):
    """Liu et al. 2020: Algorithm 2 (`degenerated_to_sgd`), or the authors' code, which waits until r_t is defined."""
    beta1, beta2 = betas
    m, v, path = np.zeros_like(p), np.zeros_like(p), []
    for t, g in enumerate(grads, 1):
        alpha = lr(t) if callable(lr) else lr
        if not decoupled_weight_decay:
            g = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        r = rectification(t, beta2)
        if decoupled_weight_decay and (r > 0 or degenerated_to_sgd):
            p = p - alpha * weight_decay * p
        if r > 0:
            p = p - alpha * r * m_hat * np.sqrt(1 - beta2**t) / (np.sqrt(v) + eps)
        elif degenerated_to_sgd:
            p = p - alpha * m_hat
        path.append(p)
    return path


def _adamw(p, grads, lr, betas, eps, weight_decay, v):
    """Loshchilov & Hutter 2019, Algorithm 2, with the initial second moment `v`."""
    beta1, beta2 = betas
    m, path = np.zeros_like(p), []
    for t, g in enumerate(grads, 1):
        alpha = lr(t) if callable(lr) else lr
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        p = p - alpha * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p)
        path.append(p)
    return path


def adam_warmup(p, grads, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, warmup_steps=0):
    """AdamW with the gradual warmup of Goyal et al. 2017."""

    def warm_lr(t):
        return (lr(t) if callable(lr) else lr) * (t / warmup_steps if t < warmup_steps else 1.0)

    return _adamw(p, grads, warm_lr, betas, eps, weight_decay, np.zeros_like(p))


def gi_adam(p, grads, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """Kalra & Barkeshli 2024: AdamW with `v_0 = g_1^2`, with bias correction."""
    return _adamw(p, grads, lr, betas, eps, weight_decay, grads[0] ** 2)
