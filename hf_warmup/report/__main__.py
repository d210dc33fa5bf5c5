"""Compare runs: one HTML page, the PNG figures, and what the recordings say in words.

python -m hf_warmup.report runs/a runs/b
python -m hf_warmup.report runs/compare_layer_norm --output_dir report
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from ..cli import exit_on_user_error
from .comparison import common_name
from .figures import draw_comparison
from .findings import in_words
from .page import write_page
from .run import find_runs


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m hf_warmup.report", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's output folder, or a folder of such folders")
    parser.add_argument("--output_dir", default="report", help="where the page and the figures go (default: report)")
    parser.add_argument("--title", help="of the page (default: the folder's name; of several the one that holds them)")
    args = parser.parse_args(argv)
    with exit_on_user_error():
        runs = find_runs(args.runs)
        title = args.title or common_name(args.runs)
        page = write_page(runs, Path(args.output_dir) / "report.html", title)
        figures = draw_comparison(runs, args.output_dir)
    print(f"Wrote {page} and {', '.join(path.name for path in figures)}: {len(runs)} runs.\n")
    findings = in_words(runs)
    for names, text in findings:
        line = f"{names}: {text}"
        print(textwrap.fill(line, 100, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False))
    if not findings:
        print("The recordings give no reason to worry.")


if __name__ == "__main__":
    main()
