"""Runs measured on data whose classes have another order."""

from pathlib import Path

import jax
import numpy as np
import pytest
from msgspec import structs
from run_configs import run_config

from hsakd_jax.core.errors import UserError
from hsakd_jax.evaluation import predictions
from hsakd_jax.evaluation.accuracy import evaluate_run, load_test
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.compare import match_classes
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build_network, initialise, reorder_classes

ORDER = (3, 0, 9, 1, 2, 4, 5, 8, 7, 6)


@pytest.fixture(scope="module")
def variables():
    network = build_network(run_config("teacher", classes="0123456789").network)
    return jax.device_get(initialise(network, (8, 8, 1), 3))


def make(path, variables, classes):
    """A run of the digits on 8x8 pixels, with branches."""
    directory = RunDirectory(path)
    directory.acquire(run_config("teacher", classes=classes))
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(1, variables)
    checkpoints.close()
    return path


def test_classes_in_another_order_are_matched_by_name(variables, tmp_path, capsys):
    plain = make(tmp_path / "plain", variables, "0123456789")
    other = make(tmp_path / "other", reorder_classes(variables, ORDER), [str(i) for i in ORDER])
    expected = evaluate_run(plain)
    assert "order" not in capsys.readouterr().err
    assert evaluate_run(other) == expected
    assert capsys.readouterr().err == f"{other} has the classes of digits in another order: matched by name\n"

    found = predictions.predict_all(
        {"student": predictions.Checkpoint(plain), "teacher": predictions.Checkpoint(other)}, 3
    )
    np.testing.assert_array_equal(found.by_network["student"].classes, found.by_network["teacher"].classes)
    assert (found.by_network["student"].classes == found.labels).mean() == pytest.approx(expected["top1"] / 100)
    first = predictions.predict_all({"student": predictions.Checkpoint(other)}, 3)
    np.testing.assert_array_equal(np.take(ORDER, first.labels), found.labels)
    np.testing.assert_array_equal(
        np.take(ORDER, first.by_network["student"].classes), found.by_network["student"].classes
    )
    assert list(first.misclassified) == list(found.misclassified)


@pytest.mark.parametrize(
    ("names", "refused"), [("012", False), (("a", "c", "b"), False), (("0", "10", "2"), True), (("2", "0", "1"), True)]
)
def test_classes_without_names_are_not_matched_with_numbers_out_of_order(names, refused):
    """A network of classes 0, 1, 2, ..., 10 and folders in alphabetic order: 0, 1, 10, 2."""
    unnamed = structs.replace(run_config(classes=names), classes=())
    found = match_classes(unnamed, Path("run"), 3, tuple(names), "photos")
    assert (found.difference is not None, found.order) == (refused, None)
    assert "photos" in (found.difference if refused else found.note)
    assert (match_classes(run_config(classes=names), Path("run"), 3, (), "net").difference is not None) == refused


def test_words_for_the_ids_of_imagenet_are_in_their_order():
    ids, words = [f"n{i:08d}" for i in range(1000)], [f"word {i}" for i in range(1000)]
    for ours, theirs in ((ids, words), (words, ids)):
        found = match_classes(run_config(classes=ours), Path("run"), 1000, theirs, "photos")
        assert (found.difference, found.order) == (None, None)
        assert found.note == (
            "run or photos has words for ImageNet's WordNet ids: both are taken to be in the order of the ids"
        )
        unsorted = [*ids[1:], ids[0]]
        assert match_classes(run_config(classes=words), Path("run"), 1000, unsorted, "photos").difference
    # Folders that are named by the words: fish and goldfish are the first ids, but not the first words.
    for ours, theirs in ((ids, sorted(words)), (sorted(words), ids)):
        found = match_classes(run_config(classes=ours), Path("run"), 1000, theirs, "photos")
        assert found.difference.startswith("may have another order of classes: there are words in alphabetic order")
    assert match_classes(run_config(classes=words[:9]), Path("run"), 9, ids[:9], "photos").difference
    # Ids in another order, such as that of a challenge, have names to match by.
    turned = match_classes(run_config(classes=ids), Path("run"), 1000, ids[::-1], "photos")
    assert turned.order == tuple(reversed(range(1000)))


def test_other_classes_are_refused(variables, tmp_path):
    run = make(tmp_path / "run", variables, "012345678x")
    with pytest.raises(UserError, match=r"run has other classes: 'x' where '9' is expected in digits in \(default\)"):
        evaluate_run(run)


def test_a_folder_of_images_that_no_one_named(tmp_path):
    """As of converted weights of an image_folder, whose file contains no paths."""
    config = run_config(data__crop="resized", data__image_size=8)
    config = structs.replace(config, data=structs.replace(config.data, name="image_tree"))
    with pytest.raises(UserError, match="run does not name the folder of its images: set --data_dir=DIR"):
        load_test(tmp_path / "run", config)
