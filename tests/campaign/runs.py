"""The runs that the campaign attacks, the commands on them, and digests of what they hold."""

import hashlib
import importlib
import json
from pathlib import Path

import numpy as np

from hsakd_jax import cli
from tests.campaign import children
from tests.campaign.children import Result

# What tells the time in a record, and the checksum over it.
TIMES = ("images_per_s", "crc32")
CONFIG = "--config=configs/cifar100.py:baseline_tiny"
ARGS = (CONFIG, "--config.student.epochs=3", "--config.log_every=4")


def command(name: str, *args: object, timeout: float = 120, memory: int | None = None) -> Result:
    """`python -m hsakd_jax.NAME ARGS` in a child."""
    return children.run(lambda: call(name, *args), timeout, memory)


def call(name: str, *args: object) -> int:
    """A command in this process, which does nothing else; returns its exit status."""
    cli.set_up_process()
    return cli.run(importlib.import_module(f"hsakd_jax.{name}").COMMAND, [str(arg) for arg in args], own_process=True)


def train(workdir: Path, timeout: float = 120) -> Result:
    """The command that makes the run, or goes on with it."""
    return command("main", *ARGS, f"--workdir={workdir}", timeout=timeout)


def digest(workdir: Path) -> str:
    """A sum over state, records and accuracies of a run, without what tells the time.

    Raises:
      RuntimeError: they can't be read.
    """
    found = children.run(lambda: _print_digest(workdir))
    if found.status:
        raise RuntimeError(found.err)
    return found.out


def _print_digest(workdir: Path) -> int:
    import jax

    from hsakd_jax.runs.checkpoint import Checkpoints

    checkpoints = Checkpoints(workdir / "checkpoints", write=False)
    total = hashlib.sha256()
    for step in checkpoints.steps():
        for leaf in jax.tree.leaves(checkpoints.restore(step)):
            total.update(np.ascontiguousarray(leaf).tobytes())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    records = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    results = json.loads((workdir / "results.json").read_text())
    found = [checkpoints.steps(), records, results["last"], results["best"]]
    total.update(json.dumps(found, sort_keys=True).encode())
    print(total.hexdigest())
    return 0
