"""Front ends: whitened strain to the condition c.

A front end is a module that maps (event, detector, time) to (event, condition); a new one is an
entry in `EMBEDDINGS`.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.config import EmbeddingConfig
from storage.errors import InputError


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut. Source: arXiv:1603.05027, with group norms (1803.08494)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(8, channels_in)
        self.conv_1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm_2 = nn.GroupNorm(8, channels)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels
            else nn.Conv2d(channels_in, channels, 1, stride, bias=False)
        )

    def forward(self, image: Float[Tensor, "event c h w"]) -> Float[Tensor, "event d i j"]:
        """Add what the convolutions find to the image."""
        found = self.conv_1(torch.relu(self.norm_1(image)))
        found = self.conv_2(torch.relu(self.norm_2(found)))
        return self.shortcut(image) + found  # type: ignore[no-any-return]


class FoldedResNet(nn.Module):
    """A ResNet over each detector's series folded to a square image, then a fully connected part.

    A row of the image is a stretch of consecutive samples, 31 ms of 256 x 256 at 8192 Hz, so that
    its two axes are times of different scale; so are the sides of the first convolution's patch.

    Args:
        detectors: Number of detectors, the image's channels.
        samples: Time samples of an event in each detector; a square number, its root a
            multiple of the patch's sides.
        config: Widths and depths.

    Raises:
        InputError: The series cannot be folded to a square that the patches fill.
    """

    def __init__(self, detectors: int, samples: int, config: EmbeddingConfig) -> None:
        super().__init__()
        self.side = math.isqrt(samples)
        if self.side**2 != samples or any(self.side % size for size in config.patch):
            raise InputError(
                f"embedding.kind: folded-resnet folds a series to a square that patches of "
                f"{config.patch[0]} x {config.patch[1]} fill, {samples} samples are none; choose "
                "duration and sample rate so that their product is one, such as 65536"
            )
        first = config.channels[0]
        stages: list[nn.Module] = [
            nn.Conv2d(detectors, first, config.patch, stride=config.patch, bias=False)
        ]
        width = first
        for number, channels in enumerate(config.channels):
            for block in range(config.blocks):
                stride = 2 if number > 0 and block == 0 else 1
                stages.append(ResidualBlock(width, channels, stride))
                width = channels
        self.resnet = nn.Sequential(*stages, nn.GroupNorm(8, width), nn.ReLU())
        features = self._features(detectors)
        self.connected = nn.Sequential(
            nn.Linear(features, 2 * config.condition),
            nn.ReLU(),
            nn.Linear(2 * config.condition, config.condition),
        )

    def forward(
        self, strain: Float[Tensor, "event detector time"]
    ) -> Float[Tensor, "event condition"]:
        """Fold, convolve, connect."""
        image = strain.unflatten(-1, (self.side, self.side))
        return self.connected(self.resnet(image).flatten(1))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _features(self, detectors: int) -> int:
        """How many numbers the ResNet leaves."""
        return int(self.resnet(torch.zeros(1, detectors, self.side, self.side)).numel())


EMBEDDINGS: dict[str, Callable[[int, int, EmbeddingConfig], nn.Module]] = {
    "folded-resnet": FoldedResNet,
}


def make_embedding(detectors: int, samples: int, config: EmbeddingConfig) -> nn.Module:
    """Make the front end of a configuration.

    Raises:
        InputError: There is none of that name, or it does not take data of this shape.
    """
    if config.kind not in EMBEDDINGS:
        raise InputError(f"embedding.kind: got {config.kind!r}, known are {', '.join(EMBEDDINGS)}")
    return EMBEDDINGS[config.kind](detectors, samples, config)
