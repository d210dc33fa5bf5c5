"""How does the gradient of the last layer depend on depth at initialization, with Xavier's and transformers' values?"""

from __future__ import annotations

from functools import partial
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from hf_warmup import BertPreLNForMaskedLM
from hf_warmup.report import mean_and_spread
from hf_warmup.report.figures import COLORS, blank_axes, blank_figure

from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of
from .reversal import build_pair


ABOUT = About(
    "Gradient norm of the last layer against depth, Post-LN and Pre-LN",
    ("fill-mask", "random-tokens"),
    "Gradient norm of the last feed-forward matrix against the number of layers; one faint line per seed",
    "At initialization only, width 128, random tokens. The exponent is a least-squares fit over five depths.",
)
WIDTH, VOCAB, BATCH, LENGTH = 128, 1000, 16, 32
DEPTHS, QUICK_DEPTHS = (2, 4, 8, 16, 24), (2, 4, 8, 12)
XIONG = "Xiong et al. 2020, arXiv:2002.04745, theorem 1 and figure 3"
# Initialization -> `initializer`, and whether the Pre-LN model keeps the LayerNorm after its embeddings.
INITIALIZATIONS = {
    "Xavier": ("xavier_uniform", False),
    "transformers' (std 0.02)": ("normal", False),
    "transformers', embedding LayerNorm": ("normal", True),
}
PLACEMENTS = ("post", "pre")
spread = partial(mean_and_spread, digits=2)


def last_ffn_norm(model: BertPreLNForMaskedLM, tokens: torch.Tensor) -> float:
    """Return the L2 norm of the gradient of the last layer's second feed-forward matrix.

    The loss is a masked-LM loss at every position.
    """
    weight = model.bert.encoder.layer[-1].output.dense.weight
    (gradient,) = torch.autograd.grad(model(input_ids=tokens, labels=tokens.flip(0)).loss, [weight])
    return gradient.norm().item()


def build(depth: int, initializer: str, keeps: bool, seed: int) -> tuple[BertPreLNForMaskedLM, BertPreLNForMaskedLM]:
    """Return the Post-LN and the Pre-LN model of that depth, without dropout."""
    post, pre = build_pair(seed, depth, WIDTH, VOCAB, LENGTH, initializer=initializer)
    if keeps:
        pre.bert.embeddings.LayerNorm = nn.LayerNorm(WIDTH, eps=pre.config.layer_norm_eps)
    return post, pre


def exponent(depths: tuple[int, ...], norms: list[float]) -> float:
    """Return the exponent `a` in `norm ~ L^a`, the slope of the logarithms.

    Example:

    ```python
    >>> round(exponent((2, 4, 8), [8.0, 4.0, 2.0]), 6)
    -1.0

    ```
    """
    return float(np.polyfit(np.log(depths), np.log(norms), 1)[0])


def measure(depths: tuple[int, ...], seeds: list[int]) -> dict[str, dict[str, list[list[float]]]]:
    """Return initialization -> placement -> one list per seed, with one norm per depth."""
    norms: dict[str, dict[str, list[list[float]]]] = {}
    with tqdm(total=len(INITIALIZATIONS) * len(seeds) * len(depths), desc="models", unit="pair") as bar:
        for name, (initializer, keeps) in INITIALIZATIONS.items():
            norms[name] = {placement: [[] for _ in seeds] for placement in PLACEMENTS}
            for i, seed in enumerate(seeds):
                tokens = torch.randint(5, VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))
                for depth in depths:
                    for placement, model in zip(PLACEMENTS, build(depth, initializer, keeps, seed), strict=True):
                        norms[name][placement][i].append(last_ffn_norm(model, tokens))
                    bar.update()
    return norms


def run(args: ReproduceArguments) -> Outcome:
    """Measure norms, fit exponents, and draw three panels that share their axes."""
    depths, seeds = QUICK_DEPTHS if args.quick else DEPTHS, args.seeds_or(full=5, quick=2)
    norms = measure(depths, seeds)
    exponents = {
        name: {placement: [exponent(depths, row) for row in rows] for placement, rows in pair.items()}
        for name, pair in norms.items()
    }
    everything = [norm for pair in norms.values() for rows in pair.values() for row in rows for norm in row]
    limits = min(everything) / 1.5, max(everything) * 3  # the same in all panels, with space for a legend
    figure = blank_figure(12, 3.8)
    for i, (name, pair) in enumerate(norms.items(), 1):
        axes = blank_axes(figure, name, "gradient norm, last W2" if i == 1 else "", "layers L", (1, len(norms), i))
        for color, (placement, rows) in zip(COLORS, pair.items(), strict=False):
            label = f"{placement.capitalize()}-LN: L^({spread(exponents[name][placement])})"
            axes.plot(depths, np.exp(np.log(rows).mean(0)), color=color, marker="o", markersize=4, label=label)
            axes.plot(depths, np.transpose(rows), color=color, linewidth=0.6, alpha=0.4)
        axes.set(xscale="log", yscale="log", ylim=limits)
        axes.set_xticks(depths, [str(depth) for depth in depths], minor=False)
        axes.set_xticks([], minor=True)
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    rows = [[name, *(spread(pair[placement]) for placement in PLACEMENTS)] for name, pair in exponents.items()]
    table = table_of(["exponent in L", "Post-LN", "Pre-LN"], rows)
    named = {f"{name}, {p.capitalize()}-LN": pair[p] for name, pair in exponents.items() for p in PLACEMENTS}
    numbers = {"depths": depths, "seeds": seeds, "norms": norms, "exponents": exponents}
    return Outcome(
        figure, verdicts(norms, exponents, len(seeds) >= 5 and not args.quick), table, numbers, {"exponent in L": named}
    )


def verdicts(norms: dict[str, Any], exponents: dict[str, dict[str, list[float]]], enough: bool) -> list[Verdict]:
    """Judge the theorem with Xavier's values and what is left of it with transformers' values."""
    xavier, normal, kept = exponents.values()
    normal_norms = norms[list(INITIALIZATIONS)[1]]
    below = all(np.less(normal_norms["post"], normal_norms["pre"]).flat)

    def when_enough(answer: bool) -> bool | None:
        return answer if enough else None

    return [
        Verdict(
            "Post-LN: the norm does not depend on depth, the exponent is 0 (here: within 0.15)",
            XIONG,
            f"L^({spread(xavier['post'])}) with Xavier's values",
            when_enough(abs(mean(xavier["post"])) < 0.15),
        ),
        Verdict(
            "Pre-LN: the norm falls like 1 / sqrt(L), the exponent is -0.5 (here: -0.65 to -0.38)",
            XIONG,
            f"L^({spread(xavier['pre'])}) with Xavier's values",
            when_enough(-0.65 < mean(xavier["pre"]) < -0.38),
        ),
        Verdict(
            "with transformers' initial values and its LayerNorm after the embeddings the norm of Pre-LN falls, too",
            XIONG + "; the theorem is about Xavier's values",
            f"Post-LN L^({spread(kept['post'])}), Pre-LN L^({spread(kept['pre'])}): a small model hides the effect",
            when_enough(-0.65 < mean(kept["pre"]) < -0.38),
        ),
        Verdict(
            "with transformers' initial values the norm of Post-LN is above that of Pre-LN at every depth",
            XIONG + "; the theorem is about Xavier's values",
            f"Post-LN is {'below' if below else 'not below'} Pre-LN at every depth and seed; Pre-LN without that "
            f"LayerNorm: L^({spread(normal['pre'])})",
            when_enough(bool(np.greater(normal_norms["post"], normal_norms["pre"]).all())),
        ),
    ]
