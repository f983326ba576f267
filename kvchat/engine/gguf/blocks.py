"""The block formats of GGUF: how many values share how many bytes. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """A format: `values` numbers that lie in a row are stored in `size` bytes."""

    name: str
    values: int
    size: int

    @property
    def bits(self) -> float:
        """Bits of a value, scales included."""
        return 8 * self.size / self.values


# by the number that the file gives each (ggml's enumeration)
BLOCKS = {
    0: Block("F32", 1, 4),
    1: Block("F16", 1, 2),
    2: Block("Q4_0", 32, 18),
    3: Block("Q4_1", 32, 20),
    6: Block("Q5_0", 32, 22),
    7: Block("Q5_1", 32, 24),
    8: Block("Q8_0", 32, 34),
    10: Block("Q2_K", 256, 84),
    11: Block("Q3_K", 256, 110),
    12: Block("Q4_K", 256, 144),
    13: Block("Q5_K", 256, 176),
    14: Block("Q6_K", 256, 210),
    20: Block("IQ4_NL", 32, 18),
    23: Block("IQ4_XS", 256, 136),
    30: Block("BF16", 1, 2),
}

GROUPED = ("Q4_0", "Q4_1", "Q4_K")  # 4 bits, every 32 values with a scale and a minimum
BYTES = "Q8_0"

# formats that exist and are not read, for the sentence that refuses them
OTHERS = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
