"""A stand-in for a GPU without float64: the meta device, watched."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
# Results whose values, or whose size, the CPU has to know: it waits until the device has come so far.
AWAITED = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default)


class OtherDevice(TorchDispatchMode):
    """Refuses what a GPU would refuse: arguments of two devices (a single number of the CPU may join any), and float64
    where there is none; and what makes the CPU wait for it: reading a number, a size or a tensor back."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if function in AWAITED and any(tensor.is_meta for tensor in given):
            raise RuntimeError(f"{function}: something was read back from the device")
        masks = args[1] if function is aten.index.Tensor else ()
        if any(mask is not None and mask.is_meta and mask.dtype == torch.bool for mask in masks):
            raise RuntimeError(f"{function}: the number of chosen rows was read back from the device")
        copied, to = (args[0], kwargs.get("device")) if function is aten._to_copy.default else (None, None)
        if function is aten.copy_.default:
            copied, to = args[1], args[0].device
        if copied is not None and copied.is_meta and to is not None and torch.device(to).type != "meta":
            raise RuntimeError(f"{function}: a tensor was read back from the device")
        if len({tensor.device for tensor in given if tensor.dim()}) > 1 and function not in COPIES:
            raise RuntimeError(f"{function} met tensors of two devices")
        result = function(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta and leaf.dtype == torch.float64:
                raise TypeError(f"{function} made float64 on a device that has none")
        return result
