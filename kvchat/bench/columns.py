"""The columns of a table of tests, and how their cells read. Knows no terminal."""

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, log10

from kvchat.bench.record import Record
from kvchat.bench.settings import Settings
from kvchat.bench.subject import Subject
from kvchat.engine.methods.naming import spec_of
from kvchat.terminal.text import size

UNITS = {"GiB": 2**30, "MiB": 2**20}


@dataclass(frozen=True)
class Column:
    """A title, the widest usual content, and a cell of it; numbers stand right."""

    title: str
    width: int
    cell: Callable[[Record], str]
    short: str = ""  # a title for narrow places
    left: bool = False
    constant: bool = False  # the same in every row: it can be said above the table

    @property
    def columns(self) -> int:
        """How wide it is; Markdown wants three dashes."""
        return max(self.width, len(self.title), 3)


def columns_of(settings: Settings, subject: Subject) -> list[Column]:
    """Model, device, options that are not as usual, method, test and results."""
    tests = list(settings.tests())
    unit = unit_of(settings, subject)
    device = "CPU" if subject.engine.device.type == "cpu" else "CUDA"
    return [
        Column("model", len(subject.name), said("model"), left=True, constant=True),
        Column("device", 4, lambda r: device, left=True, constant=True),
        *(Column(name, len(text), said(name), constant=True) for name, text in unusual(settings)),
        *threads_of(settings),
        Column("method", max(len(spec_of(t.method)) for t in tests), said("spec"), left=True),
        Column("kept", 4, kept),
        Column("test", max(len(test.name) for test in tests), said("test")),
        Column("t/s", 11, speed),
        Column("TTFT ms", 7, lambda r: milliseconds(r["ttft_ns"])),
        Column("TPOT ms", 7, lambda r: milliseconds(r["tpot_ns"])),
        Column(f"KV {unit}", 5, lambda r: amount(r["kv_bytes"], unit)),
        Column(f"full {unit}", 5, lambda r: amount(r["kv_full_bytes"], unit), "full"),
        Column(f"peak {unit}", 5, lambda r: amount(peak(r), unit), "peak"),
    ]


def narrow(columns: list[Column]) -> list[Column]:
    """The same with both times in one column: a test has only one of them."""
    times = Column("TTFT/TPOT", 7, lambda r: milliseconds(r["ttft_ns"] or r["tpot_ns"]))
    merged = {"TTFT ms": [times], "TPOT ms": []}
    return [new for column in columns for new in merged.get(column.title, [column])]


def unusual(settings: Settings) -> list[tuple[str, str]]:
    """Options about the model that are not left as they are: name and value."""
    given = {
        "dtype": settings.dtype,
        "weights": settings.weights,
        "attention": settings.attention,
        "prefill_chunk": str(settings.chunk or "auto"),
    }
    return [(name, value) for name, value in given.items() if value != "auto"]


def threads_of(settings: Settings) -> list[Column]:
    """The column of the threads, if they were chosen."""
    if not settings.threads:
        return []
    constant = len(set(settings.threads)) == 1
    return [Column("threads", 3, said("n_threads"), "-t", constant=constant)]


def unit_of(settings: Settings, subject: Subject) -> str:
    """MiB for what is small altogether, else GiB."""
    engine = subject.engine
    whole = engine.weights_bytes + engine.kv_bytes_per_token * settings.longest
    return "MiB" if whole < UNITS["GiB"] else "GiB"


def said(name: str) -> Callable[[Record], str]:
    """A cell as it is in the record."""
    return lambda record: str(record[name])


def kept(record: Record) -> str:
    """The share of the rows that are kept."""
    share = record["kept_fraction"]
    return "" if share is None else f"{share:.0%}" if share >= 0.1 else f"{100 * share:.3g}%"


def speed(record: Record) -> str:
    """Tokens per second with their spread, or that memory was not enough."""
    if record["error"]:
        return f"OOM (needed ≥ {size(record['needed_bytes'])})"
    average, spread = record["avg_ts"], record["stddev_ts"]
    decimals = min(max(2 - floor(log10(average)), 0), 3)
    return f"{average:.{decimals}f} ± {spread:.{decimals}f}"


def peak(record: Record) -> int | None:
    """Bytes at most while the test ran."""
    return record["peak_decode_bytes"] or record["peak_prefill_bytes"]


def milliseconds(nanoseconds: float | None) -> str:
    """`21034`, `3413.3`, `19.46`."""
    if nanoseconds is None:
        return ""
    value = nanoseconds / 1e6
    return f"{value:.0f}" if value >= 10000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def amount(count: int | None, unit: str) -> str:
    """Bytes in a unit with figures enough: `296`, `16.56`, `0.0156`."""
    if count is None:
        return ""
    value = count / UNITS[unit]
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
