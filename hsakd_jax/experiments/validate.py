"""Checks of a command's config before its data is loaded."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.core.typed import check_section, field_types
from hsakd_jax.distillation.methods import option_types
from hsakd_jax.experiments.config_file import overridden
from hsakd_jax.experiments.recipes import GIVEN, RECIPES, Recipe
from hsakd_jax.experiments.resolve import run_config
from hsakd_jax.models import create
from hsakd_jax.models.layers import is_trainable
from hsakd_jax.runs import config as typed
from hsakd_jax.training import tracking

# Type and range of every key that a person sets: those of the run's config, where the two have the same keys.
_DERIVED = (
    "rotated",
    "crop_rotations",
    "strong_view",
    "fresh_last_layer",
    "batch_norm_groups",
    "decoding",
)  # a user does not set these in their section
_TRAINING, _DATA = field_types(typed.Training), field_types(typed.Data)
_SCHEDULE = {"dtype": typed.Dtype, **{key: kind for key, kind in _TRAINING.items() if key not in _DERIVED}}
_STUDENT = {"arch": str, **_SCHEDULE}
_BRANCHES = ("branch1/head/fc/kernel", "peer1/branch1/head/fc/kernel")
# Layers that a recipe may take from the teacher: SimKD's last one, SSKD's head.
_TAKEN = (
    "head/fc/kernel",
    "head/fc/bias",
    "objective/sskd/teacher_head/fc1/kernel",
    "objective/sskd/teacher_head/fc2/bias",
)
# The first layer of a network with a stem, and of one without.
_FIRST = ("stem/conv1/kernel", "stage1/conv1/kernel")
_TAUGHT = {
    "workdir": str,
    "run": str,
    "checkpoint": typed.Checkpoint,
    "peer": typed.Count,
    "inference_dtype": typed.Dtype | None,
}
_TERM = field_types(typed.Term)
_SEED = field_types(typed.RunConfig)["seed"]
TYPES: dict[str, Any] = {
    "recipe": str,
    "runs": Annotated[tuple[str, ...], Meta(min_length=1)],
    "seed": _SEED,
    "seeds": tuple[_SEED, ...],
    "peers": tuple[str, ...],
    "batch_norm_groups": _TRAINING["batch_norm_groups"],
    "tracking": field_types(typed.Logging)["tracking"],
    "profile": tuple[int, ...],
    "log_every": field_types(typed.Logging)["every"],
    "eval_every": field_types(typed.Evaluation)["every"],
    "eval_batch": field_types(typed.Config)["eval_batch"],
    "data": {
        **{key: kind for key, kind in _DATA.items() if key not in _DERIVED},
        "name": str,
        "mean": tuple[typed.Mean, ...],  # () uses those of the run that teaches or is started from
        "std": tuple[typed.Deviation, ...],
    },
    "teacher": {**_STUDENT, **_TAUGHT},
    "student": _STUDENT,
    "frozen": _SCHEDULE,
    "head": _SCHEDULE,
}


def check_types(config: dict[str, Any]) -> None:
    """Refuses keys that are unknown or missing, and values of another type or out of range.

    Args:
      config: of the command.

    Raises:
      UserError: the line names the key and the remedy.
    """
    objective = {
        name: {term: _term_types(term, options) for term, options in recipe.terms.items()}
        for name, recipe in RECIPES.items()
    }
    check_section(config, {**TYPES, "objective": objective})


def _term_types(term: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The types of the options that a recipe has for a term."""
    known = {**_TERM, **option_types(term)}
    return {key: known[key] for key in options}


