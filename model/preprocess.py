"""What happens to strain on the device, before the network: decode, add noise.

The definition of one sigma is the data set's: noise of unit variance over the full band, of which
only the analysis band is filled.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


class Preprocess(nn.Module):
    """Turns stored strain into whitened strain with noise.

    Args:
        scale_factor: Sigma per integer step; 1 where the stored numbers are sigma themselves.
        samples: Time samples of an event in each detector.
        first_bin: First frequency bin of the analysis band.
    """

    def __init__(self, scale_factor: float, samples: int, first_bin: int) -> None:
        super().__init__()
        self.scale_factor, self.samples, self.first_bin = scale_factor, samples, first_bin

    def decode(
        self, stored: Shaped[Tensor, "event detector time"]
    ) -> Float[Tensor, "event detector time"]:
        """Turn stored numbers into sigma, float32."""
        strain = stored.to(torch.float32)
        return strain if self.scale_factor == 1 else strain * self.scale_factor

    def noise(
        self, detectors: int, seeds: Sequence[int], device: torch.device
    ) -> Float[Tensor, "event detector time"]:
        """Draw whitened Gaussian noise in the analysis band, as the simulator does.

        Args:
            detectors: Their number.
            seeds: One an event: its noise does not depend on the events beside it.
            device: Where it is drawn; another kind of device draws other noise.
        """
        bins = self.samples // 2 + 1
        # Without the Nyquist bin.
        band = torch.empty((len(seeds), detectors, bins - 1 - self.first_bin, 2), device=device)
        generator = torch.Generator(device)
        for event, seed in zip(band, seeds, strict=True):
            event.normal_(generator=generator.manual_seed(seed))
        spectrum = torch.nn.functional.pad(band, (0, 0, self.first_bin, 1))
        # Real and imaginary parts of variance samples/2 give a unit variance over the full band.
        noise: Tensor = torch.fft.irfft(torch.view_as_complex(spectrum), n=self.samples)
        return noise.mul_(math.sqrt(self.samples / 2))

    def forward(
        self,
        stored: Shaped[Tensor, "event detector time"],
        seeds: Sequence[int] | None = None,
    ) -> Float[Tensor, "event detector time"]:
        """Decode, and add noise where seeds for it are given, one an event."""
        strain = self.decode(stored)
        if seeds is None:
            return strain
        return self.noise(strain.shape[1], seeds, strain.device).add_(strain)
