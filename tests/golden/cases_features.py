"""Golden cases of methods that compare features, and of those that compare distributions by optimal transport."""

import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from hsakd_jax.distillation.methods import Methods, reused_classifier, review, transport
from hsakd_jax.distillation.methods.logits import target_loss
from hsakd_jax.models.layers import HE_ZERO, LayerFactory
from hsakd_jax.models.reused_head import ReusedHead

from .methods import nested, outputs


def updated(module, params, *given):
    """The results of a module whose BatchNorms are in training mode, and its running statistics by name."""
    found, kept = module.apply({"params": params}, *given, mutable=["batch_stats"])
    return found, kept.get("batch_stats", {})


def term(arrays, name, params, **options):
    """The loss of a term of both networks' outputs, and its running statistics."""
    student, teacher = (outputs(arrays, network) for network in ("student", "teacher"))
    found, kept = updated(Methods({name: options}), {name: params}, student, None, teacher, None)
    return found[name], flatten_dict(kept.get(name, {}), sep="/")


def fitnet(golden, case, arrays):
    loss, statistics = term(arrays, "fitnet", nested(arrays, case), stage=1)
    return {"loss": loss}, statistics


def at(golden, case, arrays):
    return {"loss": term(arrays, "at", {})[0]}, {}


def vid(golden, case, arrays):
    params = {f"{stage}_{name}": x for stage, layers in nested(arrays, case).items() for name, x in layers.items()}
    options = {"variance": case["hyper"]["init_pred_var"], "eps": case["hyper"]["eps"]}
    return {"loss": term(arrays, "vid", params, **options)[0]}, {}


def hcl(golden, case, arrays):
    maps = zip(outputs(arrays, "student").features, outputs(arrays, "teacher").features, strict=True)
    return {"loss": sum(review.hcl_loss(*pair) for pair in maps)}, {}


def reviewkd(golden, case, arrays):
    return {"loss": term(arrays, "reviewkd", nested(arrays, case))[0]}, {}


def simkd(golden, case, arrays):
    teacher_map, layers = arrays["teacher_feature"], LayerFactory(HE_ZERO, None, True, False)
    head = ReusedHead(layers, 10, teacher_map.shape[1:], case["hyper"]["factor"])
    params = {**nested(arrays, case), "fc": {"kernel": arrays["classifier"], "bias": arrays["classifier_bias"]}}
    found, _ = updated(head, params, arrays["student_feature"])
    return {"loss": reused_classifier.simkd_loss(found.last_map, teacher_map)}, {"prediction": found.logits}


def wkd_f(golden, case, arrays):
    """The term adds its two parts, so each is computed with and without the means."""
    options = {name: case["hyper"][name] for name in ("eps", "grid")}
    if "bottleneck" in case["name"]:
        options |= {"projector": "bottleneck", "hidden": 8}
    std, both = (term(arrays, "wkd_f", nested(arrays, case), ratio=ratio, **options)[0] for ratio in (0.0, 1.0))
    return {"mean": both - std, "std": std}, {}


def wkd_l(golden, case, arrays):
    hyper, labels, extras = case["hyper"], jnp.asarray(arrays["labels"]), {}
    if "class_features" in arrays:
        cost = extras["cka_cost"] = transport.cka_cost(arrays["class_features"])
    else:
        cost = arrays["cost"] if "cost" in arrays else transport.cosine_cost(arrays["classifier"])
    cost = extras["sharpened_cost"] = transport.sharpened_cost(cost, hyper["sharpen"]) if hyper["sharpen"] else cost
    logits = arrays["student_logits"], arrays["teacher_logits"], labels
    options = (hyper["temperature"], hyper["sinkhorn_lambda"], hyper["sinkhorn_iterations"])
    moved = transport.transport_loss(*logits, cost, *options)
    return {"target": target_loss(*logits), "transport": moved}, extras


CASES = {
    "fitnet": fitnet,
    "at": at,
    "vid": vid,
    "hcl": hcl,
    "reviewkd": reviewkd,
    "simkd": simkd,
    "wkd_f": wkd_f,
    "wkd_l": wkd_l,
}