def check(config: dict[str, Any], sections: Mapping[str, dict[str, Any]], command: Sequence[str] = ()) -> None:
    """Refuses mistakes that are visible before the data is loaded, for every run of a config.

    Args:
      config: of the command, which `check_types` has checked.
      sections: network and training settings of each recipe to run, by its name.
      command: its arguments.

    Raises:
      UserError: an unknown network, a batch that does not fit the devices, or a missing teacher or start. Settings that
        contradict one another, or a tracker that is not installed.
    """
    _check_seeds(config["seeds"], command)
    _check_data(config["data"])
    if (steps := config["profile"]) and not (len(steps) == 2 and 0 <= steps[0] < steps[1]):
        raise UserError(
            f"profile is {steps}: set the first step of the trace and the step after its last, such as (20, 25)"
        )
    tracking.check(config["tracking"])
    _refuse_unused_peers(config, list(sections))
    for path in overridden(command):
        _refuse_without_effect(config, list(sections), path)
    for name, section in sections.items():
        _check_networks(config, name, section)
        _check_start(name, section)
        _check_copies(name, section)
        _check_milestones(section["milestones"], RECIPES[name].schedule or RECIPES[name].network)
        _check_batch(config, name, section)


def _check_seeds(seeds: Sequence[int], command: Sequence[str]) -> None:
    if not seeds:
        return
    if len(seeds) == 1:
        raise UserError(f"seeds is {tuple(seeds)}: set at least 2, or one by --config.seed={seeds[0]}")
    if twice := [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]:
        raise UserError(f"seeds is {tuple(seeds)}, which contains {twice[0]} twice: set each seed once")
    if "seed" in overridden(command):
        raise UserError("seed and seeds are both set: add the seed to --config.seeds, and leave --config.seed out")


def _check_data(data: dict[str, Any]) -> None:
    if bool(data["mean"]) != bool(data["std"]):
        raise UserError(f"data.mean is {data['mean']} and data.std {data['std']}: set both, or neither")
    crop, side, resize = data["crop"], data["image_size"] or 0, data["resize"] or 0
    if crop == "resized" and side < 1:
        raise UserError(f"data.image_size is {side}: set the side of the crops")
    if crop == "pad" and side and data["name"] != "image_folder":
        raise UserError(f"data.image_size is {side}, which is for data.crop=resized and image_folder: leave it 0")
    if resize > side and data["name"] == "image_folder":
        raise UserError(
            f"data.resize is {resize}, and an image_folder has whole squares of data.image_size: set "
            "--config.data.resize=0, or --config.data.name=image_tree for crops"
        )
    if 0 < resize < side:
        raise UserError(f"data.resize is {resize}: set at least data.image_size, {side}, or 0")


def _check_networks(config: dict[str, Any], name: str, section: dict[str, Any]) -> None:
    recipe = RECIPES[name]
    peers = config["peers"] if recipe.objective == "mutual" else ()
    if not section["arch"] and not all(peers or ("",)):
        raise UserError(
            f"{recipe.network}.arch is not set: set --config.{recipe.network}.init=RUN, such as a run of convert, or "
            f"name a network, --config.{recipe.network}.arch=NAME"
        )
    for arch in (section["arch"], *filter(None, peers)):
        create(arch, 2)
    if recipe.objective == "mutual" and len(peers) < 2:
        raise UserError(f"peers is {config['peers']}: a mutual run needs at least 2 networks")
    if recipe.init == GIVEN and not section["init"]:
        where = recipe.schedule or recipe.network
        raise UserError(f"the recipe {name} needs a run to start from: set --config.{where}.init=RUN")


