"""Time and memory of each method's training step relative to plain KD's, on CPU, all in one run.

    python -m benchmarks.methods [--pair resnet56:resnet20] [--recipes kd,crd,student] [--batch 64] [--images 50000]
        [--steps 3] [--rounds 9] [--output NAME]

A recipe's step is the program of its run, from the config for CIFAR-100 on: augmentation, teacher, student, terms and
update. Images and weights are random. --images is the size of the training set, which CRD's memory depends on. By
default all recipes with a teacher are measured, and the baseline, without those that repeat a step: few-shot recipes,
ablations, and HSAKD's students of other teachers.

The recipes take turns within each round, in an order of its own. KD runs before and after each of them, and a ratio
compares a recipe's time with the mean of the two. The table has the median of the ratios with the quartiles. --steps
is how many steps are timed together, after one that is not, since the recipe before leaves another's arrays in the
caches. Memory is that of the compiled program: its temporary arrays, arguments and results, without results that reuse
the memory of arguments. Prints a Markdown table and writes it and JSON to benchmarks/results/NAME.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hsakd_jax.core import runtime

runtime.configure_runtime(restart=__name__ == "__main__")
runtime.configure_compilation()

import jax
import numpy as np

from benchmarks import Parser, file_name, warn_if_busy
from benchmarks.exports import network_name
from benchmarks.step import batch_of, make_data, save
from configs import cifar100
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.datasets import Splits
from hsakd_jax.experiments.recipes import GIVEN, RECIPES
from hsakd_jax.experiments.resolve import resolve, teacher_recipe
from hsakd_jax.runs import provenance
from hsakd_jax.runs.config import RunConfig
from hsakd_jax.training.build import Program, dry_run
from hsakd_jax.training.estimate import program_bytes, random_state
from hsakd_jax.training.multi_step import make_multi_step

REFERENCE = "kd"
# The steps of `student`, taught by other teachers.
REPEATED = ("student_frozen", "student_online")
Quartiles = tuple[float, float, float]


class Times(NamedTuple):
    """Of a recipe, by round.

    Attributes:
      seconds: of the steps that are timed together.
      ratios: of these to the mean of the reference's, just before and just after.
    """

    seconds: list[float]
    ratios: list[float]


class Method(NamedTuple):
    """A recipe's step, ready to run.

    Attributes:
      run: makes a number of steps and waits for their end.
      program_bytes: memory of the compiled program.
      compile_s: seconds that compiling took, or loading it from the compilation cache.
    """

    run: Callable[[int], None]
    program_bytes: int
    compile_s: float


def default_recipes() -> list[str]:
    """The recipes that are measured by default, the reference first."""
    taught = [
        name
        for name, kind in RECIPES.items()
        if kind.teacher and kind.fraction == 1 and name not in REPEATED and not name.startswith("ablation")
    ]
    return list(dict.fromkeys([REFERENCE, "baseline", *taught]))


def traced(recipe: str, pair: str, batch: int, splits: Splits, devices: Devices) -> tuple[RunConfig, Program]:
    """The config of a recipe's run, and its program, as a command makes them."""
    config = cifar100.get_config(f"{recipe}/{pair.replace(':', '/')}").to_dict()
    for section in ("teacher", "student", "frozen"):
        config[section] |= {"batch": batch, "lr": 1e-9}  # random weights stay as they are
    run = resolve(config, recipe, splits)
    taught_by = teacher_recipe(config, recipe)
    theirs = resolve(config, taught_by, splits) if taught_by else None
    return run, dry_run(run, Path("none"), theirs, splits.train, devices)


def prepare(recipe: str, pair: str, batch: int, splits: Splits, devices: Devices) -> Method:
    """Compiles a recipe's step, and makes its first state with random variables.

    Args:
      recipe: a key of `RECIPES`.
      pair: 'TEACHER:STUDENT', keys of `NETWORKS`.
      batch: images of a step.
      splits: random data.
      devices: where to compute.
    """
    run, program = traced(recipe, pair, batch, splits, devices)
    state, taught = devices.replicate(random_state(run, program))
    began = time.perf_counter()
    first = batch_of(splits.train.take(np.arange(batch)))
    compiled = program.step.lower(state, taught, *devices.shard(first)).compile()
    seconds = time.perf_counter() - began
    multi_step, done = make_multi_step(compiled, splits.train, devices, batch, 0), 0

    def several(steps: int) -> None:
        nonlocal state, done
        until = done + steps
        while done < until:
            state, done = multi_step(state, taught, done, until)
        jax.block_until_ready(state)

    return Method(several, program_bytes(compiled.memory_analysis()), seconds)


