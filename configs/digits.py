"""Handwritten digits: the whole method in two minutes on two CPU cores, without network.

python -m hsakd_jax.main --config=configs/digits.py --workdir=runs/digits
"""

from hsakd_jax import recipes


def get_config(recipe="hsakd"):
    """The config of a recipe."""
    training = {
        "dtype": "float32",
        "epochs": 120,
        "batch": 20,  # images a step; each is seen in its 4 rotations
        "accumulate": 1,
        "remat": False,
        "lr": 0.05,
        "schedule": "cosine",
        "milestones": (),
        "gamma": 0.1,
        "warmup": 2,  # epochs
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
    }
    return recipes.make(
        recipe,
        runs=("teacher", "baseline", "kd", "student"),
        data={
            "name": "digits",
            "dir": "",
            "image_size": 0,
            "fraction": 0.111,  # 100 images, so that a teacher has something to add
            "validation": 0.0,
            **recipes.NORMALISATION["digits"],
            "pad": 1,
            "flip": False,  # a mirrored digit is none
        },
        teacher={"arch": "resnet8", **training, "epochs": 60},
        student={"arch": "resnet8_quarter", **training},
        seed=0,
        eval_every=20,  # epochs
        eval_batch=448,
        log_every=50,  # steps
    )
