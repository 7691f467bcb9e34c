"""Sources for polarisations: drawn from the prior, within the window, and repeatable."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from polarised import POLARISATIONS, facts_of, short, sources_of, write_set
from scipy import stats

from model import extrinsic
from model.checkpoint import restore
from model.config import EmbeddingConfig
from model.extrinsic import Extrinsic
from model.failure import reproduce
from model.history import read_history
from model.loss import TRAINING, VALIDATION
from model.projection import Sources, Stored
from model.train import train
from model.trainer import Trainer
from model.transfer import DeviceBatch
from pipeline.likelihood import times
from pipeline.noise import optimal_snr
from pipeline.simulate import Simulator
from storage.errors import InputError

CPU = torch.device("cpu")
IMPROBABLE = 1e-3
NO_WINDOW = "--network_snr={minimum: 0}"
FIXED = "--prior.psi=0.5"


def seeds_of(count, seed=1):
    return np.random.default_rng(seed).integers(2**64, size=count, dtype=np.uint64)


class Made:
    """A simulator, and what makes events of its polarisations."""

    def __init__(self, *flags) -> None:
        config = short(POLARISATIONS, *flags)
        self.simulator = Simulator.from_config(config.simulation)
        self.facts = facts_of(config, self.simulator)
        self.extrinsic = Extrinsic.of(self.facts, CPU)

    def waveform(self, seed, **changes):
        """A source that the window accepts, its waveform, and what is stored of it."""
        generator = np.random.default_rng(seed)
        while True:
            source = {**self.simulator.draw_parameters(generator), **changes}
            waves = self.simulator.waves(source)
            if self.simulator.accepts(self.snr(waves, source)):
                series = self.simulator.series.of(waves, source["luminosity_distance"])
                return source, waves, torch.from_numpy(series)

    def snr(self, waves, source, **elsewhere):
        """Of the network, as the simulator has it, of a source's waveform there or elsewhere."""
        nearer = source["luminosity_distance"] / elsewhere.get(
            "luminosity_distance", source["luminosity_distance"]
        )
        waves, source = times(waves, nearer), {**source, **elsewhere}
        return float(np.linalg.norm(optimal_snr(self.simulator.signal_of(waves, source))))

    def draw(self, source, series, count, seed=1):
        """Draw some sources for a waveform."""
        table = torch.zeros(count, len(self.facts.parameters), dtype=torch.float64)
        table[:, list(self.extrinsic.columns)] = torch.cat(sources_of(source))
        repeated = series[None].expand(count, -1, -1)
        table = self.extrinsic(repeated, table, seeds_of(count, seed))[1]
        return Sources(*table[:, list(self.extrinsic.columns)].unbind(1))


@pytest.fixture(scope="module")
def open_window():
    return Made(NO_WINDOW, FIXED)


@pytest.fixture(scope="module")
def window():
    return Made("--network_snr={minimum: 14, maximum: 40}")


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--network_snr={minimum: 28, maximum: 32}",),
        (NO_WINDOW, "--prior.luminosity_distance=1500", "--prior.ra=Uniform(1, 1.0001)"),
    ],
)
def test_the_strain_is_what_the_simulator_makes_of_the_parameters_that_come_with_it(flags):
    made, count = Made(*flags), 33  # two parts on a GPU, and no multiple of anything
    events = list(made.simulator.events(range(count)))
    series = torch.from_numpy(np.stack([event.strain for event in events]))
    stored = torch.from_numpy(np.stack([event.parameters for event in events]))
    strain, drawn = made.extrinsic(series, stored, seeds_of(count))
    names = [parameter.name for parameter in made.facts.parameters]
    for row, parameters in enumerate(drawn.tolist()):
        signal = made.simulator.signal(dict(zip(names, parameters, strict=True)))
        assert np.linalg.norm(signal - strain[row].numpy()) < 1e-6 * np.linalg.norm(signal)
        assert made.simulator.accepts(float(np.linalg.norm(optimal_snr(signal))))
    kept = (drawn == stored).all(1)
    assert not kept.all()
    assert kept.any() == ("maximum: 32" in "".join(flags)), "few candidates lie within"


def test_without_a_window_they_follow_their_priors_one_by_one(open_window):
    source, _, series = open_window.waveform(0)
    drawn = open_window.draw(source, series, 4000)
    priors = open_window.simulator.config.prior.distributions()
    grid = (np.arange(100_000) + 0.5) / 100_000
    for name, column in zip(Sources._fields, drawn, strict=True):
        if name == "psi":
            assert set(column.tolist()) == {0.5}
            continue
        quantiles = priors[name].rescale(grid)
        shares = np.interp(column.numpy(), quantiles, grid)
        assert stats.kstest(shares, "uniform").pvalue > IMPROBABLE, name
        assert stats.kstest(shares**1.1, "uniform").pvalue < IMPROBABLE, "it could not fail"
    table = np.stack([column.numpy() for column in drawn if column.std() > 0])
    assert np.abs(np.corrcoef(table) - np.eye(len(table))).max() < 0.06


