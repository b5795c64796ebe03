"""Where arrays are placed, and how the processes of a run find one another."""

import jax

from hsakd_jax.core import runtime, sharding


def test_programs_on_cpu_have_the_memory_schedulers_order(monkeypatch):
    known = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    assert sharding._compiler_options("cpu") == (known if runtime._has_flag("xla_cpu_scheduler_type") else None)
    assert sharding._compiler_options("gpu") is None

    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("No such compile option")

    monkeypatch.setattr(jax, "jit", refuse)
    assert sharding._compiler_options.__wrapped__("cpu") is None
