"""storage/FORMAT.md alone is enough to write a data set: nothing of ours takes part in it here."""

import hashlib
import json
import tarfile
from pathlib import Path

import blake3
import google_crc32c
import numcodecs.blosc
import numpy as np
import pytest

from storage.encodings import ENCODINGS, Encoding
from storage.schema import Parameter
from storage.writer import shard_layout

SPECIFICATION = Path(__file__).parents[2] / "storage/FORMAT.md"


def test_the_example_of_the_specification_is_a_real_file(build):
    two = ("chirp_mass", "Msun", "Uniform(25, 100)", 25.0, 100.0), ("ra", "rad", "0", 0.0, 0.0)
    data = build(
        events=5,
        events_per_shard=2,
        samples=65_536,
        sample_rate=8192.0,
        parameters=tuple(Parameter(*column) for column in two),
    )
    shard = data.folder / "strain/c/0/0/0"
    stored = shard.read_bytes()
    with tarfile.open(shard) as archive:
        members = archive.getmembers()
    cells = {f"{member.offset:,} | 512" for member in members}
    cells |= {f"{member.offset_data:,} | {member.size:,}" for member in members[::2]}
    cells |= {f"{member.offset_data:,} | 512" for member in members[1::2]}
    cells |= {f"**{member.offset_data + 512:,}** | 786,432" for member in members[1::2]}
    index, checksum = np.frombuffer(stored[-36:-4], "<u8").tolist(), stored[-4:]
    cells |= {
        "index ({}, {}), ({}, {})".format(*index) + f" | {len(stored) - 36:,} | 32",
        f"crc32c 0x{checksum[::-1].hex()}, stored as `{checksum.hex(' ')}`",
        f"end of the tar | {len(stored) - 36 - 1024:,} | 1,024",
        f"end of the file | {len(stored):,} |",
        f"The stride is {index[2] - index[0]:,}.",
        f"has {(data.folder / 'strain/c/2/0/0').stat().st_size:,} bytes",
        f"`room` = {shard_layout(data.schema).json_room} bytes",
    }
    text = SPECIFICATION.read_text()
    assert len(cells) >= 15
    assert not [cell for cell in cells if cell not in text]


@pytest.mark.parametrize("name", [name for name in ENCODINGS if ENCODINGS[name].compressed])
def test_the_settings_of_blosc_in_the_specification_are_ours(name):
    settings = ENCODINGS[name].blosc
    typesize = ENCODINGS[name].dtype.itemsize
    block = "C * T" if typesize == 1 else f"C * T * {typesize}"
    block = f"`{block}`"
    row = [f"`{name}`", settings.cname, settings.clevel, settings.shuffle, typesize, block]
    assert f"| {' | '.join(map(str, row))} |\n" in SPECIFICATION.read_text()


# A writer made from FORMAT.md.

BLOSC = {
    "float32": ("zstd", 1, "shuffle"),
    "float16": ("zstd", 3, "shuffle"),
    "int16": ("zstd", 2, "bitshuffle"),
    "int8": ("zstd", 1, "noshuffle"),
}
SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
DESCR = {"float32": "<f4", "float16": "<f2", "int16": "<i2", "int8": "|i1"}
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def to_json(document) -> bytes:
    text = json.dumps(document, indent=1, sort_keys=True, separators=(",", ": "), allow_nan=False)
    return text.encode("ascii") + b"\n"


def ustar_header(name: str, size: int) -> bytes:
    header = bytearray(512)
    header[: len(name)] = name.encode()
    header[100:124] = b"0000644\x000000000\x000000000\x00"
    header[124:148] = f"{size:011o}\x00{0:011o}\x00".encode()
    header[148:156] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[148:156] = f"{sum(header):06o}\x00 ".encode()
    return bytes(header)


def round_up(value: int, multiple: int) -> int:
    return (value + multiple - 1) // multiple * multiple


