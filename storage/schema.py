"""What a data set is: the facts that every shard shares, and where its files lie."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float

from storage.arrays import Array
from storage.encodings import Encoding

# Within the data set's folder.
GROUP_METADATA = "zarr.json"
PSD_CHUNK = "psd/c/0/0"
MANIFEST_FOLDER = "manifest"
GROUP_COPY = "manifest/dataset.json"  # the same bytes as the group's metadata, to mend them with


# The paths that a file of any data set may have, and those of the folders that they lie in.
_NUMBER = "(0|[1-9][0-9]{0,17})"
_FILE = re.compile(
    rf"((strain|parameters|optimal_snr|psd|{MANIFEST_FOLDER})/)?{GROUP_METADATA}|{PSD_CHUNK}"
    rf"|{GROUP_COPY}|{MANIFEST_FOLDER}/([0-9]{{6}}|[1-9][0-9]{{6,17}})\.json"
    rf"|strain/c/{_NUMBER}/0/0|(parameters|optimal_snr)/c/{_NUMBER}/0"
)
_FOLDER = re.compile(
    rf"(strain|parameters|optimal_snr|psd)(/c)?|{MANIFEST_FOLDER}|psd/c/0"
    rf"|strain/c/{_NUMBER}(/0)?|(parameters|optimal_snr)/c/{_NUMBER}"
)
_PARTIAL = re.compile(r"(.+?)(\.[0-9A-Za-z_-]+)?\.partial")


def is_partial_of_ours(path: str) -> bool:
    """Whether a path is `NAME.partial` or `NAME.TOKEN.partial` of a file of a data set."""
    match = _PARTIAL.fullmatch(path)
    return match is not None and any(
        map(_FILE.fullmatch, (match[1], f"{match[1]}{match[2] or ''}"))
    )


def is_folder_of_ours(path: str) -> bool:
    """Whether a path is that of a folder in which files of a data set lie, or will."""
    return _FOLDER.fullmatch(path) is not None


def is_file_of_ours(path: str) -> bool:
    """Whether a path is that of a file of a data set, with however many shards."""
    return _FILE.fullmatch(path) is not None


@dataclass(frozen=True)
class Parameter:
    """One column of the table of parameters.

    Attributes:
        name: bilby's name.
        unit: Its unit, empty for none.
        prior: The distribution it was drawn from, as in a bilby prior file.
        minimum: Lower end of the prior's support, None where it has none.
        maximum: Upper end of the prior's support, None where it has none.
    """

    name: str
    unit: str
    prior: str
    minimum: float | None
    maximum: float | None

    @property
    def fixed(self) -> bool:
        """Whether every event has the same value."""
        return self.minimum is not None and self.minimum == self.maximum


@dataclass(frozen=True)
class Source:
    """A data set that lost something, and from which another one was recoded.

    Attributes:
        encoding: Name of its encoding.
        largest_snr_loss: The largest loss that it certifies, against what it was made from itself;
            None where that was not recorded.
    """

    encoding: str
    largest_snr_loss: float | None


@dataclass(frozen=True)
class Schema:
    """All that is known of a data set before its first event.

    Attributes:
        events: Number of events.
        events_per_shard: Events in a shard (the last may hold fewer).
        detectors: Names of the detectors, in the order of the strain's second axis.
        samples: Time samples of an event in each detector, or each polarisation.
        sample_rate: [Hz].
        encoding: How strain is stored.
        noisy: Whether the strain holds noise, or signals alone.
        parameters: The columns of the table of parameters.
        frequencies: Number of bins of the PSDs.
        frequency_step: Spacing of the bins of the PSDs [Hz].
        provenance: Whatever else is to be recorded (configuration, seed, geometry, versions).
        polarisations: Names of what the strain's second axis holds where it is not the detectors'
            strain, but that from which theirs is made; empty where it is theirs.
    """

    events: int
    events_per_shard: int
    detectors: tuple[str, ...]
    samples: int
    sample_rate: float
    encoding: Encoding
    noisy: bool
    parameters: tuple[Parameter, ...]
    frequencies: int
    frequency_step: float
    provenance: Mapping[str, Any] = field(default_factory=dict)
    polarisations: tuple[str, ...] = ()

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.events // self.events_per_shard)

    @property
    def series(self) -> tuple[str, ...]:
        """Names of an event's series: of the detectors, or of the polarisations."""
        return self.polarisations or self.detectors

    @property
    def kind_of_series(self) -> str:
        """What these are, in the singular."""
        return "polarisation" if self.polarisations else "detector"

    @property
    def strain_shape(self) -> tuple[int, int]:
        """Shape of one event's strain, (detector, time) or (polarisation, time)."""
        return len(self.series), self.samples

    @property
    def event_bytes(self) -> int:
        """Bytes of one event's strain in memory, as it is stored but not compressed."""
        return len(self.series) * self.samples * self.encoding.dtype.itemsize

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of their columns."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def verb(self) -> str:
        """The verb of ours that writes what is missing of it, called as it was for the rest.

        That is `simulate` or `cut` also where it was recoded from what had lost nothing: they give
        the same bytes.
        """
        if "recoded_from" in self.provenance:
            return "recode"
        return "cut" if "frames" in self.provenance else "simulate"

    @property
    def encodings_before(self) -> list[Encoding]:
        """Of the data sets from which this one was recoded and that lost something, in order."""
        before = self.provenance.get("recoded_from")
        chain = []
        while before is not None:
            chain.append(Encoding(**before["encoding"]))
            before = before.get("recoded_from")
        return chain[::-1]

    @property
    def sources(self) -> list[Source]:
        """The same data sets, and what they lost; the one that was read for this one first."""
        before = self.provenance.get("recoded_from")
        chain = []
        while before is not None:
            name = Encoding(**before["encoding"]).name
            chain.append(Source(name, before.get("largest_snr_loss")))
            before = before.get("recoded_from")
        return chain

    def moment_of(self, event: int) -> Mapping[str, Any]:
        """How an event that was cut out of frames is counted here; empty where it was simulated.

        Returns:
            `gps` and `start` of its segment [GPS s], `time_shift` [s] and `ra_shift` [rad], which
            lead to its time and right ascension in the sky, and `geocent_time`, the prior of that.
        """
        frames = self.provenance.get("frames")
        moment: Mapping[str, Any] = {} if frames is None else frames["events"][event]
        return moment

    def events_of(self, shard: int) -> range:
        """The numbers of the events in a shard."""
        first = shard * self.events_per_shard
        return range(first, min(first + self.events_per_shard, self.events))


@dataclass(frozen=True)
class Event:
    """One simulated event on its way to the disk.

    Attributes:
        number: Its number in the data set.
        strain: Whitened strain of each detector, or polarisations [sigma].
        parameters: In the order of the schema's parameters.
        optimal_snr: Optimal SNR in each detector.
        rejected: Draws thrown away before this one, counted by reason.
    """

    number: int
    strain: Float[Array, "detector time"]
    parameters: Float[Array, "parameter"]
    optimal_snr: Float[Array, "detector"]
    rejected: Mapping[str, int]


def shard_files(shard: int) -> dict[str, str]:
    """The files of a shard by array, as paths within the data set."""
    return {
        "strain": f"strain/c/{shard}/0/0",
        "parameters": f"parameters/c/{shard}/0",
        "optimal_snr": f"optimal_snr/c/{shard}/0",
    }
