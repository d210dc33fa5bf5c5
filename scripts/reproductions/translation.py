"""Does a Post-LN encoder-decoder that learns to translate need the warmup of Noam's schedule, and does RAdam?"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import numpy as np
from transformers import MarianConfig, MarianMTModel, set_seed

from hf_warmup import WarmupSeq2SeqTrainer, WarmupSeq2SeqTrainingArguments
from hf_warmup.norms import find_stacks
from hf_warmup.report import Run, mean_and_spread, read_run

from .drawing import Row, draw_evaluations
from .kept_runs import Result, Settings, run_all, select
from .outcome import About, Outcome, ReproduceArguments, Verdict
from .training import arguments, evaluations, grid, judge_findings, runs_with_problems, summary, train


ABOUT = About(
    "A small Marian that translates numbers, with and without the warmup of Noam's schedule",
    ("translation", "english-german-numbers"),
    "BLEU, accuracy of words, and gradient norms of the two stacks over updates: mean and range of the seeds",
    "A small vocabulary, four layers of width 64 per stack, no dropout, one warmup length. The learning rates were "
    "chosen with a few runs of a seed that is not reported.",
)
VASWANI, XIONG = "Vaswani et al. 2017, arXiv:1706.03762", "Xiong et al. 2020, arXiv:2002.04745"
RATES, RATE, STEPS, WARMUP_STEPS = (1e-3, 3e-3, 6e-3), 3e-3, 300, 100  # RATE: the one that most claims are about
LENGTH, HELD_OUT, LARGEST = 16, 256, 999_999
SIZE = {"num_layers": 4, "d_model": 64}
QUICK_SIZE = {"num_layers": 2, "d_model": 32}
CONFIGURATIONS: dict[str, Settings] = {  # every curve falls like 1 / sqrt(t) after the warmup's length
    "Noam, warmup": {"lr_scheduler_type": "noam", "warmup_type": "linear"},
    "Noam, no warmup": {"lr_scheduler_type": "noam", "warmup_type": "none"},
    "inverse square root, warmup": {"lr_scheduler_type": "inverse_sqrt", "warmup_type": None},  # transformers' own
    "RAdam, no warmup": {"lr_scheduler_type": "noam", "warmup_type": "none", "optim": "radam"},
}
WARMED, PLAIN, INVERSE, RADAM = CONFIGURATIONS
WORKS, CLOSE = 50.0, 5.0  # BLEU of a run that has learned; BLEU that counts as no difference

ENGLISH = (  # noqa: SIM905
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand"
).split()
GERMAN = (  # noqa: SIM905
    "ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn neunzehn zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig hundert tausend"
).split()
PAD, END = "<pad>", "</s>"
VOCABULARY = [PAD, END, *ENGLISH, *GERMAN, "und"]
IDS = {word: i for i, word in enumerate(VOCABULARY)}


def spell(number: int, words: list[str]) -> list[str]:
    """Return the words of `number`, 1 to 999,999, in `ENGLISH` or `GERMAN`, which puts the units before the tens.

    Example:

    ```python
    >>> " ".join(spell(42_107, ENGLISH)), " ".join(spell(42_107, GERMAN))
    ('forty two thousand one hundred seven', 'zwei und vierzig tausend ein hundert sieben')

    ```
    """
    if number == 0:
        return []
    for size, word in ((1000, words[-1]), (100, words[-2])):
        if number >= size:
            return [*spell(number // size, words), word, *spell(number % size, words)]
    if number < 20:
        return [words[number - 1]]
    tens, units = words[number // 10 + 17], spell(number % 10, words)
    return [tens, *units] if words is ENGLISH or not units else [*units, "und", tens]


def example(number: int) -> dict[str, list[int]]:
    """Return the tokens of the English number and, as labels, those of the German one, padded to `LENGTH`."""
    source, target = ([IDS[word] for word in [*spell(number, words), END]] for words in (ENGLISH, GERMAN))
    padding = LENGTH - len(source)
    return {
        "input_ids": source + [IDS[PAD]] * padding,
        "attention_mask": [1] * len(source) + [0] * padding,
        "labels": target + [-100] * (LENGTH - len(target)),
    }


def text(ids: np.ndarray) -> str:
    """Return the words before the end of a sentence."""
    words = [VOCABULARY[i] for i in ids if VOCABULARY[i] != PAD]
    return " ".join(words[: words.index(END)] if END in words else words)


def compute_metrics(prediction: Any) -> dict[str, float]:
    """Return BLEU of the generated sentences, and the share of words that are correct and in their place."""
    from sacrebleu import corpus_bleu

    labels = prediction.label_ids[:, :LENGTH]
    generated = np.zeros_like(labels)
    words = prediction.predictions[:, 1 : LENGTH + 1]  # the first token starts the decoder
    generated[:, : words.shape[1]] = words
    targets = np.where(labels == -100, IDS[PAD], labels)
    bleu = corpus_bleu([*map(text, generated)], [[*map(text, targets)]], tokenize="none")
    return {"bleu": bleu.score, "accuracy": float((generated == labels)[labels != -100].mean())}


def build_model(settings: Settings) -> MarianMTModel:
    """Return a Marian with sinusoidal positions, as in the paper, and initial values of Xavier's size."""
    set_seed(settings["seed"])
    layers, width = settings["num_layers"], settings["d_model"]
    config = MarianConfig(
        vocab_size=len(VOCABULARY),
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=2 * LENGTH,
        dropout=0.0,
        init_std=width**-0.5,
        scale_embedding=True,
        pad_token_id=IDS[PAD],
        decoder_start_token_id=IDS[PAD],
        eos_token_id=IDS[END],
        forced_eos_token_id=None,
    )
    return MarianMTModel(config)


