"""HSAKD in JAX and Flax: networks with auxiliary classifiers, distillation, evaluation.

The stable interface::

    create(name, num_classes, branches=True, dtype='float32') -> network
    network.init(key, images) -> variables
    network.apply(variables, images_nhwc, train=False) -> Outputs(logits, aux_logits, features)
    restore(run_dir) -> (network, variables)
    load_torch(path_or_state_dict, name='', part='') -> variables
"""

import signal
import sys
from typing import TYPE_CHECKING

# Python looks for the module of `python -m hsakd_jax.COMMAND`: nothing else runs in this process. An exception for
# Ctrl-C would be a traceback while packages are imported, be lost in a callback of JAX's, or crash its threads. A run
# that has a state to save first uses `preemption.catch_stop_signals`.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

if TYPE_CHECKING:
    from hsakd_jax.interop.torch_weights import load_torch
    from hsakd_jax.models import create
    from hsakd_jax.models.network import Outputs
    from hsakd_jax.runs.restore import restore

__all__ = ["Outputs", "create", "load_torch", "restore"]
_HOMES = {
    "create": "hsakd_jax.models",
    "Outputs": "hsakd_jax.models.network",
    "restore": "hsakd_jax.runs.restore",
    "load_torch": "hsakd_jax.interop.torch_weights",
}


def __getattr__(name: str):
    # Lazily, so that `python -m hsakd_jax.main --help` answers before JAX is loaded.
    if name not in _HOMES:
        raise AttributeError(f"module 'hsakd_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
