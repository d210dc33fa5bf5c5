"""How does the variance of the adaptive learning rate fall over updates: Adam, RAdam, and the exact formula?"""

from __future__ import annotations

from math import exp, lgamma
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_warmup.report.figures import COLORS, blank_axes, blank_figure
from hf_warmup.schedules import radam_warmup

from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of


ABOUT = About(
    "Variance of the adaptive learning rate of Adam and RAdam",
    ("other", "normal-gradients"),
    "Variance of the adaptive learning rate over updates, simulated and exact",
    "Independent standard normal gradients for single parameters; gradients of a network are not simulated.",
)
BETA2 = 0.999
LIU = "Liu et al. 2020, arXiv:1908.03265, "
SHOWN = (5, 6, 10, 100, 1000, 6000)


def rho_t(t: int) -> float:
    """Return RAdam's `rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t)`, the degrees of freedom at update `t`.

    Example:

    ```python
    >>> round(rho_t(6), 3)
    5.994

    ```
    """
    return 2 / (1 - BETA2) - 1 - 2 * t * BETA2**t / (1 - BETA2**t)


def exact_variance(rho: float) -> float:
    """Return the variance of the root of a scaled inverse chi-squared variable with `rho > 4` degrees of freedom.

    The formula is `rho / (rho - 2) - rho / 2 * (Gamma((rho - 1) / 2) / Gamma(rho / 2))^2`.

    Example: for rho = 5 this is 5/3 - 5/2 * (1 / Gamma(5/2))^2 with Gamma(5/2) = 3 sqrt(pi) / 4.

    ```python
    >>> round(exact_variance(5.0), 4)
    0.252

    ```
    """
    return rho / (rho - 2) - rho / 2 * exp(2 * (lgamma((rho - 1) / 2) - lgamma(rho / 2)))


def first_order_variance(rho: float) -> float:
    """Return the paper's first-order approximation, `rho / (2 (rho - 2) (rho - 4))`.

    Example:

    ```python
    >>> round(first_order_variance(8.0), 4)
    0.1667

    ```
    """
    return rho / (2 * (rho - 2) * (rho - 4))


def simulate(updates: int, trajectories: int, seed: int) -> np.ndarray:
    """Return the variance of `sqrt((1 - beta2^t) / v_t)` over trajectories of normal gradients, per update."""
    generator, v, variances = np.random.default_rng(seed), np.zeros(trajectories), []
    for t in tqdm(range(1, updates + 1), desc=f"seed {seed}", unit="update"):
        v = BETA2 * v + (1 - BETA2) * np.square(generator.standard_normal(trajectories))
        variances.append(np.sqrt((1 - BETA2**t) / v).var())
    return np.array(variances)


def run(args: ReproduceArguments) -> Outcome:
    """Simulate the variance, compare it with the formula, and draw both."""
    updates, trajectories = args.max_steps or (1000 if args.quick else 6000), 1000 if args.quick else 5000
    adam = np.mean([simulate(updates, trajectories, seed) for seed in args.seeds_or(full=3)], axis=0)
    t = np.arange(1, updates + 1)
    rectification = np.array([radam_warmup(int(each) - 1, beta2=BETA2) for each in t])
    radam = rectification**2 * adam
    rho = np.array([rho_t(int(each)) for each in t])
    exact = np.array([exact_variance(each) if each > 4 else np.nan for each in rho])
    first_order = np.array([first_order_variance(each) if each > 4 else np.nan for each in rho])

    figure = blank_figure(8, 4.2)
    axes = blank_axes(figure, f"Variance of the adaptive learning rate, beta2 = {BETA2}", "variance")
    # Before update 4 the variance is infinite, so a simulated value has no meaning.
    axes.plot(t[3:], adam[3:], color=COLORS[0], linewidth=3, alpha=0.6, label="Adam, simulated")
    axes.plot(t, exact, color="black", linewidth=1, label="exact formula")
    axes.plot(t, first_order, color="black", linewidth=1, linestyle=":", label="the paper's first order")
    axes.plot(t[5:], radam[5:], color=COLORS[1], linewidth=3, alpha=0.6, label="RAdam, simulated")
    rectified = (rectification**2 * exact)[5:]
    axes.plot(t[5:], rectified, color="black", linewidth=1, linestyle="--", label="exact, times r_t^2")
    axes.set(xscale="log", yscale="log")
    axes.legend(frameon=False, fontsize=8)

    shown = [each for each in SHOWN if each <= updates]
    columns: dict[str, Any] = {"Adam": adam, "exact": exact, "first order": first_order, "RAdam": radam}
    rows = [[f"update {each}", *(f"{column[each - 1]:.3g}" for column in columns.values())] for each in shown]
    numbers = {name: {str(each): float(column[each - 1]) for each in shown} for name, column in columns.items()}
    results = {
        f"update {each}": {name: [float(column[each - 1])] for name, column in columns.items()} for each in shown
    }
    return Outcome(figure, verdicts(adam, radam, exact), table_of(["", *columns], rows), numbers, results)


def verdicts(adam: np.ndarray, radam: np.ndarray, exact: np.ndarray) -> list[Verdict]:
    """Judge the fall of Adam's variance, the evenness of RAdam's, and the formula."""
    enough, long_enough = len(adam) >= 100, len(adam) >= 6000
    fall = adam[4] / adam[-1]
    even = {first: radam[first - 1 :].max() / radam[first - 1 :].min() for first in (6, 10) if len(radam) >= first}
    error = np.abs(adam[9:] / exact[9:] - 1).max() if enough else float("nan")
    return [
        Verdict(
            "Adam's adaptive learning rate varies most in its first updates: from update 5 to 6000 the variance falls "
            "by a factor of about 950 (here: 300 to 3000, since the simulated value at update 5 has no finite error)",
            LIU + "section 3; the exact formula",
            f"a factor of {fall:.0f} in {len(adam)} updates",
            bool(300 < fall < 3000) if long_enough else None,
        ),
        Verdict(
            "RAdam's variance stays within a factor of 2.3 from update 6 on (here: 3), 1.5 from update 10 on (here: 2)",
            LIU + "section 4",
            ", ".join(f"a factor of {ratio:.2f} from update {first} on" for first, ratio in even.items()),
            bool(even[6] < 3 and even[10] < 2) if enough else None,
        ),
        Verdict(
            "the exact formula with rho_t degrees of freedom gives this variance (here: within 25 % from update 10 on)",
            LIU + "section 3",
            f"at most {100 * error:.0f} % off",
            bool(error < 0.25) if enough else None,
        ),
    ]
