"""The front ends."""

import math

import pytest
import torch

from model.checkpoint import config_from_dict
from model.config import EmbeddingConfig
from model.embedding import EMBEDDINGS, make_embedding, spectrogram
from storage.errors import InputError

RECIPE = {"channels": (24, 48, 96, 192), "blocks": 2, "condition": 128}
every_kind = pytest.mark.parametrize("kind", EMBEDDINGS)


def small(kind, **changes):
    options = {"channels": (8, 16), "condition": 7, "stride": 4, "windows": (16, 64), **changes}
    return EmbeddingConfig(kind=kind, **options)


@every_kind
@pytest.mark.parametrize(("detectors", "samples"), [(1, 1024), (2, 1024), (3, 4096)])
def test_an_event_becomes_a_condition(kind, detectors, samples):
    embedding = make_embedding(detectors, samples, small(kind))
    assert embedding(torch.randn(5, detectors, samples)).shape == (5, 7)


@every_kind
@pytest.mark.parametrize("blocks", [1, 2])
def test_every_kind_has_the_references_two_million_parameters(kind, blocks):
    embedding = make_embedding(
        3, 65_536, EmbeddingConfig(**{**RECIPE, "blocks": blocks}, kind=kind)
    )
    weights = sum(weight.numel() for weight in embedding.parameters())
    assert 1.5e6 < weights < 2.5e6


@every_kind
def test_every_sample_of_the_strain_counts(kind):
    torch.manual_seed(0)
    embedding = make_embedding(2, 1024, small(kind))
    strain = torch.randn(1, 2, 1024, requires_grad=True)
    embedding(strain).square().sum().backward()
    assert (strain.grad != 0).all()


