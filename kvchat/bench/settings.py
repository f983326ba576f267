"""Options of `kvchat bench`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvchat.engine.methods import BY_QUESTION, UNSEEN
from kvchat.settings.chat_options import CACHE, DUMMY, MACHINE, MOST_THREADS
from kvchat.settings.kinds import PATH, SWITCH, number, one_of, whole
from kvchat.settings.lists import METHOD_SPECS, WORDS, counts
from kvchat.settings.option import option, shared
from kvchat.settings.options import Options
from kvchat.settings.program_options import SCREEN

FORMATS = ("md", "csv", "jsonl")
METHODS = ("full", BY_QUESTION, UNSEEN)
CURVE = (1024, 2048, 4096, 8192)  # depths of a picture
# tokens to prefill, to decode, depth, repetitions: as usual, and in about ten seconds
USUAL, QUICK = (4096, 64, 4096, 3), (1024, 32, 2048, 3)
TESTS = "Tests"


@dataclass(frozen=True)
class Settings:
    """Options of `kvchat bench`; empty lists where another option decides, see `resolved`."""

    model: str | None = shared(Options, "model")
    dummy: str | None = option("--dummy", TESTS, DUMMY)
    prompts: Sequence[int] = option(
        "-p", TESTS, f"Tokens to prefill ({USUAL[0]}): 512,4k or 1k-8k*2.", counts(0)
    )
    generates: Sequence[int] = option(
        "-n", TESTS, f"Tokens to decode ({USUAL[1]}); 0: none.", counts(0)
    )
    depths: Sequence[int] = option(
        "-d", TESTS, f"Tokens prefilled before decoding ({USUAL[2]}).", counts(0)
    )
    repeat: int = option("-r", TESTS, f"Repetitions ({USUAL[3]}).", whole(1, 10**6), default=0)
    quick: bool = option(
        "--quick", TESTS, "About ten seconds with the bundled model.", SWITCH, default=False
    )
    seed: int = shared(Options, "seed", default=0, help="Seed of the random tokens.", panel=TESTS)
    text: str | None = option(
        "--from-file", TESTS, "Prefill this document's tokens, not random ones.", PATH
    )
    warmup: bool = option(
        "--warmup/--no-warmup", TESTS, "One run that is not counted.", SWITCH, default=True
    )
    delay: float = option(
        "--delay", TESTS, "Seconds of rest before each test (0).", number(0, 3600), default=0.0
    )
    methods: Sequence[str] = option(
        "--method", CACHE, "Methods; a list.", METHOD_SPECS, default=METHODS
    )
    budgets: Sequence[str] = option("--budget", CACHE, "Cache budgets: 25%,10%; a list.", WORDS)
    chunk: int | None = shared(Options, "prefill_chunk")
    threads: Sequence[int] = option(
        "-t --threads", MACHINE, "CPU threads: 1,2.", counts(1, MOST_THREADS)
    )
    device: str = shared(Options, "device")
    dtype: str = shared(Options, "dtype")
    weights: str = shared(Options, "weights")
    attention: str = shared(Options, "attention")
    kernels: str = shared(Options, "kernels")
    mem_limit: int | None = shared(Options, "mem_limit")
    list_devices: bool = option(
        "--list-devices", MACHINE, "Say what --device can be, and stop.", SWITCH, default=False
    )
    output: str = option(
        "-o --output", SCREEN, "Form of the results.", one_of(*FORMATS), default="md"
    )
    errput: str | None = option(
        "-oe --output-err", SCREEN, "The same, on stderr as well.", one_of(*FORMATS)
    )
    plot: str | None = option(
        "--plot", SCREEN, "Plot of speed and KV against context: a PNG file.", PATH
    )

    def resolved(self) -> "Settings":
        """With what is usual, or quick, where nothing was given."""
        reads, writes, before, times = QUICK if self.quick else USUAL
        return replace(
            self,
            prompts=self.prompts or [reads],
            generates=self.generates or [writes],
            depths=self.depths or ([*CURVE] if self.plot else [before]),
            repeat=self.repeat or times,
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest cache."""
        decoded = (d + n for d in self.depths for n in self.generates)
        return max([1, *self.prompts, *decoded])
