"""Training runs that are executed once: each keeps its settings and its result in its own folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging


Settings = dict[str, Any]
Result = dict[str, Any]
RunOne = Callable[[Settings, Path], Result]


def select(results: Iterable[Result], **wanted: Any) -> list[Result]:
    """Return the results with these settings."""
    return [result for result in results if all(result.get(key) == value for key, value in wanted.items())]


def read_json(file: Path) -> Any:
    """Return the content of `file`, or `None` if it is missing or incomplete."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def read_result(settings: Settings, folder: Path) -> Result | None:
    """Return the result of a finished run with the same settings, or `None`."""
    return read_json(folder / "result.json") if read_json(folder / "settings.json") == settings else None


def prepare_folder(folder: Path, settings: Settings) -> None:
    """Store the settings in `folder`, and remove the checkpoints of a run with other settings."""
    if read_json(folder / "settings.json") != settings:
        (folder / "result.json").unlink(missing_ok=True)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))


def run_and_keep(run_one: RunOne, settings: Settings, folder: Path) -> Result:
    """Execute one run on one thread; store and return its settings with what it measured."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # the guard names no run; what it finds is in the report
    logging.disable_progress_bar()  # one bar counts the runs; the bars of loading and saving would overwrite it
    prepare_folder(folder, settings)
    result = {**settings, **run_one(settings, folder)}
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    return result


def exit_with_parent() -> None:
    """Make a worker process exit on Ctrl-C and when its parent ends, because nobody would read its result."""

    def wait() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    Thread(target=wait, daemon=True).start()


def run_some(run_one: RunOne, todo: Mapping[Path, Settings], workers: int) -> Iterator[tuple[Path, Result]]:
    """Yield folders and results as runs finish: in this process with one worker, else in `workers` processes."""
    if workers == 1:
        yield from ((folder, run_and_keep(run_one, settings, folder)) for folder, settings in todo.items())
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=exit_with_parent)
    try:
        futures = {pool.submit(run_and_keep, run_one, settings, folder): folder for folder, settings in todo.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run_all(run_one: RunOne, jobs: Mapping[str, Settings], output_dir: Path, num_workers: int = 0) -> list[Result]:
    """Execute the runs that have no result yet, and return all results in the order of `jobs`.

    Args:
        run_one (`Callable`): Takes the settings and the folder of a run and returns what it measured. Importable by
            spawned processes.
        jobs (`Mapping[str, Settings]`): Name of a run, which is its folder in `output_dir`, to settings.
        output_dir (`Path`): Also receives `results.json`, which grows as runs finish.
        num_workers (`int`, defaults to 0): Runs at a time; 0 means one per core.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    planned = {output_dir / name: settings for name, settings in jobs.items()}
    results = {folder: result for folder, settings in planned.items() if (result := read_result(settings, folder))}
    todo = {folder: settings for folder, settings in planned.items() if folder not in results}
    workers = max(1, min(num_workers or os.cpu_count() or 1, len(todo)))

    def write() -> list[Result]:
        ordered = [results[folder] for folder in planned if folder in results]
        (output_dir / "results.json").write_text(json.dumps(ordered, indent=1) + "\n")
        return ordered

    with tqdm(total=len(jobs), initial=len(results), desc="runs", unit="run") as bar:
        for folder, result in run_some(run_one, todo, workers):
            results[folder] = result
            bar.update()
            write()
    return write()
