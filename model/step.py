"""A training step: the gradient of a batch's mean loss, over all ranks, before it is learnt from.

The batch is the recipe's, whatever the number of ranks and of parts that it is taken in: each part
adds the sum of its events' losses over the number of events of the whole batch.

No layer looks at other events of its batch (norms are group norms), so that nothing but rounding
depends on how the batch is divided.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import AdamW

from model.config import OptimiserConfig
from model.loss import TRAINING, Loss
from model.ranks import Ranks
from model.transfer import DeviceBatch


@dataclass(frozen=True)
class Step:
    """What computes gradients, and learns from them.

    Attributes:
        loss: With the estimator that is trained.
        optimiser: Of its weights.
        config: Of the optimiser.
        accumulate: Parts in which this rank's share of a batch is taken, one after the other.
        ranks: Who takes the shares.
    """

    loss: Loss
    optimiser: AdamW
    config: OptimiserConfig
    accumulate: int
    ranks: Ranks

    def gradient(self, batch: DeviceBatch, number: int, events: int) -> tuple[float, float]:
        """Compute the gradient of a batch's mean loss, and cut it.

        The host waits for the device at the end, and where nflows' splines look at their inputs'
        range: twice a layer.

        Args:
            batch: This rank's share of it, which may be empty.
            number: Of the step.
            events: In the whole batch, over all ranks.

        Returns:
            The mean loss [nats], and the gradient's norm before it was cut.
        """
        self.optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.loss.estimator.device)
        for part in parts(batch, self.accumulate):
            share = self.loss(part, TRAINING, number).sum() / events
            share.backward()
            loss += share.detach()
        weights = list(self.loss.estimator.parameters())
        if self.ranks.world_size > 1:
            loss = self._over_all_ranks(weights, loss)
        norm = torch.nn.utils.clip_grad_norm_(weights, self.config.largest_gradient)
        mean, length = torch.stack([loss, norm]).tolist()
        return mean, length

    def _over_all_ranks(self, weights: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Add the gradients and the loss over all ranks, in one message; return the loss."""
        for weight in weights:
            if weight.grad is None:  # where the share is empty
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        message = torch.cat([*(gradient.reshape(-1) for gradient in gradients), loss.reshape(1)])
        self.ranks.add_up_on_device(message)
        sums = message.split([*(gradient.numel() for gradient in gradients), 1])
        for gradient, total in zip(gradients, sums[:-1], strict=True):
            gradient.copy_(total.view(gradient.shape))
        total_loss: Tensor = sums[-1][0]
        return total_loss


def parts(batch: DeviceBatch, count: int) -> Iterator[DeviceBatch]:
    """Divide a batch into at most so many parts, as equal as can be; none of them is empty."""
    events = len(batch.event)
    ends = [events * number // count for number in range(count + 1)]
    for first, last in zip(ends, ends[1:], strict=False):
        if first < last:
            yield DeviceBatch(
                batch.strain[first:last], batch.parameters[first:last], batch.event[first:last]
            )