def test_with_a_window_they_follow_what_it_leaves_for_the_waveform(window):
    """The same as drawing again and again until the simulator's own SNR lies within."""
    source, waves, series = window.waveform(3)
    drawn = window.draw(source, series, 800)
    for row in range(100):
        own = {
            name: column[row].item() for name, column in zip(Sources._fields, drawn, strict=True)
        }
        assert window.simulator.accepts(window.snr(waves, source, **own))
    generator, accepted = np.random.default_rng(4), []
    while len(accepted) < 800:
        other = window.simulator.draw_parameters(generator)
        own = {name: other[name] for name in Sources._fields}
        if window.simulator.accepts(window.snr(waves, source, **own)):
            accepted.append(own)
    everything = window.simulator.config.prior.distributions()["luminosity_distance"]
    prior = everything.rescale(generator.random(800))
    for name, column in zip(Sources._fields, drawn, strict=True):
        wanted = [own[name] for own in accepted]
        assert stats.ks_2samp(column.numpy(), wanted).pvalue > IMPROBABLE, name
    assert stats.ks_2samp(drawn.luminosity_distance.numpy(), prior).pvalue < IMPROBABLE


@pytest.mark.slow
def test_events_have_the_distribution_of_the_set_of_strain(window):
    """Waveforms too: those that the window favours come as often."""
    drawn, stored = [], []
    for event in window.simulator.events(range(600)):
        table = torch.from_numpy(event.parameters)[None]
        series = torch.from_numpy(event.strain)[None]
        stored.append(event.parameters)
        drawn.append(window.extrinsic(series, table, seeds_of(1, event.number))[1][0].numpy())
    other = Simulator.from_config(replace(window.simulator.config, seed=9, stored="strain"))
    wanted = np.stack([event.parameters for event in other.events(range(600))])
    names = [parameter.name for parameter in window.facts.parameters]
    drawn, stored = np.stack(drawn), np.stack(stored)
    for column, name in enumerate(names):
        found = stats.ks_2samp(drawn[:, column], wanted[:, column]).pvalue
        assert found > IMPROBABLE, name
    distance = names.index("luminosity_distance")
    assert (drawn[:, distance] != stored[:, distance]).all()


def test_the_snr_without_projecting_is_the_simulators(window):
    for seed in range(5):
        source, waves, series = window.waveform(seed)
        there = Sources(*(column[:, None] for column in sources_of(source)))
        found = window.extrinsic.network_snr(Stored(series[None]), there).item()
        assert found == pytest.approx(window.snr(waves, source), rel=1e-4)


@pytest.mark.parametrize("time", [1577491217.25, 1577491217.6, 1577491218.19])
def test_so_it_is_where_much_of_the_signal_lies_outside_the_segment(time):
    made = Made(NO_WINDOW, "--prior.geocent_time=Uniform(1577491217.21, 1577491218.195)")
    source, waves, series = made.waveform(2, geocent_time=time)
    there = Sources(*(column[:, None] for column in sources_of(source)))
    found = made.extrinsic.network_snr(Stored(series[None]), there).item()
    assert found == pytest.approx(made.snr(waves, source), rel=0.02)


def test_a_waveform_that_no_candidate_brings_into_the_window_keeps_its_own_source(window):
    source, _, series = window.waveform(0)
    columns = list(window.extrinsic.columns)
    table = torch.zeros(1, len(window.facts.parameters), dtype=torch.float64)
    table[:, columns] = torch.stack(sources_of(source), 1)
    strict = replace(window.extrinsic, window=(1e6, 1e7))
    assert torch.equal(strict(series[None], table, seeds_of(1))[1], table)
    assert not torch.equal(window.extrinsic(series[None], table, seeds_of(1))[1], table)


def test_they_are_functions_of_the_seed_of_an_event_and_of_nothing_else(window):
    made = [window.waveform(seed) for seed in range(12)]
    series = torch.stack([item[2] for item in made])
    stored = sources_of(*(item[0] for item in made))
    table = torch.zeros(12, len(window.facts.parameters), dtype=torch.float64)
    table[:, list(window.extrinsic.columns)] = torch.stack(stored, 1)
    seeds = seeds_of(12)
    strain, parameters = window.extrinsic(series, table, seeds)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for rows in ([0], [11, 3], list(range(5)), list(range(11, -1, -1))):
            part = window.extrinsic(series[rows], table[rows], seeds[rows])
            assert torch.equal(part[1], parameters[rows])
            assert torch.allclose(part[0], strain[rows], atol=1e-5)
    finally:
        torch.set_num_threads(threads)
    others = window.extrinsic(series, table, seeds_of(12, 2))[1]
    drawn = list(window.extrinsic.columns)
    assert (others[:, drawn] != parameters[:, drawn]).all()
    rest = [column for column in range(table.shape[1]) if column not in drawn]
    assert torch.equal(others[:, rest], table[:, rest])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "p.zarr", short(POLARISATIONS, events=64))


