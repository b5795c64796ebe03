"""The table of results/methods.md, from what `results` prints for the runs, whose paths must be absolute.

    python -m hsakd_jax.results RUNS --json | python results/methods/table.py

Bold: shown even if each of the column's comparisons is tested at 0.05 divided by their number (Bonferroni).
"""

import json
import sys
from pathlib import Path

from hsakd_jax.evaluation.verdict import LEVEL, Verdict, compare
from hsakd_jax.experiments.published import OURS
from hsakd_jax.runs.directory import RunDirectory

REFERENCES = {"baseline": "against the baseline", "kd": "against KD", "student_frozen": "against HSAKD"}


def verdict(found: dict | None, comparisons: int) -> str:
    """A cell: the difference in points, with its 95 % interval."""
    if found is None:
        return ""
    one = Verdict(**found)
    cell = f"{one.words} ({one.bounds or one.reason})"
    return f"**{cell}**" if one.p is not None and one.p < (1 - LEVEL) / comparisons else cell


def by_seed(record: dict) -> dict:
    """The results of a method's runs, by seed."""
    return {seed: RunDirectory(Path(run)).results() for seed, run in zip(record["seeds"], record["runs"], strict=True)}


def main(records: list[dict]) -> None:
    """Prints the table, best method first."""
    rows = sorted((one for one in records if one["runs"]), key=lambda one: -one["last_top1"])
    trained = {one["recipe"]: one for one in rows}
    if "student_frozen" in trained:
        for name in trained.keys() & set(OURS):
            found = compare(by_seed(trained[name]), by_seed(trained["student_frozen"]))
            trained[name]["compared"]["student_frozen"] = found._asdict()
    counts = {name: sum(name in one["compared"] for one in rows) for name in REFERENCES}
    print(f"| method | seeds | top-1 % | {' | '.join(REFERENCES.values())} |")
    print("|---" * (3 + len(REFERENCES)) + "|")
    for one in rows:
        deviation = "" if one["last_top1_std"] is None else f" ({one['last_top1_std']:.2f})"
        cells = [one["method"], str(len(one["seeds"])), f"{one['last_top1']:.2f}{deviation}"]
        cells += [verdict(one["compared"].get(name), counts[name]) for name in REFERENCES]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(json.load(sys.stdin))
