"""Prints the table of results/cifar100.md, of the rows in this folder, and draws its figure.

    python results/cifar100/table.py [--figure FILE.png]

The table has the paper's numbers for rows of full length. A row is compared with the baseline of the same schedule and
seed, by McNemar's test on the test images. A second table compares the baselines with those of in_pytorch.py, in the
folder pytorch.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import msgspec
from scipy import stats

from hsakd_jax.analysis.paper import TABLES, Column
from hsakd_jax.evaluation.verdict import LEVEL, Verdict, compare
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.runs.results import Results

HERE = Path(__file__).resolve().parent
FULL, SHORT = 240, 30  # epochs: of the paper, and of rows with a check in PyTorch
PAIR = Column("cifar100", "resnet56", "resnet20")


def published(recipe: str) -> str:
    """The paper's top-1 at the best epoch, with its standard deviation; '' where it has none."""
    number = TABLES["cifar100"].numbers.get(recipe, {}).get(PAIR)
    if number is None:
        return ""
    return f"{number.top1:.2f}" + (f" ({number.std:.2f})" if number.std is not None else "")


def schedule(one: Results) -> tuple[int, int]:
    """Epochs and seed, which a row and its baseline have in common."""
    return round(one.last["epoch"]), one.seed


def print_check(ours: dict[int, float], theirs: dict[int, float]) -> None:
    """Prints the table of the baselines of 30 epochs, of this package and in plain PyTorch, and their difference.

    Welch's t-test, as the two have different random numbers: the same seed is not a pair.

    Args:
      ours: top-1 of the last epoch by seed, of at least two seeds.
      theirs: the same of in_pytorch.py.
    """
    print("| training | seeds | top-1 %, last | mean (standard deviation) |")
    print("|---|---|---|---|")
    for name, found in (("this package", ours), ("plain PyTorch", theirs)):
        seeds, top1 = zip(*sorted(found.items()), strict=True)
        every = ", ".join(f"{one:.2f}" for one in top1)
        print(f"| {name} | {', '.join(map(str, seeds))} | {every} | {mean(top1):.2f} ({stdev(top1):.2f}) |")
    test = stats.ttest_ind(list(theirs.values()), list(ours.values()), equal_var=False)
    difference = mean(theirs.values()) - mean(ours.values())
    low, high = map(float, test.confidence_interval(LEVEL))
    verdict = Verdict(difference, (low, high), float(test.pvalue), min(len(ours), len(theirs)))
    print()
    print(f"PyTorch against this package: {verdict.words} ({LEVEL * 100:g} % interval {verdict.bounds}).")


def draw(rows: dict[str, Any], path: Path) -> None:
    """Top-1 over epochs with seed 0: each test, and the mean of an epoch's training images, which are augmented."""
    from hsakd_jax.analysis import plots

    panels = []
    for epochs in sorted({row["results"]["last"]["epoch"] for row in rows.values()}):
        chosen = [row for row in rows.values() if row["results"]["last"]["epoch"] == epochs]
        for images, key in (("test", "top1_by_epoch"), ("training", "training_top1_by_epoch")):
            curves = []
            for i, row in enumerate(chosen):
                title, top1 = RECIPES[row["results"]["recipe"]].title, row[key]
                curves.append(plots.Curve(title, f"c{i}", [float(epoch) for epoch in top1], list(top1.values())))
            panels.append((f"{epochs:g} epochs, {images} images", curves))
    path.write_bytes(plots.png(plots.curves(panels, "epoch", "top-1 %", columns=2, height=3.4)))


def main() -> None:
    """Prints the rows, the longest runs first, and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    rows = {path.stem: json.loads(path.read_text()) for path in HERE.glob("*.json")}
    results = {name: msgspec.convert(row["results"], Results) for name, row in rows.items()}
    order = sorted(results, key=lambda name: (-results[name].last["epoch"], results[name].recipe != "baseline", name))
    baselines = {schedule(one): one for one in results.values() if one.recipe == "baseline"}
    heads = ["row", "seed", "epochs", "top-1 %, last", "best", "against the baseline"]
    heads += ["published, best of full length", "hours"]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for name in order:
        one, title = results[name], RECIPES[results[name].recipe].title
        verdict = ""
        if one.recipe != "baseline" and schedule(one) in baselines:
            verdict = compare({one.seed: one}, {one.seed: baselines[schedule(one)]}).brief()
        theirs = published(one.recipe) if round(one.last["epoch"]) == FULL else ""
        last, best = (f"{accuracies['top1']:.2f}" for accuracies in (one.last, one.best))
        cells = [f"[{title}](cifar100/{name}.json)", str(one.seed), f"{one.last['epoch']:g}", last, best, verdict]
        print(f"| {' | '.join(cells)} | {theirs} | {rows[name]['hours']:.2f} |")
    ours = {seed: one for (epochs, seed), one in baselines.items() if epochs == SHORT}
    theirs = [json.loads(path.read_text()) for path in (HERE / "pytorch").glob("*.json")]
    images = {one.correct.labels for one in ours.values() if one.correct}
    if images != {one["correct"]["labels"] for one in theirs}:
        raise SystemExit("the runs in PyTorch have other test images than those of this package")
    if min(len(ours), len(theirs)) > 1:
        print()
        print_check(
            {seed: one.last["top1"] for seed, one in ours.items()},
            {one["seed"]: one["top1_by_epoch"][str(SHORT)] for one in theirs},
        )
    if args.figure:
        draw({name: rows[name] for name in order if results[name].seed == 0}, args.figure)


if __name__ == "__main__":
    main()