def translate_one(settings: Settings, folder: Path) -> Result:
    """Train one configuration with one seed.

    Returns:
        `Result`: Evaluations as `[update, loss, BLEU, accuracy, norm of the encoder, norm of the decoder]`, the last
            BLEU and accuracy, and the initial ratio of the last block's norm to the first one's in each stack.
    """
    updates, batch = settings["max_steps"], settings["batch_size"]
    numbers = Random(settings["seed"]).sample(range(1, LARGEST + 1), updates * batch + HELD_OUT)
    data = [example(number) for number in numbers]
    changed = {
        "lr_scheduler_type": settings["lr_scheduler_type"],
        "warmup_steps": settings["warmup_steps"],  # without a warmup the learning rate is constant until then
        "adam_beta2": 0.98,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "per_device_eval_batch_size": HELD_OUT,
        "predict_with_generate": True,
        "generation_max_length": LENGTH + 1,
        "save_strategy": "no",
        "grad_norm_steps": 1,
    }
    args = WarmupSeq2SeqTrainingArguments(**(arguments(settings, folder, 10) | changed))
    trainer = WarmupSeq2SeqTrainer(
        model=build_model(settings),
        args=args,
        train_dataset=data[HELD_OUT:],
        eval_dataset=data[:HELD_OUT],
        compute_metrics=compute_metrics,
    )
    train(trainer)
    norms, every = stack_norms(read_run(folder)), args.eval_steps
    curve = [
        [*each, *(float(np.median(np.linalg.norm(stack[:, each[0] - every : each[0]], axis=0))) for stack in norms)]
        for each in evaluations(trainer, "loss", "bleu", "accuracy")
    ]
    growth = [float(stack[-1, 0] / stack[0, 0]) for stack in norms]
    return {"evaluations": curve, "bleu": curve[-1][2], "accuracy": curve[-1][3], "initial_growth": growth}


def stack_norms(run: Run) -> list[np.ndarray]:
    """Return the gradient norms of the encoder and of the decoder, both of shape `(blocks, updates)`."""
    stacks = find_stacks(run.norms)
    return [np.array([run.norms[block] for block in stacks[f"{name}.layers"]]) for name in ("encoder", "decoder")]


def plan(args: ReproduceArguments) -> dict[str, Settings]:
    """Return folder name -> settings of all runs, seed by seed."""
    steps = args.max_steps or (10 if args.quick else STEPS)
    common = {
        "max_steps": steps,
        "batch_size": 32,
        "warmup_steps": min(WARMUP_STEPS, steps),
        **(QUICK_SIZE if args.quick else SIZE),
    }
    return grid(CONFIGURATIONS, (RATE,) if args.quick else RATES, args.seeds_or(full=3), common)


