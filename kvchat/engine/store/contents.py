"""Whether tensors are what a segment is made of: names, shapes, dtypes, offsets that ascend,
positions and codes within their range.

A file with right checksums can hold anything, and kernels follow offsets without a look.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import gcd

import torch
from torch import Tensor

from kvchat.engine.cache import AGGREGATES, GROUP
from kvchat.engine.cache.cells import Cells, joint
from kvchat.engine.cache.lookup import Reads
from kvchat.engine.cache.quantized import META
from kvchat.engine.sizes import LISTED
from kvchat.engine.store import Refused

Span = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """Of a layer's entries: KV heads, values of a head, and what they are stored as."""

    heads: int
    dim: int
    dtype: torch.dtype


class Contents:
    """Tensors by name, taken one by one. Raises Refused for one that is not as it should be."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = dict(tensors)  # those that are left

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str, dtype: torch.dtype | None, *shape: int | None) -> Tensor:
        """The tensor of that name, dtype and shape; None in place of a size: any, in place of a
        dtype: any of real numbers."""
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            raise Refused(f"it lacks {name}")
        same = len(tensor.shape) == len(shape) and all(
            wanted in (None, found) for found, wanted in zip(tensor.shape, shape, strict=True)
        )
        right = tensor.dtype.is_floating_point if dtype is None else tensor.dtype == dtype
        if not (right and same):
            found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise Refused(f"its {name} is {found}")
        return tensor

    def part(self, prefix: str) -> "Contents":
        """Those whose names begin so, without the beginning."""
        names = [name for name in self.tensors if name.startswith(prefix)]
        return Contents({name.removeprefix(prefix): self.tensors.pop(name) for name in names})

    def end(self) -> None:
        """Nothing is left."""
        if self.tensors:
            raise Refused(f"it has {min(self.tensors)}, which does not belong there")


def require_segment(
    kind: str, tensors: Mapping[str, Tensor], span: Span, shape: Shape, tokens: int
) -> None:
    """Raise Refused unless a segment of that kind and span can be made of these tensors.

    `tokens` are those of the document.
    """
    contents = Contents(tensors)
    if kind == "flat":
        _flat(contents, span, shape)
    elif kind == "quantized":
        _quantized(contents, span, shape)
    elif kind == "mixed":
        _mixed(contents, span, shape)
    elif kind == "low-rank":
        _low_rank(contents, span, shape)
    elif kind == "pq":
        _coded(contents, span, shape, tokens, torch.uint8)
    elif kind == "clusters":
        _clusters(contents, span, shape, tokens)
    elif kind == "keys":
        _keys(contents, span, shape, tokens)
    else:
        raise Refused(f"it has a segment of kind {kind}")
    contents.end()


def require_archive(tensors: Mapping[str, Tensor], shape: Shape, tokens: int) -> None:
    """Raise Refused unless these are all entries of a layer, and what a prefill has observed."""
    contents, heads, dim = Contents(tensors), shape.heads, shape.dim
    for name in ("k", "v"):
        contents.take(name, shape.dtype, heads, tokens, dim)
    queries = 0
    if "queries" in contents:
        several, queries, _ = contents.take("queries", shape.dtype, None, None, dim).shape
        contents.take("lse", torch.float64, several, queries)
    if "mass" in contents:
        contents.take("mass", torch.float64, heads, tokens)
    if "count" in contents:
        _within("count", contents.take("count", torch.int64), 0, tokens + 1)
        queries = contents.take("sum", torch.float64, queries or None, dim).shape[0]
        contents.take("square", torch.float64, queries, dim, dim)
    if queries % heads:
        raise Refused(f"it has queries of {queries} heads over {heads}")
    for name in [name for name in contents.tensors if name.startswith("told ")]:
        contents.take(name, None, heads, tokens)
    contents.end()


def _within(name: str, tensor: Tensor, least: int, end: int) -> None:
    if tensor.numel() and not (int(tensor.min()) >= least and int(tensor.max()) < end):
        raise Refused(f"its {name} leaves {least:,} to {end - 1:,}")


def _ends(contents: Contents, heads: int, step: int = 1) -> list[int]:
    """Where the entries of each head end, from 0 on."""
    ends: list[int] = contents.take("cu", torch.int32, heads + 1).tolist()
    if ends[0] or ends != sorted(ends) or any(end % step for end in ends):
        raise Refused("its cu does not ascend from 0")
    return ends


def _each(contents: Contents, ends: list[int], span: Span) -> None:
    """What stands beside every entry; those of a head are in the order of time."""
    entries = ends[-1]
    position = contents.take("position", torch.int32, entries)
    _within("position", position, *span)
    later = position.diff() > 0
    for end in ends[1:-1]:  # between two heads
        later[end - 1 : end] = True
    if not bool(later.all()):
        raise Refused("its position does not ascend")
    if "bias" in contents:
        contents.take("bias", torch.float32, entries)
    if "count" in contents:
        most = span[1] - span[0]
        _within("count", contents.take("count", torch.int32, entries), 1, most + 1)


def _flat(contents: Contents, span: Span, shape: Shape) -> None:
    ends = _ends(contents, shape.heads)
    for name in ("k", "v"):
        contents.take(name, shape.dtype, ends[-1], shape.dim)
    _each(contents, ends, span)


def _quantized(contents: Contents, span: Span, shape: Shape) -> None:
    rest, dim = contents.part("rest."), shape.dim
    _flat(rest, span, shape)
    rest.end()
    ends = _ends(contents, shape.heads, GROUP)
    entries = ends[-1]
    width = contents.take("k", torch.uint8, entries, None).shape[1]
    if width not in (dim // 4, dim // 2, dim):
        raise Refused(f"its k has {8 * width / dim:g} bits")
    contents.take("v", torch.uint8, entries, width)
    for name in ("scale", "zero"):
        contents.take(f"k_{name}", META, entries // GROUP, dim)
        contents.take(f"v_{name}", META, entries, dim // gcd(dim, GROUP))
    _each(contents, ends, span)


def _mixed(contents: Contents, span: Span, shape: Shape) -> None:
    widths = {name.partition(".")[0] for name in contents.tensors}
    if not widths <= {"2", "4", "8", "16"} or not widths:
        raise Refused(f"it has entries of {', '.join(sorted(widths)) or 'no'} bits")
    for width in sorted(widths):
        part = contents.part(f"{width}.")
        (_flat if width == "16" else _quantized)(part, span, shape)
        part.end()


def _low_rank(contents: Contents, span: Span, shape: Shape) -> None:
    part = contents.part("entries.")
    (_quantized if "k_scale" in part else _flat)(part, span, shape)
    part.end()
    heads, dim, wide = shape.heads, shape.dim, torch.float32
    rank = contents.take("mass", wide, heads, None).shape[1]
    contents.take("total", wide, heads, rank, dim)
    queries, _, hidden = contents.take("asks.inner", wide, None, dim, None).shape
    contents.take("asks.outer", wide, queries, hidden, rank)
    contents.take("asks.shift", wide, queries)
    if not queries or queries % heads:
        raise Refused(f"its maps are of {queries} heads over {heads}")


def _lookup(contents: Contents, span: Span, shape: Shape, tokens: int, width: int) -> int:
    """What all segments have of which queries choose entries; how many there are to choose from.

    `width` numbers of an entry are at home.
    """
    heads, dim = shape.heads, shape.dim
    entries = contents.take("pool", shape.dtype, heads, None, width).shape[1]
    numbers = contents.take("reads", torch.int32, len(fields(Reads))).tolist()
    reads = Reads(*numbers)
    known = reads.block >= 1 and reads.aggregate < len(AGGREGATES)
    if min(numbers) < 0 or not known or span[0] + entries + reads.window > tokens:
        raise Refused(f"its reads are {numbers}")
    late = 0
    if "late_k" in contents:
        late = contents.take("late_k", shape.dtype, heads, None, dim).shape[1]
        contents.take("late_v", shape.dtype, heads, late, dim)
    if span != (span[0], span[0] + entries + late):
        raise Refused("its pool does not fit")
    if entries + late < reads.sinks:
        raise Refused(f"its reads are {numbers}")
    return entries + late - reads.sinks


def _keys(contents: Contents, span: Span, shape: Shape, tokens: int) -> None:
    entries = contents.tensors["pool"].shape[1] if "pool" in contents else 0
    _lookup(contents, span, shape, tokens, shape.dim)
    contents.take("keys", shape.dtype, shape.heads, entries, shape.dim)


def _coded(contents: Contents, span: Span, shape: Shape, tokens: int, kind: torch.dtype) -> Tensor:
    """Codes of entries, their centroids and their list; returns the centroids."""
    heads, coded = shape.heads, _lookup(contents, span, shape, tokens, 2 * shape.dim)
    table = contents.take("centroids", torch.float32, heads, None, None, None)
    _, subspaces, centroids, width = table.shape
    if subspaces * width != shape.dim:
        raise Refused("its centroids do not fit")
    _finite("centroids", table)
    codes = contents.take("codes", kind, heads, coded, subspaces)
    _within("codes", codes, 0, centroids)
    if "cell_order" in contents:
        if kind == torch.uint8 and centroids**subspaces > LISTED:
            raise Refused("its list of cells is too long")
        _cells(contents, joint(codes, centroids), centroids**subspaces)
    return table


def _finite(name: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise Refused(f"its {name} are no numbers")


def _clusters(contents: Contents, span: Span, shape: Shape, tokens: int) -> None:
    if "cell_order" not in contents:
        raise Refused("it lacks its list of cells")
    heads, dim = shape.heads, shape.dim
    _, parts, clusters, _ = _coded(contents, span, shape, tokens, torch.int32).shape
    if parts != 1:
        raise Refused(f"its clusters have {parts} parts")
    _finite("bounds", contents.take("bound", torch.float32, heads))
    if "coarse_owner" in contents:
        level = contents.take("coarse_centroids", torch.float32, heads, 1, None, dim)
        _finite("centroids", level)
        owner = contents.take("coarse_owner", torch.int32, heads, clusters)
        _within("coarse_owner", owner, 0, level.shape[2])
        _finite("bounds", contents.take("coarse_bound", torch.float32, heads))


def _cells(contents: Contents, cell: Tensor, size: int) -> None:
    """The inverted list of entries in these cells `[H, M]`, of `size` cells."""
    heads, entries = cell.shape
    listed = contents.take("cell_order", torch.int32, heads, None)
    offset = contents.take("cell_offset", torch.int32, heads, size + 1)
    pending = contents.take("cell_pending", torch.int32, heads, entries - listed.shape[1])
    count = contents.take("cell_count", torch.float32, heads, size)
    _within("cell_order", listed, 0, listed.shape[1])
    every = Cells.of(cell[..., None], size)  # a single code of that many centroids
    own = Cells.of(cell[:, : listed.shape[1], None], size)
    same = torch.equal(own.offset, offset) and torch.equal(own.order, listed)
    waits = torch.equal(pending.long(), cell[:, listed.shape[1] :])
    if not (same and waits and torch.equal(every.count, count)):
        raise Refused("its list of cells is another")
