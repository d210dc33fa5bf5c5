"""Say what training runs did, and draw them: findings as text, one HTML page, figures, and the values as CSV.

    hf-warmup report runs/a runs/b
    hf-warmup report downloaded/trainer_state.json --text

A RUN is the output folder of any Hugging Face Trainer, one of its checkpoints, a `trainer_state.json`, or a folder that
holds runs at any depth.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..cli import exit_on_user_error
from .comparison import common_name
from .findings import find, findings_as_dicts
from .run import Run, find_runs
from .table import write_csv
from .text import write_text


LEVELS = ("problem", "any")
X_HELP = "horizontal axis (default: auto, the share of the run if the lengths differ 20-fold, else the update)"


def build_parser(prog: str = "python -m hf_warmup.report") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder or file, or a folder of runs")
    parser.add_argument("--text", action="store_true", help="print the findings and write nothing")
    parser.add_argument("--output_dir", default="report", help="folder of the page and the figures (default: report)")
    parser.add_argument("--title", help="title of the page (default: the folder's name)")
    parser.add_argument("--x", choices=("auto", "update", "epoch", "share"), default="auto", help=X_HELP)
    parser.add_argument("--keys", nargs="+", default=[], metavar="KEY", help="further logged keys to draw")
    parser.add_argument("--csv", metavar="FILE", help="write every logged and recorded value as a tidy table")
    parser.add_argument("--json", metavar="FILE", help="write the findings with their numbers")
    parser.add_argument("--fail-on", choices=LEVELS, help="exit with code 1 if there is such a finding")
    return parser


@exit_on_user_error()
def main(argv: list[str] | None = None, prog: str = "python -m hf_warmup.report") -> None:
    """Run the command line."""
    args = build_parser(prog).parse_args(argv)
    runs = find_runs(args.runs)
    print(write_text(runs), flush=True)
    if args.csv:
        print(f"\nWrote {write_csv(runs, args.csv)}.")
    if args.json:
        path = Path(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(findings_as_dicts(runs), indent=1) + "\n", encoding="utf-8")
        print(f"\nWrote {path}.")
    if not args.text:
        _draw(runs, args)
    if args.fail_on and any(finding.is_problem or args.fail_on == "any" for finding in find(runs)):
        sys.exit(1)


def _draw(runs: list[Run], args: argparse.Namespace) -> None:
    from .figures import draw_comparison
    from .page import write_page

    title = args.title or common_name(args.runs)
    try:
        page = write_page(runs, Path(args.output_dir) / "report.html", title, x=args.x, keys=args.keys)
        figures = draw_comparison(runs, args.output_dir, x=args.x, keys=args.keys)
    except ImportError as error:
        print(f"\nNo page and no figures: {error}")
    else:
        print(f"\nWrote {page}{''.join(f', {path.name}' for path in figures)}.")


if __name__ == "__main__":
    main()
