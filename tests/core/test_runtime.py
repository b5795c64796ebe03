"""The settings of the environment are kept, and no flag is set that this jaxlib does not have."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hsakd_jax.core import allocator, runtime


def test_a_known_flag_joins_those_that_are_set(monkeypatch):
    monkeypatch.setattr(runtime, "_has_flag", lambda flag: flag == "xla_cpu_experimental_ynn_fusion_type")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    for _ in range(2):  # a command that starts another one
        runtime.configure_runtime()
        assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count=2 {runtime.WITHOUT_YNNPACK}"


def test_what_the_user_chose_stays(monkeypatch):
    monkeypatch.setattr(runtime, "_has_flag", lambda flag: True)
    monkeypatch.setenv("XLA_FLAGS", f"{runtime.WITHOUT_YNNPACK}individual_dot")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "2")
    runtime.configure_runtime()
    assert os.environ["XLA_FLAGS"] == f"{runtime.WITHOUT_YNNPACK}individual_dot"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/elsewhere"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "2"


@pytest.mark.parametrize(("value", "said"), [("1", True), ("true", True), ("0", False)])
def test_float64_is_turned_off_with_a_word(value, said, monkeypatch, capsys):
    """XLA refuses the networks' programs where a part of them is widened."""
    monkeypatch.setenv("JAX_ENABLE_X64", value)
    runtime.configure_runtime()
    assert ("JAX_ENABLE_X64" not in os.environ) == said
    assert capsys.readouterr().err.startswith("JAX_ENABLE_X64 has no effect") == said


def test_without_a_home_folder_compiled_programs_are_not_kept(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody_has_this_name/.cache")
    runtime.configure_runtime()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_compiled_programs_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime.configure_runtime()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "hsakd_jax")
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"


def test_only_flags_in_jaxlibs_library_are_set(monkeypatch, tmp_path):
    (tmp_path / "libjax_common.so").write_bytes(b"...xla_some_flag...")
    monkeypatch.setattr(runtime, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    assert runtime._has_flag("xla_some_flag")
    assert not runtime._has_flag("xla_another")
    (tmp_path / "libjax_common.so").unlink()
    assert not runtime._has_flag("xla_some_flag")


def test_jax_starts_with_the_settings():
    """XLA ends a process that sets a flag it does not have."""
    script = (
        "from hsakd_jax.core import runtime; runtime.configure_runtime(); import jax; print(jax.numpy.ones(3).sum())"
    )
    env = {**os.environ, "XLA_FLAGS": ""}
    found = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "3.0\n"), found.stderr


@pytest.mark.parametrize(
    ("accelerator", "restart", "called"),
    [
        (None, True, ["restart_with_tunables", "retain_memory", "reserve_fragments_after_compilations"]),
        (None, False, ["retain_memory", "reserve_fragments_after_compilations"]),
        ("gpu", True, []),
    ],
)
def test_the_allocator_has_other_settings_on_cpu_only(monkeypatch, accelerator, restart, called):
    found = []
    for name in ("restart_with_tunables", "retain_memory", "reserve_fragments_after_compilations"):
        monkeypatch.setattr(allocator, name, lambda name=name: found.append(name))
    monkeypatch.setattr(runtime, "installed_accelerator", lambda: accelerator)
    runtime.configure_runtime(restart)
    runtime.configure_compilation()
    assert found == called
