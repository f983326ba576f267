"""Programs of a few lines in a process of their own: foreign bytes meet libraries there."""

ROOM = 4 * 2**30  # bytes of address space: a page of a few bytes can unfold to any size
SECONDS = 300
LIMIT = f"""
import resource
try:
    resource.setrlimit(resource.RLIMIT_AS, ({ROOM}, {ROOM}))
except (OSError, ValueError):  # macOS has no such limit
    pass
"""
