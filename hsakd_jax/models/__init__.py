"""All networks by name; one file per family."""

from collections.abc import Callable
from functools import cache

import jax.numpy as jnp

from hsakd_jax.core.errors import UserError, unknown
from hsakd_jax.models import (
    convnext,
    deit,
    densenet,
    efficientnet,
    mobilenet,
    mobilenet_imagenet,
    regnet,
    resnet,
    shufflenet,
    vgg,
    wrn,
)
from hsakd_jax.models.network import Architecture, Network

NETWORKS: dict[str, Callable[[], Architecture]] = {
    **resnet.NETWORKS,
    **wrn.NETWORKS,
    **vgg.NETWORKS,
    **mobilenet.NETWORKS,
    **shufflenet.NETWORKS,
    **densenet.NETWORKS,
    **mobilenet_imagenet.NETWORKS,
    **efficientnet.NETWORKS,
    **regnet.NETWORKS,
    **convnext.NETWORKS,
    **deit.NETWORKS,
}


def create(name: str, num_classes: int, branches: bool = True, dtype: str = "float32") -> Network:
    """Creates a network.

    Args:
      name: a key of `NETWORKS`.
      num_classes: N, the number of classes.
      branches: whether it has auxiliary classifiers.
      dtype: compute dtype of the convolutions. 'bfloat16' leaves parameters, statistics and logits in at least float32.
        'float32' casts nothing, so float64 variables compute in float64.

    Raises:
      UserError: unknown name or dtype, or fewer than two classes.
    """
    made = architecture(name)
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"unknown compute dtype {dtype!r}: choose float32 or bfloat16")
    if num_classes < 2:
        raise UserError(f"a network needs at least 2 classes, not {num_classes}: check the dataset")
    return Network(made, num_classes, branches, jnp.bfloat16 if dtype == "bfloat16" else None)


def architecture(name: str) -> Architecture:
    """The architecture of a key of `NETWORKS`; the same object in each call, so that networks of one name are equal.

    Raises:
      UserError: unknown name.
    """
    if name not in NETWORKS:
        raise UserError(unknown("network", name, NETWORKS))
    return _made(NETWORKS[name])


@cache
def _made(make: Callable[[], Architecture]) -> Architecture:
    return make()
