"""Reading frames, GWF and HDF5, over borders of files, and what is said where data are missing."""

import h5py
import numpy as np
import pytest
from frame_files import (
    CHANNELS,
    RATE,
    START,
    write_gwf,
    write_gwosc,
    write_gwpy,
    write_pycbc,
)

from pipeline.frame_file import Span, channels_of
from pipeline.frames import Frames, NotFiniteError, common, merged, without
from storage.errors import DamagedDataError, InputError

SECONDS = 8


@pytest.fixture(scope="module")
def strain():
    """Sixteen seconds of three channels."""
    return np.random.default_rng(0).normal(size=(3, 2 * SECONDS * RATE)) * 1e-22


@pytest.fixture(scope="module")
def folder(strain, tmp_path_factory):
    """The same as two GWF files that follow each other."""
    folder = tmp_path_factory.mktemp("frames")
    for number, part in enumerate(np.split(strain, 2, axis=1)):
        start = START + number * SECONDS
        write_gwf(folder / f"E-E-{start}-{SECONDS}.gwf", part, start=start)
    return folder


def layouts(folder, strain):
    """The first channel in files of each layout, and the pattern that finds them."""
    write_gwosc(folder / "E-E1_GWOSC-1.hdf5", strain[0])
    write_gwpy(folder / "gwpy.h5", strain)
    write_gwf(folder / "single.gwf", strain.astype(np.float32))
    return {
        "gwosc": str(folder / "E-E1_GWOSC*.hdf5"),
        "gwpy": str(folder / "gwpy.h5"),
        "pycbc": str(write_pycbc(folder / "pycbc", strain)),
        "float32": str(folder / "single.gwf"),
    }


def test_every_layout_gives_the_same_samples(strain, tmp_path):
    within = Span(START + 1.5, START + 3.25)
    wanted = strain[0, int(1.5 * RATE) : int(3.25 * RATE)]
    for name, pattern in layouts(tmp_path, strain).items():
        stretch, files = Frames.find([pattern]).read("E1:STRAIN", within)
        expected = wanted.astype(np.float32) if name == "float32" else wanted
        assert np.array_equal(stretch.values, expected), name
        assert (stretch.start, stretch.sample_rate) == (START + 1.5, RATE)
        assert len(files) == 1


def test_a_stretch_over_the_border_of_two_files_is_whole(folder, strain):
    frames = Frames.find([str(folder / "*.gwf")])
    stretch, files = frames.read("E3:STRAIN", Span(START + 7.5, START + 9))
    assert np.array_equal(stretch.values, strain[2, int(7.5 * RATE) : 9 * RATE])
    assert [path.name for path in files] == sorted(path.name for path in folder.iterdir())


def test_a_stretch_begins_with_the_last_sample_at_or_before_its_start(folder, strain):
    frames = Frames.find([str(folder / "*.gwf")])
    stretch, _ = frames.read("E1:STRAIN", Span(START + 1 + 0.4 / RATE, START + 2 + 0.4 / RATE))
    assert stretch.start == START + 1
    assert np.array_equal(stretch.values, strain[0, RATE : 2 * RATE])


def test_a_cache_of_lal_names_the_same_files(folder, strain, tmp_path):
    cache = tmp_path / "frames.lcf"
    lines = [
        f"E E {START + number * SECONDS} {SECONDS} file://localhost{path}"
        for number, path in enumerate(sorted(folder.iterdir()))
    ]
    cache.write_text("\n".join([*lines, "# the end", ""]))
    stretch, _ = Frames.find([str(cache)]).read("E1:STRAIN", Span(START + 7, START + 9))
    assert np.array_equal(stretch.values, strain[0, 7 * RATE : 9 * RATE])
    cache.write_text("E E 1 2 https://example.org/E-E-1-2.gwf\n")
    with pytest.raises(InputError, match="a line of a LAL cache is"):
        Frames.find([str(cache)])


def test_files_are_opened_only_where_their_names_say_that_they_are_needed(folder, strain, tmp_path):
    write_gwf(tmp_path / f"E-E-{START}-{SECONDS}.gwf", strain[:, : SECONDS * RATE])
    (tmp_path / f"E-E-{START + 100}-{SECONDS}.gwf").write_bytes(b"no frames at all")
    frames = Frames.find([str(tmp_path / "*.gwf")])
    frames.read("E1:STRAIN", Span(START, START + 1))
    with pytest.raises(InputError, match="neither GWF nor HDF5"):
        frames.read("E1:STRAIN", Span(START + 100, START + 101))


def test_what_the_files_do_cover_is_named(folder):
    frames = Frames.find([str(folder / "*.gwf")])
    with pytest.raises(InputError) as refusal:
        frames.read("E2:STRAIN", Span(START + 10, START + 20))
    assert str(refusal.value) == (
        "frames: E2:STRAIN is needed from 1600000010 to 1600000020, the files cover 1600000000 to "
        "1600000016 [GPS s]; give the files that are missing, or another time"
    )