def measure(methods: dict[str, Method], steps: int, rounds: int) -> tuple[dict[str, Times], list[str]]:
    """The times of `steps` steps of each recipe, and the warnings of other work."""
    for method in methods.values():
        method.run(4)  # until the process has all its memory

    def seconds(name: str) -> float:
        methods[name].run(1)
        began = time.perf_counter()
        methods[name].run(steps)
        return time.perf_counter() - began

    times: dict[str, Times] = {name: Times([], []) for name in methods}
    others: list[str] = []
    random = np.random.default_rng(0)
    for i in range(rounds):
        others.append(warn_if_busy())
        print(f"round {i + 1} of {rounds}", file=sys.stderr, flush=True)
        before = seconds(REFERENCE)
        for name in random.permutation(list(methods)).tolist():
            own, after = seconds(name), seconds(REFERENCE)
            times[name].seconds.append(own)
            times[name].ratios.append(2 * own / (before + after))
            before = after
    return times, [*filter(None, others)]


def quartiles(values: Sequence[float]) -> Quartiles:
    """Lower, median, upper."""
    low, middle, high = np.quantile(np.asarray(values), (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def table(times: dict[str, Times], methods: dict[str, Method], steps: int) -> list[str]:
    """Rows of Markdown, the fastest recipe first."""
    relative = {name: quartiles(one.ratios) for name, one in times.items()}
    lines = [
        f"| recipe | method | s of a step | relative to `{REFERENCE}` | quartiles | MiB of the program | relative |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(methods, key=lambda name: relative[name][1]):
        low, middle, high = relative[name]
        size, of_reference = methods[name].program_bytes, methods[REFERENCE].program_bytes
        seconds = statistics.median(times[name].seconds) / steps
        lines.append(
            f"| `{name}` | {RECIPES[name].title} | {seconds:.3f} | {middle:.3f} | {low:.3f} to {high:.3f} | "
            f"{size / 2**20:,.0f} | {size / of_reference:.2f} |"
        )
    return lines


def pair_name(text: str) -> str:
    """The type of --pair."""
    names = text.split(":")
    if len(names) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no pair of networks: give TEACHER:STUDENT")
    return ":".join(map(network_name, names))


def recipe_names(text: str) -> list[str]:
    """The type of --recipes; the reference comes first."""
    names = text.split(",")
    for name in names:
        if name not in RECIPES or RECIPES[name].init == GIVEN:
            raise argparse.ArgumentTypeError(f"{name!r} is no recipe that can be measured: take some of RECIPES")
    return list(dict.fromkeys([REFERENCE, *names]))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--pair", type=pair_name, default="resnet56:resnet20")
    parser.add_argument("--recipes", type=recipe_names, default=default_recipes(), help="with commas between them")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=50_000, help="of the training set")
    parser.add_argument("--steps", type=int, default=3, help="that are timed together")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=file_name, help="name of the files in benchmarks/results/")
    args = parser.parse_args(argv)
    if bad := [n for n in ("batch", "steps", "rounds") if getattr(args, n) < 1]:
        parser.error(f"--{bad[0]} must be at least 1")
    if args.images < args.batch:
        parser.error("--images must be at least --batch")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    args = parse(argv)
    jax.config.update("jax_platforms", "cpu")
    dataset, classes = make_data("", args.images)
    splits, devices = Splits(dataset, None, dataset, tuple(map(str, range(classes)))), Devices()
    methods: dict[str, Method] = {}
    for name in args.recipes:
        try:
            methods[name] = prepare(name, args.pair, args.batch, splits, devices)
        except UserError as error:
            Parser(None).error(f"{name}: {error}")
        print(f"{name}: compiled in {methods[name].compile_s:.0f} s", file=sys.stderr, flush=True)
    times, others = measure(methods, args.steps, args.rounds)
    report(args, methods, times, others)


def report(args: argparse.Namespace, methods: dict[str, Method], times: dict[str, Times], others: list[str]) -> None:
    """Prints the table, and writes the files of --output; `others` are warnings of other work."""
    environment = provenance.environment()
    lines = [
        f"{environment['device']}, {os.cpu_count()} cores, {args.pair}, batch {args.batch}, float32, "
        f"{args.images:,} images, {args.rounds} rounds of {args.steps} steps; jax {jax.__version__}",
        *others[:1],
        "",
        *table(times, methods, args.steps),
    ]
    print("\n".join(lines))
    if not args.output:
        return
    relative = {name: quartiles(one.ratios) for name, one in times.items()}
    recipes = {
        name: {
            "seconds": times[name].seconds,
            "ratios": times[name].ratios,
            "relative": relative[name],
            "program_bytes": method.program_bytes,
            "compile_s": method.compile_s,
        }
        for name, method in methods.items()
    }
    options = {key: getattr(args, key) for key in ("pair", "batch", "images", "steps", "rounds")}
    content = {"environment": environment, **options, "other_work": others, "recipes": recipes}
    save("methods", args.output, content, lines)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
