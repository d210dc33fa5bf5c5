"""Warmup curves: functions `step -> multiplier in [0, 1]` that reach or approach 1."""

from math import expm1, log, pi, sin, sqrt

from .curve import BETA2, COUNT, SHARE, Curve, Number


# The authors' code and torch both rectify above 5. The paper's text says 4, which is one update earlier.
RECTIFICATION_THRESHOLD = 5.0


def rho_inf(beta2: float) -> float:
    """Return `2 / (1 - beta2) - 1`, the length of the simple moving average that is equivalent to an exponential one.

    Example:

    ```python
    >>> round(rho_inf(0.999))
    1999

    ```
    """
    return 2.0 / (1.0 - beta2) - 1.0


def rho_t(t: int, beta2: float) -> float:
    """Return the equivalent length after `t` updates (counted from 1): `rho_inf - 2 t beta2^t / (1 - beta2^t)`.

    Example:

    ```python
    >>> [round(rho_t(t, 0.999), 3) for t in (1, 2, 6)]
    [1.0, 1.999, 5.994]

    ```
    """
    if beta2 == 0.0:
        return 1.0
    log_power = t * log(beta2)  # beta2^t, kept as a logarithm so that 1 - beta2^t does not cancel
    return rho_inf(beta2) + 2.0 * t * (1.0 + 1.0 / expm1(log_power))


def r_t(t: int, beta2: float) -> float:
    """Return RAdam's variance rectification of update `t` (counted from 1), in [0, 1].

    `sqrt((rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t))` if `rho_t > 5`, which first holds at
    update 6 for every beta2 in [0.9, 0.9999]. It is 0 before, where the variance is intractable. The paper: Liu et al.
    2020, https://arxiv.org/abs/1908.03265, section 4.

    Example:

    ```python
    >>> [round(r_t(t, 0.999), 4) for t in (5, 6, 10, 1000)]
    [0.0, 0.0258, 0.049, 0.6453]

    ```
    """
    rho, limit = rho_t(t, beta2), rho_inf(beta2)
    if rho <= RECTIFICATION_THRESHOLD:
        return 0.0
    return sqrt((rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho))


def no_warmup(step: int) -> float:
    """Return 1: the full learning rate from the first update.

    Example:

    ```python
    >>> no_warmup(0)
    1.0

    ```
    """
    return 1.0


def linear_warmup(step: int, *, num_warmup_steps: int, warmup_factor: float = 0.0) -> float:
    """Return `f + (1 - f) min(1, t / W)` with `t = step + 1`: the gradual warmup of Goyal et al. 2017.

    The paper: https://arxiv.org/abs/1706.02677, section 2.2. transformers' linear warmup is `(t - 1) / W`, whose first
    update has a learning rate of 0.

    Args:
        step (`int`): 0-based index of the update.
        num_warmup_steps (`int`): `W`, updates until the full learning rate; 0 for no warmup.
        warmup_factor (`float`, defaults to 0.0): `f`, the multiplier before the first update, in [0, 1]. The paper has
            1 / k for k times the reference batch.

    Returns:
        `float`: Multiplier in (0, 1].

    Example:

    ```python
    >>> [linear_warmup(step, num_warmup_steps=4) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    >>> [linear_warmup(step, num_warmup_steps=4, warmup_factor=0.5) for step in range(5)]
    [0.625, 0.75, 0.875, 1.0, 1.0]

    ```
    """
    if step + 1 >= num_warmup_steps:
        return 1.0
    return warmup_factor + (1.0 - warmup_factor) * ((step + 1) / num_warmup_steps)


def constant_warmup(step: int, *, num_warmup_steps: int, warmup_factor: float = 0.1) -> float:
    """Return `warmup_factor` for `t <= W`, then 1: He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2.

    Args:
        step (`int`): 0-based index of the update.
        num_warmup_steps (`int`): `W`, updates at the low learning rate.
        warmup_factor (`float`, defaults to 0.1): Multiplier during the warmup, in [0, 1].

    Returns:
        `float`: `warmup_factor` or 1.

    Example:

    ```python
    >>> [constant_warmup(step, num_warmup_steps=2) for step in range(4)]
    [0.1, 0.1, 1.0, 1.0]

    ```
    """
    return warmup_factor if step < num_warmup_steps else 1.0


def exponential_warmup(step: int, *, num_warmup_steps: int) -> float:
    """Return `1 - exp(-t / W)`: Ma & Yarats 2019, https://arxiv.org/abs/1910.04209.

    `W` is a time constant: the multiplier is 0.632 after `W` updates and 0.993 after `5 W`.

    Args:
        step (`int`): 0-based index of the update.
        num_warmup_steps (`int`): `W`, in updates; 0 for no warmup.

    Returns:
        `float`: Multiplier in (0, 1].

    Example:

    ```python
    >>> [round(exponential_warmup(step, num_warmup_steps=4), 3) for step in (0, 3, 19)]
    [0.221, 0.632, 0.993]

    ```
    """
    return -expm1(-(step + 1) / num_warmup_steps) if num_warmup_steps > 0 else 1.0


