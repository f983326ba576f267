"""What is read of the JSON files of a model: objects, sizes, token ids."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvchat.errors import KvchatError
from kvchat.files import is_regular

LFS_MARK = b"version https://git-lfs"


@contextmanager
def understood(source: str) -> Iterator[None]:
    """What a value that is missing or makes no sense raises in here is a KvchatError("model")."""
    try:
        yield
    except KeyError as error:
        raise KvchatError("model", f"{source} has no {error.args[0]!r}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise KvchatError(
            "model", f"{source}: a value is out of range or has the wrong type ({error})"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a model's file. Raises KvchatError("model")."""
    if not is_regular(path) and path.exists():
        raise KvchatError("model", f"{path} is no file")
    try:
        data = path.read_bytes()
        if data.startswith(LFS_MARK):
            raise KvchatError(
                "model",
                f"{path} is a {len(data)}-byte Git LFS pointer",
                f"git -C {path.parent} lfs pull",
            )
        raw = json.loads(data)
    except (ValueError, RecursionError, OSError) as error:
        raise KvchatError("model", f"{path} is not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise KvchatError("model", f"{path} does not hold a JSON object")
    return raw


def token_ids(value: Any) -> tuple[int, ...]:
    """What a key like `eos_token_id` holds: none, one, or a list. Raises ValueError."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(each) is int for each in ids):
        raise ValueError(f"{value!r:.60} in place of token ids")
    return tuple(ids)


def size_of(value: Any) -> int:
    """A size that a tensor can have. Raises ValueError."""
    number = int(value)
    if not 0 < number < 2**31:
        raise ValueError(f"{number} is not a size")
    return number
