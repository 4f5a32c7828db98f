"""Batches reach the device as they were written, in the given order, whether kept there or not."""

import numpy as np
import pytest
import torch
from test_dataset import GRID, SLOPE, some_copies

from haemex.dataset import TrainingCopies, epoch_order
from haemex.feeding import Feeder

CPU = torch.device("cpu")
ONE_COPY = int(np.prod(GRID)) * 3


@pytest.mark.parametrize("room", [0, 4 * ONE_COPY, 100 * ONE_COPY])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_follow_the_order_and_use_every_copy(tmp_path, batch_size, room):
    written = {patient: some_copies(tmp_path, patient) for patient in "abc"}
    copies = TrainingCopies("abc", tmp_path, 0.0)
    feeder = Feeder(copies, {"a": 1, "b": 0, "c": 1}, CPU, room)
    for epoch in (1, 2):  # the second time from where they are kept
        order = epoch_order(len(copies), 1, "test", epoch)
        seen = 0
        for scans, masks, expansion in feeder.batches(order, batch_size):
            assert scans.shape == masks.shape == (min(batch_size, 9 - seen), 1, *GRID)
            assert (scans.dtype, masks.dtype, expansion.dtype) == (torch.float32, torch.uint8, torch.float32)
            for scan, mask, label in zip(scans, masks, expansion, strict=True):
                patient, copy = copies.index[order[seen]]
                np.testing.assert_array_equal(scan[0], np.float32(written[patient][0][copy]) * np.float32(SLOPE))
                np.testing.assert_array_equal(mask[0], written[patient][1][copy])
                assert label == (patient != "b")
                seen += 1
        assert seen == 9
        assert feeder.kept_bytes == min(room // ONE_COPY, 9) * ONE_COPY


def test_what_the_device_keeps_is_read_once(tmp_path, monkeypatch):
    some_copies(tmp_path, "a", copies=5)
    copies = TrainingCopies(["a"], tmp_path, 0.0)
    reads = []
    read = TrainingCopies.read
    monkeypatch.setattr(TrainingCopies, "read", lambda self, position: reads.append(position) or read(self, position))
    feeder = Feeder(copies, {"a": 1}, CPU, 3 * ONE_COPY)
    for _ in range(3):
        assert len(list(feeder.batches([4, 3, 2, 1, 0], 2))) == 3
    assert sorted(reads) == [0, 0, 0, 1, 1, 1, 2, 3, 4]
