"""What a data set of polarisations says of the way from them to events of detectors."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float64
from torch import Tensor

from storage.arrays import Array
from storage.dataset import read_psd
from storage.errors import DamagedDataError, InputError
from storage.schema import Parameter, Schema
from storage.values import number, positive

PLUS_CROSS = ("plus", "cross")
_NUMBERS = ("reference_time", "sidereal_time", "sidereal_rate")


@dataclass(frozen=True)
class PolarisationFacts:
    """What has to be known to make events of stored polarisations.

    Attributes:
        data: Where they are, for messages.
        stored_samples: Of a stored series.
        samples: Of an event in each detector, the end of the series.
        sample_rate: [Hz].
        reference_distance: Of the stored series [Mpc].
        reference_time: Of their coalescence at the geocentre [GPS s].
        sidereal_time: Greenwich's, at the reference time [rad].
        sidereal_rate: By which it grows [rad/s].
        network_snr: The least and the most that sources were accepted with.
        responses: Tensors of the detectors.
        locations: Of their vertices [m].
        psd: One-sided PSD of each detector [1/Hz]; the series are whitened with the first.
        parameters: The columns of the table of parameters.
    """

    data: str
    stored_samples: int
    samples: int
    sample_rate: float
    reference_distance: float
    reference_time: float
    sidereal_time: float
    sidereal_rate: float
    network_snr: tuple[float, float]
    responses: Float64[Tensor, "detector 3 3"]
    locations: Float64[Tensor, "detector 3"]
    psd: Float64[Tensor, "detector frequency"]
    parameters: tuple[Parameter, ...]

    @classmethod
    def of(
        cls, schema: Schema, psd: Float64[Array, "detector frequency"], data: str | Path
    ) -> Self:
        """Those of a data set.

        Args:
            schema: What it is.
            psd: One-sided PSD of each detector [1/Hz].
            data: Where it is.

        Raises:
            DamagedDataError: Its metadata do not say it.
        """
        try:
            if schema.polarisations != PLUS_CROSS:
                raise ValueError(f"the order of {schema.polarisations}")
            projection, detectors = schema.provenance["projection"], schema.provenance["detectors"]
            least, most = projection["network_snr"]
            facts = cls(
                data=str(data),
                stored_samples=schema.samples,
                samples=samples_of_events(schema),
                sample_rate=schema.sample_rate,
                reference_distance=positive(projection["reference_distance"], float),
                **{name: number(projection[name]) for name in _NUMBERS},
                network_snr=(number(least), math.inf if most is None else number(most)),
                responses=_table([item["response"] for item in detectors]),
                locations=_table([item["location"] for item in detectors]),
                psd=torch.from_numpy(psd.astype(float)),
                parameters=schema.parameters,
            )
            if not 0 <= facts.network_snr[0] < facts.network_snr[1]:
                raise ValueError("network_snr")
            if tuple(item["name"] for item in detectors) != schema.detectors:
                raise ValueError("the order of the detectors")
            facts._refuse_other_shapes(len(schema.detectors))
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedDataError(f"{data}: {_words_on_damage(error)}") from None
        return facts

    def to_plain(self) -> dict[str, Any]:
        """Plain values and tensors."""
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**content, "parameters": [vars(item) for item in self.parameters]}

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> Self:
        """Read it back; the inverse of `to_plain`."""
        parameters = tuple(Parameter(**item) for item in content["parameters"])
        return cls(**{**content, "parameters": parameters})

    def _refuse_other_shapes(self, detectors: int) -> None:
        shapes = {
            "responses": (detectors, 3, 3),
            "locations": (detectors, 3),
            "psd": (detectors, self.stored_samples // 2 + 1),
        }
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"the shape of {name}")


def read_facts(schema: Schema, data: str | Path) -> PolarisationFacts | None:
    """The facts of a data set; None where it holds the detectors' strain.

    Args:
        schema: What it is.
        data: Where it is.

    Raises:
        DamagedDataError: Its metadata do not say them, or its PSD is not there or was altered.
    """
    return PolarisationFacts.of(schema, read_psd(data), data) if schema.polarisations else None


def samples_of_events(schema: Schema) -> int:
    """Samples of an event in each detector, stored or to be made of polarisations.

    Raises:
        DamagedDataError: The metadata of polarisations do not say it.
    """
    if not schema.polarisations:
        return schema.samples
    projection = schema.provenance.get("projection")
    samples = projection.get("samples") if isinstance(projection, dict) else None
    if type(samples) is not int or not 0 < samples <= schema.samples:
        raise DamagedDataError(f"data: {_words_on_damage(f'the number of samples {samples!r}')}")
    return samples


def refuse_polarisations(schema: Schema, data: str | Path) -> None:
    """Refuse a data set that holds no events of detectors.

    Raises:
        InputError: It holds polarisations.
    """
    if schema.polarisations:
        raise InputError(
            f"{data}: holds polarisations, of which training makes events, and no event of "
            "detectors to sample; simulate a test set with stored: strain"
        )


def _table(rows: list[Any]) -> Float64[Tensor, "*shape"]:
    return torch.tensor(rows, dtype=torch.float64)


def _words_on_damage(what: object) -> str:
    return (
        f"its metadata do not say how polarisations become events ({what} is missing or wrong), so "
        "they were altered; `strainflow repair` restores them from their copy"
    )
