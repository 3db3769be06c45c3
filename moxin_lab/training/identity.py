"""What a training is, as values that can be compared: settings, data, start, cut of a step.

    digest(encoded, order)               SHA-256 of arrays, texts, numbers and what holds them
    identity(settings, "seed 0 ...", model, parts=8)
    changes(old, new)                    {"learning_rate": "was 0.0003, is 0.0005", ...}

Guarantees: equal values have equal digests on every machine; a value of a kind that is not known
here raises TypeError instead of being left out.
Out of scope: files of images that a training opens as it goes, of which only the names count.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn

Scalar = str | int | float | bool | None

# Settings that do not change what a step computes.
FREE = frozenset({"checkpoint_every_steps", "activation_checkpointing", "parallel"})


def digest(*values: Any) -> str:
    """SHA-256 of values: arrays, tensors, bytes, texts, numbers, None, and sequences, mappings and
    dataclasses of them.
    """
    hashed = hashlib.sha256()
    _add(hashed, values)
    return hashed.hexdigest()


def _add(hashed: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        hashed.update(f"tensor {value.dtype} ".encode())
        # NumPy has no bfloat16; the bytes are the same under another name.
        value = torch.atleast_1d(value.detach().cpu()).contiguous().view(torch.uint8).numpy()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        hashed.update(f"array {value.dtype.str} {value.shape} ".encode())
        hashed.update(np.ascontiguousarray(value).data.cast("B") if value.size else b"")
    elif isinstance(value, bytes):
        hashed.update(f"bytes {len(value)} ".encode() + value)
    elif value is None or isinstance(value, str | int | float | bool):
        content = repr(value).encode("utf-8", "surrogatepass")
        hashed.update(f"{type(value).__name__} {len(content)} ".encode() + content)
    elif isinstance(value, Mapping):
        hashed.update(f"mapping {len(value)} ".encode())
        for key in sorted(value, key=repr):
            _add(hashed, key)
            _add(hashed, value[key])
    elif isinstance(value, Sequence) and value and all(map(_is_small, value)):
        _add(hashed, np.array(value, dtype=np.int64))  # a text's tokens, thousands of them
    elif isinstance(value, Sequence):
        hashed.update(f"sequence {len(value)} ".encode())
        for one in value:
            _add(hashed, one)
    elif is_dataclass(value):
        hashed.update(f"fields {len(fields(value))} ".encode())
        for field in fields(value):
            _add(hashed, getattr(value, field.name))
    else:
        raise TypeError(f"a {type(value).__name__} has no digest: pass what it is made of")


def _is_small(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def weights_digest(model: nn.Module) -> str:
    """Digest of names, shapes, dtypes and bits of all parameters, the same on every device.

    The bits of each tensor are summed as integers on its device, so that eight billion weights are
    read once and nothing is copied; a tensor without storage (meta) counts with its shape.
    """
    described, sums = [], []
    for name, parameter in model.named_parameters():
        described.append((name, tuple(parameter.shape), str(parameter.dtype)))
        tensor = parameter.detach()
        if tensor.device.type != "meta" and tensor.numel():
            whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
            bits = tensor.contiguous().view(whole[tensor.element_size()]).flatten()
            # Odd weights by position, so that a permutation is seen too.
            place = torch.arange(1, 2 * len(bits), 2, device=bits.device)
            sums.append(torch.sum(bits * place))
    numbers = [one.cpu() for one in sums]
    return digest(described, [int(one) for one in numbers])


def flat(value: Any, name: str = "") -> dict[str, Scalar]:
    """A tree of settings as `{"phases.0.steps": 4, ...}`: pydantic models, dataclasses, namespaces,
    mappings, sequences and scalars.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif isinstance(value, SimpleNamespace):
        value = vars(value)
    elif is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if value is None or isinstance(value, str | int | float | bool):
        return {name: value}
    if isinstance(value, Mapping):
        parts = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, Sequence):
        parts = [(str(index), one) for index, one in enumerate(value)]
    else:
        raise TypeError(f"setting {name} is a {type(value).__name__}, which cannot be compared")
    leaves: dict[str, Scalar] = {}
    for key, one in parts:
        leaves |= flat(one, f"{name}.{key}" if name else key)
    return leaves


