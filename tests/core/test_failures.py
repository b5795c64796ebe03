"""What the operating system and JAX raise is one line; a programming error keeps its traceback."""

import errno
import os

import jax
import pytest

from hsakd_jax.core.failures import REMEDIES, explain


@pytest.mark.parametrize("number", REMEDIES)
def test_errors_of_the_system_have_path_reason_and_remedy(number):
    line = explain(OSError(number, os.strerror(number), "/runs/x"))
    assert line == f"/runs/x: {os.strerror(number)}: {REMEDIES[number]}"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: free some space"),
        (OSError(errno.ENOTDIR, "Not a directory", b"/x\xff"), "/x\udcff: Not a directory: check the path"),
        (OSError("of a library"), "of a library"),
        (UnicodeEncodeError("ascii", "ü", 0, 1, "ordinal not in range"), "text can't be read or written ('ascii'"),
        (MemoryError(), "not enough memory: set a smaller batch or eval_batch"),
        (MemoryError("3 GiB"), "not enough memory (3 GiB): set"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while allocating 9 bytes."),
            "the device has not enough memory (RESOURCE_EXHAUSTED: Out of memory while allocating 9 bytes.): set",
        ),
        (RuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"), "the device has not enough memory"),
    ],
)  # fmt: skip
def test_a_failure_of_the_machine_is_one_line(error, line):
    found = explain(error)
    assert found.startswith(line)
    assert "\n" not in found


@pytest.mark.parametrize(
    "error", [TypeError("x"), KeyError("x"), AssertionError(), RuntimeError("x"), ValueError("x"), IndexError()]
)
def test_a_programming_error_keeps_its_traceback(error):
    assert explain(error) is None


@pytest.mark.parametrize(
    ("raised", "cause"),
    [
        # As of jax 0.10, which raises the second for a backend that it knows and has not.
        (RuntimeError("Unable to initialize backend 'tpu': no libtpu.so (set JAX_PLATFORMS='' to"), "no libtpu.so"),
        (AssertionError(), "no such backend is installed"),
    ],
)
def test_a_backend_that_does_not_start_is_one_line(raised, cause, monkeypatch):
    def devices():
        raise raised

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    for error in (raised, AssertionError()):
        line = explain(error)
        assert line.startswith("JAX has no device with JAX_PLATFORMS=tpu (")
        assert line.endswith(f"{cause}): set another JAX_PLATFORMS, or install JAX for this accelerator")
    assert explain(TypeError()) is None
