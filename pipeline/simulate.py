"""One event, from its number to its whitened strain: a pure function of configuration and number.

prior -> waveform -> detectors -> whitening (-> noise). Everything random about event i comes from
generators of its own: the source from Philox with the key (seed, i), the noise from SFC64, whose
bits cost half, with (seed, i, 1). So events can be made anywhere, in any order.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice

import numpy as np
from jaxtyping import Complex, Float

from pipeline.config import (
    FrameNoise,
    PhenomXConfig,
    SegmentConfig,
    SimulationConfig,
    WaveformConfig,
)
from pipeline.detector import Detector, SkyPosition, project
from pipeline.distributions import Distribution
from pipeline.frame_noise import INCOMPLETE, NoiseSource, psds_of
from pipeline.network import detectors_of
from pipeline.noise import Whitening, optimal_snr
from pipeline.polarisations import (
    EXTRINSIC,
    PolarisationSeries,
    require_most_sensitive_first,
    require_projectable,
)
from pipeline.priors import PARAMETERS
from pipeline.waveform import (
    PHASE_IS_A_FACTOR,
    Polarisations,
    WaveformError,
    approximant_number,
    polarisations,
)
from pipeline.wraparound import require_room
from storage.arrays import Array
from storage.errors import InputError
from storage.schema import Event

# A recipe that accepts one draw in a hundred still finishes a million events: all of so many are
# rejected with a probability of 1e-9.
MOST_DRAWS = 2000
# A model that fails for as many has more against it than a corner of the prior.
MOST_TRIALS = 50

# In a row, outside the prior's constraints. No waveform is made for them: all cost about 8 s.
MOST_OUTSIDE = 100_000

EVENTS_TOGETHER = 16


@dataclass(frozen=True)
class _Draw:
    """A source that was accepted, and the draws thrown away before it."""

    parameters: dict[str, float]
    waves: Polarisations
    signal: Float[Array, "detector time"]
    snr: Float[Array, "detector"]
    rejected: Counter[str]


@dataclass(frozen=True)
class Simulator:
    """All that does not change from event to event.

    Attributes:
        config: The physics.
        detectors: Geometry, in the order of the strain's first axis.
        psd: One-sided PSD of each detector [1/Hz], on the bins of the generated waveform.
    """

    config: SimulationConfig
    detectors: tuple[Detector, ...]
    psd: Float[Array, "detector frequency"]

    @classmethod
    def from_config(cls, config: SimulationConfig) -> "Simulator":
        """Look up what the configuration names.

        Raises:
            InputError: A detector, PSD or waveform model is not known or does not fit.
        """
        approximant_number(config.waveform.approximant)
        require_projectable(config)
        detectors = detectors_of(config.detectors)
        simulator = cls(config, detectors, psds_of(config, [item.name for item in detectors]))
        if config.stored == "polarisations":
            require_most_sensitive_first(simulator.psd)
        require_room(config)
        simulator.try_waveform()
        return simulator

    def over(self, segment: SegmentConfig) -> "Simulator":
        """The same physics over another stretch, whether signals fit into it or not."""
        config = replace(self.config, segment=segment)
        psd = psds_of(config, [item.name for item in self.detectors])
        return Simulator(config, self.detectors, psd)

    def try_waveform(self) -> None:
        """See whether the model gives any signal at all, before many workers find that it does not.

        Raises:
            InputError: It gives none of `MOST_TRIALS` draws.
        """
        waveform = self.config.waveform
        reason = self._why_no_waveform(waveform)
        if reason is None:
            return
        if waveform.phenomx.given():
            plain = replace(waveform, phenomx=PhenomXConfig())
            if self._why_no_waveform(plain) is None:
                settings = ", ".join(f"{k} {v}" for k, v in waveform.phenomx.given().items())
                raise InputError(
                    f"waveform.phenomx: {waveform.approximant} refuses {settings} ({reason}); "
                    "give a value that LALSimulation knows, or none"
                )
        raise InputError(
            f"waveform.approximant: {waveform.approximant} gives no signal for any of "
            f"{MOST_TRIALS} draws from the prior ({reason}); take another model, or a prior within "
            "its range: one without precession needs tilts of 0"
        )

    def _why_no_waveform(self, waveform: WaveformConfig) -> str | None:
        """LAL's reason why none of the first draws has a signal, None where one has."""
        generator = np.random.default_rng(0)
        reason = None
        for _ in range(MOST_TRIALS):
            parameters = self.draw_allowed(0, generator, Counter())
            try:
                polarisations(parameters, waveform, self.config.segment)
            except WaveformError as error:
                reason = str(error)
            else:
                return None
        return reason

    @cached_property
    def whitening(self) -> Whitening:
        """The whitening of this configuration."""
        return Whitening(self.psd, self.config.segment, self.config.waveform.f_lower)

    @cached_property
    def noise_source(self) -> NoiseSource | None:
        """Where the noise comes from, if from frames."""
        noise = self.config.noise
        return NoiseSource(noise, self.config, self.psd) if isinstance(noise, FrameNoise) else None

    def event(self, number: int) -> Event:
        """Simulate one event.

        Raises:
            InputError: No draw out of `MOST_DRAWS` was accepted, or none was inside the
                constraints.
        """
        return next(self.events([number]))

    def events(self, numbers: Iterable[int]) -> Iterator[Event]:
        """Simulate events, each the same as by itself, in order.

        A few are in work at a time, and each step is done for all of them before the next: what a
        step needs (LAL's tables, FFTW's) stays in the processor's cache, which saves a twentieth of
        the time. Where events share a waveform they are made one after the other.

        Raises:
            InputError: As for `event`.
        """
        together = 1 if self.config.extrinsic_draws_per_waveform > 1 else EVENTS_TOGETHER
        waiting = iter(numbers)
        while batch := list(islice(waiting, together)):
            made: dict[int, Event] = {}
            running = {number: self._steps(number) for number in batch}
            while running:
                for number, steps in list(running.items()):
                    try:
                        next(steps)
                    except StopIteration as end:
                        made[number] = end.value
                        del running[number]
            yield from (made[number] for number in batch)

    def _steps(self, number: int) -> Generator[None, None, Event]:
        """Simulate one event; yields between the steps, for other events to come in."""
        draw = yield from self._first_accepted(number)
        strain = draw.signal
        if self.config.stored == "polarisations":
            strain = self.series.of(draw.waves, draw.parameters["luminosity_distance"])
        yield
        if self.config.noise == "gaussian":
            seed = np.random.SeedSequence(self.config.seed, spawn_key=(number, 1))
            self.whitening.add_noise(strain, np.random.Generator(np.random.SFC64(seed)))
        elif self.noise_source is not None:
            noise, incomplete = self.noise_source.draw(number)
            strain += noise
            if incomplete:
                draw.rejected[INCOMPLETE] += incomplete
        parameters = np.array(list(draw.parameters.values()))
        return Event(number, strain, parameters, draw.snr, draw.rejected)

    def _first_accepted(self, number: int) -> Generator[None, None, "_Draw"]:
        """Draw sources for an event until one is accepted.

        Where a waveform serves several events, the first event of a group draws everything, and the
        others all but what the waveform holds. An accepted waveform comes with the probability that
        the window gives it, and the rest is drawn from what the window leaves for that waveform: so
        each event by itself is distributed as if it had drawn everything.
        """
        seed = np.random.SeedSequence(self.config.seed, spawn_key=(number,))
        generator = np.random.Generator(np.random.Philox(seed))
        leader = number - number % self.config.extrinsic_draws_per_waveform
        shared = None if number == leader else self._waves_of_leader(leader)
        rejected, snrs = Counter[str](), []
        for _ in range(MOST_DRAWS):
            if shared is None:
                parameters = self.draw_allowed(number, generator, rejected)
                try:
                    waves = self.waves(parameters)
                except WaveformError:
                    rejected["waveform_failed"] += 1
                    continue
                yield
            else:
                parameters, waves = self._reuse(*shared, self.draw_parameters(generator))
            signal = self.signal_of(waves, parameters)
            snr = optimal_snr(signal)
            snrs.append(float(np.linalg.norm(snr)))
            reason = self._refusal(snrs[-1])
            if reason is None:
                if number == leader:
                    self._shared.clear()
                    self._shared[leader] = (parameters, waves)
                return _Draw(parameters, waves, signal, snr, rejected)
            rejected[reason] += 1
        raise InputError(self._advice(number, rejected, snrs))

    def _waves_of_leader(self, leader: int) -> tuple[dict[str, float], Polarisations]:
        """Parameters and waveform of the first event of a group, the last one at hand."""
        if leader not in self._shared:
            for _ in self._first_accepted(leader):
                pass
        return self._shared[leader]

    def _reuse(
        self, drawn: Mapping[str, float], waves: Polarisations, own: Mapping[str, float]
    ) -> tuple[dict[str, float], Polarisations]:
        """Give a waveform the distance, sky, time, and where the model allows phase, of a draw."""
        names: tuple[str, ...] = EXTRINSIC
        turn = 1.0 + 0j
        if self.config.waveform.approximant in PHASE_IS_A_FACTOR:
            names = (*EXTRINSIC, "phase")
            turn = np.exp(2j * (own["phase"] - drawn["phase"]))
        factor = turn * drawn["luminosity_distance"] / own["luminosity_distance"]
        parameters = {**drawn, **{name: own[name] for name in names}}
        return parameters, Polarisations(waves.plus * factor, waves.cross * factor, waves.first_bin)

    def _advice(self, number: int, rejected: Counter[str], snrs: list[float]) -> str:
        """Say why an event found no source, and what to change."""
        counts = ", ".join(f"{reason} {count}" for reason, count in rejected.items())
        message = (
            f"event {number}: none of {MOST_DRAWS} draws from the prior was accepted ({counts})"
        )
        if not snrs:
            return f"{message}; take another waveform.approximant, or a prior within its range"
        window = self.config.network_snr
        return (
            f"{message}; their network SNRs are {min(snrs):.3g} to {max(snrs):.3g}, half of them "
            f"below {np.median(snrs):.3g}, network_snr asks for {window.minimum:g} to "
            f"{window.maximum:g}: widen it, or change prior.luminosity_distance"
        )

    def draw_parameters(self, generator: np.random.Generator) -> dict[str, float]:
        """Draw source parameters from the prior, by bilby's names, whatever its constraints.

        A fixed parameter uses up a random number too: fixing one leaves the others as they were.
        """
        uniform = generator.random(len(PARAMETERS))
        return {
            name: float(prior.rescale(number))
            for (name, prior), number in zip(self._priors.items(), uniform, strict=True)
        }

    def draw_allowed(
        self, number: int, generator: np.random.Generator, rejected: Counter[str]
    ) -> dict[str, float]:
        """Draw until the prior's constraints are met; count the draws that do not meet them."""
        for _ in range(MOST_OUTSIDE):
            parameters = self.draw_parameters(generator)
            if self.config.prior.allows(parameters):
                return parameters
            rejected["outside_constraint"] += 1
        raise InputError(
            f"event {number}: none of {MOST_OUTSIDE} draws in a row lies inside prior.constraints "
            f"({', '.join(self.config.prior.constraints)}); widen them, or narrow prior.chirp_mass "
            "and prior.mass_ratio to what they allow"
        )

    def waves(self, parameters: Mapping[str, float]) -> Polarisations:
        """The polarisations of a source.

        Raises:
            WaveformError: The model does not exist for it.
        """
        return polarisations(parameters, self.config.waveform, self.config.segment)

    def strain(
        self, parameters: Mapping[str, float]
    ) -> tuple[Complex[Array, "detector frequency"], int]:
        """Strain at each detector [1/Hz] before whitening, and the number of its first bin."""
        waves = self.waves(parameters)
        return np.array(list(self._project(waves, parameters))), waves.first_bin

    def signal(self, parameters: Mapping[str, float]) -> Float[Array, "detector time"]:
        """The whitened signal in the segment, without noise, float32 [sigma]."""
        return self.signal_of(self.waves(parameters), parameters)

    def signal_of(
        self, waves: Polarisations, parameters: Mapping[str, float]
    ) -> Float[Array, "detector time"]:
        """The same, of polarisations that are there; linear in them."""
        strain = self._project(waves, parameters)
        whitened = self.whitening.whiten_each(strain, waves.first_bin)
        return self.whitening.to_segment(whitened, waves.first_bin)

    def _project(
        self, waves: Polarisations, parameters: Mapping[str, float]
    ) -> Iterator[Complex[Array, "frequency"]]:
        source = SkyPosition(*(parameters[name] for name in ("ra", "dec", "psi", "geocent_time")))
        segment = self.config.segment
        return project(
            waves.plus,
            waves.cross,
            waves.first_bin,
            1 / segment.generation_duration,
            source,
            self.detectors,
            segment.generation_start,
        )

    def accepts(self, network_snr: float) -> bool:
        """Whether a network SNR lies in the configuration's window."""
        return self._refusal(network_snr) is None

    @cached_property
    def _shared(self) -> dict[int, tuple[dict[str, float], Polarisations]]:
        """The waveform that the events of the last group share, by the number of its first."""
        return {}

    @cached_property
    def series(self) -> PolarisationSeries:
        """What is stored of sources in place of their strain."""
        return PolarisationSeries.from_config(self.config, self.psd)

    @cached_property
    def _priors(self) -> dict[str, Distribution]:
        return self.config.prior.distributions()

    def _refusal(self, network_snr: float) -> str | None:
        window = self.config.network_snr
        if network_snr < window.minimum:
            return "snr_below_minimum"
        return "snr_above_maximum" if network_snr > window.maximum else None


@lru_cache(maxsize=4)
def simulator_of(config: SimulationConfig) -> Simulator:
    """The simulator of a configuration, made once."""
    return Simulator.from_config(config)


def simulate_event(config: SimulationConfig, event: int) -> Event:
    """Simulate one event: a pure function of configuration and number.

    Args:
        config: The physics; a `DatasetConfig` serves too.
        event: Number of the event.

    Raises:
        InputError: The configuration names something unknown, or accepts almost no draws.
    """
    return simulator_of(config).event(event)
