"""Golden cases of methods that compare relations between images, and of those with memories or heads of their own."""

from unittest import mock

import jax.numpy as jnp

from hsakd_jax.distillation.methods import Methods, Sample, contrastive, relations, self_supervised

from .methods import nested, outputs


def term(name):
    """A method without parameters: the term of that name, of the outputs of both networks."""

    def compute(golden, case, arrays):
        student, teacher = (outputs(arrays, network) for network in ("student", "teacher"))
        found = Methods({name: case.get("hyper", {})}).apply({}, student, arrays.get("labels"), teacher, None)
        return {"loss": found[name]}, {}

    return compute


def rkd(golden, case, arrays):
    student, teacher = arrays["student_embedding"], arrays["teacher_embedding"]
    weights = {"loss": (25.0, 50.0), "distance": (1.0, 0.0), "angle": (0.0, 1.0)}
    return {name: relations.rkd_loss(student, teacher, *w) for name, w in weights.items()}, {}


def cc(golden, case, arrays):
    module = Methods({"cc": case["hyper"]})
    student, teacher = (outputs(arrays, network) for network in ("student", "teacher"))
    return {"loss": module.apply({"params": {"cc": nested(arrays, case)}}, student, None, teacher, None)["cc"]}, {}


def crd(golden, case, arrays):
    """The steps before this one make the memory."""
    hyper, state = case["hyper"], case["state"]
    memory = {f"{side}_bank": jnp.asarray(golden.draw(spec)) for side, spec in state["start"].items()}
    memory |= {f"{side}_z": jnp.zeros(()) for side in state["start"]}
    options = {name: hyper[name] for name in ("features", "negatives", "temperature", "momentum")}
    module, params = Methods({"crd": options}), {"crd": nested(arrays, case)}
    last = int(case["name"][-1])
    for step in range(last + 1):
        before = golden.arrays(golden.cases[f"crd/step{step}"])
        of_step = arrays if step == last else {name: jnp.asarray(x) for name, x in before.items()}
        sample = Sample(jnp.asarray(of_step["index"]), jnp.asarray(golden.draw(state["classes"])), None)
        student, teacher = (outputs(of_step, network) for network in ("student", "teacher"))
        variables = {"params": params, "batch_stats": {"crd": memory}}
        drawn = jnp.asarray(of_step["negatives"])
        with mock.patch.object(contrastive, "draw_negatives", lambda *_, drawn=drawn: drawn):
            found, changed = module.apply(variables, student, None, teacher, sample, mutable=["batch_stats"])
        memory = changed["batch_stats"]["crd"]
    return {"loss": found["crd"], "z_student": memory["student_z"], "z_teacher": memory["teacher_z"]}, memory


def sskd(golden, case, arrays):
    params = {"params": {"sskd": nested(arrays, case)}}
    if case["name"] == "sskd/head":
        module = Methods({"sskd_head": {}})
        return {"loss": module.apply(params, outputs(arrays, "teacher"), jnp.arange(12), None, None)["sskd_head"]}, {}
    hyper, labels = case["hyper"], jnp.asarray(arrays["labels"])
    student, teacher = (outputs(arrays, network) for network in ("student", "teacher"))
    terms = {
        "task": {"upright_only": True},
        "kl": {"temperature": hyper["kd_T"], "upright_only": True},
        "sskd_kl": {"temperature": hyper["tf_T"], "kept": hyper["ratio_tf"]},
        "sskd_ss": {"temperature": hyper["ss_T"], "kept": hyper["ratio_ss"]},
    }
    found = Methods(terms).apply(params, student, labels, teacher, None)
    names = {"ce": "task", "kl": "kl", "tf": "sskd_kl", "ss": "sskd_ss"}
    return {name: found[ours] for name, ours in names.items()}, kept(case, arrays, teacher, labels)


def kept(case, arrays, teacher, labels):
    """Which rotated rows teach."""
    rotated, for_rotated = self_supervised._rotated, self_supervised._for_rotated
    heads = self_supervised.Heads().apply({"params": nested(arrays, case)}, teacher_head=teacher.embedding)
    scores = self_supervised.cosine_similarities(heads["teacher_head"], len(labels))
    by = case["hyper"]
    return {
        "kept_tf": self_supervised.selected_rows(rotated(teacher.logits, 12), for_rotated(labels), by["ratio_tf"]),
        "kept_ss": self_supervised.selected_rows(scores, for_rotated(jnp.arange(12)), by["ratio_ss"]),
    }


CASES = {"sp": term("sp"), "pkt": term("pkt"), "rkd": rkd, "cc": cc, "crd": crd, "sskd": sskd}
