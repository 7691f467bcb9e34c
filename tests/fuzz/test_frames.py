"""Mutated Blosc frames, in a process of their own: it ends as it should."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from storage.blosc import decode_strain
from storage.errors import DamagedDataError

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("seed", "count"), [("a", 2000), *(pytest.param(s, 4000, marks=pytest.mark.slow) for s in "bc")]
)
def test_any_blosc_frame_is_decompressed_or_refused(seed, count, tmp_path):
    """Also those that no checksum guards, which webdataset reads."""
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            HERE / "frames.py",
            seed,
            str(count),
            tmp_path / "f",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])},
        timeout=300,
    )
    last = (tmp_path / "f").read_bytes().hex() if (tmp_path / "f").exists() else ""
    assert done.returncode == 0, f"{done.returncode} {done.stderr[-3000:]}\nlast input: {last}"


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"detectors": ["E1"], "samples": 10**15, "dtype": "<f4", "event": 1},
        {"detectors": ["E1"], "samples": -1, "dtype": "<f4", "event": 1},
        {"detectors": ["E1"], "samples": "x", "dtype": "<f4", "event": 1},
        {"detectors": ["E1"], "samples": 4, "dtype": "O", "event": 1},
        {"detectors": ["E1"], "samples": 4, "dtype": "x,y", "event": 1},
        {"detectors": 1, "samples": 4, "dtype": "<f4", "event": 1},
        {"detectors": ["E1"], "samples": 4, "dtype": ["<f4"], "event": 1},
        [],
        None,
    ],
)
def test_strain_whose_json_was_altered_is_refused(facts):
    frame = bytes(16) + np.zeros(4, "<f4").tobytes()
    with pytest.raises(DamagedDataError):
        decode_strain({"json": facts, "strain.blosc": frame})