def cosine_warmup(step: int, *, num_warmup_steps: int) -> float:
    """Return `(1 - cos(pi min(1, t / W))) / 2`, which is slow at both ends and steepest in the middle.

    Args:
        step (`int`): 0-based index of the update.
        num_warmup_steps (`int`): `W`, updates until the full learning rate; 0 for no warmup.

    Returns:
        `float`: Multiplier in (0, 1].

    Example:

    ```python
    >>> [round(cosine_warmup(step, num_warmup_steps=4), 3) for step in range(5)]
    [0.146, 0.5, 0.854, 1.0, 1.0]

    ```
    """
    # sin^2(x / 2) equals (1 - cos x) / 2, which cancels to 0 at the first updates of a very long warmup.
    return sin(0.5 * pi * linear_warmup(step, num_warmup_steps=num_warmup_steps)) ** 2


def untuned_linear_warmup(step: int, *, beta2: float = 0.999) -> float:
    """Return `min(1, (1 - beta2) t / 2)`, which takes `2 / (1 - beta2)` updates: Ma & Yarats 2019, https://arxiv.org/abs/1910.04209.

    Args:
        step (`int`): 0-based index of the update.
        beta2 (`float`, defaults to 0.999): Adam's second-moment coefficient, in [0, 1).

    Returns:
        `float`: Multiplier in (0, 1].

    Example:

    ```python
    >>> [round(untuned_linear_warmup(step, beta2=0.999), 4) for step in (0, 999, 1999, 5000)]
    [0.0005, 0.5, 1.0, 1.0]

    ```
    """
    return min(1.0, 0.5 * (1.0 - beta2) * (step + 1))


def untuned_exponential_warmup(step: int, *, beta2: float = 0.999) -> float:
    """Return `1 - exp(-(1 - beta2) t)`: Ma & Yarats 2019, https://arxiv.org/abs/1910.04209.

    Args:
        step (`int`): 0-based index of the update.
        beta2 (`float`, defaults to 0.999): Adam's second-moment coefficient, in [0, 1).

    Returns:
        `float`: Multiplier in (0, 1].

    Example:

    ```python
    >>> [round(untuned_exponential_warmup(step, beta2=0.999), 4) for step in (0, 999)]
    [0.001, 0.6321]

    ```
    """
    return -expm1(-(1.0 - beta2) * (step + 1))


def radam_warmup(step: int, *, beta2: float = 0.999) -> float:
    """Return RAdam's rectification [`r_t`] as a warmup, 0 for the first 5 updates: https://arxiv.org/abs/1908.03265.

    Args:
        step (`int`): 0-based index of the update.
        beta2 (`float`, defaults to 0.999): Adam's second-moment coefficient, in (2/3, 1).

    Returns:
        `float`: Multiplier in [0, 1).

    Example:

    ```python
    >>> [round(radam_warmup(step, beta2=0.999), 4) for step in (4, 5, 999)]
    [0.0, 0.0258, 0.6453]

    ```
    """
    return r_t(step + 1, beta2)


LEFT_BY_RADAM = 0.5  # share of the peak learning rate below which RAdam's rectification and a decay are reported


def describe_rectification(share: float, beta2: float) -> tuple[str, str]:
    """Return a sentence about the highest `share` of the learning rate that a run with RAdam uses, and advice.

    Example:

    ```python
    >>> print(*describe_rectification(0.35, 0.999))
    RAdam's rectification and the decay leave at most 35 % of learning_rate in this run (beta2 = 0.999). Lower beta2, use AdamW with a linear warmup, or raise learning_rate (2.9-fold restores the peak).

    ```
    """  # noqa: E501
    return (
        f"RAdam's rectification and the decay leave at most {100 * share:.2g} % of learning_rate in this run (beta2 = "
        f"{beta2:g}).",
        "Lower beta2, use AdamW with a linear warmup, or raise learning_rate "
        f"({1 / share:.2g}-fold restores the peak).",
    )


_LENGTH = {"num_warmup_steps": COUNT}

WARMUPS: dict[str, Curve] = {
    "linear": Curve(linear_warmup, _LENGTH, {"warmup_factor": SHARE}),
    "constant": Curve(constant_warmup, _LENGTH, {"warmup_factor": SHARE}),
    "exponential": Curve(exponential_warmup, _LENGTH),
    "cosine": Curve(cosine_warmup, _LENGTH),
    "untuned_linear": Curve(untuned_linear_warmup, keywords={"beta2": BETA2}),
    "untuned_exponential": Curve(untuned_exponential_warmup, keywords={"beta2": BETA2}),
    # With a beta2 of at most 2/3 RAdam never rectifies, and its warmup would be 0 forever.
    "radam": Curve(radam_warmup, keywords={"beta2": Number(2.0 / 3.0, 1.0, open_low=True, open_high=True)}),
    "none": Curve(no_warmup),
}
