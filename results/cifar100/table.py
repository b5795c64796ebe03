"""Prints the table of results/cifar100.md, of the rows in this folder, and draws its figure.

    python results/cifar100/table.py [--figure FILE.png]

The table has the paper's numbers for rows of full length. A row is compared with the baseline of the same schedule and
seed, by McNemar's test on the test images. The last rows are those of in_pytorch.py, in the folder pytorch.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec

from hsakd_jax.analysis.paper import TABLES, Column
from hsakd_jax.evaluation.verdict import compare, mcnemar
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.runs.results import Correct, Results

HERE = Path(__file__).resolve().parent
FULL = 240  # epochs of the paper
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


def pytorch_row(path: Path, baselines: dict[tuple[int, int], Results]) -> str:
    """The row of a baseline in plain PyTorch, compared with that of this package."""
    content = json.loads(path.read_text())
    one, ours = msgspec.convert(content["correct"], Correct), baselines.get((content["epochs"], content["seed"]))
    verdict = ""
    if ours and ours.correct:
        if one.labels != ours.correct.labels:
            raise SystemExit(f"{path} is of other test images than the baseline of this package")
        verdict = mcnemar(*(correct.unpack(ours.test_images) for correct in (one, ours.correct))).brief()
    top1 = content["top1_by_epoch"]
    last, best = f"{top1[str(content['epochs'])]:.2f}", f"{max(top1.values()):.2f}"
    link = f"[baseline in plain PyTorch](cifar100/pytorch/{path.name})"
    return f"| {link} | {content['epochs']} | {last} | {best} | {verdict} |  |  |"


def draw(rows: dict[str, Any], path: Path) -> None:
    """Top-1 over epochs: each test, and the mean of an epoch's training images, which are augmented."""
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
    print("| row | epochs | top-1 %, last | best | against the baseline | published, best of full length | hours |")
    print("|---|---|---|---|---|---|---|")
    for name in order:
        one, title = results[name], RECIPES[results[name].recipe].title
        verdict = ""
        if one.recipe != "baseline" and schedule(one) in baselines:
            verdict = compare({one.seed: one}, {one.seed: baselines[schedule(one)]}).brief()
        theirs = published(one.recipe) if round(one.last["epoch"]) == FULL else ""
        last, best = (f"{accuracies['top1']:.2f}" for accuracies in (one.last, one.best))
        cells = [f"[{title}](cifar100/{name}.json)", f"{one.last['epoch']:g}", last, best, verdict, theirs]
        print(f"| {' | '.join(cells)} | {rows[name]['hours']} |")
    for path in sorted((HERE / "pytorch").glob("*.json")):
        print(pytorch_row(path, baselines))
    if args.figure:
        draw({name: rows[name] for name in order}, args.figure)


if __name__ == "__main__":
    main()
