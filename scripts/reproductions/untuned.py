"""How long are the warmups that follow from beta2, and how large are Adam's updates with them?"""

from __future__ import annotations

from math import pi, sqrt

import numpy as np
from tqdm.auto import tqdm

from hf_warmup.report.figures import COLORS, blank_axes, blank_figure
from hf_warmup.schedules import radam_warmup, untuned_exponential_warmup, untuned_linear_warmup

from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of


def gi_adam_warmup(step: int, *, beta2: float) -> float:
    """Return `sqrt(1 - beta2^t)`, the factor that GI-Adam's start at `v_0 = g_1^2` puts on the learning rate."""
    return sqrt(1.0 - beta2 ** (step + 1))


ABOUT = About(
    "Warmups that follow from beta2",
    ("other", "normal-gradients"),
    "Multipliers of the rules, and Adam's mean update with each of them",
    "These are lengths of formulas. The reproduction `warmup` tests whether they are long enough for a network.",
)
RULES = {
    "RAdam": radam_warmup,
    "untuned linear": untuned_linear_warmup,
    "untuned exponential": untuned_exponential_warmup,
    "GI-Adam": gi_adam_warmup,
}
BETA1 = 0.9
# Sums of the papers' formulas. The RAdam paper rectifies from rho_t > 4 on, its code (and RAdam here) one update later.
EXPECTED = {
    0.999: ("1033", "999.5", "999.5", "613"),
    0.99: ("107", "99.5", "99.5", "60.6"),
    0.98: ("55.3", "49.5", "49.5", "29.9"),
}
MA_YARATS = "Ma & Yarats 2019, arXiv:1910.04209"


def effective_length(rule: str, beta2: float) -> float:
    """Return the effective length of a warmup: the sum of `1 - multiplier` over all updates.

    The sum ends where the remaining terms, which fall like `beta2^t`, are below the precision of float64.

    Example:

    ```python
    >>> round(effective_length("untuned linear", 0.999), 1)
    999.5

    ```
    """
    updates = round(40 / (1 - beta2))
    return sum(1.0 - RULES[rule](step, beta2=beta2) for step in range(updates))


def agrees(value: float, printed: str) -> bool:
    """Return whether `value` is within one unit of the last digit of `printed`.

    RAdam needs this tolerance: rectifying one update later adds 0.08 updates.

    Example:

    ```python
    >>> agrees(1033.4, "1033"), agrees(999.7, "999.5")
    (True, False)

    ```
    """
    decimals = len(printed.partition(".")[2])
    return abs(value - float(printed)) < 10.0**-decimals


def update_sizes(beta2: float, updates: int, trajectories: int, seed: int) -> np.ndarray:
    """Return the mean of `|m_hat / sqrt(v_hat)|` over normal gradients at updates 1, 2, ..., `updates`."""
    generator = np.random.default_rng(seed)
    m, v, sizes = np.zeros(trajectories), np.zeros(trajectories), []
    for t in tqdm(range(1, updates + 1), desc=f"seed {seed}", unit="update"):
        g = generator.standard_normal(trajectories)
        m, v = BETA1 * m + (1 - BETA1) * g, beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - BETA1**t), v / (1 - beta2**t)
        sizes.append(np.abs(m_hat / np.sqrt(v_hat)).mean())
    return np.array(sizes)


def run(args: ReproduceArguments) -> Outcome:
    """Compute lengths for three values of beta2, and update sizes for 0.999."""
    lengths = {beta2: [effective_length(rule, beta2) for rule in RULES] for beta2 in EXPECTED}
    beta2, updates = 0.999, args.max_steps or 5000
    trajectories = 500 if args.quick else 5000
    plain = np.mean([update_sizes(beta2, updates, trajectories, seed) for seed in args.seeds_or(full=3)], axis=0)
    curves = {rule: np.array([RULES[rule](step, beta2=beta2) for step in range(updates)]) for rule in RULES}

    figure = blank_figure(12, 3.8)
    left = blank_axes(figure, "Warmups that follow from beta2 = 0.999", "share of the learning rate", place=(1, 2, 1))
    right = blank_axes(figure, "Adam's mean update with each", "update / learning rate", place=(1, 2, 2))
    t = np.arange(1, updates + 1)
    right.plot(t, plain, color="#999999", label="no warmup")
    for color, (rule, curve) in zip(COLORS, curves.items(), strict=False):
        left.plot(t, curve, color=color, label=f"{rule}: {effective_length(rule, beta2):.4g} updates")
        right.plot(t, plain * curve, color=color, label=rule)
    right.set(xscale="log", yscale="log", ylim=(1e-4, 2))
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8, loc="lower right")

    rows = [[f"beta2 = {beta2:g}", *(f"{length:.1f}" for length in row)] for beta2, row in lengths.items()]
    numbers = {
        "effective_lengths": {str(beta2): dict(zip(RULES, row, strict=True)) for beta2, row in lengths.items()},
        "update_size": plain.tolist(),
    }
    results = {
        f"beta2 = {beta2:g}": {rule: [length] for rule, length in zip(RULES, row, strict=True)}
        for beta2, row in lengths.items()
    }
    return Outcome(figure, verdicts(lengths, plain), table_of(["", *RULES], rows), numbers, results)


def verdicts(lengths: dict[float, list[float]], plain: np.ndarray) -> list[Verdict]:
    """Compare the lengths with the papers, the rules with RAdam, and the first update with later ones."""
    lengths_agree = all(all(map(agrees, row, EXPECTED[beta2])) for beta2, row in lengths.items())
    radam, linear, exponential, _ = lengths[0.999]
    apart = max(abs(linear / radam - 1), abs(exponential / radam - 1))
    # Once the average of beta1 has settled and v_hat is close to 1, |m_hat| is 0.229 |N(0, 1)|.
    settled = sqrt((1 - BETA1) / (1 + BETA1)) * sqrt(2 / pi)
    tail = plain[-len(plain) // 5 :].mean()
    long_enough = len(plain) >= 1000
    return [
        Verdict(
            "; ".join(f"beta2 = {beta2:g}: {' / '.join(row)}" for beta2, row in EXPECTED.items()),
            f"sums of 1 - multiplier of {', '.join(RULES)}; the paper's RAdam starts one update before its code",
            "; ".join(f"{beta2:g}: {' / '.join(f'{x:.1f}' for x in row)}" for beta2, row in lengths.items()),
            lengths_agree,
        ),
        Verdict(
            "both untuned rules are about as long as the warmup of RAdam (here: within 5 %)",
            MA_YARATS,
            f"{100 * apart:.1f} % apart at beta2 = 0.999",
            apart < 0.05,
        ),
        Verdict(
            f"Adam's first updates are the largest: 1 at first, {settled:.3f} later (here: within 5 %), for any beta2",
            MA_YARATS + "; the two numbers follow for normal gradients",
            f"{plain[0]:.3f} at update 1, {tail:.3f} over the last fifth",
            bool(abs(plain[0] - 1) < 1e-6 and abs(tail / settled - 1) < 0.05) if long_enough else None,
        ),
    ]