@pytest.fixture(scope="module")
def small(config):
    """Three epochs of six steps."""
    embedding = EmbeddingConfig(patch=(4, 8), channels=(8, 16), condition=16)
    return replace(
        config,
        parameters=("chirp_mass", "luminosity_distance", "dec", "geocent_time"),
        embedding=embedding,
        epochs=3,
        batch_size=8,
        validation=0.25,
    )


def test_each_step_projects_otherwise_and_validation_never(small, data, tmp_path):
    trainer = Trainer(small, data, tmp_path / "run")
    batch = next(iter(trainer.training))
    losses = [trainer.loss(batch, TRAINING, step) for step in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    rows = [2, 5]
    part = DeviceBatch(batch.strain[rows], batch.parameters[rows], batch.event[rows])
    assert torch.allclose(trainer.loss(part, TRAINING, 3), losses[0][rows], atol=1e-4)
    assert trainer.validate() == trainer.validate()


def test_the_validation_loss_is_that_of_the_strain_of_the_same_sources(small, data, tmp_path):
    plain = write_set(tmp_path / "s.zarr", short(events=64))
    runs = [Trainer(small, d, tmp_path / d.stem) for d in (data, plain)]
    assert runs[0].estimator.theta == runs[1].estimator.theta
    first, second = (run.validate() for run in runs)
    assert first == pytest.approx(second, abs=1e-5)
    batch = next(iter(runs[0].validation))
    changed = replace(runs[0].loss, extrinsic=replace(runs[0].loss.extrinsic, window=None))
    same = torch.equal(changed(batch, VALIDATION, 0), runs[0].loss(batch, VALIDATION, 0))
    assert same, "nothing is drawn"


@pytest.mark.slow
def test_a_run_that_was_interrupted_ends_at_the_same_weights_bit_for_bit(small, data, tmp_path):
    train(small, data, tmp_path / "whole")
    calls, report = 0, None
    while report is None or not report.finished:
        report = train(replace(small, minutes=1e-6), data, tmp_path / "run")
        calls += 1
    assert calls > 10
    first, second = (restore(tmp_path / name) for name in ("whole", "run"))
    assert all(torch.equal(first.network[name], second.network[name]) for name in first.network)
    losses = [[row["train_loss"] for row in read_history(tmp_path / n)] for n in ("whole", "run")]
    assert losses[0] == losses[1]


def test_ranks_draw_the_same_sources_for_the_same_events(small, data, start_ranks, tmp_path):
    once = replace(small, epochs=1)
    train(once, data, tmp_path / "alone")
    assert start_ranks(2, once, data, tmp_path / "run").codes == [0, 0]
    curves = [
        np.array([float(row["train_loss"]) for row in read_history(tmp_path / run)])
        for run in ("alone", "run")
    ]
    assert np.allclose(*curves, atol=2e-5)


def test_a_failed_batch_is_reproduced_with_its_sources(small, data, tmp_path):
    strict = replace(small, optimiser=replace(small.optimiser, largest_loss=0.1))
    with pytest.raises(InputError) as error:
        train(strict, data, tmp_path / "run")
    loss = reproduce(tmp_path / "run" / "failed-000000.pt").mean()
    assert f"the loss became {loss:.4g} after step 0" in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "luminosity_distance",
            {"prior": "UniformSourceFrame(500, 4000)"},
            r"the prior of luminosity_distance, 'UniformSourceFrame\(500, 4000\)', has no closed",
        ),
        ("psi", {"name": "chi"}, "its table of parameters lacks psi"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(window, name, change, says):
    columns = [replace(p, **change) if p.name == name else p for p in window.facts.parameters]
    with pytest.raises(InputError, match=says):
        Extrinsic.of(replace(window.facts, parameters=tuple(columns)), CPU)


def test_a_gaussian_is_drawn_from_too():
    made = Made(NO_WINDOW, "--prior.geocent_time=TruncatedGaussian(1577491218, 0.01, 1577491217.9, "
                           "1577491218.1)")  # fmt: skip
    source, _, series = made.waveform(0)
    times = made.draw(source, series, 2000).geocent_time - 1577491218
    assert stats.kstest(times.numpy() / 0.01, "norm").pvalue > IMPROBABLE


def test_candidates_are_enough_for_most_of_what_the_window_lets_through():
    assert 0.95**extrinsic.CANDIDATES < 0.04
