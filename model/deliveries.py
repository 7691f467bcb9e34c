"""What the ranks of a run were given: how many events, which ones, and which were damaged."""

from model.checkpoint import Tally
from model.ranks import Ranks
from model.transfer import DeviceBatch, DeviceBatches
from storage.audit import Audit

LOW = 2**32  # sums of scrambled numbers are sent in halves, so that no sum of them overflows


class Deliveries:
    """Adds up over all ranks what each was given.

    Args:
        training: This rank's share of the training events.
        validation: This rank's share of those for validation.
        before: What earlier calls had come to.
        ranks: That take the shares.

    Attributes:
        audit: Of the epoch under way, or over: of the events that all ranks were given in it.
        skipped: Numbers of the damaged events that were left out, in order.
    """

    def __init__(
        self, training: DeviceBatches, validation: DeviceBatches, before: Tally, ranks: Ranks
    ) -> None:
        self._training, self._validation, self._ranks = training, validation, ranks
        self.audit = Audit(**before.audit) if before.audit else Audit()
        self.skipped = before.skipped
        self._told = 0

    def meet(self, batch: DeviceBatch | None, error: Exception | None = None) -> int:
        """Meet the other ranks with a share of the next batch, or with none; return its events.

        Args:
            batch: The share, None where the last epoch is over.
            error: Why there is none.

        Raises:
            EndedElsewhereError: Another rank has an error and this one has none.
        """
        epoch = self._training.audit.epoch
        mine = Audit(epoch)
        if batch is not None:
            mine = mine + batch.event
        halves = [half for total in mine.sums for half in divmod(total, LOW)]
        numbers = [mine.events, *halves, len(self._damaged)]
        events, *halves, damaged = self._ranks.add_up(numbers, error)
        if batch is None:
            return 0
        first, second = (
            (high * LOW + low) % 2**64 for high, low in zip(halves[::2], halves[1::2], strict=True)
        )
        so_far = self.audit if self.audit.epoch == epoch else Audit(epoch)
        self.audit = so_far + Audit(epoch, events, (first, second))
        self._tell_if_more(damaged)
        return events

    def tell_damaged(self) -> None:
        """Let all ranks know which events were damaged."""
        (damaged,) = self._ranks.add_up([len(self._damaged)])
        self._tell_if_more(damaged)

    @property
    def _damaged(self) -> list[int]:
        return [*self._training.stream.damaged, *self._validation.stream.damaged]

    def _tell_if_more(self, damaged: int) -> None:
        """Tell which, where there are more than last time; all ranks know how many."""
        if damaged != self._told:
            found = self._ranks.gather(self._damaged)
            self.skipped = tuple(sorted({*self.skipped, *(n for some in found for n in some)}))
            self._told = damaged
