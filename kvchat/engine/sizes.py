"""Sizes that bound the workspace and the window: plans read them without torch."""

from dataclasses import dataclass
from itertools import pairwise

# Logits of column_mass alive at once: 2**22 fp32 values are 16 MiB.
MASS_VALUES = 2**22

# Numbers in fp32 that plain torch attention on a card has of a kind at once: keys, values, and
# logits and what becomes of them, six kinds of 64 MiB.
PLAIN_VALUES = 2**24
PLAIN = 6 * 4 * PLAIN_VALUES

# Tokens that walk a layer at once: they bound the workspace, and Ctrl-C waits for at most one.
# On a CPU large products are no faster beyond a few hundred entries.
CHUNKS = {"cpu": 512, "cuda": 2048}

RANK = 8  # features of a key or query in a state of what was evicted

REPLAY = 2048  # tokens of a replay of many short texts, in one go
CHUNK = 512  # tokens of the document that one replay repeats
REQUEST = 54  # tokens that ask for a repetition, before each part; less with a large vocabulary
ASKED = 2.0  # tokens of a document's sentences as questions, at most about, for each of its own
LADDER = (0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625)  # budgets that memory chooses from

SMALL = 2000  # tokens of a document: what is shorter is not worth compressing

MAX_TOKENS = 2048  # of an answer, where nobody says otherwise
ANSWER_RESERVE = 512  # tokens of the window that a document must leave

CODES = {"": (2, 6), "quality": (4, 8)}  # parts and bits of pqcache's codes, by preset
PER_CENTROID = 256  # entries that are enough to train a centroid of a code
CODED = 1024  # entries to choose from, below which they are not coded
LISTED = 4096  # joint codes per head that are worth an inverted list

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def code_bytes(tokens: int, heads: int, dim: int, parts: int, bits: int) -> int:
    """What one layer's codes, centroids and inverted list take beside its entries."""
    centroids = 1 << bits
    joint = 1 << bits * parts
    listed = 4 * tokens + 8 * joint if joint <= LISTED else 0
    return heads * (parts * tokens + 4 * centroids * dim + listed)


def reserve_of(limit: int) -> int:
    """Tokens of a window that stay free for questions and answers."""
    return min(ANSWER_RESERVE, limit // 4)


@dataclass(frozen=True)
class Streamed:
    """A document of `tokens` tokens that does not fit into a context window of `limit`.

    It is read in parts (see `prefill.stream`), and takes fewer positions than it has tokens. If it
    is `replayed`, replays of a part stand behind it meanwhile.
    """

    tokens: int
    limit: int
    replayed: bool = False

    @classmethod
    def of(cls, tokens: int, limit: int) -> "Streamed | None":
        """None if the document fits, with the reserve for questions and answers."""
        return cls(tokens, limit) if tokens + reserve_of(limit) > limit else None

    @property
    def room(self) -> int:
        """Positions of the whole document: half of the window, the rest is for reading."""
        return min(self.tokens, self.limit // 2)

    @property
    def part(self) -> int:
        """Tokens that are read at once, at most: the more the better."""
        free = self.limit - self.room - reserve_of(self.limit)
        return max(1, free // 2 if self.replayed else free)

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Begin and end of every part, all of about the same size."""
        count = -(-self.tokens // self.part)
        return list(pairwise(self.tokens * n // count for n in range(count + 1)))

    @property
    def starts(self) -> list[int]:
        """The position where each part begins, once the whole document is read.

        Inside of a part tokens stand as they were read, one after the other; parts overlap, all by
        as much, so that the newest one ends where the document's `room` does.
        """
        if self.tokens <= self.room:
            return [a for a, _ in self.parts]
        (a, b), steps = self.parts[-1], max(len(self.parts) - 1, 1)
        return [(self.room - (b - a)) * n // steps for n in range(len(self.parts))]
