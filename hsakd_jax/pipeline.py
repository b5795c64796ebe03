"""From a command's config to its runs, one after the other, and the table that compares them."""

from pathlib import Path
from typing import Any

from hsakd_jax import data, train
from hsakd_jax.devices import Devices
from hsakd_jax.errors import UserError
from hsakd_jax.evaluation import best_branch, mean_top1
from hsakd_jax.files import write_json
from hsakd_jax.nets import create
from hsakd_jax.progress import Console, table
from hsakd_jax.recipes import RECIPES

# What a section of the config says of a network rather than of its training.
NETWORK_KEYS = ("arch", "dtype", "workdir", "checkpoint", "inference_dtype")


def execute(config: dict[str, Any], workdir: str, console: Console) -> dict[str, Any]:
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
    check(config)
    splits = load(config)
    root = Path(workdir).expanduser()
    # A pipeline of one run is that run.
    one = config["recipe"] in RECIPES
    given = config["teacher"]["workdir"]
    # Relative, so that a pipeline can be moved; a teacher from elsewhere stays where it is.
    teacher = str(Path(given).expanduser().absolute()) if given else "" if one else "../teacher"
    recipes = [recipe for recipe in config["runs"] if one or not given or recipe != "teacher"]
    # All before the first one trains: a mistake in the student shall not show after the teacher's hours.
    resolved = {recipe: resolve(config, recipe, splits, teacher) for recipe in recipes}
    results = {}
    for recipe, run in resolved.items():
        results[recipe] = train.run(run, root if one else root / recipe, splits, console)
    console.line("\n" + summary(results))
    if not one:
        try:
            write_json(root / "results.json", results)
        except OSError as error:
            raise UserError(f"can't write to {root}: {error.strerror}; free some space") from error
    return results


def check(config: dict[str, Any]) -> None:
    """Refuses what can be refused before the data is loaded, for every run of a config.

    Raises:
      UserError: an unknown recipe, network or dtype, or a batch that does not fit the devices.
    """
    for recipe in config["runs"]:
        if recipe not in RECIPES:
            raise UserError(f"unknown recipe {recipe!r} in runs: there are {', '.join(RECIPES)}")
        section = config[RECIPES[recipe].network]
        create(section["arch"], 2, dtype=section["dtype"])
        create(section["arch"], 2, dtype=config["teacher"]["inference_dtype"] or "float32")
        Devices().check_batch(section["batch"], max(section["accumulate"], 1))


def load(config: dict[str, Any]) -> data.Splits:
    """The data of a config."""
    source = config["data"]
    return data.load(
        source["name"],
        source["dir"],
        image_size=source["image_size"],
        fraction=source["fraction"],
        validation=source["validation"],
        seed=config["seed"],
    )


def resolve(config: dict[str, Any], recipe: str, splits: data.Splits, teacher: str) -> dict[str, Any]:
    """All that decides one run, and nothing else: what its config.json holds.

    Args:
      config: of the command.
      recipe: of the run.
      splits: its data, for the number of classes and the size of the images.
      teacher: the teacher's run directory, absolute or seen from the run's own; '' for none.

    Raises:
      UserError: no teacher where one is needed, or numbers that make no run.
    """
    kind = RECIPES[recipe]
    section = config[kind.network]
    if kind.taught and not teacher:
        raise UserError(f"the recipe {recipe} needs a teacher: give --config.teacher.workdir=RUN")
    for name in ("epochs", "batch", "accumulate"):
        if section[name] < 1:
            raise UserError(f"{kind.network}.{name} is {section[name]}: give at least 1")
    for name in ("eval_every", "log_every", "eval_batch"):
        if config[name] < 1:
            raise UserError(f"{name} is {config[name]}: give at least 1")
    if recipe == "mutual" and config["peers"] < 2:
        raise UserError(f"peers is {config['peers']}: a mutual run needs at least 2 networks")
    shape = splits.train.images.shape[1:]
    return {
        "recipe": recipe,
        "seed": config["seed"],
        "network": {
            "arch": section["arch"],
            "dtype": section["dtype"],
            "branches": kind.branches,
            "peers": config["peers"] if recipe == "mutual" else 0,
            "num_classes": len(splits.class_names),
            "image_shape": list(shape),
        },
        "classes": list(splits.class_names),
        "data": config["data"],
        "train": {k: v for k, v in section.items() if k not in NETWORK_KEYS},
        "objective": config["objective"][recipe],
        "teacher": _teacher(config["teacher"], teacher) if kind.taught else None,
        **{name: config[name] for name in ("eval_every", "log_every", "eval_batch")},
    }


def _teacher(section: dict[str, Any], workdir: str) -> dict[str, Any]:
    dtype = section["inference_dtype"]
    return {"workdir": workdir, "checkpoint": section["checkpoint"], **({"dtype": dtype} if dtype else {})}


def summary(results: dict[str, dict[str, Any]]) -> str:
    """A table of runs: last epoch first, the best beside it, and what distillation gained."""
    alone = results.get("baseline")
    columns: dict[str, list[str]] = {
        name: [] for name in ("run", "network", "parameters", "top-1 last", "top-1 best", "gain", "best branch joint")
    }
    for recipe, result in results.items():
        top1, best = mean_top1(result["last"]), mean_top1(result["best"])
        gain = "" if alone is None or recipe in ("teacher", "baseline") else f"{top1 - mean_top1(alone['last']):+.2f}"
        joint = f"{best_branch(result['last']):.2f}" if any("joint_" in name for name in result["last"]) else ""
        size = f"{result['parameters']['backbone']:,}"
        row = [RECIPES[recipe].title, result["arch"], size, f"{top1:.2f}", f"{best:.2f}", gain, joint]
        for cells, cell in zip(columns.values(), row, strict=True):
            cells.append(cell)
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    images = next(iter(results.values()))["test_images"]
    chosen = next(iter(results.values()))["best"]["chosen_by"].rpartition(" ")[2]
    note = f"% of {images} test images; the best epoch was chosen on the {chosen} images"
    note += ", a teacher's by its branches" if "teacher" in results else ""
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return f"{table(list(columns), rows)}\n\n{note}"
