import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.encodings import (
    ENCODINGS,
    LARGEST_LOSS,
    Encoding,
    certified,
    encoding_for,
    encoding_named,
)
from storage.errors import InputError

INTEGERS = ["int16", "int8", "int16+blosc", "int8+blosc"]


def arrays_within(limit: float, width: int = 64) -> st.SearchStrategy[np.ndarray]:
    elements = st.floats(-limit, limit, width=width)
    return hnp.arrays(
        f"f{width // 8}", hnp.array_shapes(max_dims=2, max_side=20), elements=elements
    )


@pytest.mark.parametrize("name", ["float32", "float32+blosc"])
@given(strain=arrays_within(float(np.finfo(np.float32).max), width=32))
def test_float32_keeps_every_bit(name, strain):
    encoding = ENCODINGS[name]
    assert encoding.decode(encoding.encode(strain, 0)).tobytes() == strain.tobytes()


@pytest.mark.parametrize("name", ["float16", "float16+blosc"])
@given(strain=arrays_within(65504.0))
def test_float16_is_off_by_at_most_half_a_unit_in_the_last_place(name, strain):
    encoding = ENCODINGS[name]
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


@pytest.mark.parametrize(
    ("encoding", "peak", "wider"),
    [
        (ENCODINGS["int8"], 20, "int16"),
        (ENCODINGS["int8+blosc"], 20, "int16+blosc"),
        (ENCODINGS["int8"], 600, "float32"),
        (certified(Encoding("int8", 0.125, compressed=True), 1e-6), 20, "float32+blosc"),
        (ENCODINGS["int16"], 600, "float32"),
    ],
)
def test_the_encoding_that_is_advised_holds_the_event_and_keeps_the_promise(encoding, peak, wider):
    strain = np.random.default_rng(0).standard_normal((3, 4000)).astype("f4")
    strain[1, 7] = peak
    with pytest.raises(InputError, match=f"name the encoding {re.escape(wider)}$"):
        encoding.encode(strain, 3)
    advised = certified(ENCODINGS[wider], encoding.max_snr_loss)
    advised.certify(strain, advised.encode(strain, 3), True, 3)


def test_who_named_an_encoding_that_breaks_the_promise_is_told_of_some_that_keep_it():
    source = Encoding("int8", 0.15, compressed=True)
    strain = source.decode(
        source.encode(np.random.default_rng(0).standard_normal((3, 65_536)).astype("f4"), 3)
    )
    for name in ("int8", "int16", "float16"):
        named = certified(ENCODINGS[name], 1e-9)
        with pytest.raises(InputError, match=r"name no encoding .* or name float32\+blosc"):
            named.certify(strain, named.encode(strain, 3), True, 3)
    chosen = encoding_for(1e-9, True, source.limit, source)
    for kept in (chosen, certified(ENCODINGS["float32+blosc"], 1e-9)):
        assert kept.certify(strain, kept.encode(strain, 3), True, 3) == 0


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


@pytest.mark.parametrize("name", ["float16", "float16+blosc"])
def test_the_same_signal_is_kept_by_float16(name):
    encoding = ENCODINGS[name]
    strain = np.random.default_rng(2).normal(0, 1e-3, (3, 1000))
    assert encoding.snr_loss(strain, encoding.encode(strain, 0), noisy=False) < 1e-6


@pytest.mark.parametrize("name", ["float32", "float32+blosc"])
@pytest.mark.parametrize("noisy", [True, False])
def test_float32_loses_nothing(name, noisy):
    strain = np.random.default_rng(3).standard_normal((2, 10))
    assert ENCODINGS[name].snr_loss(strain, strain.astype("f4"), noisy) == 0.0


def test_compression_changes_no_stored_number():
    strain = np.random.default_rng(4).standard_normal((3, 1000))
    for name in ("float32", "float16", "int16", "int8"):
        plain, compressed = ENCODINGS[name], ENCODINGS[f"{name}+blosc"]
        for noisy in (True, False):
            codes = plain.encode(strain, 0, noisy)
            assert codes.tobytes() == compressed.encode(strain, 0, noisy).tobytes()


@pytest.mark.parametrize("name", ["int4", "int8+zstd", "+blosc", ""])
def test_an_unknown_encoding_is_refused_with_those_that_are_known(name):
    known = r"known are float32, float16, int16, int8, float32\+blosc, .*, int8\+blosc"
    with pytest.raises(InputError, match=f"'{re.escape(name)}', {known}"):
        encoding_named(name)


# Promises


