"""Do clusters of the embeddings agree with the classes?"""

from __future__ import annotations

import numpy as np
import torch

from .extras import require
from .problem import Problem
from .relevance import Relation


def agreement(problem: Problem, relation: Relation, names: list[str], seed: int) -> dict[str, float]:
    """NMI and AMI of k-means with as many clusters as there are classes, by scikit-learn.

    Rows are normalised first where the similarity normalises them. Mutual information is normalised by
    the arithmetic mean of the entropies (Vinh, Epps, Bailey, JMLR 2010), as scikit-learn does by default.
    """
    if relation.label is None:
        raise ValueError(f"labels: expected one class per query, which {names[0]} needs")
    cluster = require("sklearn.cluster", f"{names[0]} needs", "metrics")
    metrics = require("sklearn.metrics", f"{names[0]} needs", "metrics")
    dtype = torch.float64 if problem.double else torch.float32
    rows = problem.queries.tensor(0, len(problem.queries), dtype, torch.device("cpu")).numpy()
    if problem.query_scale is not None:
        rows = rows * problem.query_scale[:, None]
    present, classes = np.unique(relation.label, return_inverse=True)
    means = cluster.KMeans(len(present), n_init=1, max_iter=20, random_state=seed % (1 << 32))
    found = means.fit_predict(rows)
    scores = {
        "nmi": metrics.normalized_mutual_info_score,
        "ami": metrics.adjusted_mutual_info_score,
    }
    return {name: float(scores[name](classes, found)) for name in names}
