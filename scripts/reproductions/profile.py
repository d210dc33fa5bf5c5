"""How is the gradient norm distributed over layers, at initialization and after the warmup, in encoder and decoder?"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from hf_warmup import get_schedule
from hf_warmup.report.figures import COLORS, blank_axes, blank_figure

from .outcome import About, Outcome, ReproduceArguments, Verdict, table_of
from .reversal import HEADS, SEQUENCE_LENGTH, VOCAB_SIZE, WIDTH, build_pair, reversal_data


ABOUT = About(
    "Gradient norm over layers, at initialization and after the warmup",
    ("fill-mask", "sequence-reversal"),
    "Gradient norm of the second feed-forward matrix over layers; one faint line per seed",
    "Six layers of width 64 on a synthetic task; the decoder is torch's. One learning rate, one warmup.",
)
LAYERS, BATCH = 6, 32
LEARNING_RATE, BETAS, WARMUP_STEPS = 2e-3, (0.9, 0.98), 100
XIONG = "Xiong et al. 2020, arXiv:2002.04745, figure 3"
Profile = list[float]


class EncoderDecoder(nn.Module):
    """Encoder-decoder of torch's Transformer layers with Xavier's values; a Pre-LN stack ends with a LayerNorm."""

    def __init__(self, pre_ln: bool):
        super().__init__()
        sizes = {"dim_feedforward": 4 * WIDTH, "dropout": 0.0, "batch_first": True, "norm_first": pre_ln}
        encoder_layer = nn.TransformerEncoderLayer(WIDTH, HEADS, **sizes)
        decoder_layer = nn.TransformerDecoderLayer(WIDTH, HEADS, **sizes)
        ends = [nn.LayerNorm(WIDTH) if pre_ln else None for _ in range(2)]
        self.encoder = nn.TransformerEncoder(encoder_layer, LAYERS, ends[0], enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder_layer, LAYERS, ends[1])
        self.tokens, self.positions = nn.Embedding(VOCAB_SIZE, WIDTH), nn.Embedding(SEQUENCE_LENGTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB_SIZE)
        # torch's stacks copy one layer, so every copy needs values of its own.
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=WIDTH**-0.5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of `target`, predicted symbol by symbol; both have shape `(batch, length)`."""
        started = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], dim=1)
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        memory = self.encoder(self.tokens(source) + self.positions.weight)
        hidden = self.decoder(self.tokens(started) + self.positions.weight, memory, tgt_mask=mask, tgt_is_causal=True)
        return cross_entropy(self.head(hidden).flatten(0, 1), target.flatten())


def encoders(seed: int) -> dict[str, tuple[Callable[[Tensor], Tensor], nn.Module, list[Tensor]]]:
    """Return placement -> loss function, model, and second feed-forward matrix per layer, for BERT encoders."""
    return {
        placement: (
            lambda tokens, model=model: model(input_ids=tokens, labels=tokens.flip(1)).loss,
            model,
            [layer.output.dense.weight for layer in model.bert.encoder.layer],
        )
        for placement, model in zip(("post", "pre"), build_pair(seed, LAYERS), strict=True)
    }


def decoders(seed: int) -> dict[str, tuple[Callable[[Tensor], Tensor], nn.Module, list[Tensor]]]:
    """Return the same for the decoders of encoder-decoders."""
    found = {}
    for placement in ("post", "pre"):
        torch.manual_seed(seed)
        model = EncoderDecoder(pre_ln=placement == "pre")
        weights = [layer.linear2.weight for layer in model.decoder.layers]
        found[placement] = (lambda tokens, model=model: model(tokens, tokens.flip(1)), model, weights)
    return found


