"""CIFAR-100: the settings of the paper (IJCAI 2021) and the pair WRN-40-2 -> WRN-16-2.

python -m hsakd_jax.main --config=configs/cifar100.py --workdir=runs/cifar100

Recipes, behind a colon: hsakd (teacher, then student), baseline, kd, teacher, student, mutual; with _tiny a form
that ends in seconds. Another pair: --config.teacher.arch=resnet56 --config.student.arch=resnet20, and
--config.student.lr=0.01 for MobileNetV2 and the ShuffleNets.

The paper's top-1 for this pair, best epoch, three runs: teacher (trained jointly) 80.70, student alone 73.57,
HSAKD* student 78.67. Our own full-length run is still to be made.
"""

from hsakd_jax import recipes


def get_config(recipe="hsakd"):
    """The config of a recipe."""
    training = {
        "dtype": "float32",
        "epochs": 240,
        "batch": 64,  # images a step; each is seen in its 4 rotations
        "accumulate": 1,
        "remat": False,
        "lr": 0.05,
        "schedule": "multi_step",
        "milestones": (150, 180, 210),  # epochs
        "gamma": 0.1,
        "warmup": 0,  # epochs
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
    }
    return recipes.make(
        recipe,
        data={
            "name": "cifar100",
            "dir": "",
            "image_size": 0,
            "fraction": 1.0,
            "validation": 0.0,
            **recipes.NORMALISATION["cifar100"],
            "pad": 4,
            "flip": True,
        },
        teacher={"arch": "wrn_40_2", **training},
        student={"arch": "wrn_16_2", **training},
        seed=0,
        eval_every=1,  # epochs
        eval_batch=500,
        log_every=50,  # steps
    )
