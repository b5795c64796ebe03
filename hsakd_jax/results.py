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

from hsakd_jax.cli import command

_ALL = flags.DEFINE_bool("all", False, "all tables of the paper.")
_MARKDOWN = flags.DEFINE_bool("markdown", False, "print Markdown.")
_CSV = flags.DEFINE_bool("csv", False, "print CSV.")
_JSON = flags.DEFINE_bool("json", False, "print JSON.")


def main(folders: list[str]) -> None:
    """Shows results."""
    from hsakd_jax.analysis import rendering, run_index, tables
    from hsakd_jax.core.errors import UserError

    asked = [flag.name for flag in (_MARKDOWN, _CSV, _JSON) if flag.value]
    if len(asked) > 1:
        raise UserError(f"--{' and --'.join(asked)}: give one of them")
    runs, unfinished = run_index.find(folders)
    if not (runs or unfinished or _ALL.value):
        raise UserError(f"{', '.join(folders)}: no run there (a run's folder has a config.json): check the path")
    shown = tables.compare(runs, _ALL.value)
    if asked == ["csv"]:
        print(rendering.as_csv(shown))
    elif asked == ["json"]:
        print(rendering.as_json(shown))
    else:
        print((rendering.as_markdown if asked else rendering.as_text)(shown, _ALL.value))
    if unfinished:
        line = f"{len(unfinished)} unfinished and not shown: {', '.join(map(str, unfinished))}"
        print(f"\n{line}", file=sys.stderr if asked in (["csv"], ["json"]) else sys.stdout)


if __name__ == "__main__":
    command(main, __doc__, words="RUNS...")
