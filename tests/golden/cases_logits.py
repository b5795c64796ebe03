"""Golden cases of methods that compare logits."""

from hsakd_jax.distillation import losses
from hsakd_jax.distillation.methods import exits, logits, views
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
    (student, teacher), temperature = both_views(arrays), case["hyper"]["temperature"]
    assert tuple(case["hyper"]["further_temperatures"]) == views.FURTHER_TEMPERATURES
    return {
        "ce": views.cross_entropy(student, arrays["labels"]),
        "kd": views.mlld_kl(student, teacher, temperature, case["hyper"]["standardised"]),
        "cc": views.mlld_classes(student.weak, teacher.weak, temperature),
        "bc": views.mlld_images(student.weak, teacher.weak, temperature),
    }, {}


def crld(golden, case, arrays):
    (student, teacher), hyper = both_views(arrays), case["hyper"]
    of_weak, of_strong = hyper["tau_weak"], hyper["tau_strong"]
    return {
        "ce": views.cross_entropy(student, arrays["labels"]),
        "within": views.crld_within(student, teacher, hyper["temperature"], of_weak),
        "cross": views.crld_across(student, teacher, hyper["temperature"], of_strong),
    }, {
        "mask_weak": views.confident_rows(teacher.weak, of_weak),
        "mask_strong": views.confident_rows(teacher.strong, of_strong),
    }


def both(arrays):
    return arrays["student_logits"], arrays["teacher_logits"]


def both_views(arrays):
    return tuple(views.Views(arrays[f"{side}_weak"], arrays[f"{side}_strong"]) for side in ("student", "teacher"))


def of_term(term, arrays, **options):
    student, teacher = map(Outputs, both(arrays))
    return term(student, arrays["labels"], teacher, None, **options)


CASES = {f.__name__: f for f in (kd, kd_ls, dkd, dkd_ls, rld, nkd, ttm, wttm, dist, ofa, mlld, crld)}
