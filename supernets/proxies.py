"""Zero-cost proxies: numbers of an untrained network and one batch that may tell how well it does once trained.

They are cheap and known to mislead: deep and wide networks often just score high. So they are compared, on scored
networks of the space at hand, with the number of parameters and of MACs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from search_spaces.errors import UserError, unknown_name

__all__ = ["PROXIES", "proxy_scores"]

# A proxy leaves the network as it is, but for running statistics, which nothing here looks at before it has set them.
Proxy = Callable[[nn.Module, Tensor, Tensor, torch.Generator], float]
Hook = Callable[[nn.Module, Tensor, Tensor], Tensor | None]

GRASP_STEP = 1e-4  # along the gradient, in the norm of all weights
ZEN_BATCH, ZEN_REPEATS, ZEN_STEP = 16, 8, 0.01
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Mish)


def proxy_scores(
    network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], names: Sequence[str] | None = None, *, seed: int = 0
) -> dict[str, float]:
    """Proxies of a network at fresh weights (He et al. 2015), by name, the mean over batches; larger is said to be better.

    The network itself is not changed. Batch normalisation uses the batch's statistics, nothing is dropped out.

    Args:
        batches: (images (B, ...), labels (B,)), prepared as in training; three or more tell how little a batch matters.
        names: of `PROXIES`; default: all.
        seed: of the weights and of random inputs.

    Raises:
        UserError: an unknown proxy, or a network that has nothing for it to look at.
    """
    chosen = tuple(PROXIES) if names is None else tuple(names)
    for name in chosen:
        if name not in PROXIES:
            raise unknown_name("proxy", name, PROXIES, command="nas report-card --help")
    generator = torch.Generator().manual_seed(seed)
    fresh = _fresh(network, generator)
    found = dict.fromkeys(chosen, 0.0)
    for images, labels in batches:
        for name in chosen:
            found[name] += PROXIES[name](fresh, images, labels, generator) / len(batches)
    return found


def _fresh(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in training mode with random weights, and without dropout and operations in place."""
    fresh = copy.deepcopy(network).train().requires_grad_(True)
    for module in fresh.modules():
        if isinstance(module, _WEIGHTED):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _BatchNorm):
            module.reset_parameters()
        elif isinstance(module, _DropoutNd):
            module.eval()
        if isinstance(getattr(module, "inplace", None), bool):
            setattr(module, "inplace", False)  # noqa: B010 (not an attribute of every module)
    return fresh


def _weights(network: nn.Module) -> list[Tensor]:
    """Of convolutions and linear layers."""
    found = [module.weight for module in network.modules() if isinstance(module, _WEIGHTED)]
    if not found:
        raise _nothing("a convolution or a linear layer")
    return list(found)


def _nothing(what: str) -> UserError:
    return UserError(
        f"the network has no module that is {what}",
        allowed="Networks of torch.nn's modules",
        next_step="Leave this proxy out",
    )


