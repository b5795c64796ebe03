"""The table of results/methods.md, from what `results` prints for the runs.

    python -m hsakd_jax.results RUNS --json | python results/methods/table.py

Bold: shown even if each of the column's comparisons is tested at 0.05 divided by their number (Bonferroni).
"""

import json
import sys

from hsakd_jax.evaluation.verdict import LEVEL, Verdict

REFERENCES = {"baseline": "against the baseline", "kd": "against KD"}


def verdict(found: dict | None, comparisons: int) -> str:
    """A cell: the difference in points, with its 95 % interval."""
    if found is None:
        return ""
    one = Verdict(**found)
    cell = f"{one.words} ({one.bounds or one.reason})"
    return f"**{cell}**" if one.p is not None and one.p < (1 - LEVEL) / comparisons else cell


def main(records: list[dict]) -> None:
    """Prints the table, best method first."""
    rows = sorted((one for one in records if one["runs"]), key=lambda one: -one["last_top1"])
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
