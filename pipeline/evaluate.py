"""Likelihoods of some samples of a stored event: what a worker does for `reweight`."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int64

from pipeline.likelihood import Likelihood, SegmentNoise, Waves
from pipeline.memory import keep_freed_memory
from pipeline.noise import optimal_snr
from pipeline.phase import curve_of, draw_phase, harmonics_of
from pipeline.provenance import simulator_of_dataset
from pipeline.simulate import Simulator
from pipeline.waveform import WaveformError
from storage.arrays import Array, as_bytes
from storage.manifest_proof import proved_manifest
from storage.schema import GROUP_METADATA, Schema, shard_files
from storage.shard_reader import ShardReader
from storage.urls import store_of


@dataclass(frozen=True)
class Samples:
    """Some samples of an event, the task of a worker.

    Attributes:
        url: The data set.
        identity: Digest of its metadata.
        event: Number of the event.
        rows: Which of the event's samples these are.
        names: The sampled parameters.
        values: In bilby's units.
        fixed: All others, but for the phase where it is free and was not sampled.
        uniform: For each sample a number from 0 to 1, to draw that phase by; None where there is
            none to be drawn.
    """

    url: str
    identity: str
    event: int
    rows: Int64[Array, "sample"]
    names: tuple[str, ...]
    values: Float[Array, "sample parameter"]
    fixed: Mapping[str, float]
    uniform: Float[Array, "sample"] | None

    def sources(self) -> Iterator[dict[str, float]]:
        """The parameters of each sample, those that are fixed included."""
        for row in self.values.tolist():
            yield {**self.fixed, **dict(zip(self.names, row, strict=True))}


@dataclass(frozen=True)
class Found:
    """What the likelihood says of one sample.

    Attributes:
        log_likelihood: Log likelihood ratio of signal to noise, at the drawn phase where the phase
            was free; -inf where there is no waveform.
        allowed: Whether the network SNR lies in the data set's window.
        phase: Drawn from its posterior at the other parameters [rad].
        log_phase: Log of that posterior's density there.
        phase_error: By how much the sum of harmonics missed a signal [sigma].
    """

    log_likelihood: float
    allowed: bool
    phase: float = 0.0
    log_phase: float = 0.0
    phase_error: float = 0.0


@dataclass(frozen=True)
class Evaluated:
    """What a worker gives back.

    Attributes:
        event: Number of the event.
        rows: Of its samples.
        found: For each of them.
        log_noise_evidence: Of the event.
        core_seconds: CPU time that it took [s].
    """

    event: int
    rows: Int64[Array, "sample"]
    found: tuple[Found, ...]
    log_noise_evidence: float
    core_seconds: float


def evaluate(samples: Samples) -> Evaluated:
    """Compute the likelihood of each sample.

    Raises:
        DamagedDataError: The event is damaged.
    """
    keep_freed_memory()
    start = time.process_time()
    simulator, _ = _dataset(samples.url, samples.identity)
    likelihood = _likelihood(samples.url, samples.identity, samples.event)
    found = tuple(likelihoods(simulator, likelihood, samples))
    return Evaluated(
        event=samples.event,
        rows=samples.rows,
        found=found,
        log_noise_evidence=likelihood.log_noise_evidence,
        core_seconds=time.process_time() - start,
    )


def likelihoods(simulator: Simulator, likelihood: Likelihood, samples: Samples) -> Iterator[Found]:
    """The same, of an event that is at hand."""
    waves = Waves(simulator)
    numbers = [None] * len(samples.values) if samples.uniform is None else samples.uniform
    for source, uniform in zip(samples.sources(), numbers, strict=True):
        try:
            if uniform is None:
                yield _at_its_phase(simulator, likelihood, waves, source)
            else:
                yield _at_a_drawn_phase(simulator, likelihood, waves, source, float(uniform))
        except WaveformError:
            yield _nothing(uniform)


def _at_its_phase(
    simulator: Simulator, likelihood: Likelihood, waves: Waves, source: Mapping[str, float]
) -> Found:
    signal = simulator.signal_of(waves.of(source), source)
    allowed = simulator.accepts(float(np.linalg.norm(optimal_snr(signal))))
    return Found(likelihood.log_ratio(signal), allowed)


def _at_a_drawn_phase(
    simulator: Simulator,
    likelihood: Likelihood,
    waves: Waves,
    source: Mapping[str, float],
    uniform: float,
) -> Found:
    at_zero = simulator.signal_of(waves.of({**source, "phase": 0.0}), source)
    snr = float(np.linalg.norm(optimal_snr(at_zero)))
    harmonics = harmonics_of(waves, source, snr)
    curve = curve_of(simulator, likelihood, harmonics, source)
    drawn = draw_phase(curve, simulator.config.network_snr, uniform)
    if drawn is None:
        return _nothing(uniform)
    error = harmonics.error * snr
    return Found(drawn.log_likelihood, True, drawn.phase, drawn.log_density, error)


def _nothing(uniform: float | None) -> Found:
    """Where there is no signal, the phase is drawn from its prior."""
    if uniform is None:
        return Found(-np.inf, False)
    return Found(-np.inf, False, 2 * np.pi * float(uniform), -float(np.log(2 * np.pi)))


@lru_cache(maxsize=1)
def _dataset(url: str, identity: str) -> tuple[Simulator, Schema]:
    """Simulator and schema, once a worker and content of the metadata."""
    return simulator_of_dataset(url)


@lru_cache(maxsize=2)
def _likelihood(url: str, identity: str, event: int) -> Likelihood:
    """That of a stored event, its strain proved by its checksum."""
    simulator, schema = _dataset(url, identity)
    noise = SegmentNoise.of(simulator.config, schema)
    return Likelihood.of(noise, read_strain(url, schema, event))


def read_strain(url: str, schema: Schema, event: int) -> Float[Array, "detector time"]:
    """Read an event's whitened strain [sigma].

    Raises:
        DamagedDataError: It is damaged or missing.
    """
    store, (shard, row) = store_of(url), divmod(event, schema.events_per_shard)
    manifest = proved_manifest(store, store.read(GROUP_METADATA), shard)
    reader = ShardReader(
        store,
        shard_files(shard)["strain"],
        schema.events_per_shard,
        schema.encoding,
        manifest.crc32c,
        schema.events_of(shard).start,
    )
    codes = np.empty(schema.strain_shape, schema.encoding.dtype)
    try:
        reader.read(row, [as_bytes(codes)])
    finally:
        reader.close()
    return schema.encoding.decode(codes)
