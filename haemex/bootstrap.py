"""Bootstrap intervals: how the results would scatter over other patients like these."""

import math
import zlib

import numpy as np

RESAMPLES = 2000


def bootstrap_intervals(patients, measures, seed, confidence=0.95, resamples=RESAMPLES):
    """Percentile intervals from patients resampled with replacement (Efron and Tibshirani 1993, chapter 13).

    All measures are taken on the same resamples. The number of events varies between resamples, as it would between
    cohorts; a resample in which a measure is not defined (one outcome only) is left out of that measure and counted.

    Parameters
    ----------
    patients : int
        Number of patients, n.
    measures : dict of str to callable
        Each takes the indices (n,) of a resample and returns a float, nan where undefined.
    seed : int
        The study's seed.
    confidence : float
        Two-sided confidence level.
    resamples : int

    Returns
    -------
    dict of str to dict
        By measure: `estimate` (on the patients themselves), `lower`, `upper` and `resamples`, how many count. Bounds
        are nan where fewer than half of the resamples do.
    """
    rng = np.random.default_rng([seed, zlib.crc32(b"bootstrap")])
    drawn = rng.integers(0, patients, (resamples, patients)) if patients else np.empty((0, 0), int)
    tail = (1 - confidence) / 2
    found = {}
    for name, measure in measures.items():
        estimate = float(measure(np.arange(patients)))
        values = np.array([measure(one) for one in drawn], float)
        values = values[~np.isnan(values)]
        lower = upper = math.nan
        if values.size and values.size >= resamples / 2:
            lower, upper = (float(value) for value in np.quantile(values, [tail, 1 - tail]))
        found[name] = {"estimate": estimate, "lower": lower, "upper": upper, "resamples": int(values.size)}
    return found