class Specified:
    """The files of a data set as the specification says that they are."""

    def __init__(self, data) -> None:
        self.schema, self.psd, self.events = data.schema, data.psd, data.events
        self.series = list(data.schema.polarisations or data.schema.detectors)
        self.type, _, codec = data.schema.encoding.name.partition("+")
        self.compressed = codec == "blosc"
        self.descr, self.step = DESCR[self.type], data.schema.encoding.scale_factor

    def codes(self, event) -> np.ndarray:
        if self.step is None:
            return event.strain.astype(self.descr)
        return np.round(event.strain / self.step).astype(self.descr)

    def stored(self, event) -> bytes:
        content = self.codes(event).tobytes()
        if not self.compressed:
            return content
        cname, level, shuffle = BLOSC[self.type]
        size = np.dtype(self.descr).itemsize
        return numcodecs.blosc.compress(
            content, cname.encode(), level, SHUFFLES[shuffle], len(content), size
        )

    def array(self, shape, chunk, names, data_type, fill, attributes, inner=None) -> dict:
        codecs = [LITTLE]
        if inner is not None:
            codecs = [{"name": "bytes"} if data_type == "int8" else LITTLE]
            if self.compressed:
                size = np.dtype(self.descr).itemsize
                settings = dict(zip(("cname", "clevel", "shuffle"), BLOSC[self.type], strict=True))
                settings |= {"typesize": size, "blocksize": inner[1] * inner[2] * size}
                codecs.append({"name": "blosc", "configuration": settings})
            sharding = {
                "chunk_shape": inner,
                "codecs": codecs,
                "index_codecs": [LITTLE, {"name": "crc32c"}],
                "index_location": "end",
            }
            codecs = [{"name": "sharding_indexed", "configuration": sharding}]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": data_type,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": codecs,
            "attributes": attributes,
            "dimension_names": names,
        }

    def metadata(self) -> dict[str, bytes]:
        s = self.schema
        e, size, d, t = s.events, s.events_per_shard, len(s.detectors), s.samples
        p, f, n = len(s.parameters), self.psd.shape[1], len(self.series)
        axis = "polarisation" if s.polarisations else "detector"
        detectors = list(s.detectors)
        psd = self.psd.astype("<f8").tobytes()
        fill = {"int16": -32768, "int8": -128}.get(self.type, "NaN")
        strain = {
            f"{axis}s": self.series,
            "sample_rate": s.sample_rate,
            "units": "1",
            "long_name": "whitened strain in units of sigma",
        }
        if self.step is not None:
            strain |= {"scale_factor": self.step, "_FillValue": fill}
        keys = ("name", "unit", "prior", "minimum", "maximum")
        columns = [{key: getattr(item, key) for key in keys} for item in s.parameters]
        snr = {"detectors": detectors, "long_name": "optimal signal-to-noise ratio"}
        density = {
            "detectors": detectors,
            "frequency_step": s.frequency_step,
            "units": "1/Hz",
            "long_name": "one-sided power spectral density",
            "sha256": hashlib.sha256(psd).hexdigest(),
        }
        double = ("float64", "NaN")
        names = ["event", axis, "time"]
        children = {
            "manifest": {"zarr_format": 3, "node_type": "group"},
            "strain": self.array(
                [e, n, t], [size, n, t], names, self.type, fill, strain, inner=[1, n, t]
            ),
            "parameters": self.array(
                [e, p], [size, p], ["event", "parameter"], *double, {"parameters": columns}
            ),
            "optimal_snr": self.array([e, d], [size, d], ["event", "detector"], *double, snr),
            "psd": self.array([d, f], [d, f], ["detector", "frequency"], *double, density),
        }
        ours = {
            "format_version": 1,
            "encoding": self.type + ("+blosc" if self.compressed else ""),
            "events": e,
            "events_per_shard": size,
            "noisy": s.noisy,
            **s.provenance,
        }
        if s.encoding.max_snr_loss is not None:
            ours["max_snr_loss"] = s.encoding.max_snr_loss
        inline = {"kind": "inline", "must_understand": False, "metadata": children}
        group = to_json(
            {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": {"strainflow": ours},
                "consolidated_metadata": inline,
            }
        )
        files = {f"{name}/zarr.json": to_json(document) for name, document in children.items()}
        return {**files, "psd/c/0/0": psd, "manifest/dataset.json": group, "zarr.json": group}

    def facts(self, number, parameters, snrs, rate, scale) -> dict:
        names = [item.name for item in self.schema.parameters]
        found = {
            "event": number,
            "detectors": list(self.schema.detectors),
            **({"polarisations": self.series} if self.schema.polarisations else {}),
            "sample_rate": rate,
            "scale_factor": scale,
            "parameters": dict(zip(names, parameters, strict=True)),
            "optimal_snr": list(snrs),
        }
        if self.compressed:
            found |= {"dtype": self.descr, "samples": self.schema.samples}
        return found

    def room(self) -> int:
        widest = -2.2250738585072014e-308
        columns, detectors = len(self.schema.parameters), len(self.schema.detectors)
        longest = self.facts(
            self.schema.events, columns * [widest], detectors * [widest], widest, widest
        )
        return 1 + len(json.dumps(longest))

    def before(self, event, out: bytes, length: int) -> bytes:
        """What stands before an event's bytes, given all that stands before it."""
        payload = self.codes(event).nbytes
        text = json.dumps(
            self.facts(
                event.number,
                event.parameters.tolist(),
                event.optimal_snr.tolist(),
                self.schema.sample_rate,
                self.step or 1.0,
            )
        )
        stride = round_up(round_up(payload, 512) + 1536 + self.room(), 4096)
        json_size = round_up(1536 + self.room(), 4096) - 1536
        if out:
            json_size = stride - round_up(payload, 512) - 1536
        if self.compressed:
            json_size = round_up(self.room(), 512)
        key = f"{event.number:09d}"
        found = ustar_header(f"{key}.json", json_size)
        found += text.ljust(json_size - 1).encode() + b"\n"
        if self.compressed:
            return found + ustar_header(f"{key}.strain.blosc", length)
        shape = f"({len(self.series)}, {self.schema.samples})"
        npy = f"{{'descr': '{self.descr}', 'fortran_order': False, 'shape': {shape}}}"
        found += ustar_header(f"{key}.strain.npy", 512 + length)
        return (
            found
            + b"\x93NUMPY\x01\x00"
            + (502).to_bytes(2, "little")
            + npy.ljust(501).encode()
            + b"\n"
        )

    def shard(self, shard: int) -> dict[str, bytes]:
        size = self.schema.events_per_shard
        events = self.events[shard * size : (shard + 1) * size]
        out, index, checksums = b"", b"", []
        for event in events:
            content = self.stored(event)
            out += self.before(event, out, len(content))
            index += len(out).to_bytes(8, "little") + len(content).to_bytes(8, "little")
            out += content + bytes(-len(content) % 512)
            checksums.append(google_crc32c.value(content))
        index = index.ljust(16 * size, b"\xff")
        strain = out + bytes(1024) + index + google_crc32c.value(index).to_bytes(4, "little")
        files = {f"strain/c/{shard}/0/0": strain}
        for name in ("parameters", "optimal_snr"):
            table = np.stack([getattr(event, name) for event in events])
            rest = np.full((size - len(events), table.shape[1]), np.nan)
            files[f"{name}/c/{shard}/0"] = np.concatenate([table, rest]).astype("<f8").tobytes()
        return {**files, f"manifest/{shard:06d}.json": self.manifest(shard, files, checksums)}

    def loss(self, event) -> float:
        exact, stored = event.strain, self.codes(event).astype(np.float32)
        stored = stored if self.step is None else stored * np.float32(self.step)
        if self.type == "float32":
            return 0.0
        if self.schema.noisy:
            return float(1 - 1 / np.sqrt(1 + np.mean((stored - exact) ** 2)))
        norms = np.sqrt(np.sum(exact**2) * np.sum(stored.astype("f8") ** 2))
        return float(1 - np.sum(exact * stored) / norms)

    def manifest(self, shard: int, files: dict[str, bytes], checksums: list[int]) -> bytes:
        size = self.schema.events_per_shard
        events = self.events[shard * size : (shard + 1) * size]
        losses = {event.number: self.loss(event) for event in events}
        worst = max(losses, key=losses.__getitem__)
        rejected: dict[str, int] = {}
        for event in events:
            for reason, count in event.rejected.items():
                rejected[reason] = rejected.get(reason, 0) + count
        document = {
            "shard": shard,
            "first_event": events[0].number,
            "events": len(events),
            "files": {
                path: {"bytes": len(content), "blake3": blake3.blake3(content).hexdigest()}
                for path, content in files.items()
            },
            "crc32c": checksums,
            "largest_snr_loss": losses[worst],
            "worst_event": worst,
            "rejected": rejected,
            "checks": {},
            "dataset": blake3.blake3(self.metadata()["zarr.json"]).hexdigest(),
            "replaced": {},
            "digest": 64 * "0",
        }
        seal = blake3.blake3(to_json(document)).hexdigest()
        return to_json(document | {"digest": seal})

    def files(self) -> dict[str, bytes]:
        found = self.metadata()
        for shard in range(-(-self.schema.events // self.schema.events_per_shard)):
            found |= self.shard(shard)
        return found


def differing(data, files: dict[str, bytes]) -> list[str]:
    """The files of a folder that are missing there, too many, or of other bytes."""
    there = {
        str(path.relative_to(data.folder)): path.read_bytes()
        for path in data.folder.rglob("*")
        if path.is_file()
    }
    return sorted(path for path in there.keys() | files if there.get(path) != files.get(path))


def test_a_writer_made_from_the_specification_alone_writes_the_same_bytes(build, encoding):
    data = build(encoding=ENCODINGS[encoding], samples=333)
    assert differing(data, Specified(data).files()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"encoding": Encoding("int8", 0.1484375, compressed=True, max_snr_loss=1e-3)},
        {"encoding": Encoding("int16", 1 / 3, compressed=True)},
        {"encoding": Encoding("int16", 0.02, compressed=True, max_snr_loss=0.5), "noisy": False},
        {"encoding": Encoding("float16", compressed=True), "noisy": False},
        {"encoding": Encoding("float32", compressed=True, max_snr_loss=0.0), "events": 6},
        {"encoding": ENCODINGS["int8+blosc"], "samples": 4000, "detectors": ("E1",)},
        {"encoding": ENCODINGS["float32"], "noisy": False, "polarisations": ("plus", "cross")},
        {"encoding": ENCODINGS["float16+blosc"], "noisy": False, "polarisations": ("plus", "x")},
    ],
)
def test_so_it_does_with_other_steps_promises_and_shapes(build, changes):
    data = build(**{"samples": 333, **changes})
    assert differing(data, Specified(data).files()) == []


def test_the_comparison_notices_a_byte_a_missing_file_and_one_too_many(build):
    data = build(encoding=ENCODINGS["int8+blosc"])
    files = Specified(data).files()
    files["strain/c/0/0/0"] = files["strain/c/0/0/0"][:-1] + b"\0"
    del files["zarr.json"]
    files["thesis.tex"] = b""
    assert differing(data, files) == ["strain/c/0/0/0", "thesis.tex", "zarr.json"]


def test_the_seal_of_a_manifest_holds_by_the_words_of_the_specification(build, encoding):
    data = build(encoding=ENCODINGS[encoding])
    for path in data.folder.glob("manifest/0*.json"):
        content = path.read_bytes()
        seal = json.loads(content)["digest"].encode()
        assert content.count(seal) == 1
        blank = content.replace(seal, b"0" * 64)
        assert blake3.blake3(blank).hexdigest().encode() == seal
        assert blake3.blake3(blank.replace(b"shard", b"Shard")).hexdigest().encode() != seal
