"""From a command's config to its runs, one after the other, and the table that compares them."""

from pathlib import Path
from typing import Any

from hsakd_jax.core.console import Console, table
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import read_json, write_json
from hsakd_jax.core.sharding import Devices, is_first_process
from hsakd_jax.data import datasets, sampling
from hsakd_jax.evaluation.accuracies import best_branch, mean_top1
from hsakd_jax.experiments.recipes import GIVEN, RECIPES, needed, unknown
from hsakd_jax.experiments.validate import check
from hsakd_jax.runs.directory import RunDirectory, beside
from hsakd_jax.runs.restore import peers
from hsakd_jax.training import loop
from hsakd_jax.training.build import rehearse

# What a section of the config says of a network rather than of its training.
NETWORK_KEYS = ("arch", "dtype", "workdir", "run", "checkpoint", "peer", "inference_dtype")


def execute(config: dict[str, Any], workdir: str, console: Console) -> dict[str, Any]:
    """Does all runs of a config and those that they need, skipping what is done, and shows the table.

    Args:
      config: as `recipes.make` makes it.
      workdir: of the run; of several runs, or where it holds some, each has the subdirectory of its name.
      console: where progress is shown.

    Returns:
      Results by recipe.

    Raises:
      UserError, Stopped: as `train.run`.
    """
    names = recipes_of(config)
    check(config, {name: _section(config, name) for name in names})
    root = Path(workdir).expanduser()
    # A folder that holds runs gets another one.
    one = len(names) == 1 and not any(root.glob("*/config.json"))
    if not one and (root / "config.json").exists():
        raise UserError(f"{root} is a run, and {', '.join(names)} need a folder for several: choose another directory")
    splits = datasets.load_source(config["data"], seed=config["seed"])
    # All before the first one trains: a mistake in the student shall not show after the teacher's hours.
    resolved = {name: resolve(config, name, splits) for name in names}
    paths = {name: root if one else root / name for name in names}
    parts = {name: part(splits, name, config["seed"]) for name in names}
    made = [path.resolve() for path in paths.values()]
    rehearsed = {}
    for name, run in resolved.items():
        directory, settings = RunDirectory(paths[name]), run["train"]
        directory.check(run)
        if directory.results():
            continue
        start = beside(directory.path, settings["init"])
        taught_by = _teacher_config(config, resolved, name)
        try:
            if settings["init"] and start.resolve() not in made:
                RunDirectory(start).config()  # refuses what is no run
            rehearsed[name] = rehearse(run, directory.path, taught_by, parts[name].train, Devices())
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        late = [f"milestone {epoch}" for epoch in settings["milestones"] if epoch >= settings["epochs"]]
        late += [f"warmup of {settings['warmup']}"] if settings["warmup"] >= settings["epochs"] else []
        if late:
            console.line(
                f"warning: {directory.path}: no step comes after {', '.join(late)}, "
                f"the run has {settings['epochs']} epochs"
            )
    results = {
        name: loop.run(run, paths[name], parts[name], console, rehearsed.pop(name, None))
        for name, run in resolved.items()
    }
    console.line("\n" + summary(results))
    if not one and is_first_process():
        try:
            before = read_json(root / "results.json") if (root / "results.json").exists() else {}
            write_json(root / "results.json", {**before, **results})
        except OSError as error:
            raise UserError(f"can't write to {root}: {error.strerror}; free some space") from error
    return results


def recipes_of(config: dict[str, Any]) -> list[str]:
    """The recipes to run, in order.

    Raises:
      UserError: an unknown recipe.
    """
    for name in (*config["runs"], *filter(None, [config["teacher"]["run"]])):
        if name not in RECIPES:
            raise UserError(unknown(name, RECIPES))
    given = config["teacher"]["workdir"]

    def parents(name):
        found, init = [], RECIPES[name].init
        if (teacher := _teacher_recipe(config, name)) and not given:
            found.append(teacher)
        if init not in ("", GIVEN) and not _section(config, name)["init"]:
            found.append(init)
        return found

    runs = config["runs"]
    if given and len(runs) > 1:  # though they name the teacher, it is not trained
        runs = [name for name in runs if RECIPES[name].network != "teacher"]
    return needed(runs, parents)


def _teacher_recipe(config: dict[str, Any], name: str) -> str:
    """The recipe whose run teaches this one; '' for none."""
    own = RECIPES[name].teacher
    return config["teacher"]["run"] or own if own else ""


