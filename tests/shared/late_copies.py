"""What is done for a GPU, on the CPU: batches copied one ahead, each copy as late as it may be."""

import time

import torch

from model.transfer import DeviceBatches, put
from storage.stream import Batch

CPU = torch.device("cpu")


class LateCopy:
    """Copies as late as a device may: when somebody waits for it."""

    def __init__(self, batch):
        self._batch, self._copied = batch, None

    def wait(self):
        if self._copied is None:
            strain, parameters = self._batch.strain.copy(), self._batch.parameters.copy()
            on_device = Batch(strain, parameters, self._batch.event.copy())
            self._copied = put(on_device, CPU)

    def take(self):
        assert self._copied is not None
        return self._copied


class TooLateCopy(LateCopy):
    """Lets the loader have its buffer before it is copied."""

    def wait(self):
        pass

    def take(self):
        time.sleep(0.02)  # for the loader's threads, which have the buffer meanwhile
        super().wait()
        return self._copied


class OneAhead(DeviceBatches):
    """What is done for a GPU, on the CPU."""

    def __init__(self, stream, copy=LateCopy):
        super().__init__(stream, CPU)
        self._start_copy = copy
