"""Write the sentence polarity data (MR) as csv files for the fine-tuning scripts.

    python -m scripts.text_classification.polarity runs/polarity    # reads the folder mr, or $HF_WARMUP_DATA/mr
    python -m scripts.text_classification.polarity runs/polarity --data_dir path/to/folder

10,662 sentences of film reviews, half of them positive (Pang & Lee 2005, version 1.0, CC BY 4.0). Download
https://www.cs.cornell.edu/people/pabo/movie-review-data/rt-polaritydata.tar.gz and extract `rt-polarity.pos` and
`rt-polarity.neg` into a folder `mr`. A tenth of the sentences, chosen with a fixed seed, becomes the validation file.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
from pathlib import Path

from hf_warmup.cli import exit_on_user_error


URL = "https://www.cs.cornell.edu/people/pabo/movie-review-data/rt-polaritydata.tar.gz"
FILES = {"rt-polarity.neg": 0, "rt-polarity.pos": 1}  # file -> label


def read_sentences(path: Path) -> list[str]:
    """Return the sentences of a file, one per line, in UTF-8 or in the Latin-1 of the original."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return [line.strip() for line in text.split("\n") if line.strip()]


def write_polarity(data_dir: Path, output_dir: Path) -> tuple[Path, Path]:
    """Write `train.csv` and `validation.csv` with the columns `sentence` and `label`; return their paths.

    Raises:
        `ValueError`: If a file is missing in `data_dir`.
    """
    for name in FILES:
        if not (data_dir / name).is_file():
            raise ValueError(
                f"The folder {data_dir} has no file {name}. Download {URL} (CC BY 4.0) and extract "
                f"{' and '.join(FILES)} into this folder. `make finetune` reads the folder mr, or $HF_WARMUP_DATA/mr."
            )
    rows = [(sentence, label) for name, label in FILES.items() for sentence in read_sentences(data_dir / name)]
    random.Random(0).shuffle(rows)
    held_out = len(rows) // 10
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = output_dir / "train.csv", output_dir / "validation.csv"
    for path, part in zip(paths, (rows[held_out:], rows[:held_out]), strict=True):
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("sentence", "label"), *part])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output_dir", help="folder for train.csv and validation.csv")
    default = Path(os.environ.get("HF_WARMUP_DATA", "."), "mr")
    parser.add_argument("--data_dir", default=default, help="folder with the two files (default: $HF_WARMUP_DATA/mr)")
    args = parser.parse_args()
    with exit_on_user_error():
        paths = write_polarity(Path(args.data_dir), Path(args.output_dir))
    print(f"Wrote {paths[0]} and {paths[1]}.")


if __name__ == "__main__":
    main()
