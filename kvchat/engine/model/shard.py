"""Which part of a model a rank holds: its KV heads, their query heads, and of every matrix some of
the outputs. No torch.
"""

from dataclasses import dataclass, replace

from kvchat.engine.model.config import ModelConfig
from kvchat.errors import KvchatError

ROWS = 64  # outputs that 4-bit operators pack together: cuts fall between them where they can


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a model."""

    rank: int = 0
    count: int = 1

    def cuts(self, outputs: int) -> list[int]:
        """How many of a matrix's outputs each rank holds."""
        unit = ROWS if outputs % ROWS == 0 and outputs >= ROWS * self.count else 1
        units, more = divmod(outputs // unit, self.count)
        return [(units + (rank < more)) * unit for rank in range(self.count)]

    def rows(self, outputs: int) -> tuple[int, int]:
        """The outputs of a matrix that are this rank's."""
        cuts = self.cuts(outputs)
        begin = sum(cuts[: self.rank])
        return begin, begin + cuts[self.rank]

    def heads(self, size: int) -> tuple[int, int]:
        """The rows of what all heads have together, of which each rank has as many."""
        each = size // self.count
        return self.rank * each, (self.rank + 1) * each

    def of(self, config: ModelConfig) -> ModelConfig:
        """The model as this rank sees it. Raises KvchatError("device") if its KV heads cannot be
        shared out evenly."""
        if self.count == 1:
            return config
        if config.num_kv_heads % self.count:
            fitting = [n for n in range(2, config.num_kv_heads + 1) if not config.num_kv_heads % n]
            raise KvchatError(
                "device",
                f"{config.num_kv_heads} KV heads of a layer cannot be shared out evenly over "
                f"{self.count} devices",
                *(f"--devices {n}" for n in fitting[:3]),
                *(["one device"] if not fitting else []),
                heads=config.num_kv_heads,
                devices=self.count,
            )
        inner = self.rows(config.intermediate_size)
        return replace(
            config,
            num_heads=config.num_heads // self.count,
            num_kv_heads=config.num_kv_heads // self.count,
            intermediate_size=inner[1] - inner[0],
        )

    def taken(self, name: str, rows: int) -> tuple[int, int]:
        """Which rows of a parameter of so many are this rank's; norms are everybody's."""
        path = name.rpartition(".")[0].rpartition(".")[2]
        if self.count == 1 or path.endswith(("norm", "layernorm")):
            return 0, rows
        return self.heads(rows) if path in ("q_proj", "k_proj", "v_proj") else self.rows(rows)


WHOLE = Shard()
