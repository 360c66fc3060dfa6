"""A CUDA device without numbers: shapes, dtypes, devices and lifetimes are torch's own.

An operation on tensors of different devices raises, as on a GPU. Each time that python reads a tensor of the device,
and so waits for it, is counted. What kernels do inside, streams and pinned memory are not seen.
"""

import linecache
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import GraphExecGroup

from lightning_dreambooth.diffusion.sampling import SAMPLERS
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.planning import memory
from lightning_dreambooth.planning.memory import LiveMemory

aten = torch.ops.aten
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.unique_dim.default, aten._unique2.default)
NUMBERS = {torch.bool: True, torch.long: 0}  # what is read; 1.0 where it is a float
CPU_GENERATOR = torch.Generator()  # which fake tensors take in place of that of a GPU


class Device(LiveMemory):
    """What happens on the device, and what lives there.

    Attributes:
        waits: How often the host waited, by the line of the package, or else of a library, that read.
    """

    def __init__(self) -> None:
        super().__init__("cuda")
        self.fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: Counter[str] = Counter()

    def wait(self, *_: Any) -> None:
        """Counts a wait."""
        hidden = (__file__, memory.__file__, "/torch/_", "/torch/utils/", "/jaxtyping/")
        frames = [frame for frame in traceback.extract_stack() if not any(part in frame.filename for part in hidden)]
        ours = [frame for frame in frames if "/lightning_dreambooth/" in frame.filename]
        for frame in (ours or frames)[-1:]:
            caller = frames[-1]
            place = f"{Path(caller.filename).name}: {linecache.getline(caller.filename, caller.lineno or 0).strip()}"
            self.waits[f"{Path(frame.filename).name} {frame.name} > {place}"] += 1

    @property
    def tolist(self) -> Callable[[Tensor], list[Any]]:
        """`Tensor.tolist`, which reads all numbers at once; that of fake tensors would read them one by one."""

        def tolist(tensor: Tensor) -> list[Any]:
            if tensor.device.type == "cuda":
                self.wait()
            with _disable_current_modes():
                return torch.full(tensor.shape, NUMBERS.get(tensor.dtype, 1.0)).tolist()

        return tolist

    def answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation, whose wait is counted if there is one."""
        on_cuda = any(leaf.device.type == "cuda" for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
        to_host = func is aten._to_copy.default and str(kwargs.get("device")) == "cpu"
        if on_cuda and (func in READS or to_host):
            self.wait()
        result = self._answer(func, args, kwargs)
        if func is aten._to_copy.default and isinstance(result, FakeTensor):
            result.constant = getattr(args[0], "constant", None)
        return result

    def _answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation; a made-up one where only numbers could tell."""
        if func is aten._local_scalar_dense.default:
            constant = getattr(args[0], "constant", None)  # a number that python has just put there
            if constant is not None or not isinstance(args[0], FakeTensor):
                return (args[0] if constant is None else constant).item()
            if any("grad_scaler" in frame.filename for frame in traceback.extract_stack(limit=12)):
                return 0.0  # no gradient is infinite, so that the optimizer steps
            return NUMBERS.get(args[0].dtype, 1.0)
        if func is aten.nonzero.default:
            return torch.zeros(1, args[0].dim(), dtype=torch.long, device=args[0].device)
        if func is aten.unique_dim.default:
            places = torch.arange(len(args[0]), device=args[0].device)
            return args[0].clone(), places, torch.ones_like(places)
        return func(*args, **kwargs)


def walk(loss: Tensor, *_: Any, **__: Any) -> None:
    """`loss.backward()` node by node: autograd's engine would ask CUDA for a context (pytorch#92627)."""
    root: Any = loss.grad_fn
    inputs: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    loss.detach_()
    missing: Counter[Any] = Counter()
    found, seen = [root], {root}
    while found:
        for node, _slot in found.pop().next_functions:
            missing[node] += 1
            if node is not None and node not in seen:
                seen.add(node)
                found.append(node)
    ready = [root]
    del root, seen, node
    with torch.no_grad(), GraphExecGroup():
        while ready:
            node = ready.pop()
            given = inputs.pop(node, {})
            following = node.next_functions
            if hasattr(node, "variable"):
                weight = node.variable
                weight.grad = given[0] if weight.grad is None else weight.grad + given[0]
                for hook in (weight._post_accumulate_grad_hooks or {}).values():
                    hook(weight)
            elif given:
                out = node(*[given.get(slot) for slot in range(len(node._input_metadata))])
                _pass_on(out if isinstance(out, tuple) else (out,), following, inputs)
                del out
            del node, given  # and with them what the node has saved
            for after, _slot in following:
                missing[after] -= 1
                if after is not None and not missing[after]:
                    del missing[after]
                    ready.append(after)
            after = following = None


