"""A GPU trains, comes back and samples as the CPU does: `make test-gpu`; here the CPU by itself."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from model.checkpoint import load
from model.config import AugmentConfig, EmbeddingConfig, OptimiserConfig, SpeedConfig
from model.embedding import EMBEDDINGS
from model.failure import reproduce
from model.precision import is_tf32
from model.trainer import Trainer
from storage.errors import InputError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FLAGS = [{}, {"channels_last": True}, {"fused": True}, {"precision": "bf16"}]
FLAGS_OF_GPU = [
    *FLAGS,
    {"precision": "tf32"},  # which a CPU refuses
    {"compile": True},
    {"compile": True, "precision": "bf16"},
]
PLAIN = SpeedConfig(precision="fp32", channels_last=False, fused=False, compile=False)


@pytest.fixture
def trainer(config, toy_data, tmp_path):
    """Make the trainer of a run; of noise as it is stored, which is the same everywhere."""

    def make(run, device, noisy=True, flags=None, learning_rate=5e-3, **changes):
        speed = replace(PLAIN, **(flags or {}))
        optimiser = OptimiserConfig(learning_rate=learning_rate, warmup=0.0)
        wanted = replace(
            config, epochs=2, speed=speed, device=device, optimiser=optimiser, **changes
        )
        return Trainer(wanted, toy_data(noisy=noisy), tmp_path / run)

    return make


def losses(trainer, steps=8):
    return np.array([trainer.learn(batch) for batch in islice(trainer.training.epochs(), steps)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_the_losses_of_every_embedding_are_those_of_the_cpu(kind, device, trainer):
    embedding = EmbeddingConfig(
        kind=kind, patch=(4, 8), windows=(16, 64), channels=(8, 16), condition=16
    )
    found = losses(trainer("there", device, embedding=embedding))
    assert found == pytest.approx(losses(trainer("here", "cpu", embedding=embedding)), abs=2e-3)


@pytest.mark.parametrize(
    ("device", "flags"),
    [
        *(("cpu", flags) for flags in FLAGS),
        *(pytest.param("cuda", flags, marks=pytest.mark.gpu) for flags in FLAGS_OF_GPU),
    ],
)
def test_a_flag_changes_losses_by_rounding(device, flags, trainer):
    found = losses(trainer("fast", device, flags=flags), 20)
    plain = losses(trainer("plain", "cpu"), 20)
    unlearnt = losses(trainer("still", "cpu", learning_rate=1e-12), 20)
    error, learnt = (np.abs(other - plain).mean() for other in (found, unlearnt))
    assert error < (learnt / 4 if "precision" in flags else learnt / 50)


@pytest.mark.parametrize("device", DEVICES)
def test_fresh_noise_and_shifts_of_a_step_are_the_same_each_time(device, trainer):
    moving = AugmentConfig(time_shift=0.01)
    one, other = (trainer(run, device, noisy=False, augment=moving) for run in ("a", "b"))
    assert losses(one, 4) == pytest.approx(losses(other, 4), abs=1e-4)
    assert one.validate() == pytest.approx(other.validate(), abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("first", DEVICES)
def test_a_run_goes_on_on_another_device(first, device, trainer):
    whole = losses(trainer("whole", "cpu"))
    begun = trainer("run", first)
    before = losses(begun, 5)
    begun.save()
    after = losses(trainer("run", device), 3)
    assert np.concatenate([before, after]) == pytest.approx(whole, abs=2e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_densities_are_those_of_the_cpu_in_single_precision_whatever_trained_before(
    device, trainer, tmp_path
):
    precision = "tf32" if device == "cuda" else "bf16"
    run = trainer("run", device, flags={"precision": precision})
    losses(run)
    run.save()
    before = is_tf32()
    (batch,) = islice(run.validation, 1)
    strain = batch.strain.cpu().numpy()
    theta, density = load(tmp_path / "run", device).sample(strain, 50)
    again = load(tmp_path / "run", "cpu").log_prob(theta.cpu(), strain)
    assert density.cpu().numpy() == pytest.approx(again.numpy(), abs=2e-3)
    assert is_tf32() == before == (True, True), "left as training had it"


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_that_ended_a_run_is_reproduced(device, trainer, tmp_path):
    run = trainer("run", device)
    run.config = replace(run.config, optimiser=OptimiserConfig(largest_loss=1e-3))
    with pytest.raises(InputError, match="failed-000000.pt"):
        losses(run, 1)
    found = reproduce(tmp_path / "run" / "failed-000000.pt")
    assert found.mean().item() == pytest.approx(losses(trainer("other", "cpu"), 1)[0], abs=2e-3)
