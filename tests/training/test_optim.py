import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hsakd_jax.core.errors import UserError
from hsakd_jax.training import optim


def rates(kind, steps, **options):
    schedule = optim.schedule(kind, 0.1, steps, **{"warmup": 0, "milestones": (), "gamma": 0.1, **options})
    return [float(schedule(t)) for t in range(steps)]


def test_multi_step():
    np.testing.assert_allclose(rates("multi_step", 6, milestones=[2, 4]), [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], 1e-6)


def test_warm_up_keeps_the_milestones_where_they_are():
    found = rates("multi_step", 6, milestones=[4], warmup=2)
    np.testing.assert_allclose(found, [0, 0.05, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_cosine():
    np.testing.assert_allclose(rates("cosine", 5, warmup=1)[1:], [0.1, 0.0853553, 0.05, 0.0146447], rtol=1e-5)
    with pytest.raises(UserError, match="unknown schedule 'linear': choose multi_step or cosine"):
        rates("linear", 1)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_pytorchs(nesterov):
    """Three steps by the rule of torch.optim.SGD, decay before momentum."""
    optimizer = optim.sgd(0.1, 0.9, 0.01, nesterov)
    w, buffer, gradient = 2.0, 0.0, 0.5
    params = jnp.array(w)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(jnp.array(gradient), state, params)
        params = params + updates
        d = gradient + 0.01 * w
        buffer = 0.9 * buffer + d
        w -= 0.1 * (d + 0.9 * buffer if nesterov else buffer)
        assert float(params) == pytest.approx(w, rel=1e-6)


def test_adamw_is_pytorchs():
    """Three steps by the rule of torch.optim.AdamW: the decay is not part of the gradient."""
    optimizer = optim.adamw(0.1, 0.01)
    w, mean, square = 2.0, 0.0, 0.0
    params = jnp.array(w)
    state = optimizer.init(params)
    for step, gradient in enumerate((0.5, -0.2, 0.1), 1):
        with jax.numpy_dtype_promotion("standard"):  # as in a command
            updates, state = optimizer.update(jnp.array(gradient), state, params)
        params = params + updates
        w -= 0.1 * 0.01 * w
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        w -= 0.1 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)) ** 0.5 + 1e-8)
        assert float(params) == pytest.approx(w, rel=1e-6)


def test_trainable():
    params = {"stem": {"kernel": jnp.ones(2)}, "branch1": {"head": {"kernel": jnp.ones(2)}}}
    assert optim.trainable_mask("^branch", params) == {"stem": {"kernel": False}, "branch1": {"head": {"kernel": True}}}
    assert all(jax.tree.leaves(optim.trainable_mask("", params)))
    for pattern, message in (("^tail", "no parameter matches"), ("(", "not a regular expression")):
        with pytest.raises(UserError, match=message):
            optim.trainable_mask(pattern, params)