def run(args: ReproduceArguments) -> Outcome:
    """Train with every configuration, learning rate and seed; draw the curves and judge the claims."""
    jobs = plan(args)
    results = run_all(translate_one, jobs, args.folder / "runs", args.num_workers)
    table, measured = summary(results, {"BLEU": itemgetter("bleu"), "accuracy of words": itemgetter("accuracy")})
    rows = [
        Row("BLEU", 2),
        Row("accuracy of words", 3),
        Row("gradient norm, encoder", 4, scale="log"),
        Row("gradient norm, decoder", 5, scale="log"),
    ]
    figure = draw_evaluations(results, rows, {name: {"name": name} for name in CONFIGURATIONS})
    judged = verdicts(dict(zip(jobs, results, strict=True)), runs_with_problems(args.folder / "runs", jobs))
    at_rate = [args.folder / "runs" / name for name, settings in jobs.items() if settings["learning_rate"] == RATE]
    return Outcome(figure, judged, table, results, measured, at_rate[: len(CONFIGURATIONS)])


def bleu(results: list[Result], name: str, lr: float = RATE) -> list[float]:
    """Return the final BLEU of a configuration, one value per seed."""
    return [run["bleu"] for run in select(results, name=name, learning_rate=lr)]


def verdicts(results: Mapping[str, Result], problems: set[str]) -> list[Verdict]:
    """Judge the claims; `results` has folder names, and `problems` those in which the report found a problem."""
    runs = [*results.values()]
    enough = len(bleu(runs, WARMED)) >= 3 and all(run["max_steps"] == STEPS for run in runs)
    warmed, plain, inverse, radam = (bleu(runs, name) for name in CONFIGURATIONS)
    highest = {
        name: max((lr for lr in RATES if min(bleu(runs, name, lr), default=0) >= WORKS), default=0.0)
        for name in (PLAIN, WARMED)
    }
    encoder, decoder = zip(
        *(run["initial_growth"] for run in select(runs, name=WARMED, learning_rate=RATE)), strict=True
    )
    failed = {name for name, run in results.items() if run["bleu"] < WORKS}

    def when_enough(answer: bool) -> bool | None:
        return answer if enough else None

    return [
        Verdict(
            "without a warmup Adam trains a Post-LN encoder-decoder badly: BLEU 8.45, with Noam's warmup about 34 "
            f"(here: at most half as many at {RATE:g})",
            f"{XIONG}, section 3.2; the schedule: {VASWANI}, section 5.3",
            f"BLEU {mean_and_spread(plain, 1)} without, {mean_and_spread(warmed, 1)} with",
            when_enough(mean(plain) <= mean(warmed) / 2),
        ),
        Verdict(
            "RAdam without a warmup is as good as Adam with it: BLEU 34.76 and 34.66 "
            f"(here: at most {CLOSE:g} lower at {RATE:g})",
            "Liu et al. 2020, arXiv:1908.03265, table 2",
            f"BLEU {mean_and_spread(radam, 1)} and {mean_and_spread(warmed, 1)}",
            when_enough(mean(radam) >= mean(warmed) - CLOSE),
        ),
        Verdict(
            "a linear warmup and an inverse-square-root decay, as transformers has them, are Noam's schedule "
            f"(here: BLEU at most {CLOSE:g} apart at {RATE:g})",
            f"{VASWANI}, section 5.3",
            f"BLEU {mean_and_spread(inverse, 1)} and {mean_and_spread(warmed, 1)}",
            when_enough(abs(mean(inverse) - mean(warmed)) <= CLOSE),
        ),
        Verdict(
            f"a warmup allows larger learning rates (here: the highest at which every seed reaches BLEU {WORKS:g})",
            "Kalra & Barkeshli 2024, arXiv:2406.09405",
            f"{highest[PLAIN]:g} without and {highest[WARMED]:g} with, of {', '.join(format(lr, 'g') for lr in RATES)}",
            when_enough(highest[WARMED] > highest[PLAIN]),
        ),
        Verdict(
            "at initialization the gradients of Post-LN grow with the layer (here: in the decoder, on every seed)",
            f"{XIONG}, figure 3b",
            f"last over first block: decoder {min(decoder):.2f} to {max(decoder):.2f}, encoder {min(encoder):.2f} to "
            f"{max(encoder):.2f}",
            when_enough(min(decoder) > 1),
        ),
        judge_findings(failed, problems, results, f"BLEU below {WORKS:g}", enough),
    ]
