"""Noise out of frames: each event takes a stretch of its own, a pure function of (seed, event)."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pipeline.config import FrameNoise, SimulationConfig
from pipeline.frame_file import Span, digest_of
from pipeline.frames import Frames, NotFiniteError, common, merged
from pipeline.noise import load_psds
from pipeline.segment import Cutter, median_psd
from storage.arrays import Array
from storage.errors import InputError

ESTIMATE = "estimate"  # in place of the name of a PSD
INCOMPLETE = "noise_incomplete"  # as which such stretches are counted, beside draws from the prior
MOST_DRAWS = 1000  # for an event, of stretches that hold something that is no number


@dataclass(frozen=True)
class NoiseSource:
    """Stretches of frames, whitened and cut as segments are.

    Attributes:
        noise: Which frames.
        config: The simulation that they serve.
        psd: One-sided PSD of each detector [1/Hz], on the bins of the generated waveform.
    """

    noise: FrameNoise
    config: SimulationConfig
    psd: Float[Array, "detector frequency"]

    def draw(self, event: int) -> tuple[Float[Array, "detector time"], int]:
        """The noise of an event, float32 [sigma], and how many stretches were not whole.

        The start of its stretch is uniform over the time that all channels cover.

        Raises:
            InputError: The files hold no whole stretch, or almost none.
        """
        seed = np.random.SeedSequence(self.config.seed, spawn_key=(event, 2))
        generator = np.random.default_rng(seed)
        for rejected in range(MOST_DRAWS):
            start = self._place(generator.random())
            span = self._cutter.span(start)
            try:
                stretches = [self._frames.read(name, span)[0] for name in self.noise.channels]
            except NotFiniteError:
                continue
            return self._cutter.segment(stretches, start, generator), rejected
        raise InputError(
            f"noise.frames: event {event} found no stretch of numbers alone in {MOST_DRAWS} draws; "
            "give other frames"
        )

    def _place(self, uniform: float) -> float:
        """The start of a segment [GPS s], of a number between 0 and 1."""
        room, starts = self._room
        place = uniform * float(room.sum())
        row = min(int(np.searchsorted(np.cumsum(room), place, "right")), len(room) - 1)
        return float(starts[row] + place - room[:row].sum()) + self.noise.margin

    @cached_property
    def _room(self) -> tuple[Float[Array, "span"], Float[Array, "span"]]:
        """By how much a stretch can move in each span that is long enough, and their starts [s]."""
        whole = self._cutter.span(0.0)
        needed = whole.stop - whole.start
        spans = [
            span for span in good_time(self._frames, self.noise) if span.stop - span.start >= needed
        ]
        if not spans:
            raise InputError(
                f"noise.frames: nowhere do all channels cover the {needed:g} s that an event needs "
                "(its duration and a margin on both sides); give longer frames"
            )
        room = np.array([span.stop - span.start - needed for span in spans])
        return np.maximum(room, 1e-9), np.array([span.start for span in spans])

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self.config, self.psd, self.noise.margin, self.noise.fill)

    @cached_property
    def _frames(self) -> Frames:
        return Frames.find(self.noise.frames)


def good_time(frames: Frames, noise: FrameNoise) -> list[Span]:
    """When all channels are there, whether they hold numbers or not."""
    return common([merged(frames.pieces(channel)) for channel in noise.channels])


def psds_of(config: SimulationConfig, names: list[str]) -> Float[Array, "detector frequency"]:
    """The PSD of each detector, as the configuration names it, or of the frames."""
    noise = config.noise
    if not isinstance(noise, FrameNoise):
        return load_psds(config, names)
    if len(noise.channels) != len(names):
        raise InputError(
            f"noise.channels: got {len(noise.channels)}, the detectors are {', '.join(names)}; "
            "name one channel for each, in this order"
        )
    if config.psd.file is None and config.psd.name == ESTIMATE:
        return frames_psd(config, noise)
    return load_psds(config, names)


def frames_psd(config: SimulationConfig, noise: FrameNoise) -> Float[Array, "detector frequency"]:
    """The PSD of each detector [1/Hz], estimated of the frames' first data.

    Raises:
        InputError: They hold too little.
    """
    frames = Frames.find(noise.frames)
    spans, left = [], noise.psd_duration
    for span in good_time(frames, noise):
        spans.append(Span(span.start, min(span.stop, span.start + left)))
        left -= spans[-1].stop - spans[-1].start
        if left <= 0:
            break
    return np.array(
        [median_psd(frames, name, spans, config, noise.psd_segment).psd for name in noise.channels]
    )


def with_whole_paths(config: SimulationConfig) -> SimulationConfig:
    """Name frames so that workers in other folders find them."""
    if not isinstance(config.noise, FrameNoise):
        return config
    whole = tuple(str(Path(name).expanduser().absolute()) for name in config.noise.frames)
    return replace(config, noise=replace(config.noise, frames=whole))


def frames_facts(noise: FrameNoise) -> dict[str, dict[str, str]]:
    """What a data set records of the frames: which they are, to the last bit.

    Raises:
        InputError: Two of them have one name.
    """
    paths = [path for path, _ in Frames.find(noise.frames).files]
    if len({path.name for path in paths}) < len(paths):
        raise InputError("noise.frames: two of the files have the same name; rename one")
    return {"files": {path.name: digest_of(path) for path in paths}}
