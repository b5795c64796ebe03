"""Your own photographs and a pretrained teacher: hundreds to tens of thousands of images, on one machine.

python -m hsakd_jax.convert --torchvision=convnext_tiny --output=runs/pretrained
python -m hsakd_jax.main --config=configs/own.py --workdir=runs/own --config.data.dir=photos \\
    --config.teacher.init=runs/pretrained

| run | trains |
|---|---|
| backbone | a new last layer of the pretrained network, for your classes |
| teacher_frozen | its branches, which begin as copies of its stages |
| baseline | the student, without a teacher |
| student_frozen | the student by HSAKD |

The teacher's network, mean and std are those of the pretrained run. A tenth of the training images is held out: they
select the best epoch. docs/own_data.md lists the changes for other images.
"""

from hsakd_jax.experiments.make_config import DATA, TRAINING, make_config
from hsakd_jax.experiments.recipes import RECIPES, needed

RUNS = ("backbone", "teacher_frozen", "baseline", "student_frozen")


def get_config(recipe="hsakd"):
    """The config of a recipe."""
    base = recipe.split("/")[0]
    training = {
        **TRAINING,
        "batch": 32,  # images per step; HSAKD's networks see each in its 4 rotations
        "schedule": "cosine",
        "milestones": (),  # epochs
        "warmup": 2,  # epochs
        "weight_decay": 1e-4,
    }
    return make_config(
        recipe,
        runs=RUNS,
        data={
            **DATA,
            "name": "image_folder",
            "image_size": 128,  # side of the images, of 64 to 224: a larger one shows more, and takes longer
            "mean": (),  # those of the pretrained run
            "std": (),
            "crop": "resized",
            "pad": 0,
            "flip": True,
            "validation": 0.1,
        },
        teacher={
            **training,
            "arch": "",  # that of teacher.init
            "epochs": 20,
            "warmup": 0,
            "lr": 0.02,
            # The joint training of HSAKD* changes all of the network.
            "trainable": "" if _trains_jointly(base) else "^head/fc/",
            "copy_branches": _trains_jointly(base),
        },
        student={**training, "arch": "mobilenet_v3_small", "epochs": 60, "lr": 0.05},
        frozen={**training, "epochs": 20, "warmup": 1, "lr": 0.02, "copy_branches": True},
        seed=0,
        eval_every=5,  # epochs
        eval_batch=100,
        log_every=10,  # steps
    )


def _trains_jointly(base):
    """Whether a recipe is, or needs, a teacher that is trained with its branches."""
    return base in RECIPES and "teacher" in needed([base])
