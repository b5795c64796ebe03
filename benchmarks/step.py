"""Images a second of the whole HSAKD training step, ours and PyTorch's, alternating in one run.

    python -m benchmarks.step [--pair TEACHER:STUDENT ...] [--batch 64] [--rounds 7] [--dtype float32|bfloat16]
        [--torch eager,channels_last,compile] [--output FILE.json]

A step takes a batch of uint8 images and crops, flips, normalises and rotates it, runs the teacher, runs the student
forward and backward, and updates it. Both sides do it on the same device; the device is JAX's default one. Rates count
images before rotation. Medians over the rounds with the quartiles; the sides take turns within each round, since a
shared machine drifts. Prints a Markdown table and writes JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.exports import random_variables
from hsakd_jax import data, facts, pipeline, recipes, train
from hsakd_jax.devices import Devices
from hsakd_jax.nets import create
from hsakd_jax.rotations import ROTATIONS

PAIRS = (
    "wrn_40_2:wrn_16_2",
    "wrn_40_2:wrn_40_1",
    "resnet56:resnet20",
    "resnet32x4:resnet8x4",
    "vgg13_bn:mobilenetV2",
    "ResNet50:mobilenetV2",
    "wrn_40_2:ShuffleV1",
    "resnet32x4:ShuffleV2",
    "resnet34_imagenet:resnet18_imagenet",
)
CIFAR_IMAGES = 50_000
Step = Callable[[], None]


def make_data(pair: str, batch: int) -> tuple[np.ndarray, np.ndarray, int]:
    """A batch of random uint8 images and labels, and the number of classes."""
    side, classes = (224, 1000) if pair.endswith("_imagenet") else (32, 100)
    random = np.random.default_rng(0)
    return (
        random.integers(0, 256, (batch, side, side, 3), np.uint8),
        random.integers(0, classes, batch, np.int32),
        classes,
    )


def ours(pair: str, batch: int, dtype: str) -> tuple[Step, dict]:
    """Our step as a function that waits for its end, and what compiling it took and needs."""
    teacher_name, student_name = pair.split(":")
    images, labels, classes = make_data(pair, batch)
    shape = images.shape[1:]
    network, teacher = create(student_name, classes, dtype=dtype), create(teacher_name, classes, dtype=dtype)
    training = {
        "arch": student_name, "dtype": dtype, "epochs": 1, "batch": batch, "accumulate": 1, "lr": 1e-4,
        "schedule": "cosine", "milestones": (), "gamma": 0.1, "warmup": 0, "momentum": 0.9, "nesterov": True,
        "weight_decay": 5e-4,
    }  # fmt: skip
    source = {"name": "random", "pad": 4, "flip": True, **recipes.NORMALISATION["cifar100"]}
    config = recipes.make(
        "student", data=source, teacher=training, student=training, seed=0, eval_every=1, eval_batch=1, log_every=1
    )
    dataset = data.Dataset(images, labels)
    splits = data.Splits(dataset, None, dataset, tuple(map(str, range(classes))))
    run = pipeline.resolve(config.to_dict(), "student", splits, "none")
    devices = Devices()
    init, step = train.compile_step(run, network, teacher, devices, lambda _: 1e-4)
    state, taught = devices.replicate((init(random_variables(network, shape)), random_variables(teacher, shape)))
    rows = devices.shard({"image": images, "label": labels})
    began = time.perf_counter()
    compiled = step.lower(state, taught, rows["image"], rows["label"]).compile()
    memory = compiled.memory_analysis()
    seconds = time.perf_counter() - began

    def once():
        nonlocal state
        batch = devices.shard({"image": images, "label": labels})  # the transfer is part of a step
        state = compiled(state, taught, batch["image"], batch["label"])
        jax.block_until_ready(state)

    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes if memory else None
    return once, {"compile_s": seconds, "bytes": needed}


def theirs(pair: str, batch: int, variant: str) -> Step:
    """PyTorch's step, as the reference does it ('eager') or faster, joined by '+': channels_last, compile, bfloat16."""
    import torch
    import torch.nn.functional as F

    from benchmarks import torch_networks

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    images, labels, classes = make_data(pair, batch)
    teacher, student = (torch_networks.create(name, classes, True).to(device) for name in pair.split(":"))
    form = torch.channels_last if "channels_last" in variant else torch.contiguous_format
    teacher, student = teacher.to(memory_format=form).eval(), student.to(memory_format=form).train()
    optimizer = torch.optim.SGD(student.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4, nesterov=True)
    if "compile" in variant:
        teacher, student = torch.compile(teacher), torch.compile(student)
    normal = recipes.NORMALISATION["cifar100"]
    mean, std = (torch.tensor(normal[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))
    given, y = torch.from_numpy(images), torch.from_numpy(labels).long()
    side = images.shape[1]

    def augment(x):
        corners = torch.randint(0, 9, (2, len(x), 1), device=device)
        rows, columns = (corner + torch.arange(side, device=device) for corner in corners)
        x = F.pad(x, (0, 0, 4, 4, 4, 4))[
            torch.arange(len(x), device=device)[:, None, None], rows[:, :, None], columns[:, None]
        ]
        flip = torch.rand(len(x), 1, 1, 1, device=device) < 0.5
        return torch.where(flip, x.flip(2), x)

    def kl(ours, theirs, temperature=3.0):
        log_p, q = F.log_softmax(ours / temperature, 1), F.softmax(theirs / temperature, 1)
        return temperature**2 * F.kl_div(log_p, q, reduction="batchmean")

    def once():
        x = augment(given.to(device)).permute(0, 3, 1, 2).float().div_(255).sub(mean).div_(std)
        x = torch.stack([x.rot90(k, (2, 3)) for k in range(ROTATIONS)], 1).flatten(0, 1).contiguous(memory_format=form)
        with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in variant):
            with torch.no_grad():
                taught, taught_aux = teacher(x)
            logits, aux = student(x)
            loss = F.cross_entropy(logits[::ROTATIONS].float(), y.to(device)) + kl(logits.float(), taught.float())
            loss = loss + sum(kl(q.float(), t.float()) for q, t in zip(aux, taught_aux, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return once


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round; the sides take turns."""
    for step in steps.values():
        step()
        step()
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def flops(pair: str) -> float:
    """Of a step for one image: the teacher forward, the student forward and backward, on four rotations."""
    side, classes = (224, 1000) if pair.endswith("_imagenet") else (32, 100)
    teacher, student = (
        facts.totals(create(name, classes), (side, side, 3))["multiply_adds"] for name in pair.split(":")
    )
    return 2.0 * ROTATIONS * (teacher + 3 * student)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", action="append", choices=PAIRS, help="all by default; may be given several times")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--torch", default="eager,channels_last", help="variants with commas between them, or none")
    parser.add_argument("--output", type=Path, help="JSON, to which pairs are added")
    args = parser.parse_args()
    variants = [v for v in args.torch.split(",") if v and v != "none"]
    print(f"{facts.environment()['device']}, batch {args.batch} x {ROTATIONS}, {args.dtype}\n")
    print("| pair | side | images/s | quartiles | s an epoch of 50,000 | TFLOP/s | ours is faster by |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for pair in args.pair or PAIRS:
        once, compiled = ours(pair, args.batch, args.dtype)
        steps = {"hsakd_jax": once, **{f"torch {v}": theirs(pair, args.batch, v) for v in variants}}
        seconds = measure(steps, args.rounds)
        fastest = statistics.median(seconds["hsakd_jax"])
        for side, times in seconds.items():
            low, middle, high = statistics.quantiles(times, n=4)
            rate, ratio = args.batch / middle, "" if side == "hsakd_jax" else f"{middle / fastest:.2f}"
            print(
                f"| {pair} | {side} | {rate:,.1f} | {args.batch / high:,.1f} to {args.batch / low:,.1f} | "
                f"{CIFAR_IMAGES / rate:,.0f} | {flops(pair) * rate / 1e12:.3f} | {ratio} |",
                flush=True,
            )
        results.append({"pair": pair, "batch": args.batch, "dtype": args.dtype, "seconds": seconds, **compiled})
        print(f"| | compiled in {compiled['compile_s']:.0f} s, {(compiled['bytes'] or 0) / 2**20:,.0f} MiB | | | | | |")
        if args.output:
            args.output.write_text(json.dumps({"environment": facts.environment(), "pairs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
