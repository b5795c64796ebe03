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
        "lr_batch": 0,  # the batch that `lr` is meant for, to scale it to `batch`; 0 takes `lr` as it is
        "schedule": "cosine",
        "milestones": (),  # epochs
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
            "resize": 0,
            "fraction": 0.111,  # 100 images, so that a teacher has something to add
            "validation": 0.0,
            **recipes.NORMALISATION["digits"],
            "crop": "pad",
            "pad": 1,
            "flip": False,  # a mirrored digit is none
        },
        # One teacher for both distillations of the table.
        teacher={"arch": "resnet8", **training, "epochs": 60, "run": "teacher" if recipe == "hsakd" else ""},
        student={"arch": "resnet8_quarter", **training},
        frozen={**training, "epochs": 60},
        seed=0,
        eval_every=20,  # epochs
        eval_batch=448,
        log_every=50,  # steps
    )