def identity(settings: Any, data: str, model: nn.Module, **more: Scalar) -> dict[str, Scalar]:
    """Everything that decides what a training computes, before its first step: also which
    parameters are trained, and each dropout that is not 0.

    data: fingerprint of the stream, the seed of its order included.
    """
    chosen = {name: v for name, v in flat(settings).items() if name.split(".")[0] not in FREE}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    values = {
        **chosen,
        "data": data,
        "start": weights_digest(model),
        "trained": digest(trained),
        **dropouts(model),
        **more,
    }
    return json.loads(json.dumps(values))  # as it will be read back


def dropouts(model: nn.Module) -> dict[str, float]:
    """Probabilities above 0 by module: `p` of PyTorch's modules, `dropout_p` of the decoder's,
    `dropout` of its recurrent ones, `drop_prob` of timm's.
    """
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        of_torch = isinstance(module, nn.modules.dropout._DropoutNd)
        for attribute in ["p"] if of_torch else ["dropout", "dropout_p", "drop_prob"]:
            value = getattr(module, attribute, None)
            if isinstance(value, int | float) and value > 0:
                found[f"{name}.{attribute}"] = value
    return found


def function_name(function: Any, _inside: tuple[int, ...] = ()) -> str:
    """What a function is called in its module, and the values that it carries: those that
    `functools.partial` gave it, a nested function's closure and defaults, a lambda's constants, the
    public attributes of an object that is called or whose method is. Long values are digested; of
    what has no digest the type counts.
    """
    if id(function) in _inside:  # a function that calls itself is in its own closure
        return "itself"
    inside = (*_inside, id(function))
    if isinstance(function, partial):
        name = function_name(function.func, inside)
        given: dict[Any, Any] = {**dict(enumerate(function.args)), **function.keywords}
    elif isinstance(function, FunctionType):
        name, given = function.__qualname__, _carried(function)
    elif isinstance(function, MethodType):
        name, given = function.__qualname__, _public(function.__self__)
    elif isinstance(function, type | BuiltinFunctionType):
        return function.__qualname__
    else:
        name, given = type(function).__qualname__, _public(function)
    values = {key: _short(value, inside) for key, value in given.items()}
    return f"{name} with {values}" if values else name


def _carried(function: FunctionType) -> dict[str, Any]:
    """Of a function that is defined inside another: its name does not say what it computes."""
    if "<" not in function.__qualname__:
        return {}
    code = function.__code__
    given = {
        name: cell.cell_contents
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
    }
    names = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    given |= dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    given |= function.__kwdefaults__ or {}
    if function.__name__ == "<lambda>":
        given |= {f"constant {i}": value for i, value in enumerate(code.co_consts)}
    return given


def _public(value: Any) -> dict[str, Any]:
    if isinstance(value, nn.Module):
        given = {"weights": value} if next(value.parameters(), None) is not None else {}
        plain = {k: v for k, v in vars(value).items() if isinstance(v, str | int | float | bool)}
        return given | {k: v for k, v in plain.items() if k[0] != "_" and k != "training"}
    return {k: v for k, v in getattr(value, "__dict__", {}).items() if k[0] != "_"}


def _short(value: Any, inside: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, int | float | bool):
        return value
    if isinstance(value, str) and len(value) <= 64:
        return value
    if isinstance(value, nn.Module):
        return f"{type(value).__qualname__} {weights_digest(value)[:12]}"
    if isinstance(value, partial | FunctionType | MethodType):
        return function_name(value, inside)
    try:
        return digest(value)[:12]
    except TypeError:
        return type(value).__qualname__


def changes(old: Mapping[str, Scalar], new: Mapping[str, Scalar]) -> dict[str, str]:
    """What differs by name, with the old and the new value."""
    names = [*new, *(name for name in old if name not in new)]
    return {
        name: f"was {_shown(old, name)}, is {_shown(new, name)}"
        for name in names
        if name not in old or name not in new or _differs(old[name], new[name])
    }


def _differs(old: Scalar, new: Scalar) -> bool:
    both_nan = old != old and new != new
    return old != new and not both_nan


def _shown(values: Mapping[str, Scalar], name: str) -> str:
    value = values.get(name, "absent")
    is_hash = isinstance(value, str) and len(value) == 64
    return str(value)[:12] if is_hash else str(value)
