"""Tiny-ImageNet, 200 classes at 64x64: joint labels against rotation as augmentation, and the linear probe.

python -m hsakd_jax.main --config=configs/tiny_imagenet.py:probe --workdir=runs/probe --config.student.init=RUN

trains a new last layer on the frozen backbone of RUN, on images of 32x32. The paper's top-1 for the MobileNetV2
distilled from VGG13: baseline 34.69, KD 34.15, CRD 38.17, SSKD 39.07, HSAKD 42.57 %. 100 epochs: we expect a few
minutes on an accelerator, and have not measured it.

python -m hsakd_jax.main --config=configs/tiny_imagenet.py:joint --workdir=runs/joint

trains ResNet-18 with joint labels: the paper has 63.69 (baseline), 62.66 (rotated) and 65.81 % (joint). Its settings
are not published; these are CIFAR-100's, on images of 64x64.
"""

from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.experiments.make_config import DATA, TRAINING, make_config


def get_config(recipe="joint"):
    """The config of a recipe."""
    training = {
        **TRAINING,
        "epochs": 240,
        "batch": 64,  # images per step
        "lr": 0.05,
        "schedule": "multi_step",
        "milestones": (150, 180, 210),  # epochs
        "weight_decay": 5e-4,
    }
    probe = {"epochs": 100, "lr": 0.1, "milestones": (30, 60, 90), "weight_decay": 0.0}
    is_probe = recipe.startswith("probe")
    return make_config(
        recipe,
        data={
            **DATA,
            "name": "tiny_imagenet",
            "image_size": 32 if is_probe else 0,
            **NORMALISATION["imagenet2012"],
            "crop": "resized" if is_probe else "pad",
            "pad": 8,
            "flip": True,
        },
        teacher={"arch": "ResNet18", **training},
        student={"arch": "mobilenetV2" if is_probe else "ResNet18", **training, **(probe if is_probe else {})},
        frozen={**training, "epochs": 100, "milestones": (30, 60, 90)},
        seed=0,
        eval_every=1,  # epochs
        eval_batch=500,
        log_every=50,  # steps
    )
