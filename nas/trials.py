"""A network as a trial of an Optuna study."""

from __future__ import annotations

import json
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from search_spaces import Architecture, SearchSpace

__all__ = ["attributes_of", "parameters_of", "place_in_queue"]


def attributes_of(arch: Architecture, space: SearchSpace, images: int, proposed: bool) -> dict[str, Any]:
    """What the archive needs to know of a network, and its exact costs."""
    exact = {"macs": space.macs(arch), "params": space.params(arch)}
    exact |= {"size": space.weight_bytes(arch), "memory": space.activation_bytes(arch)}
    text = {"architecture": json.dumps(arch.to_dict()), "id": arch.id, "images": images, "proposed": proposed}
    return text | {name: float(value) for name, value in exact.items()}


def parameters_of(arch: Architecture, space: SearchSpace) -> dict[str, Any]:
    """The choices as Optuna's parameters, for its dashboard and its analyses."""
    genes, row = space.genes, space.to_array(arch)[0]
    return {
        "params": {gene.name: gene.options[index] for gene, index in zip(genes, row.tolist(), strict=True)},
        "distributions": {gene.name: CategoricalDistribution(gene.options) for gene in genes},
    }


def place_in_queue(trial: FrozenTrial) -> int:
    """A retried network keeps its place, so that the order of scores does not depend on who was lost."""
    return int(trial.system_attrs.get("failed_trial", trial.number))
