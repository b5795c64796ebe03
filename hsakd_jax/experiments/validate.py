"""What is refused of a command's config before its data is loaded."""

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
      sections: network and training numbers of each recipe to run, by its name.

    Raises:
      UserError: an unknown network or dtype, a batch that does not fit the devices, no teacher or start where one is
        needed, numbers that make no run, or a tracker that is not there.
    """
    for name in ("eval_every", "log_every", "eval_batch", "batch_norm_groups"):
        if config[name] < 1:
            raise UserError(f"{name} is {config[name]}: give at least 1")
    crop, side = config["data"]["crop"], config["data"]["image_size"]
    if crop not in ("pad", "resized"):
        raise UserError(f"unknown crop {crop!r}: choose pad or resized")
    if crop == "resized" and side < 1:
        raise UserError(f"data.image_size is {side}: give the side of the crops")
    if crop == "pad" and side and config["data"]["name"] != "image_folder":
        raise UserError(f"data.image_size is {side}, which is for data.crop=resized and image_folder: leave it 0")
    if 0 < config["data"]["resize"] < side:
        raise UserError(f"data.resize is {config['data']['resize']}: give at least data.image_size, {side}, or 0")
    if not 0 < (share := config["data"]["fraction"]) <= 1:
        raise UserError(f"data.fraction is {share}: give a share of the training images above 0 and at most 1")
    if not 0 <= (share := config["data"]["validation"]) < 1:
        raise UserError(f"data.validation is {share}: give a share of the training images of at least 0 and below 1")
    if not all(number > 0 for number in config["data"]["std"]):
        raise UserError(f"data.std is {config['data']['std']}: give numbers above 0, one for each channel")
    if not all(isinstance(peer, str) for peer in config["peers"]):
        raise UserError(f"peers is {config['peers']}: name a network for each, such as ('resnet20', 'wrn_16_2')")
    if (checkpoint := config["teacher"]["checkpoint"]) not in ("last", "best"):
        raise UserError(f"teacher.checkpoint is {checkpoint!r}: choose last or best")
    tracking.check(config["tracking"])
    _refuse_unused(config, list(sections))
    for name, section in sections.items():
        kind = RECIPES[name]
        where = kind.schedule or kind.network
        for arch in (section["arch"], *(filter(None, config["peers"]) if kind.objective == "mutual" else ())):
            create(arch, 2, dtype=section["dtype"])
        create(section["arch"], 2, dtype=config["teacher"]["inference_dtype"] or "float32")
        for key in ("epochs", "batch", "accumulate"):
            if section[key] < 1:
                raise UserError(f"{where}.{key} is {section[key]}: give at least 1")
        for key in ("lr", "momentum", "weight_decay", "gamma", "warmup"):
            if not 0 <= section[key] < math.inf:
                raise UserError(f"{where}.{key} is {section[key]}: give a number of at least 0")
        if not section["momentum"] < 1:
            raise UserError(f"{where}.momentum is {section['momentum']}: give a number below 1")
        for term, options in config["objective"][name].items():
            if not 0 < options.get("temperature", 1) < math.inf:
                raise UserError(
                    f"objective.{name}.{term}.temperature is {options['temperature']}: give a number above 0"
                )
            if not 0 <= options.get("weight", 0) < math.inf:
                raise UserError(f"objective.{name}.{term}.weight is {options['weight']}: give a number of at least 0")
        if not all(isinstance(epoch, int | float) for epoch in section["milestones"]):
            raise UserError(f"{where}.milestones is {section['milestones']}: give epochs, such as (150, 180, 210)")
        Devices().check_batch(section["batch"], section["accumulate"], f"{where}.batch")
        if section["lr_batch"] < 0:
            raise UserError(f"{where}.lr_batch is {section['lr_batch']}: give a batch, or 0 to leave the learning rate")
        rows = section["batch"] // section["accumulate"]
        if rows % config["batch_norm_groups"]:
            raise UserError(
                f"batch_norm_groups is {config['batch_norm_groups']}, which does not divide a batch of {rows}: "
                "take a divisor"
            )
        if kind.objective == "mutual" and len(config["peers"]) < 2:
            raise UserError(f"peers is {config['peers']}: a mutual run needs at least 2 networks")
        if kind.init == GIVEN and not section["init"]:
            raise UserError(f"the recipe {name} needs a run to start from: give --config.{where}.init=RUN")


def _refuse_unused(config: dict[str, Any], names: Sequence[str]) -> None:
    """What was changed for recipes that are not to run was changed by mistake."""
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
