"""Settings of a run that are allowed, and may surprise the user: a line for each."""

from collections.abc import Iterator

from hsakd_jax.distillation.methods import RELATE_IMAGES
from hsakd_jax.models import architecture
from hsakd_jax.runs.config import Config, RunConfig
from hsakd_jax.runs.restore import peer_config


def cautions(config: RunConfig, section: str, teacher: Config | None) -> Iterator[str]:
    """The lines about a run.

    Args:
      config: of the run.
      section: of its schedule, in the command's config.
      teacher: config of the run that teaches; None without one.
    """
    epochs = config.training.epochs
    for key, when in _late(config, section).items():
        yield f"{key} {when}, and the run ends at epoch {epochs}: set --config.{key} to less"
    yield from _micro_batches(config, section)
    if teacher is not None and config.teacher is not None:
        taught_by = peer_config(teacher.network, config.teacher.workdir, peer=config.teacher.peer).arch
        yield from _untaught_branches(config, taught_by)


def _late(config: RunConfig, section: str) -> dict[str, str]:
    """The settings in epochs that the run is too short for: their values in words, by key.

    A term should have its whole weight before the learning rate falls, as it has in the published settings.
    """
    training, found = config.training, {}
    if late := [str(epoch) for epoch in training.milestones if epoch >= training.epochs]:
        found[f"{section}.milestones"] = f"has {', '.join(late)}"
    if training.warmup >= training.epochs:
        found[f"{section}.warmup"] = f"is {training.warmup} epochs"
    falls = training.milestones if training.schedule == "multi_step" else ()
    first = min((*falls, training.epochs))
    for term, options in config.objective.terms.items():
        key = f"objective.{config.recipe}.{term}"
        if options.weight and options.warmup > first:
            fall = f", the learning rate falls at epoch {first:g}" if first < training.epochs else ""
            found[f"{key}.warmup"] = f"is {options.warmup} epochs{fall}"
        if options.weight and options.decay and options.decay >= training.epochs:
            found[f"{key}.decay"] = f"begins at epoch {options.decay}"
    return found


def _micro_batches(config: RunConfig, section: str) -> Iterator[str]:
    """The line about terms that relate the images of a batch, of which they see a part only."""
    training = config.training
    related = [name for name, term in config.objective.terms.items() if term.weight and name in RELATE_IMAGES]
    if training.accumulate > 1 and related:
        yield (
            f"{section}.accumulate is {training.accumulate}: {', '.join(related)} relate the images of a micro-batch "
            f"of {training.batch // training.accumulate}, not of the batch of {training.batch}, which is another loss"
        )


def _untaught_branches(config: RunConfig, taught_by: str) -> Iterator[str]:
    """The line about branches of a student that is deeper than its teacher."""
    if not config.network.branches:
        return
    stages, theirs = (len(architecture(name).stages) for name in (config.network.arch, taught_by))
    on = {name for name, term in config.objective.terms.items() if term.weight}
    if stages > theirs and "joint" not in on:
        which = "branch 1" if stages == theirs + 1 else f"branches 1 to {stages - theirs}"
        yield (
            f"{which} of {config.network.arch} have no partner in {taught_by}, whose {theirs} stages are paired from "
            f"the deepest: no term trains them; --config.objective.{config.recipe}.joint.weight=1 does"
        )
