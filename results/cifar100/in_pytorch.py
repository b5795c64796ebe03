"""Trains the baseline of results/cifar100.md in plain PyTorch: an independent check of the training in JAX.

    python -m results.cifar100.in_pytorch DATA RUN [--epochs 30] [--milestones 18 23 26] [--seed 0]

DATA is the folder that contains cifar100/3.0.2. The package reads the images. Augmentation, order, learning rate,
optimizer and test are PyTorch's. As in the published code, the last batch of an epoch is smaller. The same command
resumes a run at its last epoch, from RUN/state.pt. RUN/results.json has the result.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_networks import create
from hsakd_jax.data import datasets
from hsakd_jax.data.datasets import Splits
from hsakd_jax.runs.results import Correct

# The paper's: batch, padding of the crop, mean and standard deviation.
BATCH, PAD = 64, 4
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def initialise(network: nn.Module) -> None:
    """Draws the convolutions as the published code does; the last layer keeps PyTorch's own numbers."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def normalised(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32, in the memory format that is faster on a CPU."""
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (MEAN, STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor) -> Tensor:
    """Crops each image at random out of its zero-padded copy, and mirrors half of them: uint8 [B, 3, H, W]."""
    side, padded = images.shape[-1], F.pad(images, (PAD,) * 4)
    cut = []
    for image, (top, left), mirror in zip(
        padded,
        torch.randint(0, 2 * PAD + 1, (len(images), 2)).tolist(),
        (torch.rand(len(images)) < 0.5).tolist(),
        strict=True,
    ):
        part = image[:, top : top + side, left : left + side]
        cut.append(part.flip(-1) if mirror else part)
    return torch.stack(cut)


def classified(network: nn.Module, images: Tensor) -> Tensor:
    """The classes of all images, int64 [n]."""
    network.eval()
    with torch.inference_mode():
        found = [network(normalised(part))[0].argmax(1) for part in images.split(500)]
    network.train()
    return torch.cat(found)


def train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> int:
    """Trains on each image once, in a new order.

    Returns:
      How many images were classified correctly, each before its step.
    """
    correct = 0
    for chosen in torch.randperm(len(labels)).split(BATCH):
        logits, _ = network(normalised(augmented(images[chosen])))
        loss = F.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        correct += int((logits.argmax(1) == labels[chosen]).sum())
    return correct


def train(splits: Splits, run: Path, epochs: int, milestones: Sequence[int], seed: int) -> dict[str, Any]:
    """Trains and tests, each tenth epoch and the last one; a run that ended early resumes at its last epoch.

    Args:
      splits: the images.
      run: folder of the state and the result.
      epochs: how many.
      milestones: epochs after which the learning rate falls to a tenth.
      seed: of PyTorch's random numbers.

    Returns:
      The content of results.json.
    """
    images, test_images = (torch.from_numpy(one.images).permute(0, 3, 1, 2) for one in (splits.train, splits.test))
    labels, test_labels = (torch.from_numpy(one.labels).long() for one in (splits.train, splits.test))
    torch.manual_seed(seed)
    network = create("resnet20", 100, branches=False).to(memory_format=torch.channels_last)
    initialise(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    settings = {"milestones": list(milestones), "seed": seed}
    done, seconds, top1 = 0, 0.0, {}
    run.mkdir(parents=True, exist_ok=True)
    state = run / "state.pt"
    if state.exists():
        kept = torch.load(state, weights_only=True)
        if kept["settings"] != settings or kept["epoch"] > epochs:
            raise SystemExit(f"{run} has other settings, {kept['settings']}, or more epochs: choose another folder")
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        torch.set_rng_state(kept["random"])
        done, seconds, top1 = kept["epoch"], kept["seconds"], kept["top1"]
    for epoch in range(done + 1, epochs + 1):
        begin = time.perf_counter()
        correct = train_epoch(network, optimizer, images, labels)
        schedule.step()
        seconds += time.perf_counter() - begin
        line = f"epoch {epoch}/{epochs}, training top-1 {100 * correct / len(labels):.2f} %"
        if epoch % 10 == 0 or epoch == epochs:
            fraction = (classified(network, test_images) == test_labels).double().mean()
            top1[str(epoch)] = round(100 * float(fraction), 2)
            line += f", test top-1 {top1[str(epoch)]:.2f} %"
        print(f"{line}, {len(labels) * epoch / seconds:.0f} images/s", flush=True)
        content = {name: part.state_dict() for name, part in parts.items()}
        content |= {"settings": settings, "random": torch.get_rng_state()}
        content |= {"epoch": epoch, "seconds": seconds, "top1": top1}
        torch.save(content, draft := state.with_suffix(".draft"))
        draft.replace(state)
    found = classified(network, test_images) == test_labels
    return {
        "epochs": epochs,
        **settings,
        "top1_by_epoch": top1,
        "torch": torch.__version__,
        "correct": msgspec.to_builtins(Correct.pack(found.numpy(), splits.test.labels)),
    }


def main() -> None:
    """Writes the result of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("run", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--milestones", type=int, nargs="*", default=[18, 23, 26])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result = train(datasets.load("cifar100", args.data), args.run, args.epochs, args.milestones, args.seed)
    (args.run / "results.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
