"""Settings of a run that are allowed, and may surprise the user: a line for each."""

from collections.abc import Iterator, Sequence

from hsakd_jax.distillation.methods import RELATE_IMAGES
from hsakd_jax.experiments.config_file import overridden
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.models import architecture
from hsakd_jax.runs.config import Config, Data, RunConfig
from hsakd_jax.runs.restore import peer_config


def cautions(config: RunConfig, section: str, teacher: Config | None, command: Sequence[str] = ()) -> Iterator[str]:
    """The lines about a run.

    Args:
      config: of the run.
      section: of its schedule, in the command's config.
      teacher: config of the run that teaches; None without one.
      command: arguments of the command.
    """
    for key, when in _late(config, section).items():
        yield f"{key} {when}, and the run ends at epoch {config.training.epochs}: set --config.{key} to less"
    yield from _milestones(config, section)
    yield from _micro_batches(config, section)
    yield from _without_effect(config.data, overridden(command))
    if teacher is not None and config.teacher is not None:
        taught_by = peer_config(teacher.network, config.teacher.workdir, peer=config.teacher.peer).arch
        yield from _untaught_branches(config, taught_by)


def _late(config: RunConfig, section: str) -> dict[str, str]:
    """The settings in epochs that the run is too short for: their values in words, by key.

    A term should have its whole weight before the learning rate falls, as it has in the published settings.
    """
    training, found = config.training, {}
    falls = training.milestones if training.schedule == "multi_step" else ()
    if late := [str(epoch) for epoch in falls if epoch >= training.epochs]:
        found[f"{section}.milestones"] = f"has {', '.join(late)}"
    if training.warmup >= training.epochs:
        found[f"{section}.warmup"] = f"is {training.warmup} epochs"
    first = min((*falls, training.epochs))
    for term, options in config.objective.terms.items():
        key = f"objective.{config.recipe}.{term}"
        if options.weight and options.warmup > first:
            fall = f", the learning rate falls at epoch {first:g}" if first < training.epochs else ""
            found[f"{key}.warmup"] = f"is {options.warmup} epochs{fall}"
        if options.weight and options.decay and options.decay >= training.epochs:
            found[f"{key}.decay"] = f"begins at epoch {options.decay}"
    return found


def _milestones(config: RunConfig, section: str) -> Iterator[str]:
    """The line about a learning rate that falls while it still warms up."""
    training = config.training
    if training.schedule == "multi_step" and any(epoch < training.warmup for epoch in training.milestones):
        yield (
            f"{section}.milestones is {training.milestones}, and the learning rate falls only after {section}.warmup, "
            f"{training.warmup} epochs: set later milestones"
        )


def _micro_batches(config: RunConfig, section: str) -> Iterator[str]:
    """The line about terms that relate the images of a batch, of which they see a part only."""
    training = config.training
    related = [name for name, term in config.objective.terms.items() if term.weight and name in RELATE_IMAGES]
    if training.accumulate > 1 and related:
        yield (
            f"{section}.accumulate is {training.accumulate}: the loss of {', '.join(related)} relates the images of a "
            f"micro-batch of {training.batch // training.accumulate}, not of the batch of {training.batch}; "
            f"--config.{section}.accumulate=1 relates all"
        )


def _without_effect(data: Data, chosen: Sequence[str]) -> Iterator[str]:
    """The line about a key of the crop that a flag sets, and that belongs to the other kind of crop; or none."""
    key = "pad" if data.crop == "resized" else "resize"
    if getattr(data, key) and f"data.{key}" in chosen:
        yield f"data.{key} has no effect with data.crop={data.crop}: leave it out of a new run"


def _untaught_branches(config: RunConfig, taught_by: str) -> Iterator[str]:
    """The line about branches that no term trains, of a student that is deeper than its teacher."""
    if not config.network.branches:
        return
    stages, theirs = (len(architecture(name).stages) for name in (config.network.arch, taught_by))
    joint = config.objective.terms.get("joint")
    trained: set[int] = set()
    if joint and joint.weight:
        branches = joint.options.get("branches")
        trained |= {*map(int, branches)} if isinstance(branches, tuple) and branches else {*range(1, stages + 1)}
    untaught = [branch for branch in range(1, stages - theirs + 1) if branch not in trained]
    if not untaught:
        return
    have = "branch 1 has" if untaught == [1] else f"branches {', '.join(map(str, untaught))} have"
    remedy = ""
    if "joint" in RECIPES[config.recipe].terms:
        key, branches = f"--config.objective.{config.recipe}.joint", sorted({*trained, *untaught})
        weight = "" if trained else f"{key}.weight=1 and "
        listed = ",".join(map(str, branches))
        remedy = f'; {weight}{key}.branches="({listed},)" {"does" if trained else "do"}'
    yield (
        f"{have} no partner among the {theirs} stages of {taught_by}, paired from the deepest, and no term trains "
        f"{'it' if untaught == [1] else 'them'}{remedy}"
    )
