"""From a command's config to the typed config of each run: all that decides it, and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hsakd_jax.core.errors import UserError, did_you_mean, unknown
from hsakd_jax.core.files import expand
from hsakd_jax.data.datasets import Splits
from hsakd_jax.data.image_files import DECODING
from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.experiments.recipes import GIVEN, RECIPES, Recipe, needed
from hsakd_jax.models import profile
from hsakd_jax.runs.config import AnyConfig, Network, Objective, RunConfig, typed
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build_network, peer_config

# Keys of a section that describe a network or a teacher rather than the training.
NETWORK_KEYS = ("arch", "dtype", "workdir", "run", "checkpoint", "peer", "inference_dtype")
# Options that decide the weight of a term rather than its formula.
WEIGHTING = ("weight", "warmup", "decay")


def resolve(config: dict[str, Any], name: str, splits: Splits, command: Sequence[str] | None = None) -> RunConfig:
    """The config of one run.

    Args:
      config: of the command, as `make_config` makes it.
      name: recipe of the run.
      splits: its data, for the classes and the shape of the images.
      command: arguments of the command.

    Raises:
      UserError: settings that do not fit the data, or a value of the wrong type or out of range.
    """
    recipe, section = RECIPES[name], section_of(config, name)
    taught_by = teacher_recipe(config, name)
    found = {
        "recipe": name,
        "seed": config["seed"],
        "classes": list(splits.class_names),
        "network": {
            **_network(config, recipe, section, splits),
            "projector": _projector(config, taught_by, splits) if recipe.reuses_classifier else None,
        },
        "data": _data(config, recipe),
        "training": _training(config, recipe, section),
        "objective": _objective(recipe.objective, config["objective"][name]),
        "teacher": _teacher(config["teacher"], taught_by) if taught_by else None,
        "eval_batch": config["eval_batch"],
        "evaluation": {"every": config["eval_every"], "select_by": recipe.select_by},
        "logging": {
            "every": config["log_every"],
            "tracking": config["tracking"],
            "profile": config["profile"] or None,
        },
        "command": command,
    }
    return typed(RunConfig, found, name)


def _network(config: dict[str, Any], recipe: Recipe, section: dict[str, Any], splits: Splits) -> dict[str, Any]:
    *_, channels = shape = splits.train.image_shape
    source = config["data"]
    if source["crop"] == "pad" and not all(shape):
        raise UserError(
            f"{source['name']} has images of many sizes: set --config.data.crop=resized, "
            "--config.data.image_size=PIXELS and --config.data.resize=PIXELS"
        )
    tests = splits.test.image_shape
    if source["crop"] == "pad" and len(splits.test.labels) and tests != shape:
        raise UserError(
            f"{source['name']} has training images of {list(shape)} and test images of {list(tests)}: prepare it with "
            "images of one size, or set --config.data.crop=resized and --config.data.image_size=PIXELS"
        )
    peers = [peer or section["arch"] for peer in config["peers"]] if recipe.objective == "mutual" else []
    if source["crop"] == "pad" and source["pad"] > min(shape[:2]):
        raise UserError(f"data.pad is {source['pad']}, more than the side of the images, {min(shape[:2])}: set less")
    return {
        "arch": peers[0] if peers else section["arch"],
        "dtype": section["dtype"],
        "branches": recipe.branches,
        "peers": peers,
        "num_classes": len(splits.class_names),
        "image_shape": [source["image_size"]] * 2 + [channels] if source["crop"] == "resized" else list(shape),
    }


def _projector(config: dict[str, Any], taught_by: str, splits: Splits) -> tuple[int, ...]:
    """[H, W, C] of the last map of the run that teaches."""
    if given := config["teacher"]["workdir"]:
        network = run_config(given, "teacher.workdir").network
    else:
        described = _network(config, RECIPES[taught_by], section_of(config, taught_by), splits)
        network = msgspec.convert({**described, "projector": None}, Network)
    teacher = peer_config(network, given or taught_by, peer=config["teacher"]["peer"])
    try:
        return profile.last_map_size(build_network(teacher), teacher.image_shape)
    except ValueError as error:
        raise UserError(str(error)) from error


def run_config(path: str, key: str) -> AnyConfig:
    """The config of a run that a key of the config sets.

    Raises:
      UserError: no run, or one whose config.json is not valid; the line begins with the key.
    """
    try:
        return RunDirectory(path).config()
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _data(config: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    source = config["data"]
    # A resumed run may start in another working directory.
    folder = str(expand(source["dir"]).absolute()) if source["dir"] else None
    pixels = {key: source[key] or None for key in ("image_size", "resize", "max_pixels")}
    fraction = source["fraction"] * recipe.fraction
    normal = _normalisation(config)
    return {**source, **normal, **pixels, "dir": folder, "fraction": fraction, "decoding": DECODING}


def _normalisation(config: dict[str, Any]) -> dict[str, Any]:
    """Mean and std of the config; where it sets none, those of the run that teaches or is started from."""
    if config["data"]["mean"]:
        return {key: config["data"][key] for key in ("mean", "std")}
    for section, key in (("teacher", "workdir"), ("teacher", "init"), ("frozen", "init"), ("student", "init")):
        if run := config[section][key]:
            data = run_config(run, f"{section}.{key}").data
            return {"mean": data.mean, "std": data.std}
    return dict(NORMALISATION["imagenet2012"])


def _training(config: dict[str, Any], recipe: Recipe, section: dict[str, Any]) -> dict[str, Any]:
    # Paths between runs of one folder are relative, so that the folder can be moved.
    default = f"../{recipe.init}" if recipe.init not in ("", GIVEN) else None
    return {
        **{key: value for key, value in section.items() if key not in NETWORK_KEYS},
        "lr_batch": section["lr_batch"] or None,
        "init": str(expand(section["init"]).absolute()) if section["init"] else default,
        "fresh_last_layer": recipe.init == GIVEN,
        "trainable": section["trainable"] or recipe.trainable or None,
        "rotated": recipe.rotated,
        "crop_rotations": recipe.crop_rotations and config["data"]["crop"] == "pad",
        "strong_view": recipe.strong_view,
        "batch_norm_groups": config["batch_norm_groups"],
    }


def objective_config(kind: str, terms: Mapping[str, Mapping[str, Any]]) -> Objective:
    """The typed objective of a recipe.

    Args:
      kind: see `runs.config.Objective`.
      terms: their options and weighting, by name, as in a recipe.
    """
    return msgspec.convert(_objective(kind, terms), Objective)


def _objective(kind: str, terms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    def term(given: Mapping[str, Any]) -> dict[str, Any]:
        options = {key: value for key, value in given.items() if key not in WEIGHTING}
        return {
            "warmup": 0,
            "decay": None,
            **{key: given[key] for key in WEIGHTING if key in given},
            "options": options,
        }

    return {"kind": kind, "terms": {name: term(given) for name, given in terms.items()}}


def _teacher(section: dict[str, Any], taught_by: str) -> dict[str, Any]:
    given = section["workdir"]
    return {
        "workdir": str(expand(given).absolute()) if given else f"../{taught_by}",
        "checkpoint": section["checkpoint"],
        "peer": section["peer"],
        "dtype": section["inference_dtype"] or None,
    }


def recipes_of(config: dict[str, Any]) -> list[str]:
    """The recipes to run, each after those that it needs.

    Raises:
      UserError: an unknown recipe, or a teacher that needs a teacher.
    """
    for name in (*config["runs"], *filter(None, [config["teacher"]["run"]])):
        if name not in RECIPES:
            if "," in name:
                listed = ", ".join(repr(one.strip("() '\"")) for one in name.split(","))
                raise UserError(f'runs is {name!r}: set several recipes in brackets, --config.runs="({listed})"')
            # The tiny forms are those of a command's recipe only.
            similar = did_you_mean(name, [*RECIPES, *(f"{known}_tiny" for known in RECIPES)]).replace("_tiny'", "'")
            raise UserError(f"unknown recipe {name!r}: {similar}" if similar else unknown("recipe", name, RECIPES))
    given, taught_by = config["teacher"]["workdir"], config["teacher"]["run"]
    if taught_by and RECIPES[taught_by].teacher and not given:
        raise UserError(
            f"teacher.run is {taught_by!r}, which needs a teacher itself: train it first, and set "
            "--config.teacher.workdir=RUN"
        )

    def parents(name: str) -> list[str]:
        found, init = [], RECIPES[name].init
        if (teacher := teacher_recipe(config, name)) and not given:
            found.append(teacher)
        if init not in ("", GIVEN) and not section_of(config, name)["init"]:
            found.append(init)
        return found

    runs = config["runs"]
    if given and len(runs) > 1:  # a teacher that the user sets is not trained
        runs = [name for name in runs if RECIPES[name].network != "teacher"]
        if not runs:
            raise UserError("runs has teachers only, and teacher.workdir sets a trained one: leave one of the two out")
    return needed(runs, parents)


def teacher_recipe(config: dict[str, Any], name: str) -> str:
    """The recipe whose run teaches a recipe; '' for none."""
    own = RECIPES[name].teacher
    return config["teacher"]["run"] or own if own else ""


def section_of(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Network and training settings of a recipe; a network without a name is that of the run that it starts from."""
    recipe = RECIPES[name]
    section = {**config[recipe.network], **config[recipe.schedule or recipe.network]}
    start = section["init"] or config[recipe.network]["init"]
    if start and (recipe.init == GIVEN or not section["arch"]):
        network = RunDirectory(start).config().network
        section["arch"] = (*network.peers, network.arch)[0]
    return section
