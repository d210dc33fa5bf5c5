"""Training runs that are made once: each in its folder with its settings and result, several at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
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


def read(file: Path) -> Any:
    """What the file holds; `None` if it is not there, or was cut short."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def finished(settings: Settings, folder: Path) -> Result | None:
    """The result of a run that is there already, with the same settings."""
    return read(folder / "result.json") if read(folder / "settings.json") == settings else None


def claim(folder: Path, settings: Settings) -> None:
    """Write down whose folder it is; a checkpoint of other settings goes, so that nobody goes on with it."""
    if read(folder / "settings.json") != settings:
        (folder / "result.json").unlink(missing_ok=True)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))


def run_and_keep(run_one: RunOne, settings: Settings, folder: Path) -> Result:
    """Settings and what `run_one` measured, written beside its recording; on one thread."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # those of loading and writing a model
    claim(folder, settings)
    result = {**settings, **run_one(settings, folder)}
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    return result


def end_with_parent() -> None:
    """In a worker: Ctrl-C ends it at once, and so does whatever ends its parent; nobody would take its result."""

    def wait() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    Thread(target=wait, daemon=True).start()


def run_some(run_one: RunOne, todo: Mapping[Path, Settings], workers: int) -> Iterator[tuple[Path, Result]]:
    """Folders and results as they finish, each run in a process of its own core unless there is one worker."""
    if workers == 1:
        yield from ((folder, run_and_keep(run_one, settings, folder)) for folder, settings in todo.items())
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent)
    try:
        futures = {pool.submit(run_and_keep, run_one, settings, folder): folder for folder, settings in todo.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run_all(run_one: RunOne, jobs: Mapping[Path, Settings], output_dir: Path, num_workers: int = 0) -> list[Result]:
    """Run what has not been run yet, `num_workers` at a time (0: one on each core), and give all results in order.

    `run_one` takes the settings and the folder of one run, and must be importable where processes are spawned.
    `results.json` in `output_dir` grows as runs finish.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    results = {folder: result for folder, settings in jobs.items() if (result := finished(settings, folder))}
    todo = {folder: settings for folder, settings in jobs.items() if folder not in results}
    workers = max(1, min(num_workers or os.cpu_count() or 1, len(todo)))

    def write() -> list[Result]:
        ordered = [results[folder] for folder in jobs if folder in results]
        (output_dir / "results.json").write_text(json.dumps(ordered, indent=1) + "\n")
        return ordered

    with tqdm(total=len(jobs), initial=len(results), desc="runs", unit="run") as bar:
        for folder, result in run_some(run_one, todo, workers):
            results[folder] = result
            bar.update()
            write()
    return write()
