"""Data sets that hold polarisations in place of strain, of any encoding, to every reader."""

import json

import numpy as np
import pytest
import webdataset
import xarray
import zarr
from streams import open_stream

from storage import TarStream, decode_strain, open_dataset
from storage.dataset import read_psd, read_schema
from storage.documents import canonical_json
from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError
from storage.info import describe, summary
from storage.inventory import take_inventory
from storage.verify import verify_shard

NAMES = ("plus", "cross")


@pytest.fixture(scope="module", params=["float32", "float16", "float16+blosc", "int16+blosc"])
def data(request, build):
    return build(encoding=ENCODINGS[request.param], noisy=False, polarisations=NAMES)


def test_what_it_is_comes_back_from_its_metadata(data):
    assert read_schema(data.folder) == data.schema
    assert data.schema.strain_shape == (2, data.schema.samples)
    assert read_psd(data.folder).shape == (3, data.schema.frequencies)


def test_the_stream_delivers_both_polarisations(data):
    stream = open_stream(data.folder, batch_size=3, shuffle=False)
    batches = [(batch.strain.copy(), batch.parameters.copy()) for batch in stream]
    strain, parameters = (np.concatenate(column) for column in zip(*batches, strict=True))
    assert strain.shape == (7, *data.schema.strain_shape)
    assert np.array_equal(strain, data.codes)
    assert np.array_equal(parameters, data.parameters)


def test_xarray_and_zarr_know_the_axes_by_their_names(data):
    opened, plain = open_dataset(data.folder), xarray.open_zarr(data.folder)
    assert opened.strain.dims == plain.strain.dims == ("event", "polarisation", "time")
    assert opened.polarisation.values.tolist() == list(NAMES)
    assert opened.detector.values.tolist() == list(data.schema.detectors)
    assert opened.psd.dims == ("detector", "frequency")
    assert np.array_equal(opened.strain.values, data.schema.encoding.decode(data.codes))
    assert np.array_equal(zarr.open_group(data.folder, mode="r")["strain"][:], data.codes)


def test_webdataset_and_the_stream_of_tars_read_its_shards(data):
    shards = [str(data.folder / f"strain/c/{shard}/0/0") for shard in range(3)]
    stock = webdataset.WebDataset(shards, shardshuffle=False).decode().map(decode_strain)
    samples = list(stock)
    assert np.array_equal(np.stack([item["strain.npy"] for item in samples]), data.codes)
    assert samples[0]["json"]["polarisations"] == list(NAMES)
    assert samples[0]["json"]["detectors"] == list(data.schema.detectors)
    stream = TarStream(shards, batch_size=7)
    (batch,) = stream
    assert np.array_equal(batch.strain, data.codes)
    assert stream.layout.detectors == NAMES


def test_every_flipped_bit_is_found(data):
    path = data.folder / "strain/c/1/0/0"
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[len(sound) // 2] ^= 1
    group = take_inventory(data.folder).group
    assert not verify_shard(data.folder, group, 1).findings
    path.write_bytes(damaged)
    try:
        assert verify_shard(data.folder, group, 1).findings
    finally:
        path.write_bytes(sound)


def test_info_says_what_is_made_of_it(data):
    facts = describe(data.folder)
    assert facts.complete
    assert (facts.polarisations, facts.detectors) == (NAMES, ("E1", "E2", "E3"))
    text = summary(facts)
    assert "plus, cross x 50 samples at 64 Hz" in text
    assert "polarisations, of which training makes events of E1, E2, E3" in text


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("attributes", "strainflow", "noisy"), True),
        (("attributes", "polarisations"), []),
        (("attributes", "polarisations"), "plus"),
        (("attributes", "polarisations"), ["plus"]),
        (("attributes", "polarisations"), [1, 2]),
    ],
)
def test_metadata_that_were_altered_are_damage(build, place, value):
    data = build(noisy=False, polarisations=NAMES)
    path = data.folder / "zarr.json"
    group = json.loads(path.read_text())
    section = group if "strainflow" in place else group["consolidated_metadata"]["metadata"]
    for key in ("strain", *place[:-1]) if section is not group else place[:-1]:
        section = section[key]
    section[place[-1]] = value
    path.write_bytes(canonical_json(group))
    with pytest.raises(DamagedDataError, match="altered"):
        read_schema(data.folder)


def test_a_data_set_of_strain_says_nothing_of_polarisations(build):
    data = build()
    assert "polarisation" not in (data.folder / "zarr.json").read_text()
    assert describe(data.folder).polarisations == ()
