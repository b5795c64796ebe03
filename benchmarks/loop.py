"""Whole epochs, data and evaluation included, ours and a PyTorch loop as the reference writes it; and what starts cost.

    python -m benchmarks.loop [--pair wrn_40_2:wrn_16_2] [--images 640] [--test-images 1000] [--epochs 4]
        [--against eager|none] [--output NAME]

Four measurements, on random images:

epoch       seconds from one evaluation's end to the next, checkpoint included, by `train.run` itself; the median.
loop        the share of an epoch, without evaluation and checkpoint, that is not the step: one minus the seconds of a
            step, measured alone, times the steps.
evaluation  10,000 images (--test-images here) without branches, against a forward pass at the best of several batches.
start       from `python -m hsakd_jax.main` to the end of its first step, compilation cache cold and warm.

The PyTorch loop loads images in the main process, one by one, and reads four numbers a step, as the reference does.
On a GPU: --images 50000 --test-images 10000.
"""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hsakd_jax.core import runtime
from hsakd_jax.data.dataset import Dataset

runtime.configure_runtime()
runtime.configure_compilation()

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from benchmarks import Parser, file_name, warn_if_busy
from benchmarks import step as bench
from benchmarks.exports import random_variables
from configs import cifar100
from hsakd_jax.core.console import Console
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data import datasets
from hsakd_jax.data.augment import normalise
from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.evaluation import accuracy
from hsakd_jax.experiments.resolve import resolve
from hsakd_jax.interop import importing, torch_weights
from hsakd_jax.models import create
from hsakd_jax.runs import provenance
from hsakd_jax.runs.config import RunConfig
from hsakd_jax.training import loop

BATCH, EVAL_BATCH = 64, 500


class Listener(Console):
    """Shows nothing and notes when each line came."""

    def __init__(self):
        super().__init__(open(os.devnull, "w"))  # noqa: SIM115
        self.times = []

    def line(self, text):
        if ": epoch " in text:
            self.times.append(time.perf_counter())


def our_epochs(pair: str, splits: datasets.Splits, epochs: int, folder: Path) -> tuple[list[float], float]:
    """Seconds of each epoch but the first, which compiles; training images a second between evaluations."""
    teacher, student = pair.split(":")
    classes = len(splits.class_names)
    network = create(teacher, classes)
    file = folder / "teacher.safetensors"
    save_file(torch_weights.to_state_dict(teacher, network, random_variables(network, (32, 32, 3))), file)
    importing.convert(file, folder / "teacher", Listener())
    run = student_config(student, splits, epochs, str(folder / "teacher"))
    listener = Listener()
    result = loop.run(run, folder / "student", splits, listener)
    return [b - a for a, b in itertools.pairwise(listener.times)], result.images_per_s or 0.0


