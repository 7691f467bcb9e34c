"""Frames as other tools write them: signals by bilby, files by PyCBC and in others' layouts."""

from dataclasses import replace

import bilby
import h5py
import lal
import numpy as np
import pycbc.frame
import pycbc.psd
from pycbc.types import TimeSeries

START, SECONDS, RATE = 1600000000, 64, 16384
CHANNELS = ("E1:STRAIN", "E2:STRAIN", "E3:STRAIN")


def bilby_signal(reference, source, rate=RATE, start=START, seconds=SECONDS):
    """bilby's strain of a source at each of its interferometers over a stretch of time.

    Args:
        reference: What `bilby_of` gives.
        source: bilby's parameters, in the sky.
        rate: [Hz].
        start: Of the stretch [GPS s].
        seconds: Its length.
    """
    arguments = reference.generator.waveform_arguments
    generator = bilby.gw.WaveformGenerator(
        duration=seconds,
        sampling_frequency=rate,
        frequency_domain_source_model=bilby.gw.source.lal_binary_black_hole,
        waveform_arguments=dict(arguments),
    )
    polarisations = generator.frequency_domain_strain(dict(source))
    rows = []
    for item in reference.interferometers:
        item.set_strain_data_from_zero_noise(rate, seconds, start)
        item.minimum_frequency, item.maximum_frequency = 1.0, rate / 2
        response = item.get_detector_response(polarisations, source)
        rows.append(np.fft.irfft(response, rate * seconds) * rate)
    return np.array(rows)


def coloured_noise(name, seed, rate=RATE, seconds=SECONDS, detectors=3, lowest=4.0):
    """Stationary noise by PyCBC's PSD of a name, from `lowest` [Hz] up."""
    samples = rate * seconds
    psd = pycbc.psd.from_string(name, samples // 2 + 1, 1 / seconds, lowest).numpy()
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((2, detectors, len(psd)))
    spectrum = (normal[0] + 1j * normal[1]) * np.sqrt(psd * seconds / 4)
    return np.fft.irfft(spectrum, samples) * rate


def write_gwf(path, strain, channels=CHANNELS, rate=RATE, start=START):
    """Write channels into one GWF file, through PyCBC and LALFrame."""
    series = [TimeSeries(np.ascontiguousarray(row), 1 / rate, epoch=start) for row in strain]
    pycbc.frame.write_frame(str(path), list(channels), series)
    return path


def write_gwosc(path, row, detector="E1", rate=RATE, start=START):
    """Write one detector as GWOSC's HDF5 files hold it."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("strain/Strain", data=row)
        dataset.attrs.update({"Npoints": len(row), "Xstart": start, "Xspacing": 1 / rate})
        file["meta/Detector"] = detector
        file["meta/GPSstart"] = start
        file["meta/Duration"] = len(row) // rate
    return path


def write_gwpy(path, strain, channels=CHANNELS, rate=RATE, start=START):
    """Write channels as gwpy's HDF5 files hold them."""
    with h5py.File(path, "w") as file:
        for channel, row in zip(channels, strain, strict=True):
            dataset = file.create_dataset(channel, data=row)
            dataset.attrs.update({"name": channel, "channel": channel, "unit": "strain"})
            dataset.attrs.update({"x0": float(start), "dx": 1 / rate, "xunit": "s"})
    return path


def write_pycbc(path, strain, channels=CHANNELS, rate=RATE, start=START):
    """Write channels as PyCBC's `TimeSeries.save` does: by itself, a file a channel."""
    for channel, row in zip(channels, strain, strict=True):
        name = path.with_name(f"{path.stem}-{channel[:2]}.hdf")
        TimeSeries(np.asarray(row), 1 / rate, epoch=start).save(str(name), group=channel)
    return path.with_name(f"{path.stem}-E*.hdf")


def sidereal_time(gps):
    """LAL's [rad]."""
    return lal.GreenwichMeanSiderealTime(lal.LIGOTimeGPS(gps))


def at_gps(simulator, source, gps):
    """A source of the simulator's segment, moved to another time in the sky: the same data."""
    turned = sidereal_time(gps) - sidereal_time(source["geocent_time"])
    return {**source, "geocent_time": gps, "ra": (source["ra"] + turned) % (2 * np.pi)}


def without_noise(simulator):
    """The same simulator, of signals alone."""
    return replace(simulator, config=replace(simulator.config, noise="none"))
