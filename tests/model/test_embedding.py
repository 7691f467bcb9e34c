"""The front end."""

import pytest
import torch

from model.config import EmbeddingConfig
from model.embedding import make_embedding
from storage.errors import InputError

SMALL = EmbeddingConfig(channels=(8, 16), condition=7)


@pytest.mark.parametrize(("detectors", "samples"), [(1, 1024), (2, 1024), (3, 4096)])
def test_an_event_becomes_a_condition(detectors, samples):
    embedding = make_embedding(detectors, samples, SMALL)
    assert embedding(torch.randn(5, detectors, samples)).shape == (5, 7)


def test_the_default_has_the_references_two_million_parameters():
    embedding = make_embedding(3, 65_536, EmbeddingConfig())
    weights = sum(weight.numel() for weight in embedding.parameters())
    assert 1.5e6 < weights < 2.5e6


def test_every_sample_of_the_strain_counts():
    embedding = make_embedding(2, 1024, SMALL)
    strain = torch.randn(1, 2, 1024, requires_grad=True)
    embedding(strain).square().sum().backward()
    assert (strain.grad != 0).all()


@pytest.mark.parametrize("samples", [1000, 36, 900, 65_535])
def test_a_series_that_does_not_fold_to_patches_is_refused(samples):
    with pytest.raises(InputError, match=f"{samples} samples"):
        make_embedding(2, samples, SMALL)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"got 'resnet', known are folded-resnet"):
        make_embedding(2, 1024, EmbeddingConfig(kind="resnet"))
