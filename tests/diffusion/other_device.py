"""A stand-in for a GPU without float64: the meta device, watched."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class OtherDevice(TorchDispatchMode):
    """Refuses what a GPU would refuse: arguments of two devices (a single number of the CPU may join any), float64
    where there is none, and reading a number back, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            raise RuntimeError("a number was read back from the device")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
        if len({tensor.device for tensor in tensors}) > 1 and function not in COPIES:
            raise RuntimeError(f"{function} met tensors of two devices")
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta and leaf.dtype == torch.float64:
                raise TypeError(f"{function} made float64 on a device that has none")
        return result