def profiles(
    loss: Callable[[Tensor], Tensor], model: nn.Module, weights: list[Tensor], updates: int, seed: int
) -> tuple[Profile, Profile]:
    """Return the gradient norms of `weights` before the first update and after `updates` of linear warmup."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    schedule = get_schedule("constant", updates, warmup_type="linear")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    data = torch.stack([example["input_ids"] for example in reversal_data((updates + 1) * BATCH, seed)])
    measured = []
    for step, tokens in enumerate(data.split(BATCH)):
        optimizer.zero_grad()
        loss(tokens).backward()
        if step in (0, updates):
            measured.append([weight.grad.norm().item() for weight in weights])
        if step < updates:
            optimizer.step()
            scheduler.step()
    return measured[0], measured[1]


def run(args: ReproduceArguments) -> Outcome:
    """Measure both models with both placements and all seeds; draw two panels per model."""
    updates = args.max_steps or (20 if args.quick else WARMUP_STEPS)
    seeds, kinds = args.seeds_or(full=5), {"encoder": encoders, "decoder": decoders}
    found: dict[str, dict[str, list[Any]]] = {kind: {"post": [], "pre": []} for kind in kinds}
    with tqdm(total=2 * len(kinds) * len(seeds), desc="models", unit="model") as bar:
        for kind, make in kinds.items():
            for seed in seeds:
                for placement, built in make(seed).items():
                    found[kind][placement].append(profiles(*built, updates, seed))
                    bar.update()
    norms = np.array([pairs for placements in found.values() for pairs in placements.values()])
    figure = blank_figure(12, 3.6)
    layers = range(1, LAYERS + 1)
    for i, (kind, when) in enumerate([(kind, when) for kind in kinds for when in (0, 1)]):
        title = f"{kind}, {f'after {updates} updates' if when else 'at initialization'}"
        axes = blank_axes(figure, title, "" if i else "gradient norm of W2", "layer", (1, 4, i + 1))
        for color, placement in zip(COLORS, ("post", "pre"), strict=False):
            rows = [pair[when] for pair in found[kind][placement]]
            axes.plot(layers, np.transpose(rows), color=color, linewidth=0.6, alpha=0.5)
            label = f"{placement.capitalize()}-LN"
            axes.plot(layers, np.exp(np.log(rows).mean(0)), color=color, marker="o", markersize=4, label=label)
        axes.set(yscale="log", ylim=(norms.min() / 1.2, norms.max() * 1.2), xticks=layers)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    rows = [[name, f"{mean(x):.2f} ({min(x):.2f} to {max(x):.2f})"] for name, x in ratios(found).items()]
    table = table_of(["W2's norm, last layer over first", "mean (range)"], rows)
    numbers = {"updates": updates, "norms": found}
    return Outcome(figure, verdicts(found, updates), table, numbers, {"last layer over first": ratios(found)})


def ratios(found: dict[str, dict[str, list[Any]]]) -> dict[str, list[float]]:
    """Return name -> norm of the last layer divided by that of the first, one value per seed."""
    return {
        f"{placement.capitalize()}-LN {kind}, {when}": [pair[i][-1] / pair[i][0] for pair in pairs]
        for kind, placements in found.items()
        for placement, pairs in placements.items()
        for i, when in enumerate(("initialization", "after warmup"))
    }


def verdicts(found: dict[str, dict[str, list[Any]]], updates: int) -> list[Verdict]:
    """Judge the claims of figure 3b, which shows the second feed-forward matrix."""
    by_name = ratios(found)
    warmed = updates >= WARMUP_STEPS
    flat = by_name["Post-LN encoder, initialization"]
    grows, pre = by_name["Post-LN decoder, initialization"], by_name["Pre-LN decoder, initialization"]
    after = by_name["Post-LN decoder, after warmup"]
    lasts = [[pair[i][-1] for pair in found["decoder"]["post"]] for i in (0, 1)]

    def span(values: list[float]) -> str:
        return f"last over first layer {min(values):.2f} to {max(values):.2f}"

    return [
        Verdict(
            "at initialization the gradients of Post-LN grow with the layer (here: in the decoder, on every seed)",
            XIONG + "b",
            span(grows),
            min(grows) > 1,
        ),
        Verdict("the same holds in an encoder", XIONG + "b, which shows an encoder-decoder", span(flat), min(flat) > 1),
        Verdict(
            "the gradients of Pre-LN do not grow with the layer (here: last at most 1.5 times the first on every seed)",
            XIONG + "b",
            span(pre),
            max(pre) < 1.5,
        ),
        Verdict(
            "after the warmup the gradients of Post-LN are small (here: the last decoder layer below its initial "
            "value, on every seed)",
            XIONG + "b",
            f"{mean(lasts[1]):.2f}, before {mean(lasts[0]):.2f}; they still grow with the layer, {span(after)}",
            all(after < before for before, after in zip(*lasts, strict=True)) if warmed else None,
        ),
    ]
