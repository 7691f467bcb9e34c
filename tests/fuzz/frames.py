"""Decompresses mutated Blosc frames; run as a process of its own: python frames.py SEED COUNT FILE.

The input at work lies in FILE, for the case that it ends the process.
"""

import random
import struct
import sys
from pathlib import Path

import numpy as np
from campaign import campaign
from mutations import mutate_bytes

from storage.blosc import compress, decode_strain, decompress_into
from storage.encodings import _BLOSC


def main(seed: str, count: int, file: Path) -> None:
    """Feed frames of every encoding to both readers."""
    frames = []
    for kind, blosc in _BLOSC.items():
        codes = (np.random.default_rng(3).standard_normal((3, 50)) * 8).astype(kind)
        frames.append((codes, compress(codes, blosc)))

    def attempt(draw: random.Random):
        codes, frame = draw.choice(frames)
        altered = mutate_bytes(draw, frame, [other for _, other in frames])
        if draw.random() < 0.7 and len(altered) >= 16:  # past the first look at the lengths
            altered = (
                altered[:4]
                + struct.pack("<I", codes.nbytes)
                + altered[8:12]
                + struct.pack("<I", len(altered))
                + altered[16:]
            )
        facts = {
            "detectors": ["E1"] * 3,
            "samples": 50,
            "dtype": codes.dtype.str,
            "event": 1,
        }
        out = np.empty_like(codes)
        file.write_bytes(altered)

        def read():
            decompress_into(altered, out, "event 1")

        def decode():
            decode_strain({"json": facts, "strain.blosc": altered})

        chosen = draw.choice((read, decode))
        chosen.shown = altered
        return chosen

    campaign(f"frames {seed}", count, attempt)
    print(f"{count} frames")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
