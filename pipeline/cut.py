"""Segments of real data as a data set: cut out of frames, whitened as simulated events are."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from pipeline.config import PsdConfig, simulation_to_dict, without_paths
from pipeline.description import parameter_columns
from pipeline.distributions import Distribution
from pipeline.event_prior import has_window, recorded, recorded_share, share_of_dataset
from pipeline.frame_file import digest_of
from pipeline.frame_noise import ESTIMATE
from pipeline.frames import Frames
from pipeline.moments import Moment, moments_of
from pipeline.noise import load_psds, optimal_snr
from pipeline.prior_text import describe
from pipeline.priors import PARAMETERS
from pipeline.provenance import library_versions, simulator_of_dataset
from pipeline.run import RunReport, refuse_a_file
from pipeline.runlog import RunLog
from pipeline.segment import Cutter, PsdEstimate, estimate_psd
from pipeline.shard_task import checks_of, reported
from pipeline.simulate import Simulator
from pipeline.waveform import WaveformError
from storage.arrays import Array
from storage.dataset import create_dataset, read_schema
from storage.encodings import certified, encoding_named
from storage.errors import DamagedDataError, InputError
from storage.manifest import finished_shards, has_finished_shards, manifest_path
from storage.progress import progress_bar
from storage.schema import GROUP_METADATA, Event, Schema
from storage.urls import Store, store_of
from storage.verify import verify_shard
from storage.writer import write_shard

PER_SHARD = 64


@dataclass(frozen=True, kw_only=True)
class CutConfig:
    """What is cut out of which frames.

    Args:
        frames: GWF or HDF5 files, globs in quotes, or LAL caches (.lcf).
        channels: One for each detector of the data set that is given by --like, in its order.
        gps: Times of coalescence [GPS s]; those of the injections where none is given.
        injections: File of the true parameters by bilby's names, CSV or JSON, where they are known.
        psd: estimate: from the data around the segments; or the name or the file of one; that of
            the data set given by --like where none is given.
        psd_quantity: What the second column of a PSD's file is: asd [1/sqrt(Hz)] or psd [1/Hz].
        psd_duration: Length of the data around a segment of which the PSD is estimated [s].
        psd_segment: Length of one periodogram of the estimate [s].
        margin: What is read before and after a segment, half of it softened [s].
        fill: Whether noise is drawn into what the taper of f_lower to 1.2 f_lower takes.
        encoding: How strain is stored, as for simulate.
        max_snr_loss: The largest share of its SNR that any event may lose by being stored.
        seed: Of the noise that is drawn.
    """

    frames: tuple[str, ...]
    channels: tuple[str, ...]
    gps: tuple[float, ...] = ()
    injections: str | None = None
    psd: str | None = None
    psd_quantity: Literal["asd", "psd"] = "asd"
    psd_duration: float = 256.0
    psd_segment: float = 4.0
    margin: float = 8.0
    fill: bool = True
    encoding: str = "float32+blosc"
    max_snr_loss: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        certified(encoding_named(self.encoding), self.max_snr_loss)
        if not 0.1 <= self.psd_segment <= self.psd_duration / 4 < 1e6:
            raise InputError(
                f"psd_segment: got {self.psd_segment:g} s of psd_duration {self.psd_duration:g} s, "
                "0.1 s to a quarter of it are possible"
            )
        if not 0 <= self.seed < 2**128:
            raise InputError(f"seed: got {self.seed}, must not be negative, and below 2^128")


def cut_dataset(config: CutConfig, like: str | Path | Store, out: str | Path | Store) -> RunReport:
    """Cut events out of frames and write them as a data set, or what is missing of it.

    Args:
        config: What, and out of which frames.
        like: The data set whose configuration the events are to fit, such as the one that a network
            was trained on; its metadata and its PSD are read, and the manifests that are there.
        out: The new data set.

    Raises:
        InputError: The frames do not hold what is asked for, or the place holds something else.
        DamagedDataError: A file of the frames cannot be read.
    """
    target = store_of(out)
    refuse_a_file(target)
    task = _Task.of(config, like)
    if has_finished_shards(target):  # --like may have grown, or lost its manifests, meanwhile
        with suppress(InputError, DamagedDataError):  # of metadata that are written again below
            task = replace(task, share=recorded_share(read_schema(target)))
    schema = task.schema()
    with target.only_writer():
        create_dataset(target, schema, task.simulator.psd)
        target.remove_partial_files()
        task.warn_of_few_periodograms()
        return _complete(target, schema, task)


def _refuse_exchanged(channels: Sequence[str], detectors: Sequence[str]) -> None:
    """Refuse channels that say themselves that they are another detector's.

    Raises:
        InputError: One stands twice, or begins with the name of another of the detectors.
    """
    for channel, detector in zip(channels, detectors, strict=True):
        if channels.count(channel) > 1:
            raise InputError(f"channels: {channel} stands twice; name one for each detector")
        prefix = channel.partition(":")[0]
        if prefix != detector and prefix in detectors:
            raise InputError(
                f"channels: {channel} stands where {detector}'s belongs; name them in the order "
                f"of the detectors, {', '.join(detectors)}"
            )


@dataclass(frozen=True)
class _Task:
    """All that is looked up before the first event is cut.

    Attributes:
        config: What is asked for.
        simulator: Of the simulated events that these are like, with the PSD that these have.
        frames: The files.
        moments: When the events are.
        estimates: Of the PSD of each detector, where it is estimated.
        share: Of the draws from the prior that are accepted, and its relative error; None where
            that is not known.
    """

    config: CutConfig
    simulator: Simulator
    frames: Frames
    moments: tuple[Moment, ...]
    estimates: tuple[PsdEstimate, ...] = ()
    share: tuple[float, float] | None = None

    @classmethod
    def of(cls, config: CutConfig, like: str | Path | Store) -> "_Task":
        """Look it up."""
        trained = simulator_like(like)
        if len(config.channels) != len(trained.detectors):
            names = ", ".join(detector.name for detector in trained.detectors)
            raise InputError(
                f"channels: got {len(config.channels)}, the detectors of {like} are {names}; name "
                "one channel for each, in this order"
            )
        _refuse_exchanged(config.channels, [detector.name for detector in trained.detectors])
        frames = Frames.find(config.frames)
        moments = moments_of(config.gps, config.injections, trained.config)
        task = cls(config, trained, frames, moments)
        if config.psd == ESTIMATE:
            task = replace(task, estimates=task._estimates())
        psd = task._psd()
        # The window is one of SNRs, so that by another PSD another share lies in it.
        known = np.array_equal(psd, trained.psd) or not has_window(trained.config)
        share = share_of_dataset(like, trained.config) if known else None
        return replace(task, simulator=replace(trained, psd=psd), share=share)

    @property
    def cutter(self) -> Cutter:
        """What whitens and cuts."""
        simulator = self.simulator
        return Cutter(simulator.config, simulator.psd, self.config.margin, self.config.fill)

    def schema(self) -> Schema:
        """What the data set is."""
        config, physics = self.config, self.simulator.config
        priors, segment = physics.prior.distributions(), physics.segment
        return Schema(
            events=len(self.moments),
            events_per_shard=min(PER_SHARD, len(self.moments)),
            detectors=tuple(detector.name for detector in self.simulator.detectors),
            samples=segment.samples,
            sample_rate=segment.sample_rate,
            encoding=certified(encoding_named(config.encoding), config.max_snr_loss),
            noisy=True,
            parameters=parameter_columns(priors),
            frequencies=self.simulator.psd.shape[1],
            frequency_step=1 / segment.generation_duration,
            provenance={
                "configuration": simulation_to_dict(without_paths(physics)),
                "seed": config.seed,
                "start_time": segment.start_time,
                "band": [physics.waveform.f_lower, segment.sample_rate / 2],
                "detectors": [detector.to_dict() for detector in self.simulator.detectors],
                "versions": library_versions(),
                "frames": self._facts(priors["geocent_time"]),
            },
        )

    def events(self, numbers: range) -> Iterator[Event]:
        """Cut some events out."""
        cutter = self.cutter
        for number in numbers:
            moment = self.moments[number]
            span = cutter.span(moment.start)
            stretches = [self.frames.read(name, span)[0] for name in self.config.channels]
            seed = np.random.SeedSequence(self.config.seed, spawn_key=(number, 1))
            strain = cutter.segment(stretches, moment.start, np.random.default_rng(seed))
            yield Event(number, strain, moment.parameters(), self._snr(moment), {})

    def warn_of_few_periodograms(self) -> None:
        """Say on standard error that the frames held less than a PSD was to be estimated of."""
        named = zip(self.config.channels, self.estimates, strict=False)
        few = [(name, item) for name, item in named if item.periodograms < item.wanted]
        if few:
            name, worst = min(few, key=lambda pair: pair[1].periodograms)
            print(
                f"strainflow cut: psd: the frames hold {worst.periodograms} periodograms of {name} "
                f"({worst.seconds:.10g} s), {worst.wanted} were asked for by --psd_duration "
                f"{self.config.psd_duration:g}: the estimate scatters more",
                file=sys.stderr,
            )

    def _facts(self, times: Distribution) -> dict[str, Any]:
        """Where the data come from."""
        config, cutter = self.config, self.cutter
        files: set[Path] = set()
        for moment in self.moments:
            for channel in config.channels:
                span = cutter.span(moment.start)
                files.update(piece.path for piece in self.frames.covering(channel, span))
        return {
            "channels": list(config.channels),
            "files": {path.name: digest_of(path) for path in sorted(files)},
            "psd": self._psd_in_words(),
            "margin": config.margin,
            "fill": config.fill,
            **recorded(self.share),
            "events": [
                {**moment.to_dict(), "geocent_time": describe(shifted(times, moment.time_shift))}
                for moment in self.moments
            ],
        }

    def _psd_in_words(self) -> str:
        config = self.config
        if config.psd is None:
            return "of the data set that these are like"
        if config.psd == ESTIMATE:
            counts = dict.fromkeys((item.periodograms, item.seconds) for item in self.estimates)
            taken = " or ".join(f"{count} in {seconds:.10g} s" for count, seconds in counts)
            where = "segment" if len(self.moments) == 1 else "segments"
            return f"median of periodograms of {config.psd_segment:g} s around the {where}, {taken}"
        return Path(config.psd).name

    def _estimates(self) -> tuple[PsdEstimate, ...]:
        config, cutter = self.config, self.cutter
        spans = [cutter.span(moment.start) for moment in self.moments]
        lengths = config.psd_duration, config.psd_segment
        return tuple(
            estimate_psd(self.frames, name, spans, self.simulator.config, *lengths)
            for name in config.channels
        )

    def _psd(self) -> Float[Array, "detector frequency"]:
        """One-sided PSD of each detector [1/Hz], on the bins of the generated waveform."""
        config, physics = self.config, self.simulator.config
        if config.psd is None:
            return self.simulator.psd
        if config.psd == ESTIMATE:
            return np.array([item.psd for item in self.estimates])
        file = config.psd if Path(config.psd).is_file() else None
        named = PsdConfig(name=config.psd, file=file, quantity=config.psd_quantity)
        names = [detector.name for detector in self.simulator.detectors]
        return load_psds(replace(physics, psd=named, psd_of={}), names)

    def _snr(self, moment: Moment) -> Float[Array, "detector"]:
        """Optimal SNR in each detector; NaN where the parameters are not all known."""
        if set(PARAMETERS) <= moment.truth.keys():
            with suppress(WaveformError):
                return optimal_snr(self.simulator.signal(moment.truth))
        return np.full(len(self.simulator.detectors), np.nan)


def simulator_like(like: str | Path | Store) -> Simulator:
    """The simulator of a data set's events, for data of detectors: with noise.

    Raises:
        InputError: There is no data set of ours, or it does not say how it was simulated.
    """
    simulator, _ = simulator_of_dataset(store_of(like).address)
    if simulator.config.noise != "none":
        return simulator
    config = replace(simulator.config, noise="gaussian", stored="strain")
    return replace(simulator, config=config)


def shifted(times: Distribution, by: float) -> Distribution:
    """A distribution of times of coalescence, later."""
    fields = [name for name in ("minimum", "maximum", "mu", "peak") if name in vars(times)]
    return replace(times, **{name: vars(times)[name] + by for name in fields})  # type: ignore[type-var]  # dataclasses all


def _complete(store: Store, schema: Schema, task: _Task) -> RunReport:
    """Cut the shards that are missing or damaged."""
    group = store.read(GROUP_METADATA)
    report = RunReport(store.url, schema.events)
    missing = set(range(schema.shards))
    for shard in finished_shards(store, schema):
        if verify_shard(store, group, shard).findings:
            store.remove(manifest_path(shard))
        else:
            missing.remove(shard)
    log, start = RunLog(store.beside), time.perf_counter()
    done = schema.events - sum(len(schema.events_of(shard)) for shard in missing)
    with progress_bar(schema.events, "event", done) as bar:
        for shard in sorted(missing):
            with reported() as finished:
                events = task.events(schema.events_of(shard))
                checks = partial(checks_of, store.address, shard)
                made = finished(write_shard(store, schema, shard, events, checks))
            report.add(made)
            log.add(made)
            bar.update(made.events)
    report.seconds, report.workers = time.perf_counter() - start, 1
    store.remove_partial_files()
    return report
