"""Copies the finished rows of queue.sh from .evidence/ into this folder: NAME.safetensors and NAME.json.

    python results/cifar100/finish.py [--evidence DIR] [--output DIR]

NAME.safetensors is the deployed network as `export` writes it, with the names of the classes. NAME.json contains the
command, the number of calls, the hours of training by the log's rate, top-1 over epochs, and the run's results.json. A
row that has both files is left as it is. Anyone checks a row without training: `convert NAME.safetensors
--data=cifar100 --output=RUN`, then `evaluate`.
"""

import argparse
import json
import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

HERE = Path(__file__).resolve().parent


def describe(run: Path, calls: int) -> dict:
    """The content of NAME.json."""
    # Read as they are: the code that wrote them may be older than this one.
    config, results = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "results"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = config["training"]["epochs"]
    training = defaultdict(list)
    for one in records:
        if "loss" in one:
            training[math.ceil(one["epoch"])].append(100 * one["top1"])
    del results["crc32"]  # which is that of results.json
    return {
        "command": ["python", "-m", "hsakd_jax.main", *config["command"]],
        "calls": calls,
        "hours": round(epochs * results["train_images"] / results["images_per_s"] / 3600, 2),
        "top1_by_epoch": {f"{one['epoch']:g}": one["top1"] for one in records if one.get("split") == "test"},
        "training_top1_by_epoch": {str(epoch): round(mean(values), 2) for epoch, values in training.items()},
        "results": results,
    }


def main() -> None:
    """Copies what is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", type=Path, default=HERE.parents[1] / ".evidence")
    parser.add_argument("--output", type=Path, default=HERE)
    args = parser.parse_args()
    starts = [line.split("\t")[1:] for line in (args.evidence / "times.tsv").read_text().splitlines()]
    for results in sorted((args.evidence / "runs").glob("*/results.json")):
        run, name = results.parent, results.parent.name
        weights, described = args.output / f"{name}.safetensors", args.output / f"{name}.json"
        if weights.exists() and described.exists():
            continue
        line = [sys.executable, "-m", "hsakd_jax.export", f"--workdir={run.resolve()}", "--format=safetensors"]
        line += [f"--output={weights.resolve()}", "--measure=False"]
        subprocess.run(line, cwd=HERE.parents[1], check=True)
        content = describe(run, starts.count([name, "start"]))
        described.write_text(json.dumps(content, indent=1) + "\n")
        print(f"{name}: top-1 {content['results']['last']['top1']:.2f} %, {content['hours']} h")


if __name__ == "__main__":
    main()
