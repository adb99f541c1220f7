"""Retrieval: are the clips most like a clip of its class? Nothing is trained: the space is judged as it is."""

import numpy as np

from hear_jepa.evaluation.metrics import average_precision

RETRIEVAL_SCORE = "mAP"
QUERIES = 512  # ranked at once: bounds the memory


def retrieval_score(features: np.ndarray, targets: np.ndarray, train: np.ndarray) -> float:
    """Every clip ranks all the others by cosine; the mean over the clips of the average precision of its class.

    features: [N, D] of the clips that are scored; targets: [N, K] of 0 and 1 (clips are alike that share a label);
    train: features [M, D] of the training clips, whose mean is subtracted first. A clip that shares no label does not
    count.
    """
    centred = (features - train.mean(0)).astype(np.float64)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    found = []
    for start in range(0, len(unit), QUERIES):
        similarity = unit @ unit[start : start + QUERIES].T  # [N, queries]
        alike = (targets @ targets[start : start + QUERIES].T > 0).astype(np.float32)
        query = np.arange(similarity.shape[1])
        similarity[start + query, query] = -np.inf  # last in its own ranking, and not looked for
        alike[start + query, query] = 0
        found.append(average_precision(similarity, alike))
    scores = np.concatenate(found)
    return float(scores.mean()) if len(scores) else 0.0
