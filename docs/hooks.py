"""What `mkdocs build` adds: the model cards as pages, and tables made from the tables in the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.structure.files import File, Files


ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add `model_cards/`, which lies beside `docs/`, and each notebook, run, as a page."""
    for path in sorted((ROOT / "model_cards").rglob("*")):
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config["site_dir"], config["use_directory_urls"]))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = as_markdown(run_notebook(ROOT / "docs" / file.src_uri))
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=page))
    return files


def run_notebook(path: Path) -> Any:
    """Return a notebook with its outputs, run in an empty folder."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
    return notebook


def as_markdown(notebook: Any) -> str:
    """Return a notebook that was run as a page. What was written to stderr, such as progress, is left out."""
    parts = []
    for cell in notebook.cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                html = re.sub(r"<style.*?</style>|^\s+", "", data["text/html"], flags=re.DOTALL | re.MULTILINE)
                parts.append(html)
            elif "image/png" in data:
                parts.append(f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">')
            elif text := data.get("text/plain") or (output.get("text") if output.get("name") == "stdout" else ""):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in the tables, and point links to the model cards at their pages.

    The source links `../model_cards/` as it lies in the repository, so that the pages can be read there too.
    """
    depth = page.file.src_uri.count("/")
    markdown = markdown.replace("../" * (depth + 1) + "model_cards/", "../" * depth + "model_cards/")
    return re.sub(r"<!-- table: (\w+) -->", lambda match: TABLES[match[1]](), markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Show the references and types of docstrings, which are written as in transformers, without their markup.

    A type arrives as `` `str` or [`~torch.nn.Module`] `` inside one code element, a reference as a code element in
    brackets.
    """
    html = re.sub(
        r"<code>([^<]*`[^<]*)</code>",
        lambda code: f"<code>{re.sub('[][`~]', '', code[1]).replace('*optional*', 'optional')}</code>",
        html,
    )
    return re.sub(r"\[<code>~?([^<]+)</code>\](?!\()", r"<code>\1</code>", html)


def table_of(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def first_sentence(function: Any) -> str:
    """Return the first line of a docstring."""
    return (function.__doc__ or "").strip().partition("\n")[0]


def keywords(row: Any) -> str:
    return ", ".join(f"`{name}`" for name in row.keywords) or ""


def warmups() -> str:
    from hf_warmup.schedules import WARMUPS

    rows = [[f"`{name}`", first_sentence(row.function), keywords(row)] for name, row in WARMUPS.items()]
    return table_of(["`warmup_type`", "multiplier", "keywords"], rows)


def decays() -> str:
    from hf_warmup.schedules import DECAYS

    rows = [[f"`{name}`", first_sentence(row.function), keywords(row)] for name, row in DECAYS.items()]
    return table_of(["`lr_scheduler_type`", "multiplier", "keywords"], rows)


def optimizers() -> str:
    from hf_warmup import OPTIMIZERS

    rows = []
    for name, spec in OPTIMIZERS.items():
        paper = spec.paper
        if paper.startswith("arXiv:"):
            paper = f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
        module = spec.cls.__module__.partition(".")[0]
        owner = "torch.optim" if module == "torch" else module
        rows.append([f"`{name}`", f"`{owner}.{spec.cls.__name__}`", spec.summary, paper])
    return table_of(["`optim`", "class", "what it is", "paper"], rows)


def rules() -> str:
    from hf_warmup.report import RULES

    rows = [[rule.name, rule.condition, f"{rule.threshold:g}", rule.source] for rule in RULES]
    return table_of(["rule", "what is asked", "threshold", "source"], rows)


def number(value: float) -> str:
    """Return three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def measurements() -> dict[str, Any]:
    path = ROOT / "docs" / "benchmarks.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}  # type: ignore[no-any-return]


def engines() -> str:
    """Return the table of engines in `benchmarks.json`, with its note."""
    if "engines" not in measurements():
        return "No measurements are stored in `docs/benchmarks.json`."
    (table,) = measurements()["engines"]["tables"].values()
    header = ["engine", "weights", "killed", "number of processes changed", "asked to stop"]
    return f"{table_of(header, [[*row.values()] for row in table['rows']])}\n\nMeasured: {table['note']}."


def benchmarks() -> str:
    """Return all other tables of `benchmarks.json`, with what was measured and where."""
    if not measurements():
        return "No measurements are stored in `docs/benchmarks.json`."
    parts = []
    for section, content in measurements().items():
        if section == "engines":  # on the page about launching
            continue
        for title, table in content["tables"].items():
            header = list(dict.fromkeys(key for row in table["rows"] for key in row))
            rows = [
                [row["name"], *(number(row[key]) if key in row else "" for key in header[1:])] for row in table["rows"]
            ]
            names = ["", *(name.replace("_", " ") for name in header[1:])]
            heading = title if title.startswith(section) else f"{section}: {title}"
            parts += [f"### {heading}", f"Measured: {table['note']}.", table_of(names, rows)]
        environment = content["environment"]
        machine = ", ".join(str(environment[key]) for key in ("machine", "processor", "date"))
        parts.append(f"{machine}; torch {environment['torch']}, transformers {environment['transformers']}.")
    return "\n\n".join(parts)


TABLES = {
    "warmups": warmups,
    "decays": decays,
    "optimizers": optimizers,
    "rules": rules,
    "benchmarks": benchmarks,
    "engines": engines,
}
