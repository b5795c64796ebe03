"""Checks of a command's config before its data is loaded."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.experiments.recipes import GIVEN, RECIPES
from hsakd_jax.models import create
from hsakd_jax.training import tracking


def check(config: dict[str, Any], sections: Mapping[str, dict[str, Any]]) -> None:
    """Refuses what can be refused before the data is loaded, for every run of a config.

    Args:
      config: of the command.
      sections: network and training settings of each recipe to run, by its name.

    Raises:
      UserError: an unknown network or dtype, a batch that does not fit the devices, no teacher or start where one is
        needed, numbers that make no run, or a tracker that is not there.
    """
    for name in ("eval_every", "log_every", "eval_batch", "batch_norm_groups"):
        if config[name] < 1:
            raise UserError(f"{name} is {config[name]}: give at least 1")
    _check_data(config["data"])
    if not all(isinstance(peer, str) for peer in config["peers"]):
        raise UserError(f"peers is {config['peers']}: name a network for each, such as ('resnet20', 'wrn_16_2')")
    if (checkpoint := config["teacher"]["checkpoint"]) not in ("last", "best"):
        raise UserError(f"teacher.checkpoint is {checkpoint!r}: choose last or best")
    tracking.check(config["tracking"])
    _refuse_unused(config, list(sections))
    for name, section in sections.items():
        _check_networks(config, name, section)
        _check_training(section, RECIPES[name].schedule or RECIPES[name].network)
        _check_terms(config["objective"][name], f"objective.{name}")
        _check_batch(config, name, section)


def _check_data(data: dict[str, Any]) -> None:
    crop, side, resize = data["crop"], data["image_size"], data["resize"]
    if crop not in ("pad", "resized"):
        raise UserError(f"unknown crop {crop!r}: choose pad or resized")
    if crop == "resized" and side < 1:
        raise UserError(f"data.image_size is {side}: give the side of the crops")
    if crop == "pad" and side and data["name"] != "image_folder":
        raise UserError(f"data.image_size is {side}, which is for data.crop=resized and image_folder: leave it 0")
    if 0 < resize < side:
        raise UserError(f"data.resize is {resize}: give at least data.image_size, {side}, or 0")
    if not 0 <= (pixels := data["max_pixels"]) <= 2**40:
        raise UserError(f"data.max_pixels is {pixels}: give a number of pixels, or 0 for the usual limit")
    if not 0 < (fraction := data["fraction"]) <= 1:
        raise UserError(f"data.fraction is {fraction}: give a fraction of the training images above 0 and at most 1")
    if not 0 <= (fraction := data["validation"]) < 1:
        raise UserError(f"data.validation is {fraction}: give a fraction of the training images from 0 to below 1")
    if not all(0 < number < math.inf for number in data["std"]):
        raise UserError(f"data.std is {data['std']}: give numbers above 0, one for each channel")


def _check_networks(config: dict[str, Any], name: str, section: dict[str, Any]) -> None:
    recipe = RECIPES[name]
    peers = config["peers"] if recipe.objective == "mutual" else ()
    for arch in (section["arch"], *filter(None, peers)):
        create(arch, 2, dtype=section["dtype"])
    create(section["arch"], 2, dtype=config["teacher"]["inference_dtype"] or "float32")
    if recipe.objective == "mutual" and len(peers) < 2:
        raise UserError(f"peers is {config['peers']}: a mutual run needs at least 2 networks")
    if recipe.init == GIVEN and not section["init"]:
        where = recipe.schedule or recipe.network
        raise UserError(f"the recipe {name} needs a run to start from: give --config.{where}.init=RUN")


def _check_training(section: dict[str, Any], where: str) -> None:
    for key in ("epochs", "batch", "accumulate"):
        if section[key] < 1:
            raise UserError(f"{where}.{key} is {section[key]}: give at least 1")
    for key in ("lr", "momentum", "weight_decay", "gamma", "warmup"):
        if not 0 <= section[key] < math.inf:
            raise UserError(f"{where}.{key} is {section[key]}: give a number of at least 0")
    if not section["momentum"] < 1:
        raise UserError(f"{where}.momentum is {section['momentum']}: give a number below 1")
    if not all(isinstance(epoch, int | float) for epoch in section["milestones"]):
        raise UserError(f"{where}.milestones is {section['milestones']}: give epochs, such as (150, 180, 210)")
    if section["schedule"] not in ("multi_step", "cosine"):
        raise UserError(f"{where}.schedule is {section['schedule']!r}: choose multi_step or cosine")
    if section["lr_batch"] < 0:
        raise UserError(f"{where}.lr_batch is {section['lr_batch']}: give a batch, or 0 to leave the learning rate")


def _check_terms(terms: dict[str, dict[str, Any]], where: str) -> None:
    for term, options in terms.items():
        if not 0 < options.get("temperature", 1) < math.inf:
            raise UserError(f"{where}.{term}.temperature is {options['temperature']}: give a number above 0")
        if not 0 <= options.get("weight", 0) < math.inf:
            raise UserError(f"{where}.{term}.weight is {options['weight']}: give a number of at least 0")


def _check_batch(config: dict[str, Any], name: str, section: dict[str, Any]) -> None:
    where = RECIPES[name].schedule or RECIPES[name].network
    Devices().check_batch(section["batch"], section["accumulate"], f"{where}.batch")
    rows = section["batch"] // section["accumulate"]
    if rows % config["batch_norm_groups"]:
        raise UserError(
            f"batch_norm_groups is {config['batch_norm_groups']}, which does not divide a batch of {rows}: "
            "take a divisor"
        )


def _refuse_unused(config: dict[str, Any], names: Sequence[str]) -> None:
    """Refuses settings of recipes that do not run: they were changed by mistake."""
    for name, terms in config["objective"].items():
        for term, options in terms.items() if name not in names else ():
            # The tiny form has fewer negatives.
            changed = [k for k, v in options.items() if v != RECIPES[name].terms[term][k] and k != "negatives"]
            if changed:
                raise UserError(
                    f"objective.{name}.{term}.{changed[0]} is changed, but {name} is not to run: change "
                    f"objective.{names[-1]}, or name the recipe {name}"
                )
    if any(config["peers"]) and not any(RECIPES[name].objective == "mutual" for name in names):
        raise UserError(f"peers are named, but no recipe of {', '.join(names)} trains several: name mutual")
