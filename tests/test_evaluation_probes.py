"""The probes and scores are what they say.

* The linear probe agrees within 2 points with an independent scikit-learn logistic regression selected on the same
  validation set, on artificial features and on those of the shipped tasks; it is blind to scale, offset and constants.
* Scores equal scikit-learn's; retrieval is its definition; the onset F-measure is that of a maximum matching.
* Probabilities become events with the times of their frames; short ones go, gaps are bridged by the median.
* `splits="valid"` computes no test score; the quick probe learns an easy task and fails on shuffled labels.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_fixtures import write_event_task, write_scene_task
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from hear_jepa.errors import OptionError
from hear_jepa.evaluation import retrieval
from hear_jepa.evaluation.events import PostProcessing, onset_f_measure
from hear_jepa.evaluation.features import SplitFeatures, embed_split
from hear_jepa.evaluation.metrics import accuracy, aucroc, chroma_accuracy, d_prime, mean_average_precision
from hear_jepa.evaluation.model_spec import load_spec
from hear_jepa.evaluation.probes import LinearConfig, knn_probe, linear_probe
from hear_jepa.evaluation.retrieval import retrieval_score
from hear_jepa.evaluation.scoring import PROTOCOLS, examples, probe_model, score_task, training_examples
from hear_jepa.evaluation.tasks import Event, find_tasks, read_task

SHIPPED = Path(__file__).with_name("tasks")


def mixture(count, seed, classes=5, size=40):
    """Overlapping Gaussians around fixed means: features [N, D], targets [N, C]."""
    means = np.random.default_rng(0).standard_normal((classes, size)) * 0.35
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    features = means[labels] + random.standard_normal((count, size))
    return features.astype(np.float32), np.eye(classes, dtype=np.float32)[labels]


def regression_accuracy(train, valid, test):
    """scikit-learn's logistic regression, its C selected on the validation set; accuracy on `test`."""
    scale = StandardScaler().fit(train[0])
    fits = [
        LogisticRegression(C=c, max_iter=200).fit(scale.transform(train[0]), train[1].argmax(1))
        for c in (1e-3, 1e-2, 0.1)
    ]
    best = max(fits, key=lambda fit: fit.score(scale.transform(valid[0]), valid[1].argmax(1)))
    return best.score(scale.transform(test[0]), test[1].argmax(1))


@pytest.fixture(scope="module")
def data():
    return mixture(500, 1), mixture(300, 2), mixture(4000, 3)


def test_agrees_with_logistic_regression(data):
    train, valid, test = data
    ours = accuracy(linear_probe(train, valid)(test[0]), test[1])
    theirs = regression_accuracy(train, valid, test)
    assert 0.5 < theirs < 0.95
    assert ours == pytest.approx(theirs, abs=0.02)


def test_agrees_with_logistic_regression_on_real_sound():
    model = load_spec("logmel-stats,front_end=paper", "cpu")
    ours, theirs = [], []
    for folder in find_tasks(SHIPPED):
        task = read_task(folder)
        if task.kind == "event":
            continue
        features = {split: embed_split(task, split, model) for split in task.clips}
        for fold in task.folds:
            train = training_examples(task, features, fold)
            valid, test = (examples(task, split, features[split]) for split in (fold.valid, fold.test))
            ours += [accuracy(linear_probe(train, valid)(test[0]), test[1])] * len(test[0])
            theirs += [regression_accuracy(train, valid, test)] * len(test[0])
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.02)


def test_linear_probe_ignores_scale_offset_and_a_constant_feature_and_follows_its_seed(data):
    config = LinearConfig(max_epochs=10)

    def moved(features):
        return np.concatenate([features * 1e-4 + 3, np.full((len(features), 1), 7.0, np.float32)], axis=1)

    train, valid, test = data
    plain = linear_probe(train, valid, config=config)(test[0])
    other = linear_probe((moved(train[0]), train[1]), (moved(valid[0]), valid[1]), config=config)(moved(test[0]))
    assert np.mean(plain.argmax(1) == other.argmax(1)) > 0.97  # the weights begin elsewhere: one feature more
    assert np.array_equal(plain, linear_probe(train, valid, config=config)(test[0]))
    assert not np.array_equal(plain, linear_probe(train, valid, seed=1, config=config)(test[0]))


def test_multilabel_probe_separates():
    random = np.random.default_rng(0)
    weights = random.standard_normal((20, 4))

    def draw(count):
        features = random.standard_normal((count, 20)).astype(np.float32)
        return features, (features @ weights > 3).astype(np.float32)

    train, valid, test = draw(600), draw(200), draw(400)
    for probe, least in ((linear_probe, 0.95), (knn_probe, 0.6)):
        predictions = probe(train, valid, multilabel=True)(test[0])
        assert mean_average_precision(predictions, test[1]) > least > 1.5 * test[1].mean()
        assert predictions.min() >= 0 and predictions.max() <= 1