def _teacher_config(config: dict[str, Any], resolved: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The config of the run that teaches this one."""
    if not (teacher := _teacher_recipe(config, name)):
        return None
    given = config["teacher"]["workdir"]
    return RunDirectory(given).config() if given else resolved[teacher]


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Network and training numbers of a recipe."""
    kind = RECIPES[name]
    section = {**config[kind.network], **config[kind.schedule or kind.network]}
    if kind.init == GIVEN and section["init"]:  # the network is the other run's
        network = RunDirectory(section["init"]).config()["network"]
        section["arch"] = (peers(network) or [network["arch"]])[0]
    return section


def part(splits: datasets.Splits, name: str, seed: int) -> datasets.Splits:
    """The splits as one recipe sees them."""
    share = RECIPES[name].share
    if share == 1:
        return splits
    chosen = sampling.stratified(splits.train.labels, share, seed)
    return splits._replace(train=splits.train.take(chosen))


def resolve(config: dict[str, Any], name: str, splits: datasets.Splits) -> dict[str, Any]:
    """All that decides one run, and nothing else: what its config.json holds.

    Args:
      config: of the command.
      name: recipe of the run.
      splits: its data, for the number of classes and the size of the images.
    """
    kind, section, source = RECIPES[name], _section(config, name), config["data"]
    given, taught_by = config["teacher"]["workdir"], _teacher_recipe(config, name)
    # Relative to the run, so that several can be moved together; what comes from elsewhere stays where it is.
    teacher = str(Path(given).expanduser().absolute()) if given else f"../{taught_by}"
    init = (
        str(Path(section["init"]).expanduser().absolute()) if section["init"] else f"../{kind.init}" * bool(kind.init)
    )
    *_, channels = shape = splits.train.image_shape
    side = source["image_size"]
    for key in ("mean", "std"):
        if len(source[key]) not in (1, channels):
            raise UserError(
                f"data.{key} is {source[key]}, and images of {source['name']} have {channels} channels: give a number "
                "for each"
            )
    if source["crop"] == "pad" and not all(shape):
        raise UserError(
            f"{source['name']} has images of many sizes: give --config.data.crop=resized with "
            "--config.data.image_size=PIXELS and --config.data.resize=PIXELS"
        )
    if source["dir"] and "://" not in source["dir"]:  # others look from other folders
        source = {**source, "dir": str(Path(source["dir"]).expanduser().absolute())}
    together = [peer or section["arch"] for peer in config["peers"]] if kind.objective == "mutual" else []
    training = {k: v for k, v in section.items() if k not in NETWORK_KEYS}
    return {
        "recipe": name,
        "seed": config["seed"],
        "network": {
            "arch": together[0] if together else section["arch"],
            "dtype": section["dtype"],
            "branches": kind.branches,
            "peers": together,
            "num_classes": len(splits.class_names),
            "image_shape": [side, side, channels] if source["crop"] == "resized" else list(shape),
        },
        "classes": list(splits.class_names),
        "data": {**source, "fraction": source["fraction"] * kind.share},
        "train": {
            **training,
            "init": init,
            "trainable": section["trainable"] or kind.trainable,
            "batch_norm_groups": config["batch_norm_groups"],
        },
        "objective": config["objective"][name],
        "teacher": _teacher(config["teacher"], teacher) if taught_by else None,
        **{name: config[name] for name in ("eval_every", "log_every", "eval_batch", "tracking")},
    }


def _teacher(section: dict[str, Any], workdir: str) -> dict[str, Any]:
    """What decides about a teacher; options that are off are left out."""
    options = {"dtype": section["inference_dtype"], "peer": section["peer"] if section["peer"] != 1 else 0}
    return {"workdir": workdir, "checkpoint": section["checkpoint"], **{k: v for k, v in options.items() if v}}


def summary(results: dict[str, dict[str, Any]]) -> str:
    """A table of runs: last epoch first, the best beside it, and what distillation gained."""
    alone = results.get("baseline")
    columns: dict[str, list[str]] = {
        name: [] for name in ("run", "network", "parameters", "top-1 last", "top-1 best", "gain", "best branch joint")
    }
    for recipe, result in results.items():
        top1, best = mean_top1(result["last"]), mean_top1(result["best"])
        student = RECIPES[recipe].network == "student" and recipe != "baseline"
        gain = f"{top1 - mean_top1(alone['last']):+.2f}" if alone and student else ""
        joint = f"{best_branch(result['last']):.2f}" if any("joint_" in name for name in result["last"]) else ""
        # Of several different networks it is the first one's, and the accuracy their mean.
        size = "" if "+" in result["arch"] else f"{result['parameters']['backbone']:,}"
        row = [RECIPES[recipe].title, result["arch"], size, f"{top1:.2f}", f"{best:.2f}", gain, joint]
        for cells, cell in zip(columns.values(), row, strict=True):
            cells.append(cell)
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    images = next(iter(results.values()))["test_images"]
    chosen = next(iter(results.values()))["best"]["chosen_by"].rpartition(" ")[2]
    note = f"% of {images} test images; the best epoch was chosen on the {chosen} images"
    judged = {RECIPES[recipe].objective for recipe in results}
    note += ", a teacher's by its branches" if "teacher" in judged else ""
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return f"{table(list(columns), rows)}\n\n{note}"
