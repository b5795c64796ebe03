"""The distillation methods that HSAKD is compared with, as named terms of one objective.

A term is a function `term(outputs, labels, teacher, sample, **options)` that returns a scalar in at least float32.
SSKD's terms and `dist_aux` take a rotated batch of 4B rows, `dist` takes either one, and the others take a plain one
of B rows. `Methods` calls them, so they may create layers, which start as PyTorch's do.

Each file has the losses first, as functions of arrays, and then the terms that find these arrays in the outputs. The
defaults of the options, and the weights in `experiments/recipes.py`, are the published ones: those of CRD's benchmark
(Tian et al. 2020, arXiv 1910.10699) unless a docstring names another source. HSAKD's table combines the methods with
plain distillation.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, get_type_hints

import flax.linen as nn
import jax

from hsakd_jax.distillation import objectives
from hsakd_jax.distillation.methods.common import Sample
from hsakd_jax.distillation.methods.contrastive import crd
from hsakd_jax.distillation.methods.exits import ofa
from hsakd_jax.distillation.methods.features import at, fitnet, vid
from hsakd_jax.distillation.methods.logits import dist, dist_aux, dkd, nkd, rld, ttm, wttm
from hsakd_jax.distillation.methods.relations import cc, pkt, rkd, sp
from hsakd_jax.distillation.methods.reused_classifier import simkd
from hsakd_jax.distillation.methods.review import reviewkd
from hsakd_jax.distillation.methods.self_supervised import sskd_head, sskd_kl, sskd_ss
from hsakd_jax.distillation.methods.transport import wkd_f, wkd_l, wkd_target
from hsakd_jax.distillation.methods.views import (
    crld_across,
    crld_within,
    mlld_classes,
    mlld_images,
    mlld_kl,
    strong_task,
)
from hsakd_jax.models.network import Outputs

__all__ = ["RELATE_IMAGES", "TERMS", "Methods", "Sample", "default_options", "option_types"]

Array = jax.Array

TERMS: dict[str, Callable[..., Array]] = {
    "dkd": dkd,
    "nkd": nkd,
    "rld": rld,
    "ttm": ttm,
    "wttm": wttm,
    "dist": dist,
    "dist_aux": dist_aux,
    "ofa": ofa,
    "strong_task": strong_task,
    "mlld_kl": mlld_kl,
    "mlld_images": mlld_images,
    "mlld_classes": mlld_classes,
    "crld_within": crld_within,
    "crld_across": crld_across,
    "fitnet": fitnet,
    "at": at,
    "sp": sp,
    "cc": cc,
    "vid": vid,
    "wkd_f": wkd_f,
    "wkd_target": wkd_target,
    "wkd_l": wkd_l,
    "reviewkd": reviewkd,
    "simkd": simkd,
    "rkd": rkd,
    "pkt": pkt,
    "crd": crd,
    "sskd_head": sskd_head,
    "sskd_kl": sskd_kl,
    "sskd_ss": sskd_ss,
}


# Terms whose loss for an image depends on the other images of the batch.
RELATE_IMAGES = frozenset({
    *("sp", "cc", "rkd", "pkt", "dist", "dist_aux", "mlld_images", "mlld_classes", "sskd_head", "sskd_ss"),
})  # fmt: skip


def option_types(name: str) -> dict[str, Any]:
    """The types of a term's options with their ranges, from the signature of its function.

    Args:
      name: a key of `TERMS` or of `objectives.TERMS`.
    """
    hints = get_type_hints(_function(name), include_extras=True)
    return {option: hints.get(option, Any) for option in default_options(name)}


def default_options(name: str) -> dict[str, Any]:
    """The defaults of a term's options, from the signature of its function.

    Args:
      name: a key of `TERMS` or of `objectives.TERMS`.
    """
    options = signature(_function(name)).parameters.values()
    return {option.name: option.default for option in options if option.default is not option.empty}


def _function(name: str) -> Callable[..., Array]:
    return TERMS[name] if name in TERMS else objectives.TERMS[name]


class Methods(nn.Module):
    """An objective with parameters and memory of its own.

    Its parameters are in 'params' and its memory in 'batch_stats', under the name of the method.

    Attributes:
      terms: name -> options, without weights; names are keys of `TERMS` or of `objectives.TERMS`.
      batch_norm_groups: see `BatchNorm.groups`; of the layers that the terms create.
    """

    terms: Mapping[str, Mapping[str, Any]]
    batch_norm_groups: int = 1

    @nn.compact
    def __call__(
        self, outputs: Outputs, labels: Array, teacher: Outputs | None, sample: Sample | None
    ) -> dict[str, Array]:
        """Computes the terms, unweighted.

        Args:
          outputs: of the network that learns, for B or 4B rows.
          labels: [B], integers.
          teacher: outputs of the teacher, which get no gradient, or None.
          sample: the training images of the batch; None for terms that do not need them.

        Returns:
          Name -> scalar in at least float32.

        Raises:
          ValueError: a term does not fit these outputs.
        """
        teacher = jax.lax.stop_gradient(teacher)
        if sample is not None:
            sample = sample._replace(batch_norm_groups=self.batch_norm_groups)
        return {
            name: TERMS[name](outputs, labels, teacher, sample, **options)
            if name in TERMS
            else objectives.TERMS[name](outputs, labels, teacher, **options)
            for name, options in self.terms.items()
        }
