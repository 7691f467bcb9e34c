"""What happens to strain on the device, before the network: decode, add noise.

The definition of one sigma is the data set's: noise of unit variance over the full band, of which
only the analysis band is filled.
"""

import math

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
        self, events: int, detectors: int, generator: torch.Generator
    ) -> Float[Tensor, "event detector time"]:
        """Draw whitened Gaussian noise in the analysis band, as the simulator does."""
        bins = self.samples // 2 + 1
        band = torch.randn(  # without the Nyquist bin
            (events, detectors, bins - 1 - self.first_bin, 2),
            generator=generator,
            device=generator.device,
        )
        spectrum = torch.nn.functional.pad(band, (0, 0, self.first_bin, 1))
        # Real and imaginary parts of variance samples/2 give a unit variance over the full band.
        noise: Tensor = torch.fft.irfft(torch.view_as_complex(spectrum), n=self.samples)
        return noise.mul_(math.sqrt(self.samples / 2))

    def forward(
        self,
        stored: Shaped[Tensor, "event detector time"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "event detector time"]:
        """Decode, and add noise where a generator for it is given."""
        strain = self.decode(stored)
        if generator is None:
            return strain
        events, detectors, _ = strain.shape
        return self.noise(events, detectors, generator).add_(strain)
