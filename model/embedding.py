"""Front ends: whitened strain to the condition c.

A front end is a module that maps (event, detector, time) to (event, condition); a new one is an
entry in `EMBEDDINGS`. Those here make an image or a series of the strain, and differ in nothing
else: a ResNet goes over it, and a fully connected part makes c of what that leaves.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.config import EmbeddingConfig
from storage.errors import InputError

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}
KERNEL = {1: 9, 2: 3}  # as many weights in a series as in an image
STRIDE = {1: 4, 2: 2}  # of each stage but the first: a fourth of the places is left
FEATURES = 3072  # that the ResNet leaves of 65,536 samples; where more, the channels are narrowed
FEWEST_PLACES = 2  # a group norm over a single number would leave nothing of it


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut. Source: arXiv:1603.05027, with group norms (1803.08494).

    Args:
        dimensions: 1 for a series, 2 for an image.
        channels_in: Channels that come in.
        channels: Channels that go out.
        stride: Of the first convolution.
    """

    def __init__(self, dimensions: int, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        convolution, kernel = CONVOLUTIONS[dimensions], KERNEL[dimensions]
        padding = kernel // 2
        self.norm_1 = nn.GroupNorm(8, channels_in)
        self.conv_1 = convolution(channels_in, channels, kernel, stride, padding, bias=False)
        self.norm_2 = nn.GroupNorm(8, channels)
        self.conv_2 = convolution(channels, channels, kernel, padding=padding, bias=False)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels
            else convolution(channels_in, channels, 1, stride, bias=False)
        )

    def forward(self, image: Float[Tensor, "event c *place"]) -> Float[Tensor, "event d *fewer"]:
        """Add what the convolutions find to the image."""
        found = self.conv_1(torch.relu(self.norm_1(image)))
        found = self.conv_2(torch.relu(self.norm_2(found)))
        return self.shortcut(image) + found  # type: ignore[no-any-return]


