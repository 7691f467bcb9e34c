import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.blosc import compress
from storage.encodings import ENCODINGS, certified, encoding_for, encoding_named
from storage.errors import InputError

INTEGERS = ["int16", "int8"]


def arrays_within(limit: float, width: int = 64) -> st.SearchStrategy[np.ndarray]:
    elements = st.floats(-limit, limit, width=width)
    return hnp.arrays(
        f"f{width // 8}", hnp.array_shapes(max_dims=2, max_side=20), elements=elements
    )


@given(arrays_within(float(np.finfo(np.float32).max), width=32))
def test_float32_keeps_every_bit(strain):
    encoding = ENCODINGS["float32"]
    assert encoding.decode(encoding.encode(strain, 0)).tobytes() == strain.tobytes()


@given(arrays_within(65504.0))
def test_float16_is_off_by_at_most_half_a_unit_in_the_last_place(strain):
    encoding = ENCODINGS["float16"]
    error = np.abs(encoding.decode(encoding.encode(strain, 0)) - strain)
    assert np.all(error <= np.maximum(np.abs(strain) * 2.0**-11, 2.0**-25))


@pytest.mark.parametrize("name", INTEGERS)
@given(data=st.data())
def test_integers_are_off_by_at_most_half_a_step_and_never_use_the_fill_value(name, data):
    encoding = ENCODINGS[name]
    strain = data.draw(arrays_within(encoding.limit))
    codes = encoding.encode(strain, 0)
    assert codes.min() > encoding.fill_value == np.iinfo(codes.dtype).min
    assert np.abs(encoding.decode(codes) - strain).max() <= encoding.scale_factor / 2


def test_stored_types_are_little_endian(encoding):
    dtype = ENCODINGS[encoding].dtype
    assert dtype.name == encoding.removesuffix("+blosc")
    assert dtype.newbyteorder("<") == dtype


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_magnitude_fits_and_the_next_one_is_refused_by_name_and_number(encoding, sign):
    limit = ENCODINGS[encoding].limit
    strain = np.zeros((3, 40))
    strain[1, 7] = sign * limit
    assert np.isfinite(ENCODINGS[encoding].encode(strain, 0).astype(float)).all()
    strain[1, 7] = sign * limit * 1.001
    with pytest.raises(
        InputError, match=rf"event 4711: its peak of .* encoding {re.escape(encoding)}, .* up to"
    ):
        ENCODINGS[encoding].encode(strain, 4711)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_strain_that_is_not_finite_is_refused_with_its_number(encoding, value):
    strain = np.zeros((3, 40))
    strain[2, 39] = value
    with pytest.raises(InputError, match=r"event 12: its peak of (nan|inf) sigma does not fit"):
        ENCODINGS[encoding].encode(strain, 12)


@pytest.mark.parametrize("name", INTEGERS)
def test_the_measured_loss_of_a_noisy_event_is_delta_squared_over_24(name):
    encoding = ENCODINGS[name]
    strain = np.random.default_rng(1).standard_normal((3, 65_536))
    loss = encoding.snr_loss(strain, encoding.encode(strain, 0), noisy=True)
    assert loss == pytest.approx(encoding.scale_factor**2 / 24, rel=0.01)


def test_float16_costs_a_noisy_event_less_than_a_ten_millionth():
    encoding = ENCODINGS["float16"]
    strain = np.random.default_rng(1).standard_normal((3, 65_536))
    assert 0 < encoding.snr_loss(strain, encoding.encode(strain, 0), noisy=True) < 1e-7


@pytest.mark.parametrize("name", INTEGERS)
def test_the_measured_loss_of_a_loud_noise_free_signal_is_that_of_its_overlap(name):
    encoding = ENCODINGS[name]
    rms = 3.0
    strain = rms * np.sqrt(2) * np.sin(np.linspace(0, 9001, 3 * 65_536)).reshape(3, -1)
    loss = encoding.snr_loss(strain, encoding.encode(strain, 0), noisy=False)
    assert loss == pytest.approx((encoding.scale_factor / rms) ** 2 / 24, rel=0.05)


