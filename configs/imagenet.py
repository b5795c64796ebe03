"""ImageNet: ResNet-34 -> ResNet-18, with the paper's settings for a batch of 256 over all devices.

python -m hsakd_jax.main --config=configs/imagenet.py:student --workdir=runs/imagenet --config.data.dir=DIR

DIR contains ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (or DIR/downloads/manual contains them). Or set
--config.data.name=image_tree to read DIR/train/<wnid>/*.JPEG and DIR/val/<wnid>/*.JPEG without a copy.

| recipe | trains | paper, top-1 / top-5 % |
|---|---|---|
| backbone, teacher | ResNet-34, plain and with its branches (Teacher*) | 73.31 / 91.42, 75.48 / 92.67 |
| baseline, kd | ResNet-18 without a teacher, standard KD | 69.75 / 89.07, 70.66 / 89.88 |
| at, cc, sp, rkd, crd, sskd | other methods | 70.70, 69.96, 70.62, 71.34, 71.38, 71.62 |
| student_frozen, student | HSAKD, HSAKD* | 72.16 / 90.85, 72.39 / 91.00 |
| mutual | ResNet-18, online | 71.49 |

ResNet-50: student/resnet50_imagenet/resnet18_imagenet. The second pair of other methods' papers, with the settings of
their authors for it: kd/resnet50_imagenet/mobilenetv1_100. In the reference, each of eight GPUs computes BatchNorm
statistics of its 32 images: --config.batch_norm_groups=8 does the same on any number of devices. For another batch,
--config.student.lr_batch=256 scales the learning rate. A student's 100 epochs take 24,700 PFLOP: 29 hours on eight
devices that sustain 30 TFLOP/s each, with 1,200 images per second from their host. These are estimates, not measured.
"""

from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.experiments.make_config import DATA, TRAINING, make_config


def get_config(recipe="hsakd"):
    """The config of a recipe."""
    training = {
        **TRAINING,
        "epochs": 100,
        "batch": 256,  # images per step over all devices; each is seen in its 4 rotations
        "lr": 0.1,
        "schedule": "multi_step",
        "milestones": (30, 60, 90),  # epochs
        "nesterov": False,
        "weight_decay": 1e-4,
    }
    return make_config(
        recipe,
        runs=("teacher", "baseline", "student"),
        data={
            **DATA,
            "name": "imagenet2012",
            "image_size": 224,
            "resize": 256,
            **NORMALISATION["imagenet2012"],
            "crop": "resized",
            "pad": 0,
            "flip": True,
        },
        teacher={"arch": "resnet34_imagenet", **training},
        student={"arch": "resnet18_imagenet", **training},
        frozen=training,
        seed=0,
        eval_every=1,  # epochs
        eval_batch=256,
        log_every=50,  # steps
    )
