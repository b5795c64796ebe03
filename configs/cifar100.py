"""CIFAR-100: every row of the paper's tables (IJCAI 2021, and its journal extension for the online rows).

python -m hsakd_jax.main --config=configs/cifar100.py --workdir=runs/cifar100

trains WRN-40-2 jointly, distils WRN-16-2 from it (HSAKD*) and trains WRN-16-2 without a teacher. Select a recipe after
a colon, and other networks for teacher and student after it. The runs that a recipe needs, such as its teacher, come
first:

--config=configs/cifar100.py:RECIPE/TEACHER/STUDENT

| recipe | trains | paper, WRN-40-2 -> WRN-16-2 (top-1 %, best epoch, mean of 3) |
|---|---|---|
| backbone, teacher | teacher, plain and with its branches (Teacher*) | 76.45, 80.70 |
| baseline | student without a teacher | 73.57 |
| kd | standard KD (Hinton et al.) | 75.23 |
| fitnet, at, vid, rkd, sp, cc, crd, sskd | other methods | 75.30, 75.64, 75.31, 75.33, 74.35, 75.30, 75.81, 76.16 |
| pkt, reviewkd, dkd, simkd | methods that the paper does not have | |
| kd_ls, dkd_ls, dist, rld, ttm, wttm, nkd, ofa, wkd_l, wkd_f | methods since 2022, which the paper does not have | |
| mlld, mlld_ls, crld, student_strong | methods with a second, strong view, which the paper does not have | |
| student_frozen | HSAKD, a teacher with branches on a frozen backbone | 77.20 |
| student | HSAKD*, a jointly trained teacher | 78.67 |
| student_ls, student_dist | HSAKD* with later losses, which the paper does not have | |
| student_online | HSAKD, an online teacher, which the paper does not have | |
| mutual | online, two networks at once (WRN-40-2: mutual/wrn_40_2) | 82.58 |
| kd_25, crd_25, sskd_25, student_25, and _50, _75 | few-shot (resnet56/resnet20) | 65.15, 65.80, 67.82, 68.50 (25 %) |
| ablation_kl_aux, ablation_upright, ablation_joint | terms | 77.11, 78.23, 78.17 |
| ablation_branch1, ..2, ..3 | branches | 74.43, 75.90, 76.53 |
| baseline/ResNet18, rotated/ResNet18, joint/ResNet18 | why joint labels | 78.01, 77.75, 79.76 |

Other pairs of the paper: wrn_40_2/wrn_40_1, resnet56/resnet20, resnet32x4/resnet8x4, vgg13_bn/mobilenetV2,
ResNet50/mobilenetV2, wrn_40_2/ShuffleV1, resnet32x4/ShuffleV2. Networks after the recipe use the paper's learning rate
(a fifth for MobileNetV2 and the ShuffleNets); with --config.student.arch, set the learning rate yourself. Compare
results with the paper's numbers: python -m hsakd_jax.results runs/cifar100. Append _tiny to a recipe for a run of
seconds on the digits.

Expected time: a student's 240 epochs take 143 PFLOP for WRN-40-2 -> WRN-16-2, 55 for ResNet-56 -> ResNet-20, and 371
for ResNet-50 -> MobileNetV2. A teacher takes more, recipes without branches and rotations a tenth or less. At a
sustained 10 TFLOP/s 143 PFLOP are 4 hours: an estimate, since no accelerator has been timed yet. Two CPU cores take 6
days (2.5 to 3 s per step, measured).
Our own full-length runs are still to be made.
"""

from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.experiments.make_config import DATA, TRAINING, make_config


def get_config(recipe="hsakd"):
    """The config of a recipe."""
    training = {
        **TRAINING,
        "epochs": 240,
        "batch": 64,  # images per step; each is seen in its 4 rotations
        "lr": 0.05,
        "schedule": "multi_step",
        "milestones": (150, 180, 210),  # epochs
        "weight_decay": 5e-4,
    }
    return make_config(
        recipe,
        runs=("teacher", "baseline", "student"),
        data={
            **DATA,
            "name": "cifar100",
            **NORMALISATION["cifar100"],
            "crop": "pad",
            "pad": 4,
            "flip": True,
        },
        teacher={"arch": "wrn_40_2", **training},
        student={"arch": "wrn_16_2", **training},
        frozen={**training, "epochs": 100, "milestones": (30, 60, 90)},
        head={**training, "epochs": 60, "milestones": (30, 45)},  # SSKD's
        seed=0,
        eval_every=1,  # epochs
        eval_batch=500,
        log_every=50,  # steps
    )
