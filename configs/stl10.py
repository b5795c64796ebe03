"""STL-10 at 32x32: the linear probe of a backbone, which stays as it is; a new last layer is trained.

python -m hsakd_jax.main --config=configs/stl10.py --workdir=runs/probe --config.student.init=RUN

The paper's top-1 for the MobileNetV2 distilled from VGG13: alone 67.76, KD 67.90, CRD 70.09, SSKD 71.03, HSAKD 74.66 %.
100 epochs of 5,000 images; a minute or two on an accelerator are to be expected, not yet measured. The network is
RUN's.
"""

from hsakd_jax import recipes


def get_config(recipe="probe"):
    """The config of a recipe."""
    training = {
        "dtype": "float32",
        "epochs": 100,
        "batch": 64,  # images a step
        "accumulate": 1,
        "remat": False,
        "lr": 0.1,
        "lr_batch": 0,  # the batch that `lr` is meant for, to scale it to `batch`; 0 takes `lr` as it is
        "schedule": "multi_step",
        "milestones": (30, 60, 90),  # epochs
        "gamma": 0.1,
        "warmup": 0,  # epochs
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.0,
    }
    return recipes.make(
        recipe,
        data={
            "name": "stl10",
            "dir": "",
            "image_size": 32,
            "resize": 0,
            "fraction": 1.0,
            "validation": 0.0,
            **recipes.NORMALISATION["stl10"],
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
