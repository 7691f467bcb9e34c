"""The configuration of a run as plain values, and back."""

from dataclasses import asdict
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from model.config import TrainConfig

# A recipe names values, never code: jsonargparse would import what `class_path` names.
set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=["model"])


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values of a configuration."""
    document = asdict(config)
    document["parameters"] = list(config.parameters)
    document["embedding"]["channels"] = list(config.embedding.channels)
    document["embedding"]["patch"] = list(config.embedding.patch)
    document["embedding"]["windows"] = list(config.embedding.windows)
    return document


def config_from_dict(document: dict[str, Any]) -> TrainConfig:
    """Read a configuration back; the inverse of `config_to_dict`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", type=TrainConfig)
    return parser.instantiate(parser.parse_object({"config": document})).config  # type: ignore[no-any-return]


def config_to_bytes(config: TrainConfig) -> bytes:
    """The content of a run's configuration file."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False).encode()
