"""All networks by name; one file a family."""

import difflib
from functools import cache

import jax.numpy as jnp

from hsakd_jax.core.errors import UserError
from hsakd_jax.models import mobilenet, resnet, shufflenet, vgg, wrn
from hsakd_jax.models.network import Architecture, Network

NETWORKS = {**resnet.NETWORKS, **wrn.NETWORKS, **vgg.NETWORKS, **mobilenet.NETWORKS, **shufflenet.NETWORKS}


def create(name: str, num_classes: int, branches: bool = True, dtype: str = "float32") -> Network:
    """Makes a network.

    Args:
      name: a key of `NETWORKS`.
      num_classes: N, how many classes.
      branches: whether it has its auxiliary classifiers.
      dtype: compute dtype of its convolutions, 'float32' or 'bfloat16'. Parameters, statistics and logits keep at
        least float32; nothing is cast down but by 'bfloat16', so that float64 variables give float64 outputs.

    Raises:
      UserError: unknown name or dtype, or fewer than two classes.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, 1)
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        raise UserError(f"unknown network {name!r}: {hint} are {', '.join(NETWORKS)}")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"unknown compute dtype {dtype!r}: choose float32 or bfloat16")
    if num_classes < 2:
        raise UserError(f"a network needs at least 2 classes, not {num_classes}: check the dataset")
    return Network(architecture(name), num_classes, branches, jnp.bfloat16 if dtype == "bfloat16" else None)


def architecture(name: str) -> Architecture:
    """What `NETWORKS` has under a name, the same object each time, so that networks of one name are equal."""
    return _made(NETWORKS[name])


@cache
def _made(recipe):
    return recipe()
