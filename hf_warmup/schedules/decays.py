"""Decay curves: functions `step -> multiplier` that are 1 until the warmup ends at `num_warmup_steps`."""

from math import exp, expm1, log, sin, sqrt

from .curve import COUNT, SHARE, Curve, Number


NOAM_PEAK = (1e-6, 1e-1)  # plausible peaks; the paper's is 7e-4


def noam_decay(step: int, *, num_warmup_steps: int, d_model: int | None = None) -> float:
    """Return `sqrt(W / t)` from `t = W` on, times `(d_model W)^-0.5` if `d_model` is given.

    After a linear warmup this is the schedule of Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 5.3:
    `d_model^-0.5 min(t^-0.5, t W^-1.5)`. The learning rate is then the paper's factor. Without `d_model` the same curve
    is scaled to a peak of 1, and the learning rate is the peak.

    Args:
        step (`int`): 0-based index of the update; `t = step + 1`.
        num_warmup_steps (`int`): `W`, the update of the peak; 0 counts as 1.
        d_model (`int`, *optional*): Width of the model, at least 1.

    Returns:
        `float`: Multiplier in (0, 1].

    Example:

    ```python
    >>> [noam_decay(step, num_warmup_steps=4) for step in (0, 3, 15)]
    [1.0, 1.0, 0.5]
    >>> f"{noam_decay(3999, num_warmup_steps=4000, d_model=512):.2e}"
    '6.99e-04'

    ```
    """
    peak = 1.0 if d_model is None else d_model**-0.5 * max(1, num_warmup_steps) ** -0.5
    return peak * sqrt(max(1, num_warmup_steps) / max(1, num_warmup_steps, step + 1))


def exponential_decay(step: int, *, num_warmup_steps: int, gamma: float = 0.999) -> float:
    """Return `gamma^k` with `k = max(0, step - W)`.

    Args:
        step (`int`): 0-based index of the update.
        num_warmup_steps (`int`): `W`, where the decay begins.
        gamma (`float`, defaults to 0.999): Ratio of successive learning rates, in (0, 1].

    Returns:
        `float`: Multiplier in [0, 1].

    Example:

    ```python
    >>> [round(exponential_decay(step, num_warmup_steps=2, gamma=0.5), 3) for step in range(5)]
    [1.0, 1.0, 1.0, 0.5, 0.25]

    ```
    """
    return gamma ** max(0, step - num_warmup_steps)


def inverse_time_decay(step: int, *, num_warmup_steps: int, decay_rate: float = 1e-3) -> float:
    """Return `1 / (1 + decay_rate k)` with `k = max(0, step - W)`.

    Args:
        step (`int`): 0-based index of the update.
        num_warmup_steps (`int`): `W`, where the decay begins.
        decay_rate (`float`, defaults to 1e-3): At least 0. The multiplier is 1/2 after `1 / decay_rate` updates.

    Returns:
        `float`: Multiplier in (0, 1].

    Example:

    ```python
    >>> [round(inverse_time_decay(step, num_warmup_steps=2, decay_rate=0.5), 3) for step in (2, 3, 4)]
    [1.0, 0.667, 0.5]

    ```
    """
    return 1.0 / (1.0 + decay_rate * max(0, step - num_warmup_steps))


def power_decay(step: int, *, num_warmup_steps: int, base_lr: float, power: float = 1.0001) -> float:
    """Return `base_lr^(power^k) / base_lr`, the closed form of `lr <- lr^power` at each update after the warmup.

    The recursion is on the learning rate itself, so the multiplier depends on it: a smaller `base_lr` decays faster.

    Args:
        step (`int`): 0-based index of the update.
        num_warmup_steps (`int`): `W`, where the decay begins; `k = max(0, step - W)`.
        base_lr (`float`): The full learning rate, in [0, 1).
        power (`float`, defaults to 1.0001): Exponent of one update, at least 1.

    Returns:
        `float`: Multiplier in [0, 1].

    Example:

    ```python
    >>> [round(power_decay(step, num_warmup_steps=0, base_lr=1e-3), 4) for step in (0, 1, 1000)]
    [1.0, 0.9993, 0.4836]

    ```
    """
    if base_lr == 0.0:
        return 1.0
    log_exponent = min(700.0, log(power) * max(0, step - num_warmup_steps))  # exp(700) is still finite
    return exp(log(base_lr) * expm1(log_exponent))


def sine_decay(step: int, *, num_warmup_steps: int, base_lr: float) -> float:
    """Return `sin(sin(... base_lr)) / base_lr`: `lr <- sin(lr)` at each of the `k` updates after the warmup.

    This is about `1 / sqrt(1 + base_lr^2 k / 3)`. It is computed in closed form, to float64's precision, with the Abel
    function of the sine: the `A` for which `A(sin x) = A(x) + 1`.

    Args:
        step (`int`): 0-based index of the update.
        num_warmup_steps (`int`): `W`, where the decay begins; `k = max(0, step - W)`.
        base_lr (`float`): The full learning rate, in [0, 1].

    Returns:
        `float`: Multiplier in (0, 1].

    Example:

    ```python
    >>> [round(sine_decay(step, num_warmup_steps=0, base_lr=0.1), 4) for step in (0, 1, 1000)]
    [1.0, 0.9983, 0.4802]

    ```
    """
    return _iterated_sine(base_lr, max(0, step - num_warmup_steps)) / base_lr if base_lr > 0.0 else 1.0


# A(x) = 3 / x^2 + 6/5 ln x + sum of c_k x^(2k), where the c_k cancel A(sin x) - A(x) - 1 order by order.
_SINE_ABEL = (79 / 1050, 29 / 2625, 91543 / 36382500, 18222899 / 28378350000, 88627739 / 573024375000)


def _iterated_sine(x: float, k: int) -> float:
    """`sin(sin(... x))`, `k` times, for `x` in [0, 1]."""
    for _ in range(
        min(k, 100)
    ):  # after 100 steps x is below 0.18, where five terms of the series reach float64's precision
        x = sin(x)
    if k <= 100 or x < 1e-100:  # sin x equals x here, and x^3 underflows
        return x

    def abel(y: float) -> float:
        series = 0.0
        for coefficient in reversed(_SINE_ABEL):
            series = (series + coefficient) * y * y
        return 3.0 / (y * y) + 1.2 * log(y) + series

    target = abel(x) + (k - 100)
    y = 1.0 / sqrt(1.0 / (x * x) + (k - 100) / 3.0)
    for _ in range(3):  # Newton's method with A' = -6 / y^3 + 6 / (5 y) + ...; each step squares an error below 1 %
        y += (abel(y) - target) * y**3 / (6.0 - 1.2 * y * y)
    return y


_LENGTH = {"num_warmup_steps": COUNT}

DECAYS: dict[str, Curve] = {
    "noam": Curve(noam_decay, _LENGTH, {"d_model": Number(low=1, integer=True)}),
    "exponential": Curve(exponential_decay, _LENGTH, {"gamma": Number(high=1.0, open_low=True)}),
    "power": Curve(power_decay, {**_LENGTH, "base_lr": SHARE}, {"power": Number(low=1.0)}),
    "sine": Curve(sine_decay, {**_LENGTH, "base_lr": SHARE}),
    "inverse_time": Curve(inverse_time_decay, _LENGTH, {"decay_rate": Number()}),
}
