"""A GPU that is not there: tensors that say they are on one, computed on the CPU.

What a machine without a GPU cannot show is speed and memory; what it can show is whether every tensor is where it is
used. Inside ``pretended_gpu()`` PyTorch reports one GPU, tensors that are sent there say so, and an operation on tensors of
both devices fails as it would there: only a single number of the CPU may meet tensors of a GPU, arrays of numpy are of the
CPU's tensors, and random numbers on a GPU need a generator on it.
"""

import contextlib
from types import SimpleNamespace
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
# an assignment copies between devices unless it picks places by tensors
_COPIES = {"copy_", "new_tensor", "tensor", "as_tensor", "to", "type_as", "__set__", "_has_compatible_shallow_copy_type"}
# no single number of the CPU here, either
_STRICT = {"stack", "cat", "concat", "hstack", "vstack", "concatenate"}
_ONLY_ON_CPU = {"numpy", "__array__"}
_MOVES = {"to", "cpu", "cuda"}


class _Generator(torch.Generator):
    """Numbers of the CPU's generator; says where it is."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.pretended = _device(device)
        return made

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return self.pretended


_REAL_GENERATOR = torch.Generator


def _device(value) -> torch.device:
    return GPU if torch.device(value).type == "cuda" else CPU


class _PretendedGPU(TorchFunctionMode):
    # of the class: libraries keep tensors for longer than one pretence
    _devices = WeakTensorKeyDictionary()
    _of_storage: dict[int, torch.device] = {}

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        """A tensor made unseen, as a ``Parameter`` is of another, shares the memory of one that was seen."""
        found = self._devices.get(tensor)
        return found or self._of_storage.get(tensor.untyped_storage().data_ptr(), CPU)

    def put(self, value, device: torch.device) -> None:
        for tensor in _tensors(value):
            self._devices[tensor] = device
            self._of_storage[tensor.untyped_storage().data_ptr()] = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, owner = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        if name == "__get__" and owner in (torch.Tensor.device, torch.Tensor.is_cuda):
            device = self.device_of(args[0])
            return device if owner is torch.Tensor.device else device == GPU
        if name == "_parse_to" or func is torch.device:  # what Module.to was asked for, and a name
            return func(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        self._check(name, args, kwargs, inputs)
        target = self._target(name, args, kwargs, inputs)
        args, kwargs = _on_cpu(args), _on_cpu(kwargs)
        result = func(*args, **kwargs)
        if name == "__iter__":
            result = list(result)
            self.put(result, target)
            return iter(result)
        if name == "__set__":
            if owner is torch.Tensor.data:
                self.put(args[0], self.device_of(args[1]))
            return result
        if name in _MOVES and any(result is one for one in inputs) and self.device_of(result) != target:
            result = result.clone()
        self.put([tensor for tensor in _tensors(result) if not any(tensor is one for one in inputs)], target)
        return result

    def _target(self, name: str, args, kwargs, inputs) -> torch.device:
        """Where the result of a call is."""
        if name == "cpu":
            return CPU
        if name == "cuda":
            return GPU
        if kwargs.get("device") is not None:
            return _device(kwargs["device"])
        if name == "to":
            for value in args[1:] + tuple(kwargs.values()):
                if isinstance(value, torch.Tensor):
                    return self.device_of(value)
                if isinstance(value, (str, torch.device)):
                    return _device(value)
            return self.device_of(args[0])
        if name in ("new_tensor", "type_as", "__getitem__", "__setitem__"):
            return self.device_of(args[0])
        return GPU if any(self.device_of(tensor) == GPU for tensor in inputs) else CPU

    def _check(self, name: str, args, kwargs, inputs) -> None:
        devices = [self.device_of(tensor) for tensor in inputs]
        if name in _ONLY_ON_CPU and GPU in devices:
            raise TypeError("a tensor on the GPU has no numpy array; .cpu() first")
        generator = kwargs.get("generator")
        if generator is not None:
            wanted = kwargs.get("device")
            wanted = _device(wanted) if wanted is not None else (devices or [CPU])[0]
            if generator.device != wanted:
                raise RuntimeError(f"{name}: a generator on {generator.device} for numbers on {wanted}")
        if name in _COPIES or len(set(devices)) < 2:
            return
        on_cpu = [tensor for tensor, device in zip(inputs, devices, strict=True) if device == CPU]
        if name == "__getitem__" and (self.device_of(args[0]) == GPU or _is_number(args[1])):
            return  # places may be given by tensors on the CPU
        if name == "__setitem__" and (_is_number(args[1]) or not _tensors(args[1])):
            return
        if name in _STRICT or any(tensor.dim() for tensor in on_cpu):
            shapes = [(tuple(tensor.shape), str(device)) for tensor, device in zip(inputs, devices, strict=True)]
            raise RuntimeError(f"{name}: tensors on different devices, {shapes}")


def _is_number(index) -> bool:
    """A single whole number, wherever it is, is read as such."""
    return isinstance(index, torch.Tensor) and index.dim() == 0 and index.dtype != torch.bool


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for each in value for tensor in _tensors(each)] if isinstance(value, (tuple, list)) else []


def _on_cpu(value):
    """Arguments with every device the CPU."""
    if isinstance(value, torch.device):
        return CPU
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        return "cpu"
    if isinstance(value, dict):
        return {name: _on_cpu(each) for name, each in value.items()}
    return type(value)(map(_on_cpu, value)) if type(value) in (tuple, list) else value


@contextlib.contextmanager
def pretended_gpu():
    """PyTorch has one GPU inside."""
    mode, load, from_numpy = _PretendedGPU(), torch.load, torch.from_numpy

    def load_there(path, map_location=None, **options):
        loaded = load(path, map_location="cpu", **options)
        mode.put(loaded, _device(map_location or "cpu"))
        return loaded

    def from_numpy_here(array):
        made = from_numpy(array)
        mode.put(made, CPU)
        return made

    properties = SimpleNamespace(name="Pretended GPU", total_memory=80 * 2 ** 30)
    changes = {"is_available": lambda: True, "device_count": lambda: 1, "get_device_name": lambda *_: properties.name,
               "get_device_properties": lambda *_: properties, "is_bf16_supported": lambda *_: True}
    with contextlib.ExitStack() as stack:
        for name, value in changes.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        # these do not ask the mode
        stack.enter_context(mock.patch.object(torch, "load", load_there))
        stack.enter_context(mock.patch.object(torch, "from_numpy", from_numpy_here))
        stack.enter_context(mode)
        yield mode

