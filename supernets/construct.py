"""A network of the user's own from its constructor: on the meta device where that works, and errors that name the call."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces import Architecture, ElasticSpace
from search_spaces.errors import UserError

__all__ = ["call_text", "construct", "is_statistic", "shell"]


def construct(space: ElasticSpace, arch: Architecture, *, seed: int = 0, device: str = "cpu") -> nn.Module:
    """The constructor's own network for an architecture, with its own initial weights drawn from ``seed``.

    The caller's random state is left as it was.

    Raises:
        UserError: the constructor raised, or what it returned is not a module.
    """
    if space.build is None:
        raise UserError(
            f"the constructor of space '{space.name}' is not loaded",
            allowed="A space that was read from a file has its choices only",
            next_step="Make it with nas.elastic(build, choices), or open its run with nas.Run.open(RUN, space=...)",
        )
    arguments = space.arguments(arch)
    try:
        with torch.random.fork_rng([]), torch.device(device):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would change a GPU's generator, too
            network = space.build(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{call_text(space, arch)} raised {type(error).__name__}: {error}",
            allowed="The constructor takes every combination of the choices",
            next_step="Correct the constructor, or leave out the options that it does not take",
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{call_text(space, arch)} returned a {type(network).__name__}",
            allowed="The constructor returns a torch.nn.Module",
            next_step="Return the network itself",
        )
    for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise UserError(
                f"'{name}' of {call_text(space, arch)} has no shape before the first image",
                allowed="Lazy modules cannot be shared among networks: shapes decide which weights belong together",
                next_step="Give the layer its input size",
            )
    return network


def call_text(space: ElasticSpace, arch: Architecture) -> str:
    """The call that builds an architecture, as text."""
    return f"{space.name}({', '.join(f'{name}={value!r}' for name, value in space.arguments(arch).items())})"


def shell(space: ElasticSpace, arch: Architecture) -> nn.Module:
    """The network of an architecture without weights of its own: shapes, code and the constants that its constructor computes.

    Parameters and batch-normalisation statistics are on the meta device; everything else is as the constructor made it.
    """
    try:
        network = construct(space, arch, device="meta")
    except UserError:
        network = construct(space, arch)  # not every constructor runs without values; if this fails too, its error counts
    else:
        if any(tensor.is_meta for tensor in _constants(network)):
            network = construct(space, arch)
    seen: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                if id(parameter) not in seen:  # tied weights stay tied
                    seen[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
                module._parameters[leaf] = seen[id(parameter)]
        for leaf, buffer in module._buffers.items():
            if buffer is not None and is_statistic(module):
                module._buffers[leaf] = buffer.to("meta")
    return network


def is_statistic(module: nn.Module) -> bool:
    """Whether a module's buffers are learned from images (and shared), not computed by the constructor (and its own)."""
    return isinstance(module, _BatchNorm)


def _constants(network: nn.Module) -> Iterator[Tensor]:
    for module in network.modules():
        if not is_statistic(module):
            yield from (buffer for buffer in module._buffers.values() if buffer is not None)
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))
