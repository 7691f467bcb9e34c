"""What a run was made with: `run.json`, the data set and each call with its versions."""

import json
import platform
import socket
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from model.folder import RECORD
from model.speed import Speed, name_of
from storage.documents import parse_json
from storage.files import write_atomically
from storage.local import LocalStore
from storage.urls import store_of

PACKAGES = ("strainflow", "torch", "nflows", "numpy")


def note_call(
    run: Path,
    data: str | Path,
    digest: str,
    step: int,
    device: torch.device,
    speed: Speed,
    ranks: int = 1,
) -> None:
    """Add a call of `train` to the record of a run.

    Args:
        run: The run's folder.
        data: The data set.
        digest: Of its metadata, SHA-256.
        step: Steps done before the call.
        device: On which it runs.
        speed: What is on there.
        ranks: How many processes share it.

    Raises:
        DamagedDataError: The record was altered.
    """
    call = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "host": socket.gethostname(),
        "device": name_of(device),
        "speed": asdict(speed),
        "ranks": ranks,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            **({"cuda": torch.version.cuda} if device.type == "cuda" else {}),
        },
    }
    # Those that left no checkpoint are part of no weights.
    earlier = [item for item in read_record(run).get("calls", []) if step and item["step"] <= step]
    store = store_of(data)
    content = {
        "data": str(store.folder.resolve()) if isinstance(store, LocalStore) else store.url,
        "data_sha256": digest,
        "calls": [*earlier, call],
    }
    write_atomically(run / RECORD, (json.dumps(content, indent=1) + "\n").encode())


def read_record(run: Path) -> Mapping[str, Any]:
    """Read the record of a run; empty where there is none.

    Raises:
        DamagedDataError: It was altered.
    """
    path = run / RECORD
    return parse_json(path.read_bytes(), str(path)) if path.is_file() else {}
