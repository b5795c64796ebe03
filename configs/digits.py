"""Handwritten digits: the whole method in two minutes on two CPU cores, without a download.

python -m hsakd_jax.main --config=configs/digits.py --workdir=runs/digits
"""

from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.experiments.make_config import DATA, TRAINING, make_config


def get_config(recipe="hsakd"):
    """The config of a recipe."""
    training = {
        **TRAINING,
        "epochs": 120,
        "batch": 20,  # images per step; each is seen in its 4 rotations
        "lr": 0.05,
        "schedule": "cosine",
        "milestones": (),  # epochs
        "warmup": 2,  # epochs
        "weight_decay": 5e-4,
    }
    shared = "teacher" if recipe.split("/")[0] == "hsakd" else ""  # one teacher for both KD and HSAKD*
    return make_config(
        recipe,
        runs=("teacher", "baseline", "kd", "student"),
        data={
            **DATA,
            "name": "digits",
            "fraction": 0.111,  # 100 images: few enough that a teacher helps
            **NORMALISATION["digits"],
            "crop": "pad",
            "pad": 1,
            "flip": False,  # a mirrored digit has no class
        },
        teacher={"arch": "resnet8", **training, "epochs": 60, "run": shared},
        student={"arch": "resnet8_quarter", **training},
        frozen={**training, "epochs": 60},
        seed=0,
        eval_every=20,  # epochs
        eval_batch=448,
        log_every=50,  # steps
    )
