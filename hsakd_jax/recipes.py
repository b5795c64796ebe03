"""What each recipe is: an objective, on which network, taught by whom; the numbers are in `configs/`."""

import copy
import difflib
from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Recipe(NamedTuple):
    """One way to train one network.

    Attributes:
      title: what tables call it.
      network: 'teacher' or 'student': the section of the config that names it and its schedule.
      branches: whether it trains with auxiliary classifiers.
      rotated: whether it sees all four rotations of a batch.
      taught: whether it needs a teacher.
      terms: the terms of its objective, with their options.
    """

    title: str
    network: str
    branches: bool
    rotated: bool
    taught: bool
    terms: dict[str, dict]


TASK = {"weight": 1.0}
JOINT = {"weight": 1.0, "branches": ()}
KL_AUX = {"weight": 1.0, "temperature": 3.0, "branches": ()}
KL_FINAL = {"weight": 1.0, "temperature": 3.0, "upright_only": False}

RECIPES = {
    "teacher": Recipe("teacher", "teacher", True, True, False, {"task": TASK, "joint": JOINT}),
    "baseline": Recipe("student alone", "student", False, False, False, {"task": TASK}),
    "kd": Recipe(
        "student, KD", "student", False, False, True, {"task": TASK, "kl": {"weight": 1.0, "temperature": 3.0}}
    ),
    "student": Recipe(
        "student, HSAKD",
        "student",
        True,
        True,
        True,
        # The paper's student has no joint-label term; its ablation shows that one costs accuracy.
        {"task": TASK, "joint": {**JOINT, "weight": 0.0}, "kl_aux": KL_AUX, "kl_final": KL_FINAL},
    ),
    "mutual": Recipe(
        "online, mean of peers",
        "student",
        True,
        True,
        False,
        {"task": TASK, "joint": JOINT, "kl_aux": KL_AUX, "kl_final": KL_FINAL},
    ),
}
PIPELINE = "hsakd"

# Mean and standard deviation by channel of what the published networks were trained on.
NORMALISATION = {
    "cifar100": {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)},
    "digits": {"mean": (0.31,), "std": (0.38,)},
    "imagenet2012": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}


def make(
    recipe: str, *, data: dict, teacher: dict, student: dict, runs: tuple = ("teacher", "student"), **top
) -> ConfigDict:
    """The config of a recipe.

    Args:
      recipe: a key of `RECIPES`, or 'hsakd' for all of `runs` in one workdir; with '_tiny' behind it, a form that
        ends in seconds on data that needs no download. 'tiny' alone is 'hsakd_tiny'.
      data: the dataset and its augmentation.
      teacher: network and schedule of the teacher.
      student: network and schedule of the student, with or without a teacher, and of mutual runs.
      runs: recipes of the pipeline, in order.
      **top: seed, log_every, eval_every, eval_batch.

    Raises:
      ValueError: unknown recipe.
    """
    name = "hsakd_tiny" if recipe == "tiny" else recipe
    base = name.removesuffix("_tiny")
    if base not in (PIPELINE, *RECIPES):
        near = difflib.get_close_matches(base, (PIPELINE, *RECIPES), 1, 0)[0]
        raise ValueError(
            f"unknown recipe {recipe!r}: did you mean {near!r}? There are {PIPELINE}, {', '.join(RECIPES)}, "
            "each also with _tiny behind it"
        )
    runs = runs if base == PIPELINE else (base,)
    started = {"trainable": "", "init": ""}
    config: dict[str, Any] = {
        **top,
        "recipe": base,
        "runs": runs,
        "peers": 2,
        "data": data,
        "teacher": {**teacher, **started, "workdir": "", "checkpoint": "last", "inference_dtype": ""},
        "student": {**student, **started},
        # Copies: a ConfigDict would keep what recipes share shared.
        "objective": {run: copy.deepcopy(RECIPES[run].terms) for run in (RECIPES if base == PIPELINE else runs)},
    }
    if name.endswith("_tiny"):
        _make_tiny(config)
    return ConfigDict(config)


def _make_tiny(config: dict[str, Any]) -> None:
    config["data"] |= {"name": "digits", "fraction": 0.2, **NORMALISATION["digits"], "pad": 1, "flip": False}
    for section, arch in ((config["teacher"], "resnet8_half"), (config["student"], "resnet8_quarter")):
        section.update({"arch": arch, "epochs": 2, "batch": 16, "milestones": (1,), "warmup": 0})
    config.update({"eval_every": 1, "log_every": 5})
