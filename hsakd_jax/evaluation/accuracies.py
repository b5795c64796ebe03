"""Reading accuracies by name: 'top1', 'joint_2', or 'peer1/top1' where there are several networks."""

from collections.abc import Mapping
from typing import Any


def mean(accuracies: Mapping[str, Any], kind: str) -> float | None:
    """The accuracy called `kind`, the mean over peers where there are several networks; None where there is none."""
    found = [accuracy for name, accuracy in accuracies.items() if name.rpartition("/")[2] == kind]
    return sum(found) / len(found) if found else None


def best_branch(accuracies: dict[str, float]) -> float:
    """The greatest joint accuracy of any branch, by which the reference chooses a teacher."""
    return max(a for name, a in accuracies.items() if "joint_" in name)


def mean_top1(accuracies: dict[str, float]) -> float:
    """Top-1 accuracy, the mean over peers where there are several networks."""
    if (found := mean(accuracies, "top1")) is None:
        raise KeyError("top1")
    return found


def describe(accuracies: dict[str, float]) -> str:
    """Accuracies in a line: 'top-1 71.23 %, best branch joint 60.12 %'."""
    line = f"top-1 {mean_top1(accuracies):.2f} %"
    if any("joint_" in name for name in accuracies):
        line += f", best branch joint {best_branch(accuracies):.2f} %"
    return line
