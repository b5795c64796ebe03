"""Trains the runs of a config.

    python -m hsakd_jax.main --config=configs/cifar100.py[:recipe[/TEACHER/STUDENT]] --workdir=DIR
        [--config.key=value ...] [--dry_run] [--coordinator=HOST:PORT --processes=N --process=I]

recipes: hsakd (teacher, baseline and student in one workdir; the default of most files), baseline, kd, teacher,
student, mutual, crd and the others of the file. Each has a form that ends in seconds, such as hsakd_tiny. TEACHER and
STUDENT are networks. The command first trains the runs that a recipe needs, such as its teacher, in the same workdir.

--dry_run checks all runs, compiles and times their steps on random networks, prints time and memory of each run, and
trains nothing.

Several processes: the same command in each. On TPU pods, under Slurm and OpenMPI they find one another. Elsewhere the
three flags set the address of the first process (HOST:PORT), their number, and the index of this one, from 0.

Run the same command again to resume. Exit status: 0 done, 2 bad input; 143, 130 or 129 stopped by SIGTERM, Ctrl-C or a
closed terminal with the state saved. Under nohup, a run goes on when its terminal is closed.
"""

import re
from collections.abc import Sequence

from absl import flags

from hsakd_jax.cli import Command, start


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("config", None, "a file of configs/, with ':recipe' behind it.", values)
    flags.DEFINE_string("workdir", "", "where the run or the runs are kept.", values)
    flags.DEFINE_boolean("dry_run", False, "whether to stop before the training.", values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process.", values)
    flags.DEFINE_integer("processes", None, "the number of processes.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process", None, "the index of this process, from 0.", lower_bound=0, flag_values=values)


def main(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Trains."""
    from hsakd_jax.core.console import Console
    from hsakd_jax.core.sharding import initialize_distributed, is_first_process, report_lost_process
    from hsakd_jax.experiments import pipeline

    initialize_distributed(values.coordinator, values.processes, values.process)
    with report_lost_process():
        console = Console(silent=not is_first_process())
        command = [word for word in argv if not re.fullmatch(r"--?(no)?dry[_-]run(=.*)?", word)]
        pipeline.execute(values.config.to_dict(), values.workdir, console, command, dry_run=values.dry_run)


COMMAND = Command(main, __doc__, define_flags, required=("config", "workdir"), takes_argv=True, compiles=True)

if __name__ == "__main__":
    start(COMMAND)
