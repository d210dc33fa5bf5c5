"""What becomes of runs that are killed at random moments, and of checkpoints whose files are damaged."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from tqdm.auto import tqdm

from hf_warmup.checkpoints import MANIFEST_FILE

from .measure import Finished, Table
from .runs import RESULT_FILE, Plan, Run, joined_file, loop, result_of, train


LAST = "checkpoint-4"  # of a run of the plan `SMALL`
NOTE_ON_KILLS = "SIGKILL at random moments; each chain of restarts is compared with the run that was not killed"
NOTE_ON_DAMAGES = (
    "a file of the last checkpoint; named: an error names it, `auto` skips the checkpoint with a warning that names "
    "it, and the result is that of the run whose checkpoint was not damaged"
)
HANG = 120.0  # seconds after which a run counts as hanging
KILLS_PER_CHAIN = 3

# name: function, plan, number of processes, share of the kills
KILLED = {
    "Trainer": (train, Plan(24, 3), 1, 0.35),
    "Trainer whose guard rewinds": (train, Plan(32, 5, layers=8, learning_rate=0.02, guard="rewind"), 1, 0.2),
    "Accelerate loop": (loop, Plan(24, 3), 1, 0.25),
    "Trainer, one process of two": (train, Plan(20, 3, layers=3), 2, 0.2),
}


def complete(function: Callable[..., object], folder: Path, plan: Plan, world: int = 1) -> float:
    """Train to the end, and return how many seconds it took."""
    start, run = perf_counter(), Run(function, folder, plan, world=world)
    if not run.wait(10 * HANG) or any(run.exit_codes):  # the first one starts the server
        raise RuntimeError(f"{folder} was not trained:\n{run.output[-3000:]}")
    return perf_counter() - start


def table_of_counts(rows: dict[str, Counter[str]], note: str) -> Table:
    """Return a table of counts, with their sums in the last row."""
    table = [{"name": name, **counts} for name, counts in rows.items()]
    sums = {key: sum(row[key] for row in table) for key in table[0] if key != "name"}
    return {"note": note, "rows": [*table, {"name": "all", **sums}]}


def kill_and_restart(
    function: Callable[..., object], folder: Path, plan: Plan, world: int, seconds: float, expected: object
) -> Counter[str]:
    """Kill a run at up to three random moments within `seconds`, restart it each time, and let it end."""
    counts = Counter(chains=1, kills=0, during_a_save=0, same_result=0, hang=0, abort=0)
    while True:
        joined_file(folder).unlink(missing_ok=True)
        run = Run(function, folder, plan, world=world)
        last = counts["kills"] == KILLS_PER_CHAIN
        ended = run.wait(HANG if last else random.uniform(0, seconds))
        if ended or last:
            break
        counts["during_a_save"] += is_saving(folder)
        joined = joined_file(folder).exists()  # before, only a launcher can know that a process is gone
        run.kill(random.randrange(world))
        counts["kills"] += 1
        counts["hang"] += joined and not run.wait(HANG)  # the other process has to end by itself
        run.kill()
    counts["hang"] += not ended
    counts["abort"] += any(code is not None and code < 0 for code in run.exit_codes)
    run.kill()
    counts["same_result"] += result_of(folder) == expected
    if not counts["same_result"]:
        tqdm.write(f"{folder}: {dict(counts)}\n{run.output[-3000:]}")
    shutil.rmtree(folder, ignore_errors=True)
    return counts


def is_saving(folder: Path) -> bool:
    """Return whether a checkpoint is being written at this moment."""
    manifests = folder.glob(f"checkpoint-*/{MANIFEST_FILE}")
    return any(folder.glob(".saving-*")) or any('"files": null' in path.read_text() for path in manifests)


def kills(wanted: int, finished: Finished) -> dict[str, Table]:
    """Kill runs until `wanted` kills are made, and compare each chain with the run that was never killed."""
    rows: dict[str, Counter[str]] = {}
    with TemporaryDirectory() as base, tqdm(total=wanted, desc="kills", unit="kill") as progress:
        for name, (function, plan, world, share) in KILLED.items():
            complete(function, Path(base, f"{len(rows)}-first"), plan, world)
            whole = Path(base, f"{len(rows)}-whole")
            seconds, expected = complete(function, whole, plan, world), result_of(whole)
            assert expected is not None
            counts = Counter[str]()
            while (before := counts["kills"]) < max(1, round(share * wanted)):
                folder = Path(base, f"{len(rows)}-killed-{counts['chains']}")
                chain = partial(kill_and_restart, function, folder, plan, world, seconds, expected)
                counts.update(finished.count(f"{name}, chain {counts['chains']}", chain))
                progress.update(counts["kills"] - before)
            counts["rewinds"] = counts["chains"] * expected["rewinds"]
            rows[name] = counts
    return {"kills": table_of_counts(rows, NOTE_ON_KILLS)}


# Damage


def at_random(path: Path, change: Callable[[bytearray, int], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data, random.randrange(len(data)))
    path.write_bytes(bytes(data))


def flip(data: bytearray, at: int) -> None:
    data[at] ^= 1 << random.randrange(8)


def zero(data: bytearray, at: int) -> None:
    """Clear the page of 4096 bytes that holds the byte `at`."""
    start = at - at % 4096
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))


def instead(make: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    def damage(path: Path, other: Path) -> None:
        path.unlink()
        make(path)

    return damage


def exchange(path: Path, other: Path) -> None:
    """Exchange a file with another file of the same checkpoint."""
    files = sorted(path.parent.iterdir())
    neighbor = files[files.index(path) - 1]
    content = path.read_bytes()
    path.write_bytes(neighbor.read_bytes())
    neighbor.write_bytes(content)


# what happens to a file of a checkpoint; the second argument is the same file of another run
DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "one bit flipped": lambda path, other: at_random(path, flip),
    "a page of zeros": lambda path, other: at_random(path, zero),
    "cut at random": lambda path, other: os.truncate(path, random.randrange(path.stat().st_size)),
    "cut by one byte": lambda path, other: os.truncate(path, path.stat().st_size - 1),
    "one byte more": lambda path, other: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path, other: path.write_bytes(b""),
    "random bytes": lambda path, other: path.write_bytes(random.randbytes(path.stat().st_size)),
    "deleted": lambda path, other: path.unlink(),
    "a folder in its place": instead(Path.mkdir),
    "a pipe in its place": instead(os.mkfifo),
    "a device in its place": instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing in its place": instead(lambda path: path.symlink_to("nothing")),
    "of an earlier checkpoint": lambda path, other: shutil.copy(
        path.parent.with_name("checkpoint-2") / path.name, path
    ),
    "of another run": lambda path, other: shutil.copy(other, path),
    "exchanged with another file": exchange,
}
RANDOM = ("one bit flipped", "a page of zeros", "cut at random")  # more than one place in a file

SMALL = Plan(5, 2, layers=1, limit=None)
OURS = (MANIFEST_FILE, "run_settings.json", "gradient_norms.jsonl", "warmup_guard.pt", "batch_rng_state_*.pth")

# name: function, files that are removed from its checkpoints before
DAMAGED: dict[str, tuple[Callable[..., object], tuple[str, ...]]] = {
    "Trainer": (train, ()),
    "Accelerate loop": (loop, ()),
    "Trainer, without a manifest": (train, OURS),
}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return name -> content of everything in `folder`; `None` for what is not a file."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


def judge_copy(
    function: Callable[..., object], saved: Path, other: Path, file: str, name: str, expected: object
) -> Counter[str]:
    """Copy `saved`, damage a file of the last checkpoint in the way `name`, resume, and count what happened."""
    before, copy = contents(saved / LAST), saved.with_name("damaged")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(saved, copy)
    DAMAGES[name](copy / LAST / file, other / LAST / file)
    after = contents(copy / LAST)
    changed = {each for each in before if after.get(each) != before[each]}
    return judge(function, copy, changed, expected) if changed else Counter()


def resume_damaged(folder: Path, plan: Plan, function: Callable[..., object]) -> None:
    """Resume from the last checkpoint by its name, and with `auto` if that is an error."""
    try:
        function(folder, plan, str(folder / LAST))
    except ValueError as error:
        print(f"error: {error}", flush=True)
        function(folder, plan, "auto")


def judge(function: Callable[..., object], folder: Path, changed: set[str], expected: object) -> Counter[str]:
    """Resume from a damaged checkpoint, and count what happened."""
    run = Run(resume_damaged, folder, SMALL, function)
    hang = not run.wait(HANG)
    abort = any(code is not None and code < 0 for code in run.exit_codes)
    run.kill()
    result, said = result_of(folder), run.output
    run.log.unlink()
    files = r"\S+" if MANIFEST_FILE in changed else "|".join(map(re.escape, changed))
    by_name = re.search(rf"error: resume_from_checkpoint='{re.escape(str(folder / LAST))}': ({files}) ", said)
    by_auto = re.search(rf"{LAST} is skipped \(({files}) ", said)
    return Counter(
        damaged=1,
        named=bool(by_name and by_auto and result == expected),
        same_result=result == expected,
        other_result=result not in (None, expected),
        no_result=result is None and not hang and not abort,
        hang=hang,
        abort=abort,
    )


def damages(places: int, names: Collection[str], finished: Finished) -> dict[str, Table]:
    """Damage each file of a checkpoint in each way, and compare the resumed run with a run that was not damaged."""
    tables: dict[str, Table] = {}
    with TemporaryDirectory() as base:
        for name in names:
            function, removed = DAMAGED[name]
            saved, other = (Path(base, f"{len(tables)}-{seed}") for seed in range(2))
            for seed, folder in enumerate((saved, other)):
                complete(function, folder, replace(SMALL, seed=seed))
                shutil.rmtree(folder / "checkpoint-5", ignore_errors=True)  # the Trainer saves the last update too
                for path in (path for file in removed for path in folder.glob(f"checkpoint-*/{file}")):
                    path.unlink()
            expected = result_of(saved)
            (saved / RESULT_FILE).unlink()
            counts = {damage: Counter[str]() for damage in DAMAGES}
            parts = [
                (damage, file, place)
                for file in sorted(contents(saved / LAST))
                for damage in DAMAGES
                for place in range(places if damage in RANDOM else 1)
            ]
            for damage, file, place in tqdm(parts, desc=f"damages, {name}", unit="file"):
                part = f"{name}, {damage}, {file}, {place}"
                found = finished.count(part, partial(judge_copy, function, saved, other, file, damage, expected))
                if found["other_result"] or (found["damaged"] and not (found["named"] or removed)):
                    tqdm.write(f"{part}: {dict(found)}")
                counts[damage].update(found)
            tables[f"damages, {name}"] = table_of_counts(counts, NOTE_ON_DAMAGES)
    return tables
