"""Photographs decoded and cropped a second, by `photos.stream` and by PyTorch's DataLoader doing the same with Pillow.

    python -m benchmarks.input --images DIR [--golden FILE] [--workers 1,2] [--batch 42] [--batches 20] [--rounds 7]
        [--output NAME]

Both sides open JPEG files, cut random parts out of them by RandomResizedCrop's rule, scale these to 224x224 and give
uint8 batches, with the same number of workers: threads here, processes there. They take turns within each round, the
first batches of which do not count. A shared machine gives a worker less than a core, so that two rates are shown:
images a second, and images a second of CPU time, in which the main process is included. Medians with quartiles.

--golden compares evaluation's crops of DIR/WNID/*.JPEG with those of the reference: the worst difference of any mean
over a channel or over 32x32 pixels, in grey levels of 255, and how many crops are equal in every bit.
"""

import hashlib
import itertools
import json
import math
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

from benchmarks import Parser, file_name, warn_if_busy
from benchmarks.step import save
from hsakd_jax.data.image_tree import find_images
from hsakd_jax.data.streaming import Photos, centre_crops, stream
from hsakd_jax.runs import provenance

SIZE, RESIZE = 224, 256
SKIPPED = 4  # batches at the start of a round, which were decoded while the other side had its turn


def find(directory: str) -> list[Path]:
    """The image files of a folder, in depth."""
    return [Path(directory, name) for name in find_images(directory).files]


def photos_of(paths: list[Path]) -> Photos:
    """The files as a split without labels."""
    return Photos(lambda i: (str(paths[i]), paths[i].read_bytes()), np.zeros(len(paths), np.int32), ("any",))


def ours(paths: list[Path], batch: int, workers: int) -> tuple[Iterator, list[int]]:
    """Batches without end, and the processes that make them."""
    return stream(photos_of(paths), batch, 0, 0, SIZE, workers=workers), [os.getpid()]


def theirs(paths: list[Path], batch: int, workers: int) -> tuple[Iterator, list[int]]:
    """The same of a DataLoader as one writes it."""
    import torch

    def part(width, height):
        for _ in range(10):
            area = width * height * random.uniform(0.08, 1)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return random.randint(0, width - w), random.randint(0, height - h), w, h
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return (width - w) // 2, (height - h) // 2, w, h

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            with open(paths[i], "rb") as file:
                image = Image.open(file).convert("RGB")
            left, top, width, height = part(*image.size)
            image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(image)), 0

    class Order(torch.utils.data.Sampler):
        def __iter__(self):
            while True:
                yield from torch.randperm(len(paths)).tolist()

    loader = torch.utils.data.DataLoader(Files(), batch, sampler=Order(), num_workers=workers)
    batches = iter(loader)
    return batches, [os.getpid(), *(worker.pid for worker in batches._workers)]


def cpu_seconds(processes: list[int]) -> float:
    """CPU time that the processes have taken, on Linux."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(
    paths: list[Path], batch: int, batches: int, workers: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Rates of each side in each round but the first."""
    # Processes are forked before there are threads.
    sides = {"torch": theirs(paths, batch, workers), "ours": ours(paths, batch, workers)}
    rates = {side: {"images_per_s": [], "images_per_cpu_s": []} for side in sides}
    for turn in range(rounds + 1):
        for side, (source, processes) in sides.items():
            for _ in itertools.islice(source, SKIPPED):
                pass
            began, before = time.perf_counter(), cpu_seconds(processes)
            for _ in itertools.islice(source, batches):
                pass
            seconds, cpu = time.perf_counter() - began, cpu_seconds(processes) - before
            if turn:
                rates[side]["images_per_s"].append(batch * batches / seconds)
                rates[side]["images_per_cpu_s"].append(batch * batches / cpu)
    return rates


def compare(directory: str, golden: str) -> dict[str, float]:
    """Evaluation's crops against those of the reference."""
    expected = json.loads(Path(golden).read_text())["images"]
    paths = [next(Path(directory, name).glob("*")) for name in expected]
    crops = centre_crops(photos_of(paths), np.arange(len(paths)), SIZE, RESIZE)
    worst = equal = 0
    for crop, truth in zip(crops, expected.values(), strict=True):
        blocks = crop.reshape(SIZE // 32, 32, SIZE // 32, 32, 3).mean((1, 3))
        worst = max(
            worst, abs(crop.mean((0, 1)) - truth["channel_means"]).max(), abs(blocks - truth["block_means"]).max()
        )
        equal += hashlib.sha256(crop.tobytes()).hexdigest() == truth["sha256"]
    return {"images": len(paths), "worst_difference": float(worst), "equal": equal}


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def main() -> None:
    """Measures and prints."""
    parser = Parser(__doc__)
    parser.add_argument("--images", required=True, help="folder of photographs")
    parser.add_argument("--golden", help="imagenet_eval.json")
    parser.add_argument("--workers", default="1,2", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--batch", type=int, default=42)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=file_name, help="name of the file in benchmarks/results/")
    args = parser.parse_args()
    if not (paths := find(args.images)):
        parser.error(f"--images: no images in {args.images}")
    warn_if_busy()
    import torch

    found = {workers: measure(paths, args.batch, args.batches, workers, args.rounds) for workers in args.workers}
    golden = compare(args.images, args.golden) if args.golden else None
    result = {
        "environment": provenance.environment(), "pillow": PIL.__version__, "torch": torch.__version__,
        "libjpeg_turbo": features.version("libjpeg_turbo"), "load": os.getloadavg(), "images": len(paths),
        "batch": args.batch, "batches": args.batches, "rates": found, "golden": golden,
    }  # fmt: skip
    lines = [
        f"{result['environment']['device']}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}, "
        f"{len(paths)} photographs, Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}, "
        f"torch {torch.__version__}",
        "",
        "| workers | | ours | PyTorch | ours is faster by |",
        "|---|---|---|---|---|",
    ]
    for workers, rates in found.items():
        for key, title in (("images_per_s", "images/s"), ("images_per_cpu_s", "images/s of CPU time")):
            sides = [rates[side][key] for side in ("ours", "torch")]
            # Of each round, since the machine's load changes from round to round.
            ratio = statistics.median(a / b for a, b in zip(*sides, strict=True))
            lines.append(f"| {workers} | {title} | {spread(sides[0])} | {spread(sides[1])} | {ratio:.2f} |")
    if golden:
        lines += [
            "",
            f"Evaluation's crops: {golden['equal']} of {golden['images']} equal the reference's in every bit, "
            f"the worst difference of a mean is {golden['worst_difference']:.4f} grey levels.",
        ]
    print("\n".join(lines))
    if args.output:
        save("input", args.output, result, lines)


if __name__ == "__main__":
    main()
