"""Prints the table of results/cifar100.md: the rows in this folder, with the published numbers of full-length ones.

python results/cifar100/table.py
"""

import json
from pathlib import Path

from hsakd_jax.analysis.paper import TABLES, Column
from hsakd_jax.experiments.recipes import RECIPES

HERE = Path(__file__).resolve().parent
FULL = 240  # epochs of the paper
PAIR = Column("cifar100", "resnet56", "resnet20")


def published(recipe: str) -> str:
    """The paper's top-1 at the best epoch, with its standard deviation; '' where it has none."""
    number = TABLES["cifar100"].numbers.get(recipe, {}).get(PAIR)
    if number is None:
        return ""
    return f"{number.top1:.2f}" + (f" ({number.std:.2f})" if number.std is not None else "")


def main() -> None:
    """Prints the rows, the longest runs first."""
    found = [json.loads(path.read_text()) for path in sorted(HERE.glob("*.json"))]
    print("| row | epochs | seed | top-1 %, last | best | published, best of full length | hours |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted(found, key=lambda one: -one["results"]["last"]["epoch"]):
        results = row["results"]
        last, best, epochs = results["last"], results["best"], round(results["last"]["epoch"])
        theirs = published(results["recipe"]) if epochs == FULL else ""
        title = RECIPES[results["recipe"]].title
        print(
            f"| {title} | {epochs} | {results['seed']} | {last['top1']:.2f} | {best['top1']:.2f} | {theirs} "
            f"| {row['hours']} |"
        )


if __name__ == "__main__":
    main()
