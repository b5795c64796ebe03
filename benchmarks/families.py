"""Time of a training step of torchvision's and timm's networks, ours and PyTorch's, alternating in one run, on CPU.

    python -m benchmarks.families [NAME...] [--batch 16] [--pixels 96] [--steps 1] [--rounds 7] [--output NAME]

A step takes a batch of uint8 images, normalises it, and updates the network by its cross-entropy with SGD, as the
recipe `baseline` does without crops and flips. PyTorch's side is eager, in its default layout, with torchvision's or
timm's own network of the same name. Its dropout and stochastic depth are set to 0, since ours have none. By default the
smallest network of each family is measured. Weights and images are random.

Each side has a process of its own, with the memory settings its user would have. The sides take turns within each
round, and a ratio compares two times of the same round: PyTorch's time divided by ours, above 1 ours is faster. The
table has medians with the quartiles. --steps is how many steps are timed together. Memory is the greatest of the
process. Prints a Markdown table and writes it and JSON to benchmarks/results/NAME.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec

from hsakd_jax.core import runtime

# As every command does; but PyTorch's process has the memory settings that its user has.
TORCH = "torch eager"
if TORCH not in sys.argv:
    # Not the process that starts PyTorch's, which would inherit the setting.
    runtime.configure_runtime(restart="--side" in sys.argv)
    runtime.configure_compilation()

import jax
import numpy as np

from benchmarks import Parser, file_name, warn_if_busy
from benchmarks.exports import network_name, random_variables
from benchmarks.step import OURS, Side, Step, batch_of, measure, save, serve
from configs import cifar100
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.datasets import Splits
from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.experiments.resolve import resolve
from hsakd_jax.runs import provenance
from hsakd_jax.runs.restore import build_network
from hsakd_jax.training import build
from hsakd_jax.training.multi_step import make_multi_step

# The smallest network of each family.
NAMES = (
    "resnext50_32x4d",
    "densenet121",
    "vgg16_bn_imagenet",
    "mobilenetv1_100",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "regnet_y_400mf",
    "convnext_tiny",
    "deit_tiny_patch16_224",
)
CLASSES = 1000
NORMAL = NORMALISATION["imagenet2012"]
RATE, MOMENTUM, DECAY = 1e-9, 0.9, 1e-4  # random weights stay as they are
PACKAGES = ("torch", "torchvision", "timm")


def make_data(batch: int, pixels: int) -> Dataset:
    """A batch of random images and labels."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, pixels, pixels, 3), np.uint8)
    return Dataset(images, random.integers(0, CLASSES, batch, np.int32))


