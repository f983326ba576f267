"""The cache: frozen segments and one live tail per layer. Knows no model and no method.

`SEGMENTS` maps a segment's `kind` to the class whose `load` is the inverse of `tensors()`.
"""

SEGMENTS = {
    "flat": "kvchat.engine.cache.segment:FlatSegment",
    "pq": "kvchat.engine.cache.pq:PQSegment",
    "quantized": "kvchat.engine.cache.quantized:QuantizedSegment",
}

GROUP = 32
"""Entries of a key channel, or channels of a value, that share a scale when entries are quantised.
"""
