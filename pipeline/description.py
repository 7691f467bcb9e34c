"""What the data set of a configuration is: its schema, before the first event is simulated.

Storage knows no physics, so that all it is to record is said here in its own terms: the columns
with their priors, the encoding, and the provenance from which events can be simulated again.
"""

from collections.abc import Mapping

import numpy as np

from pipeline.config import (
    DatasetConfig,
    FrameNoise,
    simulation_to_dict,
    without_paths,
)
from pipeline.distributions import Distribution
from pipeline.frame_noise import frames_facts, with_whole_paths
from pipeline.polarisations import as_polarisations
from pipeline.prior_text import describe
from pipeline.priors import PARAMETERS
from pipeline.promise import encoding_of
from pipeline.provenance import library_versions
from pipeline.simulate import Simulator
from storage.schema import Parameter, Schema


def describe_dataset(config: DatasetConfig, simulator: Simulator) -> Schema:
    """What the data set of a configuration is."""
    segment, physics = config.segment, with_whole_paths(config.simulation)
    noise = physics.noise
    frames = {"noise_frames": frames_facts(noise)} if isinstance(noise, FrameNoise) else {}
    schema = Schema(
        events=config.events,
        events_per_shard=min(config.events_per_shard, config.events),
        detectors=tuple(detector.name for detector in simulator.detectors),
        samples=segment.samples,
        sample_rate=segment.sample_rate,
        encoding=encoding_of(config, simulator),
        noisy=config.noise != "none",
        parameters=parameter_columns(config.prior.distributions()),
        frequencies=simulator.psd.shape[1],
        frequency_step=1 / segment.generation_duration,
        provenance={
            "configuration": simulation_to_dict(without_paths(physics)),
            "seed": config.seed,
            "start_time": segment.start_time,
            "band": [config.waveform.f_lower, segment.sample_rate / 2],
            "detectors": [detector.to_dict() for detector in simulator.detectors],
            "versions": library_versions(),
            **frames,
        },
    )
    return as_polarisations(schema, simulator) if config.stored == "polarisations" else schema


def parameter_columns(priors: Mapping[str, Distribution]) -> tuple[Parameter, ...]:
    """The columns of the table of parameters.

    Args:
        priors: Of each parameter.
    """
    return tuple(
        Parameter(
            name=name,
            unit=facts.unit,
            prior=describe(priors[name]),
            minimum=_finite(priors[name].minimum),
            maximum=_finite(priors[name].maximum),
        )
        for name, facts in PARAMETERS.items()
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