class ResNet(nn.Sequential):
    """Stages of residual blocks, then a fully connected part that makes c.

    Args:
        shape: Of what comes in: its places, without events and channels.
        config: Widths and depths.
    """

    def __init__(self, shape: tuple[int, ...], config: EmbeddingConfig) -> None:
        dimensions, width, places = len(shape), config.channels[0], torch.tensor(shape)
        stages: list[nn.Module] = []
        for number, channels in enumerate(config.channels):
            for block in range(config.blocks):
                stride = STRIDE[dimensions] if number > 0 and block == 0 else 1
                stages.append(ResidualBlock(dimensions, width, channels, stride))
                width, places = channels, -(-places // stride)
        left = int(places.prod())
        if left < FEWEST_PLACES:
            raise InputError(
                f"embedding.channels: the {len(config.channels)} stages leave {left} of the "
                f"{' x '.join(map(str, shape))} places of {config.kind}, {FEWEST_PLACES} are "
                "needed; give fewer channels, or longer series"
            )
        stages += [nn.GroupNorm(8, width), nn.ReLU()]
        if left * width > FEATURES:
            width = max(8, FEATURES // left)
            stages.append(CONVOLUTIONS[dimensions](config.channels[-1], width, 1))
        super().__init__(
            *stages,
            nn.Flatten(),
            nn.Linear(left * width, 2 * config.condition),
            nn.ReLU(),
            nn.Linear(2 * config.condition, config.condition),
        )


class FoldedResNet(nn.Module):
    """A ResNet over each detector's series folded to a square image.

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
                "duration and sample rate so that their product is one, such as 65536, or another "
                "kind"
            )
        first, patch = config.channels[0], config.patch
        self.patches = nn.Conv2d(detectors, first, patch, stride=patch, bias=False)
        self.resnet = ResNet((self.side // patch[0], self.side // patch[1]), config)

    def forward(
        self, strain: Float[Tensor, "event detector time"]
    ) -> Float[Tensor, "event condition"]:
        """Fold, convolve, connect."""
        image = strain.unflatten(-1, (self.side, self.side))
        return self.resnet(self.patches(image))  # type: ignore[no-any-return]


class SeriesResNet(nn.Module):
    """A ResNet over the series, of any length: what does not fill the last step is padded.

    Args:
        detectors: Number of detectors, the series' channels.
        samples: Time samples of an event in each detector.
        config: Widths and depths.

    Raises:
        InputError: The series is too short for so many stages.
    """

    def __init__(self, detectors: int, samples: int, config: EmbeddingConfig) -> None:
        super().__init__()
        stride, steps = config.stride, -(-samples // config.stride)
        self.padding = (stride // 2, steps * stride - samples + stride - stride // 2)
        self.steps = nn.Conv1d(detectors, config.channels[0], 2 * stride, stride, bias=False)
        self.resnet = ResNet((steps,), config)

    def forward(
        self, strain: Float[Tensor, "event detector time"]
    ) -> Float[Tensor, "event condition"]:
        """Convolve, connect."""
        return self.resnet(self.steps(nn.functional.pad(strain, self.padding)))  # type: ignore[no-any-return]


class SpectrogramResNet(nn.Module):
    """A ResNet over short-time spectra of several lengths, each half of the last one on.

    Long spectra tell the frequencies of the inspiral, short ones the time of the merger. Each is
    cut into patches, so that the spectra of all lengths lie on one grid of time and frequency.

    Args:
        detectors: Number of detectors; each gives real and imaginary part, without which the
            delays between them would be lost, and the log of the power.
        samples: Time samples of an event in each detector; a multiple of the longest window.
        config: Widths and depths.

    Raises:
        InputError: The windows do not divide the series.
    """

    def __init__(self, detectors: int, samples: int, config: EmbeddingConfig) -> None:
        super().__init__()
        self.windows, longest = config.windows, max(config.windows)
        if samples % longest:
            raise InputError(
                f"embedding.windows: spectra of {longest} samples do not divide the {samples} of a "
                "series; give windows that do, or another kind"
            )
        rows, columns = self.windows[0] // 4, 2 * samples // longest
        self.patches = nn.ModuleList()
        for window in self.windows:
            patch = (window // 2 // rows, 2 * samples // window // columns)
            self.patches.append(
                nn.Conv2d(3 * detectors, config.channels[0], patch, stride=patch, bias=False)
            )
        self.resnet = ResNet((rows, columns), config)

    def forward(
        self, strain: Float[Tensor, "event detector time"]
    ) -> Float[Tensor, "event condition"]:
        """Transform, convolve, connect."""
        images = [
            patches(spectrogram(strain, window))
            for patches, window in zip(self.patches, self.windows, strict=True)
        ]
        return self.resnet(torch.stack(images).sum(0) / math.sqrt(len(images)))  # type: ignore[no-any-return]


def spectrogram(
    strain: Float[Tensor, "event detector time"], window: int
) -> Float[Tensor, "event channel frequency frame"]:
    """Short-time spectra: real parts, imaginary parts and log power, of unit size for white noise.

    Args:
        strain: Whitened strain [sigma].
        window: Length of each spectrum [samples]; its Hann window begins half of that after the
            last one's. Zero frequency is left out: no detector sees it.
    """
    hann = torch.hann_window(window, device=strain.device)
    spectra = torch.stft(
        strain.float().flatten(0, 1),
        window,
        window // 2,
        window=hann / hann.norm(),
        pad_mode="constant",
        return_complex=True,
    )[:, 1:, :-1].unflatten(0, strain.shape[:2])
    parts = math.sqrt(2) * torch.view_as_real(spectra)
    power = spectra.real.square() + spectra.imag.square()
    return torch.cat([parts[..., 0], parts[..., 1], torch.log1p(power)], 1)


EMBEDDINGS: dict[str, Callable[[int, int, EmbeddingConfig], nn.Module]] = {
    "folded-resnet": FoldedResNet,
    "resnet-1d": SeriesResNet,
    "spectrogram": SpectrogramResNet,
}


def make_embedding(detectors: int, samples: int, config: EmbeddingConfig) -> nn.Module:
    """Make the front end of a configuration.

    Raises:
        InputError: There is none of that name, or it does not take data of this shape.
    """
    if config.kind not in EMBEDDINGS:
        raise InputError(f"embedding.kind: got {config.kind!r}, known are {', '.join(EMBEDDINGS)}")
    return EMBEDDINGS[config.kind](detectors, samples, config)
