"""What makes a step faster does not change what is learnt."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from model.checkpoint import load, restore
from model.config import EmbeddingConfig, OptimiserConfig, SpeedConfig
from model.embedding import EMBEDDINGS
from model.history import read_history
from model.speed import resolve
from model.train import Trainer, train
from storage.errors import InputError

PLAIN = SpeedConfig(precision="fp32", channels_last=False, fused=False, compile=False)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def losses(config, toy_data, tmp_path_factory):
    """The loss curve of a short run, with some flags other than plain."""

    def curve(embedding=config.embedding, optimiser=config.optimiser, **flags):
        run = tmp_path_factory.mktemp("run") / "run"
        changes = {"embedding": embedding, "optimiser": optimiser, "speed": replace(PLAIN, **flags)}
        train(replace(config, epochs=2, **changes), toy_data(), run)
        return torch.tensor([float(row["train_loss"]) for row in read_history(run)])

    return curve


@pytest.fixture(scope="module")
def plain(losses):
    return losses()


@pytest.mark.parametrize("flag", ["channels_last", "fused"])
def test_a_flag_changes_the_loss_curve_by_rounding_alone(flag, losses, plain):
    assert torch.allclose(losses(**{flag: True}), plain, atol=2e-3)


def test_half_precision_changes_the_loss_curve_by_little(losses, plain):
    found = losses(precision="bf16")
    assert not torch.equal(found, plain), "it was not on"
    error = (found - plain).abs().mean()
    unlearnt = losses(optimiser=OptimiserConfig(learning_rate=1e-12))
    learnt = (unlearnt - plain).abs().mean()
    assert error < learnt / 4, "0.0015 and 0.045 when this was written"


@pytest.mark.slow
def test_compilation_changes_the_loss_curve_by_rounding_alone(losses, plain):
    assert torch.allclose(losses(compile=True), plain, atol=2e-3)


def test_the_comparison_of_loss_curves_catches_another_network(losses, plain):
    other = losses(embedding=EmbeddingConfig(patch=(8, 8), channels=(8, 16), condition=16))
    assert not torch.allclose(other, plain, atol=2e-3)


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_every_embedding_takes_all_flags_at_once(kind, config, toy_data, tmp_path):
    embedding = EmbeddingConfig(
        kind=kind, patch=(4, 8), windows=(16, 64), channels=(8, 16), condition=16
    )
    speed = SpeedConfig(precision="bf16", channels_last=True, fused=True)
    wanted = replace(config, epochs=1, embedding=embedding, speed=speed)
    assert train(wanted, toy_data(), tmp_path / "run").finished


def test_a_trained_run_is_loaded_in_single_precision(config, toy_data, tmp_path):
    speed = SpeedConfig(precision="bf16", channels_last=True)
    train(replace(config, epochs=1, speed=speed), toy_data(), tmp_path / "run")
    estimator = load(tmp_path / "run", "cpu")
    assert not estimator.half_embedding
    assert {weights.dtype for weights in estimator.parameters()} == {torch.float32}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, True)])
def test_what_the_optimiser_remembers_of_a_weight_stays_that_of_the_same_number(
    fused, before, after, config, toy_data, tmp_path
):
    """However both lie in memory: a fused step goes through it without looking at the strides."""

    def trainer(run, channels_last):
        speed = replace(PLAIN, fused=fused, channels_last=channels_last)
        fast = OptimiserConfig(learning_rate=0.01, warmup=0.0)
        wanted = replace(config, epochs=1, speed=speed, optimiser=fast)
        return Trainer(wanted, toy_data(), tmp_path / run)

    def steps(trainer, count):
        for batch in islice(trainer.training, count):
            trainer.learn(batch)

    first, plain = trainer("run", before), trainer("plain", False)
    steps(first, 6), steps(plain, 8)  # the first ones leave the embedding as it is
    first.save()
    again = trainer("run", after)
    steps(again, 2)
    expected = plain.estimator.state_dict()
    for name, weight in again.estimator.state_dict().items():
        assert torch.allclose(weight, expected[name], atol=1e-4), name


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_a_run_goes_on_with_other_flags(before, after, config, toy_data, tmp_path):
    """As on another device; those it began with do not come back with its state."""
    short = replace(config, epochs=1, speed=replace(PLAIN, fused=before, channels_last=before))
    first = Trainer(short, toy_data(), tmp_path / "run")
    first.learn(next(iter(first.training)))
    first.save()
    other = replace(short, speed=replace(PLAIN, fused=after, channels_last=after))
    again = Trainer(other, toy_data(), tmp_path / "run")
    assert again.step == 1
    assert [group["fused"] for group in again.optimiser.param_groups] == [after]
    again.learn(next(iter(again.training)))


def test_flags_change_no_name_and_no_value_of_the_weights(config, toy_data, tmp_path):
    runs = []
    for number, flag in enumerate((False, True)):
        speed = replace(PLAIN, channels_last=flag, compile=flag)
        Trainer(replace(config, speed=speed), toy_data(), tmp_path / str(number)).save()
        runs.append(restore(tmp_path / str(number)).network)
    assert list(runs[0]) == list(runs[1])
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_cpu_trains_in_single_precision_by_default():
    speed = resolve(SpeedConfig(), CPU)
    assert (speed.precision, speed.channels_last, speed.compile) == ("fp32", False, False)


def test_every_flag_can_be_switched_off():
    speed = resolve(PLAIN, CPU)
    assert (speed.precision, speed.fused, speed.channels_last, speed.compile) == (
        "fp32", False, False, False,
    )  # fmt: skip


def test_tf32_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="the device is cpu; give fp32 or bf16"):
        resolve(SpeedConfig(precision="tf32"), CPU)
