"""Augmentation on the device: each signal without noise at another time in each step.

A shift by t seconds turns the phase at the frequency f by -2 pi f t, which is what the simulator
does with `geocent_time` but for the rotation of the Earth, 7e-5 rad a second. The series is a
circle to it: what leaves at one end comes in at the other.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt64
from torch import Tensor

from model.config import AugmentConfig
from model.estimator import DataFacts
from model.parameters import ParameterMap
from storage.arrays import Array
from storage.errors import InputError

TIME = "geocent_time"
UNIFORM = "Uniform("


@dataclass(frozen=True)
class TimeShift:
    """Moves signals in time, and what is to be inferred of their time with them.

    Attributes:
        largest: Shift, in either direction [s].
        sample_rate: [Hz].
        column: Of `geocent_time` among the inferred parameters; None where it is not inferred.
        minimum: Of its prior [GPS s].
        maximum: Of its prior [GPS s].
    """

    largest: float
    sample_rate: float
    column: int | None = None
    minimum: float = -math.inf
    maximum: float = math.inf

    @classmethod
    def of(cls, config: AugmentConfig, facts: DataFacts, theta: ParameterMap) -> Self | None:
        """What a configuration asks for; None for nothing.

        Raises:
            InputError: The data are not fit for it.
        """
        largest = config.time_shift
        if not largest:
            return None
        if facts.noisy:
            raise InputError(
                f"augment.time_shift: got {largest:g} s, but the stored strain holds noise, which "
                "would be seen again at each shift; simulate with noise: none, or leave it out"
            )
        if TIME not in theta.names:
            return cls(largest, facts.sample_rate)
        column = theta.names.index(TIME)
        time = theta.coordinates[column]
        if not time.prior.startswith(UNIFORM) or time.maximum - time.minimum < largest:
            raise InputError(
                f"augment.time_shift: got {largest:g} s, the prior of {TIME} is {time.prior!r}; "
                "only a uniform one that is at least as wide stays as it is; lower time_shift, or "
                "leave it out"
            )
        return cls(largest, facts.sample_rate, column, time.minimum, time.maximum)

    def __call__(
        self,
        strain: Float[Tensor, "event detector time"],
        theta: Float64[Tensor, "event parameter"],
        seeds: UInt64[Array, "event"],
    ) -> tuple[Float[Tensor, "event detector time"], Float64[Tensor, "event parameter"]]:
        """Shift signals, and their `geocent_time`.

        Args:
            strain: Whitened signals [sigma].
            theta: Inferred parameters, double.
            seeds: One an event, any 64 bits.
        """
        shares = (seeds >> np.uint64(11)).astype(np.float64) / 2.0**53
        shifts = torch.from_numpy(self.largest * (2 * shares - 1)).to(strain.device)
        if self.column is not None:
            before = theta[:, self.column]
            after = reflected(before + shifts, self.minimum, self.maximum)
            shifts = after - before  # exact: what a double of 10^9 s cannot hold is not shifted
            theta = theta.index_copy(
                1, torch.tensor([self.column], device=theta.device), after[:, None]
            )
        return shifted(strain, shifts, self.sample_rate), theta


def reflected(
    times: Float64[Tensor, "event"], minimum: float, maximum: float
) -> Float64[Tensor, "event"]:
    """Times within bounds: those outside are mirrored at them, which keeps a uniform prior so."""
    times = torch.where(times < minimum, 2 * minimum - times, times)
    times = torch.where(times > maximum, 2 * maximum - times, times)
    return times.clamp(minimum, maximum)


def shifted(
    strain: Float[Tensor, "event detector time"],
    seconds: Float64[Tensor, "event"],
    sample_rate: float,
) -> Float[Tensor, "event detector time"]:
    """Series shifted to later times, on a circle.

    Args:
        strain: The series.
        seconds: For each event, by how much [s]; need be no whole number of samples.
        sample_rate: [Hz].
    """
    samples = strain.shape[-1]
    spectrum = torch.fft.rfft(strain)
    bins = torch.arange(spectrum.shape[-1], dtype=torch.float64, device=strain.device)
    turns = torch.outer(seconds, bins * (sample_rate / samples))
    angles = (-2 * math.pi * (turns - turns.round())).float()
    spectrum *= torch.polar(torch.ones_like(angles), angles)[:, None]
    moved: Tensor = torch.fft.irfft(spectrum, n=samples)
    return moved