@every_kind
def test_an_events_condition_does_not_depend_on_the_events_beside_it(kind):
    embedding = make_embedding(2, 1024, small(kind))
    strain = torch.randn(4, 2, 1024)
    together = embedding(strain)
    for row in range(4):
        assert torch.allclose(embedding(strain[row : row + 1])[0], together[row], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@every_kind
def test_detectors_are_told_apart(kind):
    embedding = make_embedding(2, 1024, small(kind))
    strain = torch.randn(4, 2, 1024)
    assert not torch.allclose(embedding(strain), embedding(strain.flip(1)), atol=1e-3)


@every_kind
def test_the_sign_of_the_strain_is_seen(kind):
    """It is a phase of pi: a front end of powers alone would be blind to it."""
    embedding = make_embedding(1, 1024, small(kind))
    strain = torch.randn(4, 1, 1024)
    assert not torch.allclose(embedding(strain), embedding(-strain), atol=1e-3)


@pytest.mark.parametrize("shift", [64, 256])
def test_a_resnet_over_the_series_moves_with_the_signal(shift):
    """By whole steps of all its stages, and away from the ends."""
    embedding = make_embedding(1, 8192, small("resnet-1d", channels=(8,)))
    strain = torch.zeros(1, 1, 8192)
    strain[..., 4000:4100] = torch.randn(100)
    blocks = embedding.resnet[0]
    maps = [
        blocks(embedding.steps(rolled))[..., 200:-200]
        for rolled in (strain, strain.roll(shift, -1))
    ]
    moved = maps[0].roll(shift // 4, -1)[..., 100:], maps[1][..., 100:]
    assert torch.allclose(*moved, atol=1e-5)
    assert not torch.allclose(maps[0], maps[1], atol=1e-2), "the comparison cannot fail"


def test_a_spectrogram_of_white_noise_has_unit_size():
    image = spectrogram(torch.randn(20, 1, 4096, generator=torch.Generator().manual_seed(0)), 64)
    assert image.shape == (20, 3, 32, 128)
    assert image[:, :2].std().item() == pytest.approx(1, abs=0.02)
    # log1p of an exponential variable: mean e E1(1)
    assert image[:, 2].mean().item() == pytest.approx(0.5963, abs=0.02)


def test_a_tone_shows_at_its_frequency_and_its_time():
    time = torch.arange(4096) / 1024  # 4 s at 1024 Hz
    burst = torch.sin(2 * math.pi * 160 * time) * torch.exp(-(((time - 3) / 0.05) ** 2))
    power = spectrogram(10 * burst[None, None], 64)[0, 2]
    row, frame = divmod(int(power.argmax()), power.shape[1])
    assert 16 * (row + 1) == 160  # bins of 16 Hz, the first left out
    assert frame * 32 / 1024 == 3


def toy_excess(kind, steps=300):
    """Nats above the exact posterior's entropy, for the amplitude of a known signal in noise.

    The prior and the noise are normal, and so is the posterior, of variance 1 / (1 + snr^2).
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    time = torch.arange(1024) / 1024
    signal = torch.sin(2 * math.pi * (20 * time + 60 * time**2)) * torch.exp(
        -((time - 0.5) ** 2) / 0.02
    )
    snr = 10.0
    signal = snr * signal / signal.norm()
    embedding = make_embedding(1, 1024, small(kind, condition=2, stride=16))
    optimiser = torch.optim.Adam(embedding.parameters())
    losses = []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        amplitude = torch.randn(64, generator=generator)
        noise = torch.randn(64, 1, 1024, generator=generator)
        mean, log_width = embedding(amplitude[:, None, None] * signal + noise).unbind(1)
        scaled = (amplitude - mean) * torch.exp(-log_width)
        loss = (0.5 * scaled**2 + log_width + 0.5 * math.log(2 * math.pi)).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(embedding.parameters(), 5.0)
        optimiser.step()
        losses.append(loss.item())
    entropy = 0.5 * math.log(2 * math.pi * math.e / (1 + snr**2))
    return sum(losses[-10:]) / 10 - entropy


@pytest.mark.parametrize(
    ("kind", "nats"), [("folded-resnet", 0.5), ("resnet-1d", 1.0), ("spectrogram", 0.5)]
)
def test_the_amplitude_of_a_signal_is_learnt_to_within_some_nats(kind, nats):
    """Of the 2.3 nats that an event of SNR 10 tells; in 300 steps, with 16 channels at most."""
    assert -0.1 < toy_excess(kind) < nats


@pytest.mark.parametrize("samples", [1000, 36, 900, 65_535])
def test_a_series_that_does_not_fold_to_patches_is_refused(samples):
    with pytest.raises(InputError, match=f"{samples} samples"):
        make_embedding(2, samples, small("folded-resnet"))


@pytest.mark.parametrize("samples", [1000, 36, 900, 65_535])
def test_a_resnet_over_the_series_takes_any_length(samples):
    embedding = make_embedding(2, samples, small("resnet-1d"))
    strain = torch.randn(3, 2, samples, requires_grad=True)
    embedding(strain).square().sum().backward()
    assert (strain.grad != 0).all()


@pytest.mark.parametrize("samples", [1000, 36, 900, 65_535])
def test_a_series_that_spectra_do_not_divide_is_refused(samples):
    with pytest.raises(InputError, match=f"the {samples} of a series"):
        make_embedding(2, samples, small("spectrogram"))


@pytest.mark.parametrize("samples", [64, 192, 4096])
def test_a_series_of_a_few_windows_is_taken(samples):
    make_embedding(2, samples, small("spectrogram", channels=(8,)))(torch.randn(3, 2, samples))


@pytest.mark.parametrize(("kind", "samples"), [("resnet-1d", 16), ("folded-resnet", 256)])
def test_a_series_too_short_for_the_stages_is_refused(kind, samples):
    with pytest.raises(InputError, match="stages leave 1 of"):
        make_embedding(1, samples, small(kind, channels=(8, 8, 8)))


@pytest.mark.parametrize("windows", [[], [6], [30, 60], [64, 96], [64, 16]])
def test_windows_that_do_not_share_a_grid_are_refused(windows):
    with pytest.raises(InputError, match="embedding.windows: got"):
        EmbeddingConfig(windows=tuple(windows))


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"got 'resnet', known are folded-resnet, resnet-1d"):
        make_embedding(2, 1024, EmbeddingConfig(kind="resnet"))


@every_kind
def test_a_recipe_names_the_kind(kind):
    assert config_from_dict({"embedding": {"kind": kind}}).embedding.kind == kind
