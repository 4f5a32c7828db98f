"""Bring augmented copies to the device that trains: read ahead, and kept there where it has room."""

import torch


class Feeder:
    """Batches on a device, in a given order.

    Parameters
    ----------
    copies : haemex.dataset.TrainingCopies
        Where they come from.
    labels : dict of str to int
        By patient: 1 if the haematoma expanded, else 0.
    device : torch.device
    room_bytes : int
        So much of a GPU's memory may hold copies as they were read; each of these crosses to the GPU once. 0 for the
        CPU, where `copies` keeps them.

    Attributes
    ----------
    kept_bytes : int
        What is held on the device, at most `room_bytes`.
    """

    def __init__(self, copies, labels, device, room_bytes=0):
        self.copies, self.device = copies, device
        self.room_bytes, self.kept_bytes = room_bytes, 0
        self._kept = {}
        # On the device once and for all: bringing a number over within a step would make the host wait.
        self._labels = torch.tensor([float(labels[patient]) for patient, _ in copies.index], device=device)

    def batches(self, order, batch_size):
        """Go through copies in a given order, the next ones being read meanwhile.

        Parameters
        ----------
        order : sequence of int
            Places in `copies.index`.
        batch_size : int
            The last batch is smaller if the copies do not divide evenly: every copy is used in every epoch.

        Yields
        ------
        scans : torch.Tensor, (batch, 1, z, y, x), float32
            Normalised intensity.
        masks : torch.Tensor, (batch, 1, z, y, x), uint8
            0 or 1.
        expansion : torch.Tensor, (batch,), float32
            0 or 1.
        """
        order = [int(position) for position in order]
        read = self.copies.read_ahead([position for position in order if position not in self._kept])
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            volumes = [self._kept.get(position) or self._bring(position, next(read)) for position in batch]
            ct, masks = (torch.stack(tensors)[:, None] for tensors in zip(*volumes, strict=True))
            expansion = torch.stack([self._labels[position] for position in batch])
            yield ct.float().mul_(self.copies.slope), masks, expansion

    def _bring(self, position, volumes):
        tensors = [torch.from_numpy(volume) for volume in volumes]
        if self.device.type == "cuda":  # page-locked memory crosses while the host goes on
            tensors = [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors]
        size = sum(tensor.nbytes for tensor in tensors)
        if self.kept_bytes + size <= self.room_bytes:
            self.kept_bytes += size
            self._kept[position] = tensors
        return tensors
