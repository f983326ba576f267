"""What chance makes of good input: JSON with one value that is another, bytes that are others."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kvchat.errors import EXIT_CODES, KvchatError

NESTED: Any = json.loads("[" * 150 + "]" * 150)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**63), 10**30, 10**400),
    *(0.0, 0.5, -1.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "x", "\0", "\x1b[2J", "x" * 5000, "../../etc/passwd", "/", "1", "nan", "☃", "\ud800"),
    *([], [1], [[1]], [None], ["x"], [-1, 10**30], {}, {"x": 1}, {"": None}, NESTED),
)
"""Values that are seldom what is wanted: other types, sizes beyond any range, odd texts."""


def paths(value: Any, depth: int = 6) -> Iterator[tuple[Any, ...]]:
    """The place of every value inside a JSON value, the first of a long list alone."""
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value[:3]) if isinstance(value, list) else items
    for key, inner in items:
        yield (key,)
        if depth:
            yield from ((key, *rest) for rest in paths(inner, depth - 1))


def another(value: Any, dice: random.Random) -> Any:
    """A JSON value with one of its values changed or gone, or something new beside it."""
    changed = copy.deepcopy(value)
    places = list(paths(changed))
    if not places:
        return dice.choice(ODD)
    *way, last = dice.choice(places)
    inside = changed
    for step in way:
        inside = inside[step]
    how = dice.random()
    if how < 0.1:
        del inside[last]
    elif how < 0.2 and isinstance(inside[last], int | float):
        inside[last] *= dice.choice((2, -1, 1000, 10**9, 0.5))
    elif how < 0.25:
        inside[last] = [inside[last]]
    elif how < 0.3 and isinstance(inside, dict):
        inside[dice.choice(("x", "", "data_offsets"))] = inside.pop(last)
    else:
        inside[last] = copy.deepcopy(dice.choice(ODD))
    return changed


def others(data: bytes, dice: random.Random, begin: int = 0) -> bytes:
    """Bytes of which one or a few behind `begin` are others, are missing, or stand there twice."""
    bad = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 8))):
        at = dice.randrange(begin, len(bad)) if len(bad) > begin else 0
        how = dice.random()
        if how < 0.5 and bad:
            bad[at] ^= 1 << dice.randrange(8)
        elif how < 0.7:
            bad[at : at + 4] = dice.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        elif how < 0.8:
            del bad[at : at + dice.randrange(1, 64)]
        elif how < 0.9:
            bad[at:at] = bad[at : at + dice.randrange(1, 64)]
        else:
            del bad[at:]
    return bytes(bad)


def exit_code(work: Callable[[], object]) -> int:
    """How the program would end: 0, or the code of an error of ours, which is one line.

    Whatever else is raised would end in "please report it"; it is not caught.
    """
    try:
        work()
    except KvchatError as error:
        assert error.code != "unexpected" and error.message and "\n" not in error.message.strip()
        assert len(error.message) < 2000, f"{len(error.message):,} characters"
        return EXIT_CODES[error.code]
    return 0


def toml(value: Any) -> str:
    """A table of tables as TOML; values that it does not know are text."""
    if not isinstance(value, dict):
        return _inline(value)
    return "\n".join(f"{json.dumps(str(key))} = {_inline(each)}" for key, each in value.items())


def _inline(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, dict):
        inside = (f"{json.dumps(str(key))} = {_inline(each)}" for key, each in value.items())
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float) else json.dumps(value or "")


def tensor_like(tensor: Tensor, dice: random.Random) -> Tensor:
    """A tensor with other values, in another order, shorter, of another shape or dtype."""
    changed, how = tensor.clone(), dice.random()
    if how < 0.1:
        return changed.flatten()[:-1].clone()
    if how < 0.2 and tensor.dim() and len(tensor) > 1:
        return changed[:-1].clone()
    if how < 0.3:
        return changed.to(dice.choice(DTYPES))
    if how < 0.35 and tensor.dim():
        return changed.flip(0).contiguous()
    if how < 0.4:
        return torch.zeros_like(tensor)
    if how < 0.45:
        return changed[None].clone()
    if flat := changed.numel():
        value = dice.choice(REAL if tensor.dtype.is_floating_point else WHOLE)
        value = value % 256 if tensor.dtype == torch.uint8 else value
        at = slice(None) if dice.random() < 0.3 else dice.randrange(flat)
        changed.view(-1)[at] = value
    return changed


DTYPES = (torch.float32, torch.int32, torch.uint8, torch.int64, torch.float16, torch.bool)
REAL = (float("nan"), float("inf"), float("-inf"), 1e30, -1.0, 0.0)
WHOLE = (-1, 2**31 - 1, -(2**31), 0, 1, 3, 150, 151, 1000)
