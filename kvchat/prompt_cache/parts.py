"""The files of a cached document: one, or of several ranks one each, which are used all or none.

What is here every rank does with its part (`Engine.everywhere`). Errors are given back, for the
ranks stay in step then.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.engine import Engine
from kvchat.engine.store import Refused
from kvchat.engine.store.cached_document import Layer, layers_of, load, save
from kvchat.engine.store.identity import Parts, fingerprint
from kvchat.prompt_cache import files

COUNT = "devices"  # in the identity of a document that several ranks hold: how many


def place(root: Path, parts: Parts, rank: int) -> Path:
    """The file of a rank."""
    return files.place(root, fingerprint(parts | {"rank": str(rank)} if rank else parts))


def opened(
    engine: Engine, root: Path, parts: Parts, ids: Sequence[int], saved: int
) -> KVCache | Exception:
    """The cache of the document `ids` as its files in `root` have it; or why it cannot be used."""
    peers = engine.peers
    path = place(root, parts, peers.rank)

    def there() -> None:
        if peers.rank and not path.is_file():
            raise Refused(f"part {peers.rank + 1} of {peers.count} is not there")

    try:
        peers.agreed(there, Refused)
        cache = load(path, engine, ids, path.stem, saved)
    except (Refused, OSError) as error:
        return error
    files.use(path)
    return cache


def stored(
    engine: Engine,
    cache: KVCache,
    root: Path,
    parts: Parts,
    ids: Sequence[int],
    about: Mapping[str, Any],
    saved: int,
) -> int | Exception:
    """Save what a cache keeps of its document `ids`: how many bytes all ranks have saved, or why
    one of them could not."""
    layers = layers_of(cache, len(ids))
    assert layers is not None, "asked before anything was"
    try:
        held = cache.memory().total
        return written(engine, layers, held, root, parts, ids, about, saved)
    except OSError as error:
        return error


def written(
    engine: Engine,
    layers: Sequence[Layer],
    held: int,
    root: Path,
    parts: Parts,
    ids: Sequence[int],
    about: Mapping[str, Any],
    saved: int,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Save these layers of a document, about `held` bytes; how many bytes all ranks have saved.

    Raises OSError, and Stopped if `stopped()` says so while it is written.
    """
    peers = engine.peers
    path, noted = place(root, parts, peers.rank), {**about, "parts": parts}
    if peers.count > 1:
        noted["part"] = f"{peers.rank + 1} of {peers.count}"
    peers.agreed(lambda: files.require_space(root, held), OSError)

    def put() -> int:
        save(path, engine, layers, ids, path.stem, noted, stopped, saved)
        return path.stat().st_size

    return sum(peers.exchanged(peers.agreed(put, OSError)))
