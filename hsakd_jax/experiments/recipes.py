"""The objective, network and teacher of each recipe; the numbers are in `configs/`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hsakd_jax.experiments import published


class Recipe(NamedTuple):
    """One way to train one network.

    Attributes:
      title: its name in tables.
      network: 'teacher' or 'student': the section of the config that names it.
      objective: a key of `objectives.OBJECTIVES`, or 'methods' for the terms of `distillation.methods`.
      terms: the terms of its objective, with their options.
      branches: whether it trains with auxiliary classifiers.
      rotated: whether it sees all four rotations of a batch.
      crop_rotations: whether each rotation is cropped on its own, where images are cropped from their padding.
      strong_view: whether it sees a second, strong view of a batch too; for 'methods'.
      teacher: the recipe that trains its teacher, where the config names no run; '' without a teacher.
      init: the recipe whose run it starts from, where the config names no run; '' for a fresh start.
      trainable: the trained parameters, where the config sets none (see `layers.is_trainable`).
      schedule: the section of the config with its epochs and learning rate; '' for that of its network.
      fraction: of the training images that it uses.
      select_by: accuracy that selects the best epoch (see `runs.config.Evaluation`).
      reuses_classifier: whether its head is SimKD's: a projector and the teacher's last layer.
    """

    title: str
    network: str
    objective: str
    terms: dict[str, dict]
    branches: bool = False
    rotated: bool = False
    crop_rotations: bool = False
    strong_view: bool = False
    teacher: str = ""
    init: str = ""
    trainable: str = ""
    schedule: str = ""
    fraction: float = 1.0
    select_by: str = "top1"
    reuses_classifier: bool = False

    def is_form_of(self, other: "Recipe") -> bool:
        """Whether it trains the same, on all images or on a fraction of them."""
        return self._replace(title="", fraction=1.0) == other._replace(title="", fraction=1.0)


# A run that only the user can name.
GIVEN = "given"

TASK = {"weight": 1.0}
JOINT = {"weight": 1.0, "branches": ()}
KL_AUX = {"weight": 1.0, "temperature": 3.0, "branches": ()}
KL_FINAL = {"weight": 1.0, "temperature": 3.0, "upright_only": False}
# KD with another method's own term, as in the paper's table. The paper does not publish its weight; this one is that
# of CRD's "+KD" runs.
KL = {"weight": 1.0, "temperature": 4.0}
# The paper's student has no joint-label term; its ablation shows that one costs accuracy.
STUDENT = {"task": TASK, "joint": {**JOINT, "weight": 0.0}, "kl_aux": KL_AUX, "kl_final": KL_FINAL}
# KL with logit standardisation, and DIST, with the weights of their authors' code.
STANDARDISED = {"weight": 9.0, "temperature": 2.0, "standardise": True}
DIST = {"weight": 2.0, "beta": 1.0, "gamma": 1.0, "temperature": 4.0}
# The same, with HSAKD's other terms.
HSAKD_STANDARDISED = {**STANDARDISED, "weight": 1.0}
HSAKD_DIST = {**DIST, "weight": 0.25}
MUTUAL = {"task": TASK, "joint": JOINT, "kl_aux": KL_AUX, "kl_final": KL_FINAL}


def _student(title: str, teacher: str = "teacher", **terms: dict) -> Recipe:
    """HSAKD's student with some terms changed."""
    changed = {name: {**STUDENT[name], **terms.get(name, {})} for name in STUDENT}
    return Recipe(title, "student", "student", changed, branches=True, rotated=True, teacher=teacher)


def _method(title: str, **terms: dict) -> Recipe:
    """A student that a plain teacher teaches, with the published weights of a method's terms."""
    return Recipe(title, "student", "methods", {"task": TASK, "kl": KL, **terms}, teacher="backbone")


def _views(title: str, **terms: dict) -> Recipe:
    """A method that replaces KD and has a strong view."""
    return _method(title, kl=OFF, **terms)._replace(strong_view=True)


OFF = {"weight": 0.0}