def test_scores_equal_those_of_scikit_learn():
    random = np.random.default_rng(0)
    targets = (random.random((200, 6)) < 0.2).astype(np.float32)
    predictions = random.random((200, 6)) + 0.3 * targets
    assert mean_average_precision(predictions, targets) == pytest.approx(average_precision_score(targets, predictions))
    assert aucroc(predictions, targets) == pytest.approx(roc_auc_score(targets, predictions))
    assert d_prime(np.stack([predictions[:, 0]] * 2, 1), np.stack([targets[:, 0]] * 2, 1)) > 0
    chance = d_prime(random.random((5000, 3)), (random.random((5000, 3)) < 0.5).astype(float))
    assert chance == pytest.approx(0, abs=0.1)
    targets = np.array([[1, 0, 0], [0, 1, 0]], np.float32)  # the third class has no clip: it does not count
    assert mean_average_precision(targets, targets) == aucroc(targets, targets) == 1.0
    targets, predictions = np.eye(30)[[0, 5, 7]], np.eye(30)[[12, 29, 8]]
    assert accuracy(predictions, targets) == 0.0
    assert chroma_accuracy(predictions, targets) == pytest.approx(2 / 3)  # octaves do not count


def test_retrieval_is_the_average_precision_of_the_class_by_centred_cosine(data, monkeypatch):
    (features, targets), _, _ = data
    features, targets = features[:60] + 50, targets[:60]  # an offset that hides every angle
    train = features.mean(0, keepdims=True) + 0.01
    unit = (features - train) / np.linalg.norm(features - train, axis=1, keepdims=True)
    expected = []
    for query in range(len(unit)):
        others = np.arange(len(unit)) != query
        alike = (targets[others] @ targets[query]) > 0
        expected.append(average_precision_score(alike, unit[others] @ unit[query]))
    assert retrieval_score(features, targets, train) == pytest.approx(np.mean(expected), abs=1e-5)
    assert retrieval_score(targets, targets, np.zeros((1, 5))) == 1.0
    monkeypatch.setattr(retrieval, "QUERIES", 37)  # many clips are done in parts
    assert retrieval_score(features, targets, train) == pytest.approx(np.mean(expected), abs=1e-5)


def test_onset_f_measure_is_that_of_a_maximum_matching():
    random = np.random.default_rng(0)
    for _ in range(30):
        found, expected = ([Event("a", t, t + 1) for t in random.uniform(0, 3000, n)] for n in (12, 9))
        near = [[abs(f.start_ms - e.start_ms) <= 200 for e in expected] for f in found]
        matched = (maximum_bipartite_matching(csr_matrix(np.array(near))) >= 0).sum()
        assert onset_f_measure([found], [expected], 200.0) == pytest.approx(2 * matched / 21)
    one, other = Event("a", 100, 200), Event("b", 100, 200)
    assert onset_f_measure([[one]], [[other]], 200) == 0
    assert onset_f_measure([[one], []], [[], [one]], 200) == 0
    assert onset_f_measure([[one, other]], [[other, one]], 200) == 1
    assert onset_f_measure([[one, one]], [[one]], 200) == pytest.approx(2 / 3)  # one event is found once


def test_probabilities_become_events(tmp_path):
    task = read_task(write_event_task(tmp_path / "tones-v1", clips=1))
    probabilities = np.zeros((100, 3), np.float32)
    probabilities[10:31, 1] = 0.9
    probabilities[20, 1] = 0.1  # a gap of one frame
    probabilities[60, 2] = 0.9  # too short
    features = SplitFeatures(np.zeros((100, 1)), np.array([100]), np.arange(100) * 20.0 + 5)
    (found,) = PostProcessing(0.5, median_ms=100, least_ms=60).events(task, features, probabilities)
    assert found == [Event(task.vocabulary[1], 205.0, 605.0)]
    (found,) = PostProcessing(0.5, median_ms=0, least_ms=0).events(task, features, probabilities)
    assert [event.start_ms for event in found] == [205.0, 425.0, 1205.0]


def test_folds_are_the_runs_of_a_k_fold_task_and_validation_alone_computes_no_test_score(tmp_path):
    task = read_task(write_scene_task(tmp_path / "tones-v1", ("fold00", "fold01", "fold02", "fold03")))
    scores = score_task(task, load_spec("logmel-stats"), protocol="knn")
    assert len(scores.valid) == len(scores.test) == 4
    assert np.mean([run["top1_acc"] for run in scores.test]) > 0.9
    scores = score_task(task, load_spec("logmel-stats"), protocol="knn", splits="valid")
    assert scores.test is None and len(scores.valid) == 4


def test_quick_probe_learns_and_chance_is_chance(tmp_path):
    folder = write_scene_task(tmp_path / "tones-v1", clips=12)
    model = load_spec("logmel-stats")
    scores = probe_model(model, [folder], protocols=PROTOCOLS)
    assert min(scores[protocol]["tones-v1"] for protocol in PROTOCOLS) > 0.9
    assert probe_model(model, [folder], max_clips=18) == probe_model(model, [folder], max_clips=18)
    random = np.random.default_rng(0)
    for split in ("train", "valid"):
        labels = json.loads((folder / f"{split}.json").read_text())
        shuffled = random.permutation([label for (label,) in labels.values()])
        content = {name: [label] for name, label in zip(labels, shuffled, strict=True)}
        (folder / f"{split}.json").write_text(json.dumps(content))
    scores = probe_model(model, [folder], protocols=PROTOCOLS)
    assert max(scores[protocol]["tones-v1"] for protocol in PROTOCOLS) < 0.7
    with pytest.raises(OptionError, match="'lineer': choose from linear, knn, retrieval"):
        probe_model(model, [folder], protocols=["lineer"])