def test_a_gap_between_files_is_refused(strain, tmp_path):
    for start in (START, START + 2 * SECONDS):
        part = strain[:, : SECONDS * RATE]
        write_gwf(tmp_path / f"E-E-{start}-{SECONDS}.gwf", part, start=start)
    frames = Frames.find([str(tmp_path / "*.gwf")])
    with pytest.raises(
        InputError, match="cover 1600000000 to 1600000008, 1600000016 to 1600000024"
    ):
        frames.read("E1:STRAIN", Span(START + 4, START + 20))


def test_a_file_that_one_detector_lacks_is_a_gap_of_its_channel(strain, tmp_path):
    for number, channel in ((0, "E1:STRAIN"), (0, "E2:STRAIN"), (1, "E1:STRAIN")):
        start, part = START + number * SECONDS, strain[:1, : SECONDS * RATE]
        path = tmp_path / f"E-{channel[:2]}-{start}-{SECONDS}.gwf"
        write_gwf(path, part, [channel], start=start)
    frames = Frames.find([str(tmp_path / "*.gwf")])
    with pytest.raises(InputError, match="E2:STRAIN is needed .* cover 1600000000 to 1600000008 "):
        frames.read("E2:STRAIN", Span(START + 9, START + 10))


def test_what_is_no_number_is_refused_with_its_time(strain, tmp_path):
    row = strain[0].copy()
    row[3 * RATE : 4 * RATE] = np.nan
    write_gwosc(tmp_path / "x.hdf5", row)
    frames = Frames.find([str(tmp_path / "x.hdf5")])
    with pytest.raises(NotFiniteError, match="no numbers from 1600000003 to 1600000004"):
        frames.read("E1:GWOSC-16KHZ_R1_STRAIN", Span(START + 2, START + 6))
    frames.read("E1:GWOSC-16KHZ_R1_STRAIN", Span(START + 4, START + 6))


def test_a_missing_channel_is_refused_with_those_that_there_are(folder):
    frames = Frames.find([str(folder / "*.gwf")])
    with pytest.raises(InputError, match="channel E4:STRAIN.*hold E1:STRAIN, E2:STRAIN, E3:STRAIN"):
        frames.read("E4:STRAIN", Span(START, START + 1))


def test_files_of_two_rates_are_refused(strain, tmp_path):
    write_gwf(tmp_path / f"E-E-{START}-{SECONDS}.gwf", strain[:, : SECONDS * RATE])
    later, slow = START + SECONDS, strain[:, : SECONDS * RATE // 2]
    write_gwf(tmp_path / f"E-E-{later}-{SECONDS}.gwf", slow, start=later, rate=RATE // 2)
    with pytest.raises(InputError, match="sampled at 8192 and 16384 Hz"):
        Frames.find([str(tmp_path / "*.gwf")]).read("E1:STRAIN", Span(START + 4, START + 12))


def test_a_name_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no file is called .*nothing\*\.gwf"):
        Frames.find([str(tmp_path / "nothing*.gwf")])


@pytest.mark.parametrize("name", ["cut.gwf", "cut.hdf5"])
def test_a_file_that_is_cut_is_damaged(name, strain, tmp_path, capfd):
    path = tmp_path / name
    (write_gwf if name.endswith("gwf") else write_gwpy)(path, strain)
    path.write_bytes(path.read_bytes()[: 2 * RATE])
    with pytest.raises(DamagedDataError, match=f"{name}: is cut or damaged"):
        Frames.find([str(path)]).read("E1:STRAIN", Span(START, START + 1))
    assert "XLAL" not in capfd.readouterr().err


def test_channels_are_listed_by_the_names_that_are_accepted(strain, tmp_path):
    write_gwosc(tmp_path / "x.hdf5", strain[0])
    assert channels_of(tmp_path / "x.hdf5") == ("E1:strain/Strain",)
    write_gwpy(tmp_path / "y.hdf5", strain)
    with h5py.File(tmp_path / "y.hdf5", "a") as file:
        file["a table"] = np.zeros(3)  # without times: no channel
    assert channels_of(tmp_path / "y.hdf5") == CHANNELS


def test_spans_are_merged_shared_and_taken_away():
    assert merged([Span(4, 6), Span(0, 2), Span(2, 3)]) == [Span(0, 3), Span(4, 6)]
    assert common([[Span(0, 5), Span(8, 9)], [Span(3, 8.5)]]) == [Span(3, 5), Span(8, 8.5)]
    assert without([Span(0, 10)], [Span(2, 3), Span(9, 12)]) == [Span(0, 2), Span(3, 9)]
