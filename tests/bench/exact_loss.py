"""How far a trained network is from the exact posterior, in nats of its validation loss.

python tests/bench/exact_loss.py RUN DATA [EVENTS]

For pipeline/recipes/et-short.yaml: signals without noise, chirp mass, distance and phase free, a
model in which the phase turns the signal. Amplitude goes as one over distance, so that a template
at each chirp mass and two phases gives the likelihood on a grid of all three. Noise is drawn once,
by the network's own definition, and both see the same strain. Losses are those of the training:
-log density of the truth in the flow's space.
"""

import sys

import numpy as np
import torch

import model
from pipeline.likelihood import SegmentNoise
from pipeline.run import simulator_of_dataset
from storage.dataset import read_schema
from storage.stream import EventStream

MASSES, DISTANCES, PHASES = 1600, 120, 24
NEGLECTED = 20.0  # nats below the best chirp mass, from which on there is no posterior


def main(run: str, data: str, events: int = 1000) -> None:
    torch.set_grad_enabled(False)
    network, (simulator, _), schema = (
        model.load(run, "cpu"),
        simulator_of_dataset(data),
        read_schema(data),
    )
    names, noise = list(schema.parameter_names), SegmentNoise.of(simulator.config)
    priors = simulator.config.prior.distributions()
    batch = next(iter(EventStream(data, batch_size=events, shuffle=False, stop=events)))
    strain = network.facts.preprocess()(torch.from_numpy(batch.strain), list(range(events)))
    theta = torch.tensor(batch.parameters[:, [names.index(name) for name in network.theta.names]])
    of_network = network.log_prob(theta[:, None], strain)[:, 0].numpy()

    masses = [float(priors["chirp_mass"].rescale(u)) for u in middles(MASSES)]
    distances = np.array(
        [float(priors["luminosity_distance"].rescale(u)) for u in middles(DISTANCES)]
    )
    fixed = dict(zip(names, batch.parameters[0].tolist(), strict=True))
    nearest = {**fixed, "luminosity_distance": float(distances[0])}
    templates = np.array(
        [
            [
                noise.coordinates(simulator.signal({**nearest, "chirp_mass": mass, "phase": phase}))
                for phase in (0.0, np.pi / 4)
            ]
            for mass in masses
        ]
    )
    angles = 2 * np.pi * np.arange(PHASES) / PHASES  # of twice the phase
    turns = np.array([np.cos(angles), np.sin(angles)])
    norms = np.einsum("mix,mjx->mij", templates, templates)
    norm = np.einsum("mij,ip,jp->mp", norms, turns, turns)
    amplitude = distances[0] / distances[:, None]

    of_exact = np.empty(events)
    for row in range(events):
        observed = noise.coordinates(strain[row].numpy().astype(np.float64))
        truth = dict(zip(names, batch.parameters[row].tolist(), strict=True))
        signal = noise.coordinates(simulator.signal(truth))
        overlap = np.einsum("mix,x->mi", templates, observed) @ turns
        best = (overlap.clip(0) ** 2 / norm).max(1) / 2
        near = best > best.max() - NEGLECTED
        grid = amplitude * overlap[near, None] - amplitude**2 * norm[near, None] / 2
        evidence = grid.max() + np.log(
            np.exp(grid - grid.max()).sum() / (MASSES * DISTANCES * PHASES)
        )
        prior = sum(float(priors[name].log_prob(truth[name])) for name in network.theta.names)
        of_exact[row] = signal @ observed - signal @ signal / 2 - evidence + prior
    jacobian = network.theta.to_flow(theta)[1].numpy()
    gap = of_exact - of_network
    print(
        f"validation loss of {events} events: exact {(jacobian - of_exact).mean():.3f}, "
        f"network {(jacobian - of_network).mean():.3f} nats\n"
        f"the network is above by {gap.mean():.3f} +- {gap.std() / np.sqrt(events):.3f} nats"
    )


def middles(count: int) -> np.ndarray:
    """The middles of equal parts of (0, 1)."""
    return (np.arange(count) + 0.5) / count


if __name__ == "__main__":
    main(*sys.argv[1:3], *(int(word) for word in sys.argv[3:]))
