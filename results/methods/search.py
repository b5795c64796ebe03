"""The table of the search of weights, and the flags of the best one of each recipe.

    python results/methods/search.py RUNS [--flags]

RUNS contains a run for each weight, NAME_WEIGHT, and `student`. A run's score is its top-1 on the held-out training
images after the last epoch.
"""

import sys
from pathlib import Path

from hsakd_jax.runs.directory import RunDirectory

# Recipe of a name, and the keys that have the weight.
KEYS = {
    "ls": ("student_ls", ("kl_aux.weight", "kl_final.weight")),
    "dist": ("student_dist", ("dist.weight", "dist_aux.weight")),
    "strong": ("student_strong", ("strong_task.weight",)),
}


def score(run: Path) -> float:
    """Top-1 on the images held out, in percent."""
    records = [record for record in RunDirectory(run).metrics.read() if record.split == "validation"]
    return records[-1].values["top1"]


def main(root: Path, flags: bool) -> None:
    """Prints a Markdown table, or the flags."""
    scores = {run.name: score(run) for run in sorted(root.iterdir()) if (run / "results.json").exists()}
    best: dict[str, str] = {}
    for name in scores:
        kind = name.partition("_")[0]
        if kind in KEYS and scores[name] > scores.get(best.get(kind, ""), -1.0):
            best[kind] = name
    if flags:
        for kind, name in best.items():
            recipe, keys = KEYS[kind]
            print(*(f"--config.objective.{recipe}.{key}={name.partition('_')[2]}" for key in keys))
        return
    print("| recipe | weight | top-1 of held-out images | above `student` |\n|---|---|---|---|")
    for name, top1 in scores.items():
        kind, _, weight = name.partition("_")
        recipe = KEYS[kind][0] if kind in KEYS else name
        mark = "**" if name in best.values() else ""
        gain = top1 - scores["student"] if "student" in scores else float("nan")
        print(f"| `{recipe}` | {mark}{weight}{mark} | {top1:.2f} | {gain:+.2f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--flags" in sys.argv[2:])
