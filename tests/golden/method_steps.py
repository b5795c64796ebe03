"""Three training steps of each method with parameters or memory of its own: cases, inputs, starts and figures.

`make_method_steps.py` computes the steps in PyTorch and writes method_steps.json. For each case and step it has the
unweighted terms, the loss, the norm of the gradient, and `figure` of every parameter, running statistic and memory, all
in float64. `tests/training/test_method_steps.py` compares the train step with them.

Two steps are an epoch, so the learning rate and the weights that follow the epoch change before the third step. Steps
share images, so a memory is read and updated.

To add a method: a case here; its term, and the modules of its own, in `make_method_steps.py`; then run that file.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from .methods import Golden

FILE = Path(__file__).parent / "method_steps.json"
GOLDEN = Golden()
STEPS, EPOCHS, STEPS_PER_EPOCH = 3, 3, 2
IMAGES, BATCH, NUM_CLASSES = 30, 12, 10
IMAGE_SHAPE = (8, 8, 3)
# Channels of the stem and of the two stages, which have one block each.
STUDENT_WIDTHS, TEACHER_WIDTHS = (4, 4, 6), (5, 5, 8)
LAST_MAP = (4, 4, 8)  # of the teacher
MEAN, STD = 0.5, 0.25
LR, GAMMA, MILESTONE = 0.05, 0.1, 1  # the learning rate is multiplied by GAMMA after epoch MILESTONE
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
NEGATIVES = 20


class Case(NamedTuple):
    """A recipe, and the numbers with which the reference trains.

    Attributes:
      recipe: a key of `RECIPES`.
      terms: weight and options of each term.
      changed: the options in which this differs from the recipe: TERM.OPTION -> value.
      fixed: how the names of parameters begin that do not learn, and whose BatchNorms keep their running statistics.
      trains: 'student', or 'teacher' for a run without a teacher.
      projects: whether the student has SimKD's head, a projector to the teacher's last map.
    """

    recipe: str
    terms: dict[str, dict[str, Any]]
    changed: Mapping[str, Any] = MappingProxyType({})
    fixed: tuple[str, ...] = ()
    trains: str = "student"
    projects: bool = False


TASK = {"weight": 1.0}
KL = {"weight": 1.0, "temperature": 4.0}
CRD = {"weight": 0.8, "negatives": NEGATIVES, "temperature": 0.07}
CASES = {
    # It has no parameters; half of its weight counts in epoch 1.
    "dkd": Case(
        "dkd",
        {"task": TASK, "dkd": {"weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup": 2}},
        {"dkd.warmup": 2},
    ),
    "fitnet": Case("fitnet", {"task": TASK, "kl": KL, "fitnet": {"weight": 100.0, "stage": 2, "maps": "hints"}}),
    "vid": Case("vid", {"task": TASK, "kl": KL, "vid": {"weight": 1.0, "maps": "hints"}}),
    "cc": Case("cc", {"task": TASK, "kl": KL, "cc": {"weight": 0.02}}),
    "crd": Case("crd", {"task": TASK, "kl": KL, "crd": CRD}, {"crd.negatives": NEGATIVES}),
    "wttm": Case(
        "wttm", {"task": TASK, "wttm": {"weight": 4.0, "gamma": 0.2}, "crd": CRD}, {"crd.negatives": NEGATIVES}
    ),
    "ofa": Case("ofa", {"task": TASK, "ofa": {"weight": 1.0, "gamma": 1.0, "temperature": 1.0}}),
    "reviewkd": Case(
        "reviewkd",
        {"task": TASK, "reviewkd": {"weight": 5.0, "max_channels": 512, "preactivation": False, "warmup": 2}},
        {"reviewkd.warmup": 2},
    ),
    "simkd": Case("simkd", {"simkd": {"weight": 1.0}}, fixed=("head/fc",), projects=True),
    # From epoch 1 to 3 the weight falls to 0, and is half of itself in epoch 2.
    "wkd_f": Case(
        "wkd_f",
        {"task": TASK, "wkd_f": {"weight": 0.08, "ratio": 4.0, "grid": 1, "projector": "regressor", "decay": 1}},
        {"wkd_f.decay": 1},
    ),
    "sskd_teacher": Case(
        "sskd_teacher", {"sskd_head": {"weight": 1.0}}, fixed=("stem", "stage", "head"), trains="teacher"
    ),
    "sskd": Case(
        "sskd",
        {
            "task": {"weight": 0.1},
            "kl": {"weight": 0.9, "temperature": 4.0, "upright_only": True},
            "sskd_kl": {"weight": 2.7, "temperature": 4.0, "kept": 1.0},
            "sskd_ss": {"weight": 10.0, "temperature": 0.5, "kept": 0.75},
        },
        fixed=("objective/sskd/teacher_head",),
    ),
}


def images() -> np.ndarray:
    """The training set, uint8 [IMAGES, 8, 8, 3]: black and white, which normalisation in float32 keeps exact."""
    return (255 * GOLDEN.rng("steps/images").integers(0, 2, (IMAGES, *IMAGE_SHAPE))).astype(np.uint8)


def classes() -> np.ndarray:
    """Its labels, int32 [IMAGES]."""
    return GOLDEN.rng("steps/classes").integers(0, NUM_CLASSES, IMAGES).astype(np.int32)


def index(step: int) -> np.ndarray:
    """The positions of a step's images, int32 [BATCH]."""
    return GOLDEN.rng(f"steps/index/{step}").permutation(IMAGES)[:BATCH].astype(np.int32)


def negatives() -> np.ndarray:
    """CRD's negatives of each training image, the same in all steps: int32 [IMAGES, NEGATIVES]."""
    y, g = classes(), GOLDEN.rng("steps/negatives")
    return np.stack([g.choice(np.flatnonzero(y != own), NEGATIVES) for own in y]).astype(np.int32)


def start(network: str, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter, running statistic or memory before the first step, in our layout and float64.

    Args:
      network: 'student' or 'teacher'.
      path: its name, joined by '/'; the objective's begin with 'objective'.
      shape: of the result.
    """
    leaf = path.rpartition("/")[2]
    if leaf.endswith("_z"):  # not set yet
        return np.zeros(shape)
    kinds = {"mean": "bias", "var": "scale", "student_bank": "bank", "teacher_bank": "bank"}
    kind = "log_scale" if leaf.endswith("log_scale") else kinds.get(leaf, leaf)
    return GOLDEN.draw({"kind": kind, "tag": f"steps/{network}/{path}", "shape": shape})


def figure(path: str, x: Any) -> list[float]:
    """Inner products of an array, in our layout, with four normal vectors; a difference anywhere changes them all."""
    x = np.asarray(x, np.float64).reshape(-1)
    return (np.random.default_rng(zlib.crc32(path.encode())).standard_normal((4, x.size)) @ x).tolist()


def read() -> dict[str, list[dict[str, Any]]]:
    """The figures: case -> steps -> name -> value: of terms, 'loss' and 'grad_norm', and `figure` of each array."""
    return json.loads(FILE.read_text())