@pytest.mark.parametrize("loss", [-1e-9, 0.0501, 0.9, 2.0, float("nan")])
def test_an_impossible_promise_is_refused(loss):
    with pytest.raises(InputError, match="max_snr_loss: got .* lies between 0"):
        certified(ENCODINGS["int8"], loss)


def signals(scale: float) -> dict[str, np.ndarray]:
    time = np.linspace(-1, 0, 65_536)
    steady = scale * np.stack([np.sin(k * time) for k in (2e3, 3e3, 5e3)])
    return {"steady": steady, "growing": steady * np.exp(40 * time)}


@pytest.mark.parametrize("loss", [1e-5, 1e-4, 1e-3, 1e-2, LARGEST_LOSS])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("kind", ["steady", "growing"])
def test_a_signal_is_rounded_to_a_power_of_two_that_keeps_its_promise(kind, scale, loss):
    encoding, strain = certified(ENCODINGS["float16+blosc"], loss), signals(scale)[kind]
    codes = encoding.encode(strain, 0, noisy=False)
    assert codes.dtype == np.float16
    assert encoding.certify(strain, codes, False, 0) <= loss
    rounded = np.rint(strain / step_of(codes)) * step_of(codes)
    assert np.array_equal(codes, rounded.astype(np.float16))


@pytest.mark.parametrize("loss", [1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_of_a_signal_without_faint_parts_it_is_the_largest_and_the_next_is_refused(scale, loss):
    encoding, strain = certified(ENCODINGS["float16+blosc"], loss), signals(scale)["steady"]
    step = 2 * step_of(encoding.encode(strain, 0, noisy=False))
    coarser = (np.rint(strain / step) * step).astype(np.float16)
    with pytest.raises(InputError, match=rf"event 3: .* of its SNR, {loss:.3g} was promised"):
        encoding.certify(strain, coarser, False, 3)


def step_of(codes: np.ndarray) -> float:
    """The largest power of two of which all values are multiples."""
    values = np.abs(codes[codes != 0].astype(np.float64))
    step = 2.0 ** np.floor(np.log2(values.min()))
    while np.any(values % step):
        step /= 2
    return step


def test_the_step_of_some_values_is_the_power_of_two_that_divides_them_all():
    assert step_of(np.array([0, 12, -20.0])) == 4
    assert step_of(np.array([0.75, 2.0])) == 0.25


def test_a_signal_of_nothing_but_zeros_stays_so_and_keeps_every_promise():
    encoding = certified(ENCODINGS["float16+blosc"], 1e-4)
    strain = np.zeros((3, 100))
    codes = encoding.encode(strain, 0, noisy=False)
    assert not codes.any()
    assert encoding.certify(strain, codes, False, 0) == 0.0


@pytest.mark.parametrize("loss", [1e-9, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("peak", [10.0, 100.0, 400.0, 1e6])
@pytest.mark.parametrize("noisy", [True, False])
def test_the_encoding_that_is_chosen_holds_the_peak_and_keeps_the_promise(loss, peak, noisy):
    encoding = encoding_for(loss, noisy, peak)
    assert encoding.compressed
    assert encoding.max_snr_loss == loss
    assert encoding.limit >= peak
    strain = np.random.default_rng(6).standard_normal((3, 65_536))
    if not noisy:
        strain *= np.exp(np.linspace(-12, 0, 65_536))
    codes = encoding.encode(strain, 0, noisy)
    assert encoding.certify(strain, codes, noisy, 0) <= loss


@pytest.mark.parametrize("samples", [30, 1000, 3072, 200_000])
def test_short_events_keep_the_promise_too_though_their_losses_scatter(samples):
    encoding = encoding_for(1e-3, True, 10.0, samples=samples)
    draw = np.random.default_rng(samples)
    for number in range(max(20, 3_000_000 // samples)):
        strain = draw.standard_normal(samples)
        encoding.certify(strain, encoding.encode(strain, number), True, number)


def test_the_smallest_encoding_that_will_do_is_chosen():
    assert encoding_for(1e-3, True, 10.0).name == "int8+blosc"
    assert encoding_for(1e-3, True, 100.0).name == "int16+blosc"
    assert encoding_for(1e-3, True, 1e5).name == "float32+blosc"
    assert encoding_for(0.0, True, 10.0).name == "float32+blosc"
    assert encoding_for(1e-4, False, 1e4).name == "float16+blosc"
    assert encoding_for(1e-4, False, 1e5).name == "float32+blosc"
    assert encoding_for(1e-8, False, 10.0).name == "float32+blosc"
    step = encoding_for(1e-3, True, 10.0).scale_factor
    assert step**2 / 24 == pytest.approx(1e-3, rel=0.05)
    assert step**2 / 24 < 1e-3
