"""From a command's config to its runs, one after the other, and the table that compares them."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from hsakd_jax import data, train
from hsakd_jax.console import Console, table
from hsakd_jax.errors import UserError
from hsakd_jax.evaluation import best_branch, mean_top1
from hsakd_jax.files import write_json
from hsakd_jax.recipes import RECIPES

TITLES = {
    "teacher": "teacher",
    "baseline": "student alone",
    "kd": "student, KD",
    "student": "student, HSAKD",
    "mutual": "online, mean of peers",
}


def execute(config: ConfigDict, workdir: str, console: Console) -> dict[str, Any]:
    """Does all runs of a config, skipping what is done, and shows the table.

    Args:
      config: as `recipes.make` makes it.
      workdir: of the run, or of the pipeline, whose runs are its subdirectories.
      console: where progress is shown.

    Returns:
      Results by recipe.

    Raises:
      UserError, Stopped: as `train.run`.
    """
    splits = load(config)
    root = Path(workdir).expanduser()
    # A pipeline of one run is that run.
    one = config.recipe in RECIPES
    given = config.teacher.workdir
    results = {}
    for recipe in config.runs:
        if recipe == "teacher" and given and not one:
            continue
        teacher = given or ("" if one else str(root / "teacher"))
        resolved = resolve(config, recipe, splits, teacher)
        results[recipe] = train.run(resolved, root if one else root / recipe, splits, console)
    console.line("\n" + summary(results))
    if not one:
        write_json(root / "results.json", results)
    return results


def load(config: ConfigDict) -> data.Splits:
    """The data of a config."""
    source = config.data
    return data.load(
        source.name,
        source.dir,
        image_size=source.image_size,
        fraction=source.fraction,
        validation=source.validation,
        seed=config.seed,
    )


def resolve(config: ConfigDict, recipe: str, splits: data.Splits, teacher: str) -> dict[str, Any]:
    """All that decides one run, and nothing else: what its config.json holds.

    Args:
      config: of the command.
      recipe: of the run.
      splits: its data, for the number of classes and the size of the images.
      teacher: the teacher's run directory.

    Raises:
      UserError: no teacher where one is needed, or numbers that make no run.
    """
    kind, plain = RECIPES[recipe], config.to_dict()
    section = plain[kind.network]
    if kind.taught and not teacher:
        raise UserError(f"the recipe {recipe} needs a teacher: give --config.teacher.workdir=RUN")
    for name in ("epochs", "batch", "accumulate"):
        if section[name] < 1:
            raise UserError(f"{kind.network}.{name} is {section[name]}: give at least 1")
    for name in ("eval_every", "log_every", "eval_batch"):
        if plain[name] < 1:
            raise UserError(f"{name} is {plain[name]}: give at least 1")
    shape = splits.train.images.shape[1:]
    if kind.rotated and shape[0] != shape[1]:
        raise UserError(f"rotations need square images, and {config.data.name} has {shape[0]}x{shape[1]}")
    for name in ("mean", "std"):
        if len(plain["data"][name]) not in (1, shape[-1]):
            raise UserError(f"data.{name} has {len(plain['data'][name])} numbers, the images {shape[-1]} channels")
    return {
        "recipe": recipe,
        "seed": config.seed,
        "network": {
            "arch": section.pop("arch"),
            "dtype": section.pop("dtype"),
            "branches": kind.branches,
            "peers": config.peers if recipe == "mutual" else 0,
            "num_classes": len(splits.class_names),
            "image_shape": list(shape),
        },
        "classes": list(splits.class_names),
        "data": plain["data"],
        "train": {k: v for k, v in section.items() if k not in ("workdir", "checkpoint")},
        "objective": plain["objective"][recipe],
        "teacher": {"workdir": teacher, "checkpoint": config.teacher.checkpoint} if kind.taught else None,
        **{name: plain[name] for name in ("eval_every", "log_every", "eval_batch")},
    }


def summary(results: dict[str, dict[str, Any]]) -> str:
    """A table of runs: last epoch first, the best beside it, and what distillation gained."""
    alone = results.get("baseline")
    rows = []
    for recipe, result in results.items():
        top1, best = mean_top1(result["last"]), mean_top1(result["best"])
        gain = "" if alone is None or recipe in ("teacher", "baseline") else f"{top1 - mean_top1(alone['last']):+.2f}"
        joint = f"{best_branch(result['last']):.2f}" if "joint_1" in result["last"] else ""
        size = f"{result['parameters']['backbone']:,}"
        rows.append([TITLES[recipe], result["arch"], size, f"{top1:.2f}", f"{best:.2f}", gain, joint])
    header = ["run", "network", "parameters", "top-1 last", "top-1 best", "gain", "best branch joint"]
    images = next(iter(results.values()))["test_images"]
    chosen = next(iter(results.values()))["best"]["chosen_by"].rpartition(" ")[2]
    return f"{table(header, rows)}\n\n% of {images} test images; the best epoch was chosen on the {chosen} images"