def _pass_on(gradients: tuple[Any, ...], following: Any, inputs: dict[Any, dict[int, Tensor]]) -> None:
    for gradient, (node, slot) in zip(gradients, following, strict=False):
        if gradient is None or node is None:
            continue
        like = node.variable if hasattr(node, "variable") else node._input_metadata[slot]
        assert gradient.device == like.device, f"{node.name()}: {gradient.device}, not {like.device}"
        gradient = gradient.sum_to_size(tuple(like.shape)).to(like.dtype)
        slots = inputs.setdefault(node, {})
        slots[slot] = slots[slot] + gradient if slot in slots else gradient


class NoGPU(CPUAccelerator):
    """An accelerator that leaves the device alone."""

    def setup_device(self, device: torch.device) -> None:
        """Called by Lightning."""


def strategy() -> SingleDeviceStrategy:
    """Lightning's strategy for the device."""
    return SingleDeviceStrategy(torch.device("cuda", 0), NoGPU())


def as_fake(module: nn.Module, device: Device) -> Any:
    """A module without its numbers."""
    for part in module.modules():
        for values in (part._parameters, part._buffers):
            values |= {name: device.fakes.from_tensor(value) for name, value in values.items() if value is not None}
    return module


def copied(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
    """A deep copy, for which torch would ask where the numbers are."""
    memo[id(tensor)] = tensor.detach().clone()
    return memo[id(tensor)]


def with_numbers(function: Callable[..., None]) -> Callable[..., None]:
    """A function that runs outside of all this."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        with _disable_current_modes():
            function(*args, **kwargs)

    return run


def timesteps_on(function: Callable[..., None]) -> Callable[..., None]:
    """A scheduler's `set_timesteps`, whose timesteps are then moved to the device."""

    def set_timesteps(scheduler: Any, steps: int, device: Any = None) -> None:
        with_numbers(function)(scheduler, steps)
        if device is not None:
            scheduler.timesteps = scheduler.timesteps.to(device)

    return set_timesteps


@contextmanager
def fake_cuda() -> Iterator[Device]:
    """Inside, `cuda:0` is such a device, and Stable Diffusion is loaded without its numbers."""
    device, load = Device(), StableDiffusion.load

    def load_fake(*args: Any) -> StableDiffusion:
        with _disable_current_modes():
            model = load(*args)
        return as_fake(model, device)

    with ExitStack() as stack:
        for name, value in {
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.cuda.is_bf16_supported": lambda: True,
            "torch.cuda.current_device": lambda: 0,
            "torch.cuda.synchronize": device.wait,
            "lightning_dreambooth.rounding.generator": lambda *_: CPU_GENERATOR,
            "torch.Tensor.backward": walk,
            "torch.utils.weakref": SimpleNamespace(
                getweakrefs=lambda _: []
            ),  # Module.to refuses fakes (pytorch#148977)
        }.items():
            stack.enter_context(patch(name, value))
        stack.enter_context(patch.object(FakeTensor, "__deepcopy__", copied, create=True))
        stack.enter_context(patch.object(FakeTensor, "tolist", device.tolist, create=True))
        for sampler in SAMPLERS.values():  # which ask numpy for their timesteps
            stack.enter_context(patch.object(sampler, "__init__", with_numbers(sampler.__init__)))
            stack.enter_context(patch.object(sampler, "set_timesteps", timesteps_on(sampler.set_timesteps)))
        stack.enter_context(patch.object(StableDiffusion, "load", load_fake))
        stack.enter_context(device.fakes)
        yield stack.enter_context(device)
