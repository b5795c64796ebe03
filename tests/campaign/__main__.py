"""Attacks the software as a machine and a stranger would, and counts what it did.

    python -m tests.campaign [--seed S] [--minutes M] [--trials N] [--first I] [--only KIND ...]

KIND: kill, disk-error, damage, config-file, command-line, stranger. Trials of all kinds alternate until the minutes are
over, or each kind has N. The last line counts trials and faults; the exit status is 1 where there is a fault. A fault
names the trial, which `--only KIND --first I --trials 1` repeats.
"""

import argparse
import importlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def main() -> int:
    """Runs the campaign; returns its exit status."""
    parser = argparse.ArgumentParser(prog="tests.campaign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--trials", type=int, default=10**9)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="campaign") as folder:
        os.environ |= {"TFDS_DATA_DIR": f"{folder}/data"}
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        return attack(Path(folder), options)


def attack(folder: Path, options: argparse.Namespace) -> int:
    """Trials of all kinds in turns."""
    _import_commands()
    from tests.campaign.kinds import KINDS, Fault, prepare

    chosen = options.only or list(KINDS)
    scene = prepare(folder)
    end = time.monotonic() + 60 * options.minutes
    found = {name: Counter() for name in chosen}
    faults = []
    for i in range(options.first, options.first + options.trials):
        for name in chosen:
            if time.monotonic() > end:
                return _report(found, faults)
            with tempfile.TemporaryDirectory(dir=folder) as place:
                try:
                    verdict = KINDS[name](scene, random.Random(f"{options.seed}/{name}/{i}"), Path(place))
                except Fault as fault:
                    verdict = "FAULT"
                    faults.append(f"--seed {options.seed} --only {name} --first {i} --trials 1: {fault}")
                    print(faults[-1], file=sys.stderr, flush=True)
            found[name][verdict] += 1
    return _report(found, faults)


def _import_commands() -> None:
    """All that a child needs; no thread may start, or a child could not be forked."""
    commands = ("convert", "evaluate", "export", "main", "predict", "report", "results")
    used = ("analysis.page", "analysis.tables", "evaluation.accuracy", "evaluation.classify", "experiments.config_file")
    used += ("experiments.pipeline", "interop.exporters", "interop.importing")
    for name in (*commands, *used):
        importlib.import_module(f"hsakd_jax.{name}")


def _report(found: dict[str, Counter], faults: list[str]) -> int:
    for name, verdicts in found.items():
        print(f"{name}: {sum(verdicts.values())} trials: " + ", ".join(f"{n} {v}" for v, n in sorted(verdicts.items())))
    print(f"{sum(sum(v.values()) for v in found.values())} trials, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