def _gradients(network: nn.Module, images: Tensor, labels: Tensor, *, of: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of the cross-entropy."""
    return torch.autograd.grad(nn.functional.cross_entropy(network(images), labels), of, materialize_grads=True)


def _total(weights: Sequence[Tensor], slopes: Sequence[Tensor], *, magnitude: bool = False) -> float:
    """Sum of weight times slope, or of its magnitude."""
    products = [weight.detach() * slope for weight, slope in zip(weights, slopes, strict=True)]
    return sum(float((product.abs() if magnitude else product).sum()) for product in products)


@contextmanager
def _watched(modules: Sequence[nn.Module], hook: Hook) -> Iterator[None]:
    """The hook is called with (module, first input, output) after every call of the modules; it may replace the output."""
    handles = [m.register_forward_hook(lambda module, inputs, output: hook(module, inputs[0], output)) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---- of gradients ---------------------------------------------------------------------------------------------------


def _grad_norm(network: nn.Module, images: Tensor, labels: Tensor, _: torch.Generator) -> float:
    """Sum over layers of the norm of the weights' gradient."""
    return sum(float(g.norm()) for g in _gradients(network, images, labels, of=_weights(network)))


def _plain(network: nn.Module, images: Tensor, labels: Tensor, _: torch.Generator) -> float:
    """Sum of weight times gradient."""
    weights = _weights(network)
    return _total(weights, _gradients(network, images, labels, of=weights))


def _snip(network: nn.Module, images: Tensor, labels: Tensor, _: torch.Generator) -> float:
    """Sum of the magnitude of weight times gradient (Lee et al. 2019)."""
    weights = _weights(network)
    return _total(weights, _gradients(network, images, labels, of=weights), magnitude=True)


def _grasp(network: nn.Module, images: Tensor, labels: Tensor, _: torch.Generator) -> float:
    """Minus the sum of weight times (Hessian times gradient) (Wang et al. 2020).

    The product is a central difference of gradients in double precision: not every operation has second derivatives.
    """
    network = copy.deepcopy(network).double()
    weights, examples = _weights(network), images.double()
    gradients = _gradients(network, examples, labels, of=weights)
    step = GRASP_STEP / max(1e-30, float(torch.stack([g.norm() for g in gradients]).norm()))
    total = 0.0
    for sign in (1.0, -1.0):
        _walk(weights, gradients, sign * step)
        moved = _gradients(network, examples, labels, of=weights)
        _walk(weights, gradients, -sign * step)
        total -= sign * _total(weights, moved) / (2 * step)
    return total


@torch.no_grad()
def _walk(weights: Sequence[Tensor], directions: Sequence[Tensor], step: float) -> None:
    for weight, direction in zip(weights, directions, strict=True):
        weight.add_(direction, alpha=step)


def _fisher(network: nn.Module, images: Tensor, labels: Tensor, _: torch.Generator) -> float:
    """Sum over channels of what losing one would cost (Theis et al. 2018), at the outputs of weighted layers."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _input: Tensor, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()  # whatever follows may work in place

    with _watched([module for module in network.modules() if isinstance(module, _WEIGHTED)], keep):
        logits = network(images)
    if not outputs:
        raise _nothing("a convolution or a linear layer")
    gradients = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), outputs, materialize_grads=True)
    total = 0.0
    for output, gradient in zip(outputs, gradients, strict=True):
        products = output.detach() * gradient
        per_image = products.flatten(2).sum(2) if products.dim() > 2 else products  # (B, channels)
        total += float(0.5 * (per_image**2).mean(0).sum())
    return total


# ---- of signals -----------------------------------------------------------------------------------------------------


def _synflow(network: nn.Module, images: Tensor, _labels: Tensor, _: torch.Generator) -> float:
    """Logarithm of the summed weight times derivative of the output, all weights positive (Tanaka et al. 2020)."""
    network = copy.deepcopy(network).double()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.abs_()
    weights = _weights(network)
    total = network(torch.ones_like(images[:1], dtype=torch.float64)).sum()
    slopes = torch.autograd.grad(total, weights, materialize_grads=True)
    return math.log(max(_total(weights, slopes, magnitude=True), 1e-300))


def _jacob_cov(network: nn.Module, images: Tensor, _labels: Tensor, _: torch.Generator) -> float:
    """How little the network's derivatives at different images have in common (Mellor et al. 2021, first version)."""
    x = images.clone().requires_grad_(True)
    (slopes,) = torch.autograd.grad(network(x).sum(), x)
    common = torch.corrcoef(slopes.flatten(1).double()).nan_to_num()  # (B, B); a dead network has no derivatives
    values = torch.linalg.eigvalsh(common) + 1e-5
    return -float((values.log() + 1 / values).nan_to_num(nan=1e5).sum())


def _naswot(network: nn.Module, images: Tensor, _labels: Tensor, _: torch.Generator) -> float:
    """Logarithm of the determinant of how often two images switch the same units on or off (Mellor et al. 2021)."""
    alike = torch.zeros(len(images), len(images), dtype=torch.float64)
    active = [module for module in network.modules() if isinstance(module, _ACTIVATIONS)]
    if not active:
        raise _nothing("an activation (ReLU, Hardswish ...)")

    def count(_module: nn.Module, signal: Tensor, _output: Tensor) -> None:
        on = (signal > 0).flatten(1).double()
        both, each = on @ on.T, on.sum(1)
        neither = on.shape[1] - each[:, None] - each + both  # whole numbers: exact
        alike.add_((both + neither).cpu())

    with torch.no_grad(), _watched(active, count):
        network(images)
    return max(float(torch.linalg.slogdet(alike).logabsdet), -1e9)


def _zen(network: nn.Module, images: Tensor, _labels: Tensor, generator: torch.Generator) -> float:
    """How far the last feature map moves with its input, Gaussian weights, normalisation undone (Lin et al. 2021)."""
    network = copy.deepcopy(network)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.running_var is not None]
    for norm in norms:
        norm.momentum = 1.0  # the variance of this batch, not a running one
    shape, total = (ZEN_BATCH, *images.shape[1:]), 0.0
    with torch.no_grad():
        for _ in range(ZEN_REPEATS):
            for weight in _weights(network):
                weight.normal_(generator=generator)
            x = torch.randn(shape, generator=generator)
            moved = _features(network, x + ZEN_STEP * torch.randn(shape, generator=generator))
            distance = (_features(network, x) - moved).flatten(1).abs().sum(1).mean()
            variances = [norm.running_var.mean() for norm in norms if norm.running_var is not None]
            total += float(distance.clamp_min(1e-30).log()) + sum(0.5 * float(v.log()) for v in variances)
    return total / ZEN_REPEATS


def _features(network: nn.Module, x: Tensor) -> Tensor:
    """The last output of any of its modules that has more than one position, as before pooling; else the network's own."""
    last: list[Tensor] = []

    def keep(_module: nn.Module, _input: Tensor, output: Tensor) -> None:
        if output.dim() > 2 and output[0, 0].numel() > 1:
            last[:] = [output]

    with _watched(list(network.modules()), keep):
        logits: Tensor = network(x)
    return last[0] if last else logits


PROXIES: Mapping[str, Proxy] = {
    "grad_norm": _grad_norm,
    "plain": _plain,
    "snip": _snip,
    "grasp": _grasp,
    "fisher": _fisher,
    "synflow": _synflow,
    "jacob_cov": _jacob_cov,
    "naswot": _naswot,
    "zen": _zen,
}
