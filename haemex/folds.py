"""Cut the training cohort into folds, over patients, before anything is trained (paper, Training of the model)."""

import zlib

import numpy as np


def stratified_folds(labels, folds, seed):
    """Deal patients to folds so that sizes and numbers of expansions differ by at most one.

    Parameters
    ----------
    labels : dict of str to int
        Expansion (0 or 1) by patient of the training cohort.
    folds : int
        Number of folds, at least 2.
    seed : int
        The study's seed; the result does not depend on the order of `labels`.

    Returns
    -------
    dict of str to int
        Fold, 0 to folds - 1, by patient.

    Raises
    ------
    ValueError
        Fewer patients than folds.
    """
    if len(labels) < folds:
        raise ValueError(f"{len(labels)} patients cannot fill {folds} folds")
    rng = np.random.default_rng([seed, zlib.crc32(b"folds")])
    dealt = []
    for label in (1, 0):
        patients = sorted(patient for patient, value in labels.items() if value == label)
        dealt += [patients[i] for i in rng.permutation(len(patients))]
    # One round of dealing for both classes: the second goes on where the first stopped, so fold sizes stay even.
    return {patient: position % folds for position, patient in enumerate(dealt)}
