"""The check that a network has the tensors of its original in torchvision or timm."""

import jax
import jax.numpy as jnp
import numpy as np
import reference
from flax.traverse_util import flatten_dict

from hsakd_jax import create
from hsakd_jax.interop import torch_weights
from hsakd_jax.models import profile

GOLDEN = reference.torchvision()


def shapes(variables):
    return {path: leaf.shape for path, leaf in flatten_dict(variables).items()}


def assert_tensors_of_the_original(name, side):
    """Parameter count for images of that side, and every key and shape; the network is found from them."""
    golden, plain = GOLDEN[name], create(name, 1000, branches=False)
    assert profile.totals(plain, (side, side, 3))["parameters"] == golden["params"]
    tensors = {
        key: np.zeros(shape, np.float32)
        for key, shape in golden["state_dict"]
        if not key.endswith("num_batches_tracked")
    }
    found = torch_weights.recognise(tensors, "", name)
    assert (found.name, found.num_classes, found.branches) == (name, 1000, False)
    variables = torch_weights.to_variables(tensors, found, "")
    assert shapes(variables) == shapes(jax.eval_shape(plain.init, jax.random.key(0), jnp.zeros((2, 64, 64, 3))))
    back = torch_weights.to_state_dict(name, plain, variables)
    assert {key: list(value.shape) for key, value in back.items()} == dict(golden["state_dict"])
