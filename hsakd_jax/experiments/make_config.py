"""The config of a command, in plain values: the defaults of its sections, and the recipe's values."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from hsakd_jax.core.errors import did_you_mean, unknown
from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.experiments.recipes import RECIPES, published_terms

PIPELINE = "hsakd"
# How the names of networks begin that learn at a fifth of the others' rate. ImageNet's MobileNets do not.
SLOW = ("mobilenetV2", "Shuffle")

# Defaults of all configs; a dataset's config file changes some. docs/generate.py copies the comments to docs/config.md.
TRAINING = {
    "dtype": "float32",  # compute dtype; or 'bfloat16'
    "accumulate": 1,
    "remat": False,
    "lr_batch": 0,  # the batch that `lr` is meant for, to scale it to `batch`; 0 uses `lr` unchanged
    "gamma": 0.1,  # factor of the learning rate at each of the milestones
    "warmup": 0,  # epochs of linear warm-up of the learning rate
    "optimizer": "sgd",  # 'sgd', or 'adamw', which ConvNeXt and DeiT were published with
    "momentum": 0.9,
    "nesterov": True,
    "copy_branches": False,  # whether branches start as copies of the stages of the backbone that is in `init`
}
DATA = {
    "dir": "",  # its folder; '' for the default one of TFDS
    "image_size": 0,  # side of the crops, or of an image_folder's images; 0 keeps their size
    "resize": 0,  # length of a test image's shorter side after scaling, before the central crop; 0 for image_size
    "interpolation": "bilinear",  # how images are scaled; or 'bicubic'
    "fraction": 1.0,  # fraction of the training images that is used
    "validation": 0.0,  # fraction of the training images that is held out, and selects the best epoch
    "max_pixels": 0,  # of an image file; 0 for 178,956,970. Larger images are refused; an image_folder leaves them out
}


def make_config(
    recipe: str,
    *,
    data: dict,
    teacher: dict,
    student: dict,
    frozen: dict,
    head: dict | None = None,
    runs: tuple = ("teacher", "student"),
    **top,
) -> ConfigDict:
    """The config of a recipe.

    Args:
      recipe: a key of `RECIPES`, or 'hsakd' for all of `runs` in one workdir. With '_tiny' behind it, a form that
        ends in seconds on data that needs no download. 'tiny' means 'hsakd_tiny'. Networks may follow:
        'kd/resnet56/resnet20' names teacher and student, 'baseline/resnet20' the one that it trains.
      data: the dataset and its augmentation.
      teacher: network and schedule of the teacher.
      student: network and schedule of the student, with or without a teacher, and of mutual runs.
      frozen: schedule of branches on a backbone that is kept.
      head: schedule of SSKD's head on such a backbone; None for that of `frozen`.
      runs: recipes of the pipeline, in order; those that they need are added.
      **top: seed, log_every, eval_every, eval_batch.

    Raises:
      ValueError: unknown recipe, or too many networks.
    """
    recipe, *networks = recipe.split("/")
    name = "hsakd_tiny" if recipe == "tiny" else recipe
    base = name.removesuffix("_tiny")
    if base not in (PIPELINE, *RECIPES):
        known = (PIPELINE, *RECIPES)
        tiny = [f"{name}_tiny" for name in known]
        raise ValueError(unknown("recipe", recipe, (*known, *tiny) if did_you_mean(recipe, tiny) else known))
    runs = runs if base == PIPELINE else (base,)
    started = {
        "trainable": "",  # the trained parameters, a pattern searched for in their paths; '' for the recipe's
        "init": "",  # the run whose parameters it starts from; '' for the recipe's
    }
    taught = {
        "workdir": "",  # the run that teaches; '' has one trained first
        "run": "",  # the recipe that trains it; '' for the one of the student's recipe
        "checkpoint": "last",  # which checkpoint teaches: 'last' or 'best'
        "peer": 1,  # which network of a mutual run teaches
        "inference_dtype": "",  # compute dtype of the teacher; '' for the one that it was trained in
    }
    config: dict[str, Any] = {
        "seeds": (),  # each trains all runs once, in WORKDIR/seed_N; () for `seed` alone
        "peers": ("", ""),  # the networks of a mutual run; '' for the section's
        "batch_norm_groups": 1,  # parts of a batch that have statistics of their own
        "tracking": (),  # 'tensorboard', 'wandb', 'trackio'
        "profile": (),  # first step of a trace, counted from 0, and the step after its last, such as (20, 25)
        **top,
        "recipe": base,  # the name behind the file
        "runs": runs,  # recipes to train, in order; those that they need come first
        "data": data,
        "teacher": {**started, **taught, **teacher},
        "student": {**started, **student},
        "frozen": {**started, **frozen},
        "head": {**started, **(head or frozen)},
    }
    if name.endswith("_tiny"):
        _make_tiny(config)
    _name_networks(config, base, networks)
    on = (config["data"].get("name", ""), config["teacher"]["arch"], config["student"]["arch"])
    config["objective"] = {run: published_terms(run, *on) for run in RECIPES}
    if name.endswith("_tiny"):
        _make_tiny_objective(config["objective"])
    return ConfigDict(config)


def _name_networks(config: dict[str, Any], base: str, networks: list[str]) -> None:
    if len(networks) > 2:
        raise ValueError(f"networks {'/'.join(networks)}: name teacher and student, or the one that is trained")
    if len(networks) == 2 and base == "mutual":
        raise ValueError(
            f"networks {'/'.join(networks)}: {base} trains one network several times; name others by "
            f"--config.peers=\"('{networks[0]}','{networks[1]}')\""
        )
    if networks and base == "probe":
        raise ValueError(f"networks {'/'.join(networks)}: a probe has the network of --config.student.init")
    for section, network in by_section(base, networks).items():
        config[section]["arch"] = network
        # The paper's rate for those that do not bear the others'.
        if network.startswith(SLOW) and base != "probe":
            config[section]["lr"] = round(config[section]["lr"] / 5, 9)


def by_section(recipe: str, networks: Sequence[str]) -> dict[str, str]:
    """The section of each network that is named behind a recipe: teacher and student, or the one that is trained."""
    one = RECIPES[recipe].network if recipe in RECIPES else "student"
    return dict(zip(("teacher", "student") if len(networks) == 2 else (one,), networks, strict=False))


def _make_tiny(config: dict[str, Any]) -> None:
    tiny = {"name": "digits", "fraction": 0.2, "crop": "pad", "pad": 1, "flip": False, "image_size": 0, "resize": 0}
    config["data"] |= {**tiny, **NORMALISATION["digits"]}
    for section, arch in (("teacher", "resnet8_half"), ("student", "resnet8_quarter"), ("frozen", ""), ("head", "")):
        schedule = {"epochs": 2, "batch": 16, "milestones": (1,), "warmup": 0}
        schedule |= {"copy_branches": False, **({"trainable": ""} if arch else {})}
        config[section].update({**schedule, "arch": arch} if arch else schedule)
    config.update({"eval_every": 1, "log_every": 5})


def _make_tiny_objective(objective: dict[str, dict[str, Any]]) -> None:
    # Epochs, of the two that there are, and images.
    tiny = {"negatives": 32, "warmup": 1, "decay": 1}
    for terms in objective.values():
        for options in terms.values():
            options.update({key: value for key, value in tiny.items() if options.get(key)})
