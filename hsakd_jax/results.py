"""Shows finished runs in the paper's tables, together with the paper's numbers.

    python -m hsakd_jax.results RUNS... [--all] [--markdown|--csv|--json]

RUNS are folders. Runs are found at any depth in them. A table has methods as rows and pairs of networks as columns. It
shows the mean and the standard deviation over seeds, for the last and for the best epoch.

Below a table, students are compared with the baseline and with KD, within each seed and after the last epoch. A
verdict is "better by", "worse by" or "not shown", by a paired t-test, or for one seed by McNemar's test on the test
images. "not tested" has its reason in brackets, such as other epochs.

The paper reports the best epoch. The difference is therefore our best epoch minus the paper's number. A run with other
settings than the paper's has no difference; its table lists these settings. Runs of different settings are not
averaged. For a missing entry the table shows a command.

--all shows all tables of the paper, with one command for each missing entry.
"""

from absl import flags

from hsakd_jax.cli import Command, start
from hsakd_jax.core.errors import UserError


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_bool("all", False, "all tables of the paper.", values)
    flags.DEFINE_bool("markdown", False, "print Markdown.", values)
    flags.DEFINE_bool("csv", False, "print CSV.", values)
    flags.DEFINE_bool("json", False, "print JSON.", values)


def main(values: flags.FlagValues, folders: list[str]) -> None:
    """Shows results."""
    from hsakd_jax.analysis import rendering, run_index, tables
    from hsakd_jax.core.console import note, show

    chosen = [name for name in ("markdown", "csv", "json") if values[name].value]
    if len(chosen) > 1:
        raise UserError(f"--{' and --'.join(chosen)}: set only one of them")
    runs, unfinished = run_index.find(folders)
    if not (runs or unfinished or values.all):
        raise run_index.no_run_error(folders)
    shown = tables.compare(runs, values.all)
    if values.csv:
        show(rendering.as_csv(shown))
    elif values.json:
        show(rendering.as_json(shown))
    else:
        show((rendering.as_markdown if values.markdown else rendering.as_text)(shown, values.all))
    if unfinished:
        line = f"{len(unfinished)} unfinished and not shown: {', '.join(map(str, unfinished))}"
        (note if values.csv or values.json else show)(f"\n{line}")


COMMAND = Command(main, __doc__, define_flags, words="RUNS...")

if __name__ == "__main__":
    start(COMMAND)
