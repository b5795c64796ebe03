"""Mean and standard deviation of datasets, per channel, as fractions of 255: those of the published networks."""

NORMALISATION = {
    "cifar100": {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)},
    "digits": {"mean": (0.31,), "std": (0.38,)},
    "imagenet2012": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "stl10": {"mean": (0.5,), "std": (0.5,)},
}
