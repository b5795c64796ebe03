"""Golden cases of methods that compare logits."""

from hsakd_jax.distillation import losses
from hsakd_jax.distillation.methods import Sample, exits, logits, views
from hsakd_jax.distillation.objectives import TERMS
from hsakd_jax.models.network import Outputs


def kd(golden, case, arrays):
    student, teacher = both(arrays)
    return {"loss": losses.kl(teacher, student, case["hyper"]["temperature"])}, {}


def kd_ls(golden, case, arrays):
    student, teacher = both(arrays)
    return {"loss": losses.kl(teacher, student, case["hyper"]["temperature"], standardise=True)}, {}


def dkd(golden, case, arrays):
    return {"loss": logits.dkd_loss(*both(arrays), arrays["labels"], **case["hyper"])}, {}


def dkd_ls(golden, case, arrays):
    options = {name: case["hyper"][name] for name in ("alpha", "beta", "temperature")}
    return {"loss": of_term(logits.dkd, arrays, standardise=True, **options)}, {}


def rld(golden, case, arrays):
    options = {name: case["hyper"][name] for name in ("alpha", "beta", "temperature", "alpha_temperature")}
    return {"loss": of_term(logits.rld, arrays, standardise=case["hyper"]["standardised"], **options)}, {}


def nkd(golden, case, arrays):
    return {"loss": logits.nkd_loss(*both(arrays), arrays["labels"], **case["hyper"])}, {}


def ttm(golden, case, arrays):
    return {"loss": logits.ttm_loss(*both(arrays), **case["hyper"])}, {}


def wttm(golden, case, arrays):
    return {"loss": logits.wttm_loss(*both(arrays), **case["hyper"])}, {}


def dist(golden, case, arrays):
    hyper = case["hyper"]
    return {"loss": logits.dist_loss(*both(arrays), hyper["beta"], hyper["gamma"], hyper["temperature"])}, {}


def ofa(golden, case, arrays):
    hyper = case["hyper"]
    return {"loss": exits.ofa_loss(*both(arrays), arrays["labels"], hyper["eps"], hyper["temperature"])}, {}


def mlld(golden, case, arrays):
    temperature, standardise = case["hyper"]["temperature"], case["hyper"]["standardised"]
    assert tuple(case["hyper"]["further_temperatures"]) == views.FURTHER_TEMPERATURES
    return {
        "ce": of_views(views.strong_task, arrays) + of_task(arrays),
        "kd": of_views(views.mlld_kl, arrays, temperature=temperature, standardise=standardise),
        "cc": of_views(views.mlld_classes, arrays, temperature=temperature),
        "bc": of_views(views.mlld_images, arrays, temperature=temperature),
    }, {}


def crld(golden, case, arrays):
    hyper, temperature = case["hyper"], case["hyper"]["temperature"]
    of_weak, of_strong = hyper["tau_weak"], hyper["tau_strong"]
    return {
        "ce": of_views(views.strong_task, arrays) + of_task(arrays),
        "within": of_views(views.crld_within, arrays, temperature=temperature, threshold=of_weak),
        "cross": of_views(views.crld_across, arrays, temperature=temperature, threshold=of_strong),
    }, {
        "mask_weak": views.confident_rows(arrays["teacher_weak"], of_weak),
        "mask_strong": views.confident_rows(arrays["teacher_strong"], of_strong),
    }


def both(arrays):
    return arrays["student_logits"], arrays["teacher_logits"]


def of_views(term, arrays, **options):
    student, teacher, *strong = (
        Outputs(arrays[f"{side}_{view}"]) for view in ("weak", "strong") for side in ("student", "teacher")
    )
    return term(student, arrays["labels"], teacher, Sample(None, None, None, *strong), **options)


def of_task(arrays):
    return TERMS["task"](Outputs(arrays["student_weak"]), arrays["labels"], None)


def of_term(term, arrays, **options):
    student, teacher = map(Outputs, both(arrays))
    return term(student, arrays["labels"], teacher, None, **options)


CASES = {f.__name__: f for f in (kd, kd_ls, dkd, dkd_ls, rld, nkd, ttm, wttm, dist, ofa, mlld, crld)}