# In the order of the paper's tables, teachers first.
RECIPES = {
    "backbone": Recipe("teacher", "teacher", "baseline", {"task": TASK}),
    "teacher_frozen": Recipe(
        "teacher, branches only",
        "teacher",
        "teacher",
        {"task": TASK, "joint": JOINT},
        branches=True,
        rotated=True,
        init="backbone",
        trainable="^branch",
        schedule="frozen",
        select_by="joint",
    ),
    "teacher": Recipe(
        "teacher*",
        "teacher",
        "teacher",
        {"task": TASK, "joint": JOINT},
        branches=True,
        rotated=True,
        select_by="joint",
    ),
    "teacher_online": Recipe("teacher, online", "teacher", "mutual", MUTUAL, branches=True, rotated=True),
    "baseline": Recipe("baseline", "student", "baseline", {"task": TASK}),
    # HSAKD's paper has only the words "conventional KD". These are the weights of CRD's and SSKD's code.
    "kd": Recipe(
        "KD",
        "student",
        "kd",
        {"task": {"weight": 0.1}, "kl": {"weight": 0.9, "temperature": 4.0}},
        teacher="backbone",
    ),
    "fitnet": _method("FitNet", fitnet={"weight": 100.0, "stage": 2, "maps": "hints"}),
    "at": _method("AT", at={"weight": 1000.0, "maps": "hints"}),
    "vid": _method("VID", vid={"weight": 1.0, "maps": "hints"}),
    "rkd": _method("RKD", rkd={"weight": 1.0}),
    "sp": _method("SP", sp={"weight": 3000.0}),
    "cc": _method("CC", cc={"weight": 0.02}),
    "pkt": _method("PKT", pkt={"weight": 30000.0}),
    # It takes the place of KD. `published.SETTINGS` has beta by pair.
    "dkd": _method("DKD", kl=OFF, dkd={"weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup": 20}),
    "crd": _method("CRD", crd={"weight": 0.8, "negatives": 16384, "temperature": 0.07}),
    # Methods since 2022, without plain KD, each with the weights of its authors' code. `published.SETTINGS` has those
    # by pair. Other pairs have those of resnet32x4/resnet8x4 (WKD), vgg13/vgg8 (TTM, and WTTM, which its authors add to
    # CRD), and OpenMMLab's ResNet-34/ResNet-18 on CIFAR-100 (NKD).
    "kd_ls": Recipe(
        "KD + LS",
        "student",
        "kd",
        {"task": {"weight": 0.1}, "kl": STANDARDISED},
        teacher="backbone",
    ),
    "dkd_ls": _method(
        "DKD + LS",
        kl=OFF,
        dkd={"weight": 12.0, "alpha": 1.0, "beta": 2.0, "temperature": 2.0, "standardise": True, "warmup": 20},
    ),
    "dist": _method("DIST", kl=OFF, dist=DIST),
    "rld": _method(
        "RLD",
        kl=OFF,
        rld={"weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "alpha_temperature": 1.0, "warmup": 20},
    ),
    "ttm": _method("TTM", kl=OFF, ttm={"weight": 45.0, "gamma": 0.1}),
    "wttm": _method(
        "WTTM + CRD",
        kl=OFF,
        wttm={"weight": 4.0, "gamma": 0.2},
        crd={"weight": 0.8, "negatives": 16384, "temperature": 0.07},
    ),
    "nkd": _method("NKD", kl=OFF, nkd={"weight": 1.0, "gamma": 3.5, "temperature": 3.0}),
    "ofa": _method("OFA", kl=OFF, ofa={"weight": 1.0, "gamma": 1.0, "temperature": 1.0}),
    "wkd_l": _method(
        "WKD-L",
        kl=OFF,
        wkd_target={"weight": 1.0},
        wkd_l={
            "weight": 600.0,
            "temperature": 8.0,
            "cost": "cka_map",
            "images": 500,
            "sharpness": 1.0,
            "decay": 150,
        },
    ),
    "wkd_f": _method(
        "WKD-F", kl=OFF, wkd_f={"weight": 0.08, "ratio": 4.0, "grid": 1, "projector": "regressor", "decay": 150}
    ),
    "reviewkd": _method(
        "ReviewKD",
        kl=OFF,
        reviewkd={"weight": 5.0, "max_channels": 512, "preactivation": False, "warmup": 20},
    ),
    # Its only loss, on a student whose last layer is the teacher's.
    "simkd": _method("SimKD", task=OFF, kl=OFF, simkd={"weight": 1.0})._replace(
        reuses_classifier=True, trainable="^(?!head/fc/)"
    ),
    # Two views of each image; the sum of both cross-entropies is 'task' and 'strong_task'.
    "mlld": _views(
        "MLLD",
        task={"weight": 0.1},
        strong_task={"weight": 0.1},
        mlld_kl={"weight": 0.9, "temperature": 4.0},
        mlld_images={"weight": 0.9, "temperature": 4.0},
        mlld_classes={"weight": 0.9, "temperature": 4.0},
    ),
    "mlld_ls": _views(
        "MLLD + LS",
        task={"weight": 0.1},
        strong_task={"weight": 0.1},
        mlld_kl={"weight": 9.0, "temperature": 2.0, "standardise": True},
        mlld_images={"weight": 9.0, "temperature": 2.0},
        mlld_classes={"weight": 9.0, "temperature": 2.0},
    ),
    "crld": _views(
        "CRLD",
        strong_task=TASK,
        crld_within={"weight": 2.0, "temperature": 4.0, "threshold": 0.9},
        crld_across={"weight": 0.5, "temperature": 4.0, "threshold": 0.2},
    ),
    # As its authors' code crops: if all rotations had one crop, they would be easier to recognise as one image's.
    "sskd_teacher": Recipe(
        "teacher, SSKD's head",
        "teacher",
        "methods",
        {"sskd_head": {"weight": 1.0}},
        rotated=True,
        crop_rotations=True,
        init="backbone",
        trainable="^objective",
        schedule="head",
    ),
    "sskd": Recipe(
        "SSKD",
        "student",
        "methods",
        {
            "task": {"weight": 0.1},
            "kl": {"weight": 0.9, "temperature": 4.0, "upright_only": True},
            "sskd_kl": {"weight": 2.7, "temperature": 4.0, "kept": 1.0},
            "sskd_ss": {"weight": 10.0, "temperature": 0.5, "kept": 0.75},
        },
        rotated=True,
        crop_rotations=True,
        teacher="sskd_teacher",
        trainable="^(?!objective/sskd/teacher_head)",
    ),
    "student_frozen": _student("HSAKD", "teacher_frozen"),
    "student": _student("HSAKD*"),
    "student_online": _student("HSAKD, online teacher", "teacher_online"),
    # HSAKD* with later methods. No paper has these. Each weight was the best of a search by short runs, on training
    # images held out (results/methods.md); longer runs may need another. All else is as the later method has it.
    "student_strong": _student("HSAKD* + strong view")._replace(
        objective="methods", terms={**STUDENT, "strong_task": {"weight": 0.3}}, strong_view=True
    ),
    "student_ls": _student("HSAKD* + LS", kl_aux=HSAKD_STANDARDISED, kl_final=HSAKD_STANDARDISED),
    "student_dist": Recipe(
        "HSAKD* with DIST",
        "student",
        "methods",
        {"task": TASK, "dist_aux": {**HSAKD_DIST, "branches": ()}, "dist": HSAKD_DIST},
        branches=True,
        rotated=True,
        teacher="teacher",
    ),
    "mutual": Recipe("online", "student", "mutual", MUTUAL, branches=True, rotated=True),
    # A new last layer on a backbone that is kept.
    "probe": Recipe("linear probe", "student", "baseline", {"task": TASK}, init=GIVEN, trainable="^head/fc/"),
    # The paper's ablations: the gain of each term and of each branch, and rotations without joint labels.
    "ablation_kl_aux": _student("task + kl_q", kl_final=OFF),
    "ablation_upright": _student("task + kl_q + kl_p, upright", kl_final={"upright_only": True}),
    "ablation_joint": _student("HSAKD* + joint labels", joint=TASK),
    **{
        f"ablation_branch{l}": _student(f"task + kl_q of c{l}", kl_aux={"branches": (l,)}, kl_final=OFF)
        for l in (1, 2, 3)
    },
    "rotated": Recipe(
        "rotation as augmentation", "student", "baseline", {"task": {**TASK, "upright_only": False}}, rotated=True
    ),
    "joint": Recipe("joint labels", "student", "teacher", {"task": TASK, "joint": JOINT}, branches=True, rotated=True),
}
RECIPES |= {
    f"{name}_{percent}": RECIPES[name]._replace(title=f"{RECIPES[name].title}, {percent} %", fraction=percent / 100)
    for percent in (25, 50, 75)
    for name in ("kd", "crd", "sskd", "student")
}


def published_terms(recipe: str, dataset: str, teacher: str, student: str) -> dict[str, dict[str, Any]]:
    """The terms of a recipe, with the values that are published for a dataset and a pair of networks.

    Args:
      recipe: a key of `RECIPES`.
      dataset: `data.name` of the config.
      teacher: the network of the teacher.
      student: the network of the student.
    """
    # A ConfigDict would keep a dict that recipes or terms share: setting one would set all.
    terms = {name: dict(options) for name, options in RECIPES[recipe].terms.items()}
    for key, value in published.values(recipe, dataset, teacher, student).items():
        term, option = key.split(".")
        terms[term][option] = value
    return terms


def parents(recipe: str) -> tuple[str, ...]:
    """The recipes whose runs a recipe needs, where the config names none."""
    kind = RECIPES[recipe]
    return tuple(name for name in (kind.teacher, kind.init) if name not in ("", GIVEN))


def needed(runs: Sequence[str], parents: Callable[[str], Sequence[str]] = parents) -> list[str]:
    """Recipes, each after those whose runs it needs."""
    found: list[str] = []
    for name in runs:
        found += [run for run in (*needed(parents(name), parents), name) if run not in found]
    return found