def _check_start(name: str, section: dict[str, Any]) -> None:
    """Refuses layers that would stay random, and a pattern that trains a layer of the teacher."""
    recipe = RECIPES[name]
    trainable = section["trainable"] or recipe.trainable
    where = recipe.schedule or recipe.network
    for layer in _TAKEN if recipe.trainable.startswith("^(?!") else ():
        if is_trainable(trainable, layer) and not is_trainable(recipe.trainable, layer):
            raise UserError(
                f"{where}.trainable is {trainable!r}, and {name} takes {layer} from the teacher: set a pattern that "
                "does not match it, or leave it out"
            )
    if trainable and not (section["init"] or recipe.init) and not any(is_trainable(trainable, one) for one in _FIRST):
        raise UserError(
            f"{name}: trainable is {trainable!r}, and the other layers would stay random: set the run that it starts "
            f"from, --config.{where}.init=RUN, or train all layers, --config.{where}.trainable=''"
        )
    if trainable and recipe.branches and not any(is_trainable(trainable, one) for one in _BRANCHES):
        given = section["init"] and run_config(section["init"], f"{where}.init").network.branches
        if not given and not (recipe.init in RECIPES and RECIPES[recipe.init].branches):
            raise UserError(
                f"{name}: trainable is {trainable!r}, and the branches would stay random: train all layers, "
                f"--config.{where}.trainable='' and --config.{where}.copy_branches=True"
            )


def _check_copies(name: str, section: dict[str, Any]) -> None:
    recipe = RECIPES[name]
    where = recipe.schedule or recipe.network
    if section["copy_branches"] and not ((section["init"] or recipe.init) and recipe.branches):
        raise UserError(
            f"{where}.copy_branches is True, and {name} has no branches or starts from no run: set "
            f"--config.{where}.init=RUN, or --config.{where}.copy_branches=False"
        )


def _check_milestones(milestones: Sequence[float], where: str) -> None:
    if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
        raise UserError(f"{where}.milestones is {milestones}: set epochs in ascending order, such as (150, 180, 210)")


def _check_batch(config: dict[str, Any], name: str, section: dict[str, Any]) -> None:
    where = RECIPES[name].schedule or RECIPES[name].network
    Devices().check_batch(section["batch"], section["accumulate"], f"{where}.batch")
    rows = section["batch"] // section["accumulate"]
    if rows % config["batch_norm_groups"]:
        raise UserError(
            f"batch_norm_groups is {config['batch_norm_groups']}, which does not divide a batch of {rows}: "
            "set a divisor"
        )


def _refuse_without_effect(config: dict[str, Any], names: Sequence[str], path: str) -> None:
    """Refuses a key of the command line that changes nothing in these recipes."""
    section, _, key = path.partition(".")
    if section == "objective" and (name := key.partition(".")[0]) not in names:
        raise UserError(
            f"{path} is changed, but {name} is not to run: change objective.{names[-1]}, or name the recipe {name}"
        )
    if section not in ("teacher", "student", "frozen", "head"):
        return
    if not any(_uses(RECIPES[name], section, key) for name in names):
        given = section == "teacher" and key not in _TAUGHT and config["teacher"]["workdir"]
        reason = (
            "the teacher of teacher.workdir is not trained" if given else f"no recipe of {', '.join(names)} uses it"
        )
        raise UserError(f"{path} has no effect, since {reason}: leave it out")
    if key in ("momentum", "nesterov") and config[section].get("optimizer") == "adamw":
        raise UserError(f"{path} has no effect with {section}.optimizer=adamw: leave it out")
    schedule = config[section].get("schedule")
    # Other schedules have no milestones.
    if key in ("milestones", "gamma") and config[section][key] and schedule not in (None, "multi_step"):
        raise UserError(
            f"{path} has no effect with {section}.schedule={schedule}: leave it out, or set "
            f"--config.{section}.schedule=multi_step"
        )


def _uses(recipe: Recipe, section: str, key: str) -> bool:
    """Whether a recipe uses a key of one of the three sections."""
    if section == "teacher" and key in _TAUGHT:
        return bool(recipe.teacher)
    if key == "arch":  # a probe has the network of the run that it starts from
        return recipe.network == section and recipe.init != GIVEN
    return (recipe.schedule or recipe.network) == section


def _refuse_unused_peers(config: dict[str, Any], names: Sequence[str]) -> None:
    """Refuses peers where no recipe trains several networks."""
    if any(config["peers"]) and not any(RECIPES[name].objective == "mutual" for name in names):
        raise UserError(f"peers are named, but no recipe of {', '.join(names)} trains several: name mutual")
