"""Copies the finished rows of queue.sh from .evidence/ into this folder: NAME.safetensors and NAME.json.

    python results/cifar100/finish.py [--evidence DIR] [--output DIR]

NAME.safetensors is the deployed network as `export` writes it, with the names of the classes. NAME.json contains the
command, the number of calls, the hours of training by the log's rate, top-1 over epochs, and the run's results.json. A
row that has both files is left as it is. Anyone checks a row without training: `convert NAME.safetensors
--data=cifar100 --output=RUN`, then `evaluate`.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent


def training_top1(records: list[dict]) -> dict[str, float]:
    """Top-1 in percent on the images of each epoch, each before its step.

    A record has the mean of its steps. One that begins in an epoch and ends in the next one counts in both.
    """
    per_epoch = round(records[-1]["step"] / records[-1]["epoch"])
    total, steps, begin = defaultdict(float), defaultdict(int), 0
    for one in records:
        while begin < one["step"]:
            epoch = begin // per_epoch + 1
            end = min(one["step"], epoch * per_epoch)
            total[epoch] += 100 * one["top1"] * (end - begin)
            steps[epoch] += end - begin
            begin = end
    return {str(epoch): round(total[epoch] / steps[epoch], 2) for epoch in total}


def describe(run: Path, calls: int) -> dict:
    """The content of NAME.json."""
    # Read as they are: the code that wrote them may be older than this one.
    config, results = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "results"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = config["training"]["epochs"]
    del results["crc32"]  # which is that of results.json
    return {
        "command": ["python", "-m", "hsakd_jax.main", *config["command"]],
        "calls": calls,
        "hours": round(epochs * results["train_images"] / results["images_per_s"] / 3600, 2),
        "top1_by_epoch": {f"{one['epoch']:g}": one["top1"] for one in records if one.get("split") == "test"},
        "training_top1_by_epoch": training_top1([one for one in records if "loss" in one]),
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
