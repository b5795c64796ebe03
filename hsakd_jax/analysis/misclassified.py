"""The part of the page about what a network is wrong about, and what its teacher and the student alone say there."""

from typing import TYPE_CHECKING

import numpy as np

from hsakd_jax.analysis import plots
from hsakd_jax.analysis.html import Album, escape, image, paragraph

if TYPE_CHECKING:
    from hsakd_jax.evaluation.predictions import Opinions

PAIRS, CLASSES = 10, 20  # that are shown
WHO = {"alone": "student alone", "teacher": "its teacher"}


def section(said: "Opinions", names: list[str], label: str, colours: dict[str, str], album: Album) -> list[str]:
    """The lines of its HTML.

    Args:
      said: answers of 'student', and perhaps of 'alone' and 'teacher'.
      names: of the classes.
      label: of the student.
      colours: keys of `figures.COLOURS`, of each who answered.
      album: takes the figures.
    """
    return [
        paragraph(_wrong(said)),
        *_confusions(said, names, label, colours, album),
        *_mistakes(said, names, album),
        *_classes(said, names, album),
    ]


def _wrong(said: "Opinions") -> str:
    """How many test images it is wrong about, in a sentence."""
    wrong = said.answers["student"].classes != said.labels
    if not wrong.any():
        return "It is right about every test image."
    line = f"It is wrong about {wrong.sum():,} of {len(wrong):,} test images"
    for key, who in (("alone", "the student alone is right about"), ("teacher", "its teacher about")):
        if key in said.answers:
            known = int((said.answers[key].classes[wrong] == said.labels[wrong]).sum())
            who = who if key == "alone" or "alone" in said.answers else "its teacher is right about"
            line += f"; {who} {known:,} of these"
    return f"{line}."


def _confusions(said: "Opinions", names: list[str], label: str, colours: dict[str, str], album: Album) -> list[str]:
    def counts(key):
        table = np.zeros((len(names), len(names)), int)
        np.add.at(table, (said.labels, said.answers[key].classes), 1)
        return table

    tables = {key: counts(key) for key in said.answers}
    wrong = tables["student"] - np.diag(np.diag(tables["student"]))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [(i, j) for i, j in (np.unravel_index(k, wrong.shape) for k in order) if wrong[i, j]]
    if not pairs:
        return []
    keys = [key for key in WHO if key in tables]
    rows = [
        plots.Row(
            f"{plots.short(names[i], 20)} → {plots.short(names[j], 20)}",
            colours["student"],
            int(wrong[i, j]),
            f"{wrong[i, j]} of {tables['student'][i].sum()}",
            others=[int(tables[key][i, j]) for key in keys],
        )
        for i, j in pairs
    ]
    points = [(WHO[key], colours[key]) for key in keys]
    return album.figure(
        "confusions",
        "Most confused pairs of classes",
        "A → B: test images of A that are taken for B, and of how many.",
        plots.bars(rows, "test images", points, label),
        "h3",
    )


def _mistakes(said: "Opinions", names: list[str], album: Album) -> list[str]:
    if not said.mistakes:
        return []
    answers, labels = said.answers, said.labels
    caption = "Those about which it is most certain, of each wrong answer at most three."
    cards, pictures = [], []
    for i, pixels in said.mistakes.items():
        lines, short = [f"true: {names[labels[i]]}"], [f"true: {names[labels[i]]}"]
        for key in ("student", "teacher"):
            if key in answers:
                answer, probability = answers[key].classes[i], answers[key].probabilities[i]
                mark = "" if key == "student" else " ✓" if answer == labels[i] else " ✗"
                for some, name in ((lines, names[answer]), (short, plots.short(names[answer], 14))):
                    some.append(f"{key}: {name} ({100 * probability:.0f}\N{NO-BREAK SPACE}%){mark}")
        shown = image(pixels, f"test image of {names[labels[i]]}")
        cards.append(f"<div>{shown}{'<br>'.join(map(escape, lines))}</div>")
        pictures.append(plots.Picture(pixels, short))
    album.keep("mistakes", plots.gallery(pictures))
    return ["<h3>Mistakes</h3>", paragraph(caption, "soft"), f'<div class="mistakes">{"".join(cards)}</div>']


def _classes(said: "Opinions", names: list[str], album: Album) -> list[str]:
    if "alone" not in said.answers:
        return []
    images = np.bincount(said.labels, minlength=len(names))
    right = {
        key: np.bincount(said.labels[said.answers[key].classes == said.labels], minlength=len(names))
        for key in ("student", "alone")
    }
    shown = np.flatnonzero(images)
    change = 100 * (right["student"] - right["alone"])[shown] / images[shown]
    order = np.argsort(-change, kind="stable")
    caption = (
        f"{(change > 0).sum()} classes are named right more often than by the student alone, {(change < 0).sum()} "
        f"less often, {(change == 0).sum()} as often."
    )
    if len(order) > CLASSES:
        order = np.concatenate([order[: CLASSES // 2], order[-(CLASSES // 2) :]])
        caption += f" The {CLASSES // 2} greatest gains and losses are shown."
    caption += f" One image of a class is {100 / np.median(images[shown]):.1f} points."
    rows = [
        plots.Row(
            names[shown[i]],
            "c1" if change[i] < 0 else "c0",
            float(change[i]),
            f"{change[i]:+.1f}" if change[i] else "0.0",
        )
        for i in order
    ]
    return album.figure(
        "classes",
        "Change by class, against the student alone",
        caption,
        plots.bars(rows, "change of the share that is named right, points"),
        "h3",
    )
