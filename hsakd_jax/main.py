"""Trains what a config says.

    python -m hsakd_jax.main --config=configs/cifar100.py[:recipe[/TEACHER/STUDENT]] --workdir=DIR
        [--config.key=value ...] [--coordinator=HOST:PORT --processes=N --process=I]

recipes: hsakd (teacher, student alone and student in one workdir; the default of most files), baseline, kd, teacher,
student, mutual, crd and the other rows that the config file lists; each has a form that ends in seconds, such as
hsakd_tiny. TEACHER and STUDENT are networks. What a recipe needs, such as its teacher, is trained first, in the same
workdir.

Several processes: the same command in each. On TPU pods, under Slurm and OpenMPI they find one another; elsewhere the
three flags say where the first one listens (HOST:PORT), how many there are, and which one this is, from 0.

Running a command again continues it. Exit status: 0 done, 2 bad input, 143 or 130 stopped by SIGTERM or
Ctrl-C with the state saved.
"""

import sys

from absl import flags
from ml_collections import config_flags

from hsakd_jax.cli import command

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a file of configs/, with ':recipe' behind it.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "where the run or the runs are kept.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process.")
_PROCESSES = flags.DEFINE_integer("processes", None, "the number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "the index of this process, from 0.", lower_bound=0)


def main() -> None:
    """Trains."""
    from hsakd_jax.core import runtime
    from hsakd_jax.core.console import Console
    from hsakd_jax.core.sharding import initialize_distributed, is_first_process, report_lost_process
    from hsakd_jax.experiments import pipeline

    runtime.configure_compilation()
    initialize_distributed(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with report_lost_process():
        console = Console(silent=not is_first_process())
        pipeline.execute(_CONFIG.value.to_dict(), _WORKDIR.value, console, sys.argv[1:])


if __name__ == "__main__":
    command(main, __doc__, "config", "workdir")
