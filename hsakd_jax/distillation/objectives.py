"""HSAKD's objectives: functions of the outputs, the labels and the teacher's outputs that return named terms.

Each keyword argument of an objective is a term: a mapping sets the options of the term, None leaves it out. Labels are
integers [B]. A plain batch has outputs of B rows, a rotated one of 4B rows. Every term is a scalar in at least float32.
The train step multiplies the terms by their weights and adds them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from hsakd_jax.distillation import losses
from hsakd_jax.distillation.options import Branches, Temperature
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.rotations import joint_labels, upright

Array = jax.Array
Term = Mapping[str, Any] | None
ON: Term = MappingProxyType({})
TEMPERATURE = 3.0


def _task(outputs: Outputs, labels: Array, teacher: Outputs | None, upright_only: bool = True) -> Array:
    """L_task: cross-entropy of the class logits, of the upright rows or of all rows (rotation as augmentation)."""
    logits = outputs.logits
    if upright_only:
        return losses.cross_entropy(upright(logits, len(labels)), labels)
    return losses.cross_entropy(logits, jnp.repeat(labels, len(logits) // len(labels)))


def _joint(outputs: Outputs, labels: Array, teacher: Outputs | None, branches: Branches = ()) -> Array:
    """Cross-entropy of the joint logits with the joint labels, mean over the 4B rows, sum over branches."""
    chosen = _branch_indices(outputs, branches, "joint")
    return _sum(losses.cross_entropy(outputs.aux_logits[l], joint_labels(labels)) for l in chosen)


def _kl_aux(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    temperature: Temperature = TEMPERATURE,
    branches: Branches = (),
    standardise: bool = False,
) -> Array:
    """L_kl_q: tau^2 KL(teacher's joint logits || the network's), mean over the 4B rows, sum over `branch_pairs`."""
    pairs = branch_pairs(outputs, teacher, branches, "kl_aux")
    return _sum(losses.kl(p, q, temperature, standardise) for q, p in pairs)


def _kl_final(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    temperature: Temperature = TEMPERATURE,
    upright_only: bool = False,
    standardise: bool = False,
) -> Array:
    """L_kl_p: tau^2 KL(teacher's class logits || the network's), mean over all rows or the upright ones."""
    p, q = teacher.logits, outputs.logits
    if upright_only:
        p, q = upright(p, len(labels)), upright(q, len(labels))
    return losses.kl(p, q, temperature, standardise)


def branch_pairs(outputs: Outputs, teacher: Outputs, branches: Sequence[int], term: str) -> list[tuple[Array, Array]]:
    """Pairs of joint logits, the network's and the teacher's, [4B, 4N] each.

    Networks of unequal depth are paired from the deepest branch backwards.

    Args:
      outputs: of the network that learns.
      teacher: outputs of the teacher.
      branches: of the network, counted from 1. Without any, all are taken, except those that have no partner.
      term: its name, for the errors.

    Raises:
      ValueError: the network has no branches, not those, or one of those has no partner.
    """
    ahead = len(teacher.aux_logits) - len(outputs.aux_logits)
    chosen = _branch_indices(outputs, branches, term)
    if branches and min(chosen) + ahead < 0:
        raise ValueError(
            f"{term}: branch {min(chosen) + 1} has no partner among the teacher's {len(teacher.aux_logits)} branches "
            f"(paired from the deepest backwards): choose branches from {1 - ahead} on"
        )
    return [(outputs.aux_logits[l], teacher.aux_logits[l + ahead]) for l in chosen if l + ahead >= 0]


def _branch_indices(outputs: Outputs, branches: Sequence[int], term: str) -> Sequence[int]:
    """Indices, from 0, of the branches of a term, which are counted from 1; no branches mean all."""
    count = len(outputs.aux_logits)
    if not count:
        raise ValueError("the network has no branches: create it with branches=True")
    if branches and not set(branches) <= set(range(1, count + 1)):
        raise ValueError(f"{term}: branches {tuple(branches)} are not all among 1..{count}: choose among them")
    return [l - 1 for l in branches] or range(count)


def _sum(terms: Iterable[Array]) -> Array:
    first, *rest = terms
    return sum(rest, first)


TERMS: dict[str, Callable[..., Array]] = {
    "task": _task,
    "joint": _joint,
    "kl_aux": _kl_aux,
    "kl_final": _kl_final,
    "kl": _kl_final,
}


def _terms(outputs: Outputs, labels: Array, teacher: Outputs | None, **terms: Term) -> dict[str, Array]:
    return {name: TERMS[name](outputs, labels, teacher, **o) for name, o in terms.items() if o is not None}


def baseline(outputs: Outputs, labels: Array, teacher: None = None, *, task: Term = ON) -> dict[str, Array]:
    """Cross-entropy: the student without a teacher."""
    return _terms(outputs, labels, None, task=task)


def kd(outputs: Outputs, labels: Array, teacher: Outputs, *, task: Term = ON, kl: Term = ON) -> dict[str, Array]:
    """Plain distillation of the class logits (Hinton et al. 2015, arXiv 1503.02531), of a plain batch."""
    return _terms(outputs, labels, teacher, task=task, kl=kl)


def teacher(
    outputs: Outputs, labels: Array, teacher: None = None, *, task: Term = ON, joint: Term = ON
) -> dict[str, Array]:
    """HSAKD's L_T: cross-entropy of the upright rows, and joint-label cross-entropy of every branch.

    Raises:
      ValueError: the network has no branches, or not those that a term chooses.
    """
    return _terms(outputs, labels, None, task=task, joint=joint)


def student(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    *,
    task: Term = ON,
    joint: Term = None,
    kl_aux: Term = ON,
    kl_final: Term = ON,
) -> dict[str, Array]:
    """HSAKD's L_S: L_task, L_kl_q ('kl_aux') and L_kl_p ('kl_final'); in the paper the student has no joint-label term.

    Raises:
      ValueError: a network has no branches, or not those that a term chooses.
    """
    return _terms(outputs, labels, teacher, task=task, joint=joint, kl_aux=kl_aux, kl_final=kl_final)


def mutual(
    outputs: Sequence[Outputs],
    labels: Array,
    teacher: None = None,
    *,
    task: Term = ON,
    joint: Term = ON,
    kl_aux: Term = ON,
    kl_final: Term = ON,
) -> dict[str, Array]:
    """Online distillation (HSSAKD): each network learns from the labels and from all others, which get no gradient.

    'task' and 'joint' are sums over the networks, 'kl_aux' and 'kl_final' sums over the ordered pairs of networks.

    Raises:
      ValueError: a network has no branches, or not those that a term chooses.
    """
    own = [_terms(o, labels, None, task=task, joint=joint) for o in outputs]
    fixed = jax.lax.stop_gradient(tuple(outputs))
    pairs = [
        _terms(outputs[a], labels, fixed[b], kl_aux=kl_aux, kl_final=kl_final)
        for a, b in permutations(range(len(outputs)), 2)
    ]
    return {name: _sum(terms[name] for terms in group) for group in (own, pairs) for name in group[0]}


OBJECTIVES = {f.__name__: f for f in (baseline, kd, teacher, student, mutual)}
