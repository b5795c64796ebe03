"""Drives the golden step runs in float64, each by the recipe of its name, and prints the worst relative errors as JSON.

A process of its own, since float64 is a switch of the whole process: `JAX_ENABLE_X64=1 python golden_steps.py KEY...`.
"""

import json
import sys

import jax
import numpy as np
import reference

from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.interop.torch_weights import to_state_dict
from hsakd_jax.models.network import Network, Peers
from hsakd_jax.models.rotations import rotate
from hsakd_jax.training import optim
from hsakd_jax.training.build import make_objective
from hsakd_jax.training.step import make_step


def peer(name):
    """A network as a part of `Peers`."""
    from functools import partial

    from hsakd_jax.models import NETWORKS

    return partial(Network, NETWORKS[name.removesuffix("_aux")](), 100)


def run(key):
    """Relative errors of one run: {'terms': .., 'grad_norm': .., 'norms': ..}."""
    record = reference.read("steps.json")["steps"][key]
    kind, student, teacher = record["kind"], record.get("student", record.get("network")), record.get("teacher")
    arch, network = reference.create(student)
    if kind == "mutual":
        network = Peers((peer(student),) * 2)
        each = [reference.variables(arch, f"golden-v1/net{i}") for i in (1, 2)]
        variables = {c: {f"peer{i}": v[c] for i, v in enumerate(each, 1)} for c in ("params", "batch_stats")}
    else:
        variables = reference.variables(arch)
    taught, teacher_variables = None, None
    if teacher:
        teacher_arch, taught = reference.create(teacher)
        teacher_variables = reference.variables(teacher_arch)
    recipe = RECIPES[kind]
    assert (recipe.branches, recipe.rotated) == (student.endswith("_aux"), kind not in ("baseline", "kd"))
    weights = {name: term["weight"] for name, term in recipe.terms.items() if term["weight"]}
    assert {*weights, "loss", "grad_norm"} == set(record["log"][0])
    optimizer = optim.sgd(record["lr"], record["momentum"], record["weight_decay"], record["nesterov"])
    objective = make_objective({"recipe": kind, "objective": recipe.terms})
    init, step = make_step(network, objective, weights, optimizer, recipe.trainable or True, taught)
    state, step = init(variables), jax.jit(step)
    errors = {"terms": 0.0, "grad_norm": 0.0, "norms": 0.0}

    def compare(group, ours, theirs):
        errors[group] = max(errors[group], abs(float(ours) - theirs) / abs(theirs))

    before = dict.fromkeys(record["log"][0], 0.0)
    for t, log in enumerate(record["log"]):
        tag = f"{kind}/{student}/{t}"
        images, labels = reference.inputs(tag, record["batch"], record["resolution"], record["num_classes"])
        images = rotate(images) if recipe.rotated else images
        state = step(state, teacher_variables, images, labels)
        assert all(x.dtype == np.float64 for x in jax.tree.leaves((state.variables, state.window.sums)))
        for name, value in log.items():
            total = float(state.window.sums[name])
            compare("grad_norm" if name == "grad_norm" else "terms", total - before[name], value)
            before[name] = total
    after = record["norms_after"] if kind == "mutual" else [record["norms_after"]]
    for i, norms in enumerate(after, 1):
        tree = {c: v[f"peer{i}"] if kind == "mutual" else v for c, v in state.variables.items()}
        found = to_state_dict(student.removesuffix("_aux"), reference.create(student)[1], tree)
        assert {name for name in found if not name.endswith("num_batches_tracked")} == set(norms)
        for name, norm in norms.items():
            compare("norms", np.linalg.norm(found[name]), norm)
    return errors


if __name__ == "__main__":
    for key in sys.argv[1:] or reference.read("steps.json")["steps"]:
        print(json.dumps({key: run(key)}), flush=True)
