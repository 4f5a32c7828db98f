from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haemex.folds import stratified_folds


@given(
    labels=st.dictionaries(st.text("ABC123", min_size=1), st.integers(0, 1), min_size=5, max_size=60),
    folds=st.integers(2, 5),
    seed=st.integers(0, 2**31),
)
def test_every_patient_once_and_folds_alike(labels, folds, seed):
    dealt = stratified_folds(labels, folds, seed)
    assert dealt.keys() == labels.keys()
    sizes = Counter(dealt.values())
    assert max(sizes.values()) - min(sizes[fold] for fold in range(folds)) <= 1
    for label in (0, 1):
        counts = Counter(dealt[patient] for patient in labels if labels[patient] == label)
        assert max(counts[fold] for fold in range(folds)) - min(counts[fold] for fold in range(folds)) <= 1


def test_the_order_of_patients_does_not_matter_but_the_seed_does():
    labels = {f"P{i:02d}": i % 3 == 0 for i in range(30)}
    reversed_labels = dict(reversed(list(labels.items())))
    assert stratified_folds(labels, 5, 1) == stratified_folds(reversed_labels, 5, 1)
    assert stratified_folds(labels, 5, 1) != stratified_folds(labels, 5, 2)


def test_too_few_patients_are_refused():
    with pytest.raises(ValueError, match="3 patients cannot fill 5 folds"):
        stratified_folds({"A": 0, "B": 1, "C": 0}, 5, 0)