@pytest.mark.parametrize("name", INTEGERS)
def test_a_noise_free_signal_below_the_step_is_reported_as_lost(name):
    encoding = ENCODINGS[name]
    strain = np.full((3, 1000), 0.4 * encoding.scale_factor)
    assert encoding.snr_loss(strain, encoding.encode(strain, 0), noisy=False) == 1.0
    strain[0, 0] = encoding.scale_factor  # one sample of 3,000 survives
    assert 0.9 < encoding.snr_loss(strain, encoding.encode(strain, 0), noisy=False) < 1.0


def test_the_same_signal_is_kept_by_float16():
    encoding = ENCODINGS["float16"]
    strain = np.random.default_rng(2).normal(0, 1e-3, (3, 1000))
    assert encoding.snr_loss(strain, encoding.encode(strain, 0), noisy=False) < 1e-6


@pytest.mark.parametrize("noisy", [True, False])
def test_float32_loses_nothing(noisy):
    strain = np.random.default_rng(3).standard_normal((2, 10))
    assert ENCODINGS["float32"].snr_loss(strain, strain.astype("f4"), noisy) == 0.0


def test_an_unknown_encoding_is_refused_with_those_that_are_known():
    with pytest.raises(InputError, match="'int4', known are float32, float16, int16, int8"):
        encoding_named("int4")


@pytest.mark.parametrize("loss", [1e-2, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("name", ["int8", "int16"])
def test_the_step_of_a_promise_costs_noise_just_less_than_was_promised(name, loss):
    peak = 10.0 if name == "int8" and loss > 3e-4 else 100.0
    encoding = encoding_for(loss, noisy=True, largest_peak=peak)
    strain = np.random.default_rng(4).standard_normal((3, 65_536))
    lost = encoding.certify(strain, encoding.encode(strain, 0), True, 0)
    assert encoding.max_snr_loss == loss
    assert 0.9 * loss < lost <= loss


@pytest.mark.parametrize("loss", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("snr", [1.0, 8.0, 100.0, 3000.0])
def test_a_signal_alone_keeps_the_promise_however_loud_it_is(loss, snr):
    """A chirp most of whose samples lie below any step that suits its peak."""
    time = np.linspace(-8, 0, 65_536)
    signal = np.exp(3 * time) * np.sin(400 * time + 60 * time**2)
    strain = snr * signal / np.sqrt(np.sum(signal**2)) * np.ones((3, 1)) / np.sqrt(3)
    encoding = encoding_for(loss, noisy=False, largest_peak=snr)
    codes = encoding.encode(strain, 0, noisy=False)
    stored = encoding.decode(codes).astype(float)
    overlap = np.sum(stored * strain) / np.sqrt(np.sum(stored**2) * np.sum(strain**2))
    assert encoding.name == "float16+blosc"
    assert 1 - overlap <= loss
    assert encoding.certify(strain, codes, False, 0) == pytest.approx(1 - overlap, abs=1e-9)
    # Four times the step would not have kept it: the step is no finer than it has to be.
    step = np.abs(codes[codes != 0]).min()
    coarse = np.rint(strain / (4 * float(step))) * 4 * float(step)
    assert encoding.snr_loss(strain, coarse.astype("f2"), noisy=False) > loss


def test_a_broken_promise_stops_with_the_events_number():
    encoding = certified(ENCODINGS["int8"], 1e-4)
    strain = np.random.default_rng(5).standard_normal((3, 1000))
    with pytest.raises(InputError, match=r"event 17: the encoding int8 takes 0\.0006.* 0\.0001 w"):
        encoding.certify(strain, encoding.encode(strain, 17), True, 17)


def test_silence_has_nothing_to_lose():
    encoding = encoding_for(1e-4, noisy=False, largest_peak=1.0)
    silence = np.zeros((3, 100))
    assert encoding.certify(silence, encoding.encode(silence, 0, noisy=False), False, 0) == 0.0


def test_a_frame_does_not_depend_on_who_compresses_it():
    """Blosc's own threads would append their blocks as they come."""
    codes = np.random.default_rng(6).integers(-40, 40, (3, 65_536)).astype("<i2")
    settings = ENCODINGS["int16+blosc"].blosc
    here = compress(codes, settings)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: compress(codes, settings), range(32))) == {here}