def ours(name: str, batch: int, pixels: int, steps: int) -> tuple[Step, dict]:
    """Our steps as a function that waits for their end, and the seconds that compiling one took."""
    data, devices = make_data(batch, pixels), Devices()
    config = cifar100.get_config("baseline").to_dict()
    config["student"] |= {"arch": name, "batch": batch, "lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}
    config["data"] |= {"pad": 0, "flip": False, **NORMAL}
    run = resolve(config, "baseline", Splits(data, None, data, tuple(map(str, range(CLASSES)))))
    network = build_network(run.network)
    program = build.make_program(run, network, None, data, devices)
    state = devices.replicate(program.init(random_variables(network, run.network.image_shape)))
    began = time.perf_counter()
    step = program.step.lower(state, None, *devices.shard(batch_of(data))).compile()
    seconds = time.perf_counter() - began
    multi_step, done = make_multi_step(step, data, devices, batch, 0), 0

    def several() -> None:
        nonlocal state, done
        until = done + steps
        while done < until:
            state, done = multi_step(state, None, done, until)
        jax.block_until_ready(state)

    return several, {"environment": provenance.environment(), "compile_s": seconds}


def torch_network(name: str):
    """torchvision's or timm's network of one of our names, without dropout and stochastic depth, in training mode."""
    import torch

    try:
        import torchvision
    except RuntimeError:
        # Its wheel for GPUs, beside a PyTorch for CPUs, which lacks two operators. No network uses them.
        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    import timm

    theirs = name.removesuffix("_imagenet")
    package = torchvision.models.get_model if theirs in torchvision.models.list_models() else timm.create_model
    network = package(theirs)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0
    return network.train()


def theirs(name: str, batch: int, pixels: int, steps: int) -> tuple[Step, dict]:
    """PyTorch's steps in eager mode."""
    import torch

    data, network = make_data(batch, pixels), torch_network(name)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels).long()
    mean, std = (torch.tensor(NORMAL[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    optimizer = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, weight_decay=DECAY, nesterov=True)

    def several() -> None:
        for _ in range(steps):
            x = images.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std).contiguous()
            loss = torch.nn.functional.cross_entropy(network(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return several, {"versions": {package: version(package) for package in PACKAGES}}


SIDES = {OURS: ours, TORCH: theirs}


def compare(name: str, words: list[str], rounds: int) -> dict:
    """Measures both sides of a network: seconds by side and round, what is known of each side, warnings of other work.

    Args:
      name: of the network.
      words: the options of this command.
      rounds: in which the sides take turns.
    """
    print(f"{name}: compiling", file=sys.stderr, flush=True)
    others: list[str] = []
    with contextlib.ExitStack() as stack:
        lines = {side: [name, *words, "--side", side] for side in SIDES}
        sides = {side: stack.enter_context(Side("families", line)) for side, line in lines.items()}
        seconds = measure(dict(sides), rounds, lambda: others.append(warn_if_busy()))
        about = {side: {**process.about, "peak_bytes": process.bytes} for side, process in sides.items()}
    return {"seconds": seconds, "sides": about, "other_work": [*filter(None, others)]}


def ratios(seconds: dict[str, list[float]]) -> list[float]:
    """Lower quartile, median and upper quartile of PyTorch's time divided by ours of the same round."""
    return np.quantile(np.divide(seconds[TORCH], seconds[OURS]), (0.25, 0.5, 0.75)).tolist()


def row(name: str, found: dict, steps: int) -> str:
    """A network's row of Markdown."""
    low, middle, high = ratios(found["seconds"])
    times = [f"{statistics.median(found['seconds'][side]) / steps:.3f}" for side in SIDES]
    memory = [f"{found['sides'][side]['peak_bytes'] / 2**20:,.0f}" for side in SIDES]
    cells = [name, *times, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", *memory]
    return "| " + " | ".join([*cells, f"{found['sides'][OURS]['compile_s']:.0f}"]) + " |"


def header(args: argparse.Namespace, about: dict[str, dict]) -> list[str]:
    """The lines above the rows."""
    versions = ", ".join(f"{package} {number}" for package, number in about[TORCH]["versions"].items())
    return [
        f"{about[OURS]['environment']['device']}, {len(os.sched_getaffinity(0))} cores, batch {args.batch}, "
        f"{args.pixels}x{args.pixels} pixels, float32, {args.rounds} rounds of {args.steps} steps; jax "
        f"{jax.__version__}, {versions}",
        "",
        "| network | ours, s | PyTorch eager, s | ours is faster by | quartiles | MiB, ours | PyTorch | s to compile |",
        "|---|---|---|---|---|---|---|---|",
    ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("names", nargs="*", type=network_name, default=list(NAMES))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=96, help="side of the images")
    parser.add_argument("--steps", type=int, default=1, help="that are timed together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=file_name, help="name of the files in benchmarks/results/")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # what a process of `Side` is
    args = parser.parse_args(argv)
    if bad := [n for n in ("batch", "pixels", "steps", "rounds") if getattr(args, n) < 1]:
        parser.error(f"--{bad[0]} must be at least 1")
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        parser.error(f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    args = parse(argv)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is measured
    if args.side:
        # Packages may print when they are imported; the other process reads this one's output.
        with contextlib.redirect_stdout(sys.stderr):
            step, about = SIDES[args.side](args.names[0], args.batch, args.pixels, args.steps)
        return serve(args.side, step, about)
    words = [word for key in ("batch", "pixels", "steps") for word in (f"--{key}", str(getattr(args, key)))]
    lines: list[str] = []
    results: dict[str, dict] = {}
    for name in args.names:
        results[name] = found = compare(name, words, args.rounds)
        if not lines:
            lines = header(args, found["sides"])
            print("\n".join(lines), flush=True)
        lines.append(row(name, found, args.steps))
        if found["other_work"]:
            lines.append(f"| | {found['other_work'][0]} | | | | | | |")
        print("\n".join(lines[-1 - bool(found["other_work"]) :]), flush=True)
        if args.output:
            options = {key: getattr(args, key) for key in ("batch", "pixels", "steps", "rounds")}
            save("families", args.output, {**options, "networks": results}, lines)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
