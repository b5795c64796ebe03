"""STL-10 at 32x32: the linear probe of a backbone, a new last layer on frozen features.

python -m hsakd_jax.main --config=configs/stl10.py --workdir=runs/probe --config.student.init=RUN

The network is that of RUN. The paper's top-1 for the MobileNetV2 distilled from VGG13: baseline 67.76, KD 67.90, CRD
70.09, SSKD 71.03, HSAKD 74.66 %. 100 epochs of 5,000 images: we expect a minute or two on an accelerator, and have not
measured it.
"""

from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.experiments.make_config import DATA, TRAINING, make_config


def get_config(recipe="probe"):
    """The config of a recipe."""
    training = {
        **TRAINING,
        "epochs": 100,
        "batch": 64,  # images per step
        "lr": 0.1,
        "schedule": "multi_step",
        "milestones": (30, 60, 90),  # epochs
        "weight_decay": 0.0,
    }
    return make_config(
        recipe,
        data={
            **DATA,
            "name": "stl10",
            "image_size": 32,
            **NORMALISATION["stl10"],
            "crop": "resized",
            "pad": 0,
            "flip": True,
        },
        teacher={"arch": "vgg13_bn", **training},
        student={"arch": "mobilenetV2", **training},
        frozen=training,
        seed=0,
        eval_every=1,  # epochs
        eval_batch=500,
        log_every=50,  # steps
    )
