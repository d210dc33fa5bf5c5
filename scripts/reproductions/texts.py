"""Where the texts for pretraining are, and how they become token ids."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import BertTokenizerFast


VOCABULARY = "bert-base-uncased"
FILES = ("us_speeches/us_speeches.txt", "wikitext-2/valid.txt", "wikitext-2/test.txt")
LENGTH, HELD_OUT = 64, 256  # tokens of a sequence; sequences that are not trained on


def find_texts(data_dir: str | None) -> Path:
    """The folder with the vocabulary and the texts.

    Raises:
        `ValueError`: Without a folder, or for the first file that is not there.
    """
    folder = data_dir or os.environ.get("HF_WARMUP_DATA")
    if not folder:
        raise ValueError(f"data_dir is missing: expected a folder with {', '.join(FILES)}, or $HF_WARMUP_DATA.")
    tasks = [f"glue/{task}/{split}.tsv" for task in ("SST-2", "RTE") for split in ("train", "dev")]
    for file in (f"{VOCABULARY}/vocab.txt", *FILES, *tasks):
        if not (Path(folder) / file).is_file():
            raise ValueError(f"data_dir={str(folder)!r} has no {file}: expected it there.")
    return Path(folder)


def load_vocabulary(folder: Path) -> BertTokenizerFast:
    return BertTokenizerFast.from_pretrained(folder / VOCABULARY)


def sequences(folder: Path, tokenizer: BertTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids to train on and held out, `(sequences, 64)` each: the texts cut into pieces, shuffled once for all."""
    ids: list[int] = []
    for file in FILES:
        text = (folder / file).read_text(encoding="utf-8").replace("<unk>", tokenizer.unk_token)
        paragraphs = [line for line in text.splitlines() if line.strip()]
        for i in tqdm(range(0, len(paragraphs), 1000), desc=f"tokenize {file}", unit="1000 lines"):
            for encoded in tokenizer(paragraphs[i : i + 1000], add_special_tokens=False)["input_ids"]:
                ids += encoded
    inside = LENGTH - 2  # between [CLS] and [SEP]
    pieces = torch.tensor(ids[: len(ids) // inside * inside]).view(-1, inside)
    start, end = (torch.full((len(pieces), 1), each) for each in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    pieces = torch.cat([start, pieces, end], dim=1)[torch.randperm(len(pieces), generator=torch.manual_seed(0))]
    held_out = min(HELD_OUT, len(pieces) // 2)
    return pieces[held_out:], pieces[:held_out]
