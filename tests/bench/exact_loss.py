"""How far a trained network is from the exact posterior, in nats of its validation loss.

python tests/bench/exact_loss.py RUN DATA [EVENTS [OUT.npz]]

For pipeline/recipes/et-short.yaml: signals without noise, chirp mass, distance and inclination
free, a model of the dominant mode alone. At each chirp mass it has two signals, one a polarisation,
h = (d_0 / d) ((1 + cos^2 theta_jn) / 2 h_plus + cos theta_jn h_cross), so that two templates give
the likelihood on a grid of all three. Noise is drawn once, by the network's own definition, and
both see the same strain. Losses are those of the training: -log density of the truth in the flow's
space. OUT.npz gets the losses of each event, and the exact marginals of the first ones.
"""

import sys

import numpy as np
import torch

import model
from pipeline.likelihood import SegmentNoise
from pipeline.provenance import simulator_of_dataset
from storage.dataset import read_schema
from storage.stream import EventStream

MASSES, DISTANCES, INCLINATIONS = 2400, 120, 60
MARGINALS = 4  # events of which they are kept
NEGLECTED = 20.0  # nats below the best chirp mass, from which on there is no posterior


def main(run: str, data: str, events: int = 1000, out: str | None = None) -> None:
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

    def middles(name: str, count: int) -> np.ndarray:
        """The middles of parts of a prior that are equally probable."""
        return priors[name].rescale((np.arange(count) + 0.5) / count)

    masses, inclinations = middles("chirp_mass", MASSES), middles("theta_jn", INCLINATIONS)
    distances = middles("luminosity_distance", DISTANCES)
    fixed = dict(zip(names, batch.parameters[0].tolist(), strict=True))
    nearest = {**fixed, "luminosity_distance": float(distances[0])}

    def template(chirp_mass: float, theta_jn: float) -> np.ndarray:
        source = {**nearest, "chirp_mass": chirp_mass, "theta_jn": theta_jn}
        return noise.coordinates(simulator.signal(source))

    edge_on, face_on = (
        np.array([template(mass, angle) for mass in masses.tolist()]) for angle in (np.pi / 2, 0.0)
    )
    templates = np.stack([2 * edge_on, face_on - 2 * edge_on], axis=1)
    cosine = np.cos(inclinations)
    shares = np.array([(1 + cosine**2) / 2, cosine])
    norms = np.einsum("mix,mjx->mij", templates, templates)
    norm = np.einsum("mij,ip,jp->mp", norms, shares, shares)
    amplitude = distances[0] / distances[:, None]

    of_exact = np.empty(events)
    names_kept = ("chirp_mass", "luminosity_distance", "theta_jn")
    kept: dict[str, list[np.ndarray]] = {name: [] for name in names_kept}
    for row in range(events):
        observed = noise.coordinates(strain[row].numpy().astype(np.float64))
        truth = dict(zip(names, batch.parameters[row].tolist(), strict=True))
        signal = noise.coordinates(simulator.signal(truth))
        overlap = np.einsum("mix,x->mi", templates, observed) @ shares
        best = (overlap.clip(0) ** 2 / norm).max(1) / 2
        near = best > best.max() - NEGLECTED
        grid = amplitude * overlap[near, None] - amplitude**2 * norm[near, None] / 2
        evidence = grid.max() + np.log(
            np.exp(grid - grid.max()).sum() / (MASSES * DISTANCES * INCLINATIONS)
        )
        if row < MARGINALS:
            weights = np.zeros((MASSES, DISTANCES, INCLINATIONS))
            weights[near] = np.exp(grid - grid.max())
            for axis, name in enumerate(kept):
                others = tuple({0, 1, 2} - {axis})
                kept[name].append(weights.sum(others) / weights.sum())
        prior = sum(float(priors[name].log_prob(truth[name])) for name in network.theta.names)
        of_exact[row] = signal @ observed - signal @ signal / 2 - evidence + prior
    jacobian = network.theta.to_flow(theta)[1].numpy()
    gap = of_exact - of_network
    print(
        f"validation loss of {events} events: exact {(jacobian - of_exact).mean():.3f}, "
        f"network {(jacobian - of_network).mean():.3f} nats\n"
        f"the network is above by {gap.mean():.3f} +- {gap.std() / np.sqrt(events):.3f} nats"
    )
    if out is not None:
        np.savez(
            out,
            exact=jacobian - of_exact,
            network=jacobian - of_network,
            strain=strain[:MARGINALS].numpy(),
            truth=theta[:MARGINALS].numpy(),
            chirp_mass=masses,
            luminosity_distance=distances,
            theta_jn=inclinations,
            allow_pickle=False,
            **{f"marginal_{name}": np.array(found) for name, found in kept.items()},
        )


if __name__ == "__main__":
    run, data, *more = sys.argv[1:]
    main(run, data, int(more[0]) if more else 1000, more[1] if more[1:] else None)