def student_config(student: str, splits: datasets.Splits, epochs: int, teacher: str) -> RunConfig:
    """The config of HSAKD's student; random labels teach nothing, and a small rate keeps them from doing harm."""
    config = cifar100.get_config("student").to_dict()
    config["student"] |= {"arch": student, "epochs": epochs, "milestones": (), "lr": 1e-4, "batch": BATCH}
    config |= {"log_every": min(50, len(splits.train.labels) // BATCH), "eval_batch": EVAL_BATCH}
    config["teacher"]["workdir"] = teacher
    return resolve(config, "student", splits)


def their_epochs(pair: str, splits: datasets.Splits, epochs: int) -> list[float]:
    """Seconds of each epoch but the first."""
    import torch

    device = bench.torch_device()
    student, update = bench.torch_trainer(pair, len(splits.class_names), "eager")
    normal = NORMALISATION["cifar100"]
    mean, std = (np.float32(normal[key]).reshape(3, 1, 1) for key in ("mean", "std"))

    class Images(torch.utils.data.Dataset):
        def __init__(self, dataset, train):
            self.images, self.labels, self.train = dataset.images, dataset.labels, train
            self.random = np.random.default_rng(0)

        def __len__(self):
            return len(self.labels)

        def __getitem__(self, i):
            image = self.images[i]
            if self.train:
                top, left = self.random.integers(0, 9, 2)
                image = np.pad(image, ((4, 4), (4, 4), (0, 0)))[top : top + 32, left : left + 32]
                image = image[:, ::-1] if self.random.random() < 0.5 else image
            image = (image.transpose(2, 0, 1).astype(np.float32) / 255 - mean) / std
            return torch.from_numpy(np.ascontiguousarray(image)), int(self.labels[i])

    loaders = [
        torch.utils.data.DataLoader(
            Images(dataset, training), BATCH, shuffle=training, drop_last=training, pin_memory=device == "cuda"
        )
        for dataset, training in ((splits.train, True), (splits.test, False))
    ]
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        student.train()
        for x, y in loaders[0]:
            loss = update(x.to(device), y.to(device))
            for _ in range(4):
                loss.item()
        student.eval()
        with torch.no_grad():
            for x, y in loaders[1]:
                (student(x.to(device))[0].argmax(1) == y.to(device)).sum().item()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def evaluation_share(student: str, test: Dataset, rounds: int = 5) -> dict[str, float]:
    """Seconds of an evaluation without branches, and of a forward pass at the best of several batches."""
    network, devices = create(student, 100, branches=False), Devices()
    variables = devices.replicate(random_variables(network, (32, 32, 3)))
    normal = NORMALISATION["cifar100"]
    splits = datasets.Splits(test, None, test, tuple(map(str, range(100))))
    evaluate = accuracy.make_evaluate(network, devices, student_config(student, splits, 1, "none"), EVAL_BATCH)
    forward = devices.jit(lambda v, x: network.apply(v, x).logits, replicated=1)
    sides = {"evaluation": lambda: evaluate(variables, test)}
    for size in (64, 128, 256, 500, 1000, 2000):
        x = jax.block_until_ready(normalise(jnp.asarray(test.images[:size]), **normal))

        def passes(x=x):
            for _ in range(-(-len(test.labels) // len(x))):
                out = forward(variables, x)
            jax.block_until_ready(out)

        if size <= len(test.labels):
            sides[f"forward {size}"] = passes
    seconds = {name: statistics.median(times) for name, times in bench.measure(sides, rounds).items()}
    return {"evaluation": seconds.pop("evaluation"), "forward": min(seconds.values())}


def step_alone(pair: str, steps: int, rounds: int = 4) -> list[float]:
    """Seconds of a step on a batch that lies on the devices, in each round of `steps` but the first."""
    step, (state, taught), devices, dataset = bench.our_step(pair, BATCH, "float32")
    rows, seconds = devices.shard(bench.batch_of(dataset)), []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(steps):
            state = step(state, taught, *rows)
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - began) / steps)
    return seconds[1:]


def start_seconds(folder: Path) -> dict[str, float]:
    """Seconds from the command to the end of its first step, by the line that says so."""
    found = {}
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    for kind in ("cold", "warm"):
        line = [
            sys.executable, "-m", "hsakd_jax.main", "--config=configs/cifar100.py:teacher", "--config.log_every=1",
            "--config.data.name=digits", "--config.data.mean=(0.3,)", "--config.data.std=(0.4,)",
            f"--workdir={folder / kind}",
        ]  # fmt: skip
        began = time.perf_counter()
        with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True) as process:
            for text in process.stdout:
                if "step 1/" in text:
                    found[kind] = time.perf_counter() - began
                    break
            process.kill()
    return found


def main() -> None:
    """Measures and prints."""
    parser = Parser(__doc__)
    parser.add_argument("--pair", default="wrn_40_2:wrn_16_2", choices=bench.CIFAR_PAIRS)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--against", default="eager", choices=["eager", "none"])
    parser.add_argument("--output", type=file_name, help="name of the file in benchmarks/results/")
    args = parser.parse_args()
    if args.images < BATCH or args.test_images < BATCH or args.epochs < 2:
        parser.error(f"give at least a batch of {BATCH} --images and --test-images, and --epochs 2: the first compiles")
    bench.check_torch(parser, args.against)
    warn_if_busy()
    steps = args.images // BATCH
    dataset, classes = bench.make_data(args.pair, args.images)
    test, _ = bench.make_data(args.pair, args.test_images)
    splits = datasets.Splits(dataset, None, test, tuple(map(str, range(classes))))
    with tempfile.TemporaryDirectory() as folder:
        start = start_seconds(Path(folder))
        alone = step_alone(args.pair, steps)
        epochs, rate = our_epochs(args.pair, splits, args.epochs, Path(folder))
    theirs = their_epochs(args.pair, splits, args.epochs) if args.against != "none" else []
    evaluated = evaluation_share(args.pair.split(":")[1], test)
    result = {
        "environment": provenance.environment(),
        "pair": args.pair, "images": args.images, "test_images": args.test_images,
        "epoch_s": epochs, "torch_epoch_s": theirs, "step_s": alone, "images_per_s": rate,
        "evaluation_s": evaluated, "start_s": start,
    }  # fmt: skip
    step, epoch = statistics.median(alone), statistics.median(epochs)
    lines = [
        f"{result['environment']['device']}, {args.pair}, {args.images} training and {args.test_images} test images, "
        f"batch {BATCH} x 4, jax {jax.__version__}",
        "",
        "| measured | seconds | |",
        "|---|---|---|",
        f"| epoch, with evaluation and checkpoint | {epoch:.2f} | |",
        f"| epoch of the PyTorch loop | {statistics.median(theirs):.2f} | ours is faster by "
        f"{statistics.median(theirs) / epoch:.2f} |" if theirs else "| epoch of the PyTorch loop | not measured | |",
        f"| step in the loop, by its log | {BATCH / rate:.3f} | alone {step:.3f}: {1 - step * rate / BATCH:.1%} "
        "is not the step |",
        f"| evaluation | {evaluated['evaluation']:.2f} | forward pass at its best batch {evaluated['forward']:.2f}: "
        f"{evaluated['evaluation'] / evaluated['forward']:.2f} times |",
        f"| start to first step, cold cache | {start['cold']:.1f} | |",
        f"| start to first step, warm cache | {start['warm']:.1f} | |",
    ]  # fmt: skip
    print("\n".join(lines))
    if args.output:
        bench.save("loop", args.output, result, lines)


if __name__ == "__main__":
    main()
