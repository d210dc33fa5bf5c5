"""Where the texts of the reproductions are, and how the pretraining texts become token ids."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import BertTokenizerFast


VOCABULARY = "bert-base-uncased"
FILES = ("us_speeches/us_speeches.txt", "wikitext-2/valid.txt", "wikitext-2/test.txt")
GLUE = tuple(f"glue/{task}/{split}.tsv" for task in ("SST-2", "RTE") for split in ("train", "dev"))
# Reproduction -> the files that it reads, as paths inside the data folder.
MR = ("mr/rt-polarity.pos", "mr/rt-polarity.neg")
NEEDED = {
    "pretrain": (f"{VOCABULARY}/vocab.txt", *FILES, *GLUE),
    "finetune": (f"{VOCABULARY}/vocab.txt", *FILES, *GLUE),
    "scratch": (f"{VOCABULARY}/vocab.txt", *GLUE[:2]),
    "pretrained": (*GLUE, *MR),
}
LENGTH, HELD_OUT = 64, 256  # tokens per sequence; number of held-out sequences


def find_texts(data_dir: str | None) -> Path:
    """Return the data folder: `data_dir`, or the value of `HF_WARMUP_DATA`."""
    return Path(data_dir or os.environ["HF_WARMUP_DATA"])


def check_data_dir(what: str, data_dir: str | None) -> None:
    """Check that the data folder has the files that reproduction `what` reads.

    Raises:
        `ValueError`: If no folder is given, or for the first missing file.
    """
    needed = NEEDED.get(what, ())
    folder = data_dir or os.environ.get("HF_WARMUP_DATA")
    if needed and not folder:
        raise ValueError(
            f"`{what}` needs a folder with the files {', '.join(needed)}. Pass `--data_dir` or set HF_WARMUP_DATA."
        )
    for file in needed:
        if not (find_texts(data_dir) / file).is_file():
            raise ValueError(f"data_dir={folder!r} has no file {file}, which `{what}` reads.")


def load_vocabulary(folder: Path) -> BertTokenizerFast:
    return BertTokenizerFast.from_pretrained(folder / VOCABULARY)


def sequences(folder: Path, tokenizer: BertTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids for training and held out, both `(sequences, 64)`.

    The texts are joined, cut into pieces and shuffled with a fixed seed.
    """
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
