"""The one way in which a function of tensors becomes an operator of torch, and what every operator asks of tensors.

An operator is what `torch.compile` and `torch.export` do not look into, what autograd differentiates, once, by a second
operator, and what `torch.func.vmap` can batch: loops compiled by numba need all three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hankelred.errors import InputError


def operator(
    schema: str, empty: Callable[..., Any], constants: int | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """Register the decorated function under the name and with the arguments of a schema.

    `empty` takes the same arguments and makes tensors of the shapes and dtypes that the function returns. Where all
    tensors have a batch axis in front, and nothing but the last `constants` arguments is no tensor, `vmap` joins the
    axis it maps over to that one.
    """
    name, arguments = schema.split("(", 1)

    def register(function: Callable[..., Any]) -> Any:
        made = torch.library.custom_op(f"hankelred::{name}", function, mutates_args=(), schema=f"({arguments}")
        made.register_fake(empty)
        if constants is not None:
            torch.library.register_vmap(made, partial(_batched, made, constants))
        return made

    return register


def differentiable(made: Any, save: Callable[..., None], differentiate: Callable[..., Any]) -> Callable[..., Any]:
    """The function to call for an operator that has a derivative.

    `save` and `differentiate` are the ``setup_context`` and ``backward`` of `torch.autograd.Function`. Outside of the
    compiler that is what they become: `torch.func` transforms functions, Dynamo traces operators.
    """
    made.register_autograd(differentiate, setup_context=save)
    members = {
        "forward": staticmethod(lambda *inputs: made(*inputs)),
        "setup_context": staticmethod(save),
        "backward": staticmethod(differentiate),
        "generate_vmap_rule": True,
    }
    function: Any = type(made._name, (torch.autograd.Function,), members)
    return lambda *inputs: made(*inputs) if torch.compiler.is_compiling() else function.apply(*inputs)


def once(made: Any, *inputs: Any) -> Any:
    """Call a function that has no derivative, where one may be asked for: `inputs` are all that it depends on.

    torch's own `once_differentiable` cuts the graph instead, and a second derivative by `torch.autograd.grad` is then
    that of all other paths, without a word.
    """
    return made(*inputs) if torch.compiler.is_compiling() else _Once.apply(made, *inputs)


class _Once(torch.autograd.Function):
    """A function that has no derivative of its own, as backward passes call it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(made: Any, *inputs: Any) -> Any:
        return made(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        raise InputError(
            "This operation has first derivatives only; got a request for a second one. "
            "Take it by differences of gradients."
        )


def _batched(made: Any, constants: int, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
    tensors = inputs[: len(inputs) - constants]
    joined = []
    for x, dim in zip(tensors, in_dims, strict=False):
        x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        joined.append(x.flatten(0, 1))
    found = made(*joined, *inputs[len(tensors) :])
    if isinstance(found, Tensor):
        return found.unflatten(0, (info.batch_size, -1)), 0
    return tuple(x.unflatten(0, (info.batch_size, -1)) for x in found), (0,) * len(found)


REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUMBERS = (*REAL, torch.complex32, torch.complex64, torch.complex128)


def is_dense(x: Any, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Tell whether an object is a tensor with its entries in strides and of one of the dtypes, which calculate."""
    return isinstance(x, Tensor) and x.layout == torch.strided and x.dtype in dtypes


def described(x: Any) -> str:
    """Say what was got in the place of a tensor."""
    if not isinstance(x, Tensor):
        return type(x).__name__
    return f"{x.dtype} of shape {tuple(x.shape)}" + ("" if x.layout == torch.strided else f" ({x.layout})")


def check_tensors(optional: Mapping[str, Any] | None = None, /, **tensors: Any) -> None:
    """Raise unless all are floating point or complex tensors of one device; of the optional ones, those that are given.

    Kernels read the memory of what they are given: one tensor without data among others would be noise.
    """
    given = tensors | {name: x for name, x in (optional or {}).items() if x is not None}
    for name, x in given.items():
        if not is_dense(x, NUMBERS):
            raise InputError(
                f"{name} must be a dense floating point or complex tensor; got {described(x)}. "
                f"Convert it, as by .to_dense() and .float()."
            )
    devices = {x.device for x in given.values()}
    if len(devices) > 1:
        places = ", ".join(f"{name} on {x.device}" for name, x in given.items())
        raise InputError(f"All tensors must be on one device; got {places}. Move them with .to(device).")


def reset_mask(reset: Tensor | None, x: Tensor) -> Any:
    """Return resets as an array for compiled loops, all False if there are none."""
    return (x.new_zeros(x.shape[:2], dtype=torch.bool) if reset is None else reset.contiguous()).numpy()


def check_reset(reset: Any, name: str, x: Tensor) -> None:
    """Raise unless resets, if given, fit the sequences (batch, length, ...) of that name."""
    wanted = x.shape[:2], torch.bool, x.device
    if reset is None or (isinstance(reset, Tensor) and (reset.shape, reset.dtype, reset.device) == wanted):
        return
    got = f"{reset.dtype} of shape {tuple(reset.shape)} on {reset.device}" if isinstance(reset, Tensor) else reset
    raise InputError(
        f"reset must be a boolean tensor of shape {tuple(x.shape[:2])}, (batch, length) of {name}, on {x.device}; "
        f"got {got}."
    )
