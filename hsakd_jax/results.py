"""Shows finished runs in the paper's tables, with the paper's numbers beside ours.

    python -m hsakd_jax.results RUNS... [--all] [--markdown|--csv|--json]

RUNS are folders; runs in them are found in depth. Rows are methods, columns pairs of networks: mean and standard
deviation over seeds, the last epoch first and the best beside it. The paper reports the best epoch, so the difference
is our best minus its number, where the settings are the paper's; where they are not, they are named instead. Runs
of different settings are not averaged. For what is missing the command is shown.

--all shows every table of the paper, with a command for each entry that is missing.
"""

import sys

from absl import flags

from hsakd_jax.cli import Command, start


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_bool("all", False, "all tables of the paper.", values)
    flags.DEFINE_bool("markdown", False, "print Markdown.", values)
    flags.DEFINE_bool("csv", False, "print CSV.", values)
    flags.DEFINE_bool("json", False, "print JSON.", values)


def main(values: flags.FlagValues, folders: list[str]) -> None:
    """Shows results."""
    from hsakd_jax.analysis import rendering, run_index, tables
    from hsakd_jax.core.errors import UserError

    asked = [name for name in ("markdown", "csv", "json") if values[name].value]
    if len(asked) > 1:
        raise UserError(f"--{' and --'.join(asked)}: give one of them")
    runs, unfinished = run_index.find(folders)
    if not (runs or unfinished or values.all):
        raise UserError(f"{', '.join(folders)}: no run there (a run's folder has a config.json): check the path")
    shown = tables.compare(runs, values.all)
    if asked == ["csv"]:
        print(rendering.as_csv(shown))
    elif asked == ["json"]:
        print(rendering.as_json(shown))
    else:
        print((rendering.as_markdown if asked else rendering.as_text)(shown, values.all))
    if unfinished:
        line = f"{len(unfinished)} unfinished and not shown: {', '.join(map(str, unfinished))}"
        print(f"\n{line}", file=sys.stderr if asked in (["csv"], ["json"]) else sys.stdout)


COMMAND = Command(main, __doc__, define_flags, words="RUNS...")

if __name__ == "__main__":
    start(COMMAND)
