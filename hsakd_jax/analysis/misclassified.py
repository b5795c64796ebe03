"""Sections of the report about the test images that a network misclassifies, compared with its teacher and baseline."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from hsakd_jax.analysis import plots
from hsakd_jax.analysis.sections import Card, Section
from hsakd_jax.evaluation.predictions import Predictions

PAIRS, CLASSES = 10, 20  # that are shown
OTHERS = {"baseline": "the baseline", "teacher": "its teacher"}


def sections(predictions: Predictions, names: Sequence[str], label: str, colours: Mapping[str, str]) -> list[Section]:
    """The sections for a student.

    Args:
      predictions: of 'student', and perhaps of 'baseline' and 'teacher'.
      names: of the classes.
      label: of the student.
      colours: keys of `plots.COLOURS`, by network.
    """
    return [
        *_confusions(predictions, names, label, colours),
        *_images(predictions, names),
        *_classes(predictions, names),
    ]


def count(predictions: Predictions) -> str:
    """How many test images the student misclassifies, and how many of these the others classify correctly."""
    labels, by_network = predictions.labels, predictions.by_network
    wrong = by_network["student"].classes != labels
    if not wrong.any():
        return "It classifies every test image correctly."
    line = f"It misclassifies {wrong.sum():,} of {len(wrong):,} test images."
    found = []
    for key, who in OTHERS.items():
        if key in by_network:
            found.append(f"{who} classifies {(by_network[key].classes[wrong] == labels[wrong]).sum():,} correctly")
    return f"{line} Of these, {' and '.join(found)}." if found else line


def _confusions(
    predictions: Predictions, names: Sequence[str], label: str, colours: Mapping[str, str]
) -> list[Section]:
    tables = {}
    for key, prediction in predictions.by_network.items():
        tables[key] = np.zeros((len(names), len(names)), int)
        np.add.at(tables[key], (predictions.labels, prediction.classes), 1)
    wrong = tables["student"] - np.diag(np.diag(tables["student"]))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [(i, j) for i, j in (divmod(int(k), len(names)) for k in order) if wrong[i, j]]
    if not pairs:
        return []
    others = [key for key in OTHERS if key in tables]
    rows = [
        plots.Row(
            f"{plots.short(names[i], 20)} → {plots.short(names[j], 20)}",
            colours["student"],
            value=int(wrong[i, j]),
            note=f"{wrong[i, j]} of {tables['student'][i].sum()}",
            others=[int(tables[key][i, j]) for key in others],
        )
        for i, j in pairs
    ]
    figure = plots.bars(rows, "test images", [(key, colours[key]) for key in others], label)
    caption = "A → B: how many test images of class A are classified as B, and how many images A has."
    return [Section("Most confused pairs of classes", caption, name="confusions", figure=figure, level=3)]


def _images(predictions: Predictions, names: Sequence[str]) -> list[Section]:
    if not predictions.misclassified:
        return []
    cards, pictures = [], []
    for i, pixels in predictions.misclassified.items():
        true = names[int(predictions.labels[i])]
        lines, short = [f"true: {true}"], [f"true: {true}"]
        for key in ("student", "teacher"):
            if key in predictions.by_network:
                classes, probabilities = predictions.by_network[key]
                name, percent = names[int(classes[i])], f"({100 * probabilities[i]:.0f}\N{NO-BREAK SPACE}%)"
                mark = "" if key == "student" else " ✓" if classes[i] == predictions.labels[i] else " ✗"
                lines.append(f"{key}: {name} {percent}{mark}")
                short.append(f"{key}: {plots.short(name, 14)} {percent}{mark}")
        cards.append(Card(_png(pixels), f"test image of {true}", lines))
        pictures.append(plots.Picture(pixels, short))
    caption = "The images with the greatest probabilities, at most three of each predicted class."
    return [
        Section(
            "Misclassified images", caption, name="misclassified", figure=plots.gallery(pictures), cards=cards, level=3
        )
    ]


def _classes(predictions: Predictions, names: Sequence[str]) -> list[Section]:
    if "baseline" not in predictions.by_network:
        return []
    labels = predictions.labels
    images = np.bincount(labels, minlength=len(names))
    correct = {
        key: np.bincount(labels[predictions.by_network[key].classes == labels], minlength=len(names))
        for key in ("student", "baseline")
    }
    shown = np.flatnonzero(images)  # classes that have a test image
    change = 100 * (correct["student"] - correct["baseline"])[shown] / images[shown]
    order = np.argsort(-change, kind="stable")
    caption = (
        f"Compared with the baseline, the accuracy is higher for {(change > 0).sum()} classes, lower for "
        f"{(change < 0).sum()} and equal for {(change == 0).sum()}."
    )
    if len(order) > CLASSES:
        order = np.concatenate([order[: CLASSES // 2], order[-(CLASSES // 2) :]])
        caption += f" The {CLASSES // 2} greatest gains and losses are shown."
    caption += f" One image of a class is {100 / np.median(images[shown]):.1f} points."
    rows = []
    for i in order:
        note = f"{change[i]:+.1f}" if change[i] else "0.0"
        rows.append(plots.Row(names[int(shown[i])], "c1" if change[i] < 0 else "c0", value=float(change[i]), note=note))
    figure = plots.bars(rows, "change of accuracy, points")
    return [Section("Change by class, compared with the baseline", caption, name="classes", figure=figure, level=3)]


def _png(pixels: np.ndarray) -> bytes:
    """An image, uint8 [H, W, 1 or 3], as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[-1] > 1 else pixels[..., 0]).save(file, "png")
    return file.getvalue()
