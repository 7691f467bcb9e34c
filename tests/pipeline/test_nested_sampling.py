"""Reweighted samples against bilby's nested sampling of the same likelihood, in four parameters."""

import bilby
import numpy as np
import pytest
from scipy.stats import multivariate_t

from pipeline.description import describe_dataset
from pipeline.evaluate import evaluate, read_strain
from pipeline.likelihood import Likelihood, SegmentNoise, Waves
from pipeline.prior_text import describe
from pipeline.priors import PARAMETERS
from pipeline.provenance import simulator_of_dataset
from pipeline.reweight_event import Gathered, Target
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from storage.dataset import create_dataset, dataset_digest
from storage.posterior import Posterior

LARGEST_DIVERGENCE = 0.005  # Jensen-Shannon, of a marginal [nats]
BINS = 30
FLAGS = (
    "--waveform.approximant=IMRPhenomXAS",
    "--waveform.f_lower=30",
    "--waveform.f_ref=30",
    "--segment.duration=2",
    "--segment.generation_duration=4",
    "--segment.sample_rate=1024",
    "--segment.start_time=1577491216.5",
    "--prior.chirp_mass=Uniform(30, 40)",
    "--prior.mass_ratio=Uniform(0.4, 1)",
    "--prior.luminosity_distance=PowerLaw(alpha=2, minimum=15000, maximum=50000)",
    "--prior.phase=Uniform(0, 2 * pi)",
    *(f"--prior.{name}=0" for name in ("a_1", "a_2", "tilt_1", "tilt_2", "phi_12", "phi_jl")),
    *("--prior.ra=1", "--prior.dec=0.5", "--prior.theta_jn=0.4", "--prior.psi=0.3"),
    "--prior.geocent_time=1577491218",
    "--network_snr.minimum=0",
    "--events=1",
    "--seed=6",
)
SAMPLED = ("chirp_mass", "mass_ratio", "luminosity_distance")  # as a network that leaves phase out


def divergence(first, second, weights=None):
    """Jensen-Shannon divergence of two sets of samples [nats], the second weighted."""
    edges = np.quantile(first, np.linspace(0, 1, BINS + 1))
    edges[[0, -1]] = -np.inf, np.inf
    p, q = (
        np.histogram(x, edges, weights=w)[0] / (len(x) if w is None else w.sum())
        for x, w in ((first, None), (second, weights))
    )
    middle = (p + q) / 2
    terms = [x * np.log(np.where(x > 0, x, 1) / middle) for x in (p, q)]
    return float(sum(term.sum() for term in terms) / 2)


def test_the_divergence_sees_a_quarter_of_a_sigma():
    samples = np.random.default_rng(0).normal(size=(2, 8000))
    assert divergence(samples[0], samples[1]) < 0.4 * LARGEST_DIVERGENCE
    assert divergence(samples[0], samples[1] + 0.25) > LARGEST_DIVERGENCE


class ForBilby(bilby.Likelihood):
    """Our likelihood in bilby's words."""

    def __init__(self, simulator, likelihood, fixed):
        super().__init__()
        self._simulator, self._likelihood, self._fixed = simulator, likelihood, fixed
        self._waves = Waves(simulator)

    def log_likelihood_ratio(self, parameters):
        source = {**self._fixed, **parameters}
        return self._likelihood.log_ratio(self._simulator.signal_of(self._waves.of(source), source))

    def log_likelihood(self, parameters):
        return self.log_likelihood_ratio(parameters) + self.noise_log_likelihood()

    def noise_log_likelihood(self):
        return self._likelihood.log_noise_evidence


@pytest.fixture(scope="module")
def event(et_bbh, tmp_path_factory):
    """A stored event."""
    config = et_bbh(*FLAGS)
    simulator = Simulator.from_config(config.simulation)
    folder = tmp_path_factory.mktemp("nested") / "x.zarr"
    create_dataset(folder, describe_dataset(config, simulator), simulator.psd)
    simulate_shard(str(folder), 0)
    return folder


@pytest.fixture(scope="module")
def nested(event, tmp_path_factory):
    """dynesty's result."""
    simulator, schema = simulator_of_dataset(str(event))
    noise = SegmentNoise.of(simulator.config, schema)
    likelihood = Likelihood.of(noise, read_strain(str(event), schema, 0))
    target = Target.of(str(event))
    bilby.core.utils.logger.setLevel("ERROR")
    bilby.core.utils.random.seed(3)
    return bilby.run_sampler(
        likelihood=ForBilby(simulator, likelihood, target.prior.fixed),
        priors=bilby.core.prior.PriorDict(
            {name: describe(target.prior.distributions[name]) for name in (*SAMPLED, "phase")}
        ),
        sampler="dynesty",
        nlive=1000,
        sample="unif",
        bound="multi",
        dlogz=0.05,
        npool=1,
        outdir=str(tmp_path_factory.mktemp("dynesty")),
        label="event",
        check_point_plot=False,
        resume=False,
        save=False,
        use_ratio=True,
        print_method="interval-60",
    )


@pytest.mark.slow
def test_four_parameters_agree_with_dynesty(event, nested):
    """The samples are Student's, as wide as 1.3 posteriors, in three; the phase is drawn."""
    there = nested.posterior[list(SAMPLED)].values
    centre, scale = there.mean(0), there.std(0)
    proposal = multivariate_t(shape=1.3**2 * np.corrcoef(there.T), df=5, seed=1)
    drawn = proposal.rvs(12_000)
    samples = centre + scale * drawn
    posterior = Posterior(
        event=0,
        names=SAMPLED,
        samples=samples,
        log_prob=proposal.logpdf(drawn) - np.log(scale).sum(),
        truth={},
        priors={name: "0" for name in PARAMETERS},
        provenance={"data_sha256": dataset_digest(event)},
    )
    gathered = Gathered(posterior, "", Target.of(str(event)))
    for piece in gathered.pieces():
        gathered.add(evaluate(piece))
    ours = gathered.reweighted()
    exact = ours.exact
    divergences = {
        name: divergence(nested.posterior[name].values, ours.samples[:, column], exact.weights)
        for column, name in enumerate(ours.names)
    }
    unweighted = divergence(there[:, 0], samples[:, 0])
    apart = exact.log_evidence - nested.log_bayes_factor
    error = np.hypot(exact.log_evidence_error, nested.log_evidence_err)
    print(
        f"JSD {divergences}, of the samples as drawn {unweighted:.4f}; {len(nested.posterior)} "
        f"nested samples, {nested.num_likelihood_evaluations} likelihoods; efficiency "
        f"{exact.efficiency:.2f}; log evidence {exact.log_evidence:.3f} +- "
        f"{exact.log_evidence_error:.3f}, dynesty {nested.log_bayes_factor:.3f} +- "
        f"{nested.log_evidence_err:.3f}"
    )
    assert set(divergences) == {*SAMPLED, "phase"}
    assert max(divergences.values()) < LARGEST_DIVERGENCE
    assert unweighted > LARGEST_DIVERGENCE
    assert abs(apart) < 3 * error
