"""`kvchat bench`: what is asked for is measured, bytes are those of tensors, records read back."""

import csv
import io
import json
import re
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pexpect
import pytest
import torch

from kvchat.bench import measure, run
from kvchat.bench.measure import Test, cases_of
from kvchat.bench.settings import Settings
from kvchat.bench.subject import Subject
from kvchat.bench.table import Table, figures, recommendation, speed
from kvchat.engine.events import Smaller
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.simple import Full
from kvchat.errors import KvchatError
from kvchat.machine import dummy
from kvchat.terminal.screen import Screen
from tests.engine.tiny import random_ids, read
from tests.support.forked import Child, kvchat
from tests.support.program import DEMO, ONE_THREAD, SAMPLE

Test.__test__ = False  # no test of ours
SMALL = ("-p", "32", "-n", "2", "-d", "32", "-r", "1", "--no-warmup")
KEYS = {  # of llama-bench
    "n_prompt", "n_gen", "n_depth", "n_threads", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts",
    "samples_ns", "samples_ts", "test_time", "cpu_info", "gpu_info", "build_commit", "model_type",
    "model_size", "model_n_params",
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """`asked(*arguments)`: the settings that a command line means; nothing is measured."""

    def settings(*arguments: str) -> Settings:
        from kvchat.cli.main import run as command_line

        found: list[Settings] = []
        monkeypatch.setattr(run, "run", lambda settings: found.append(settings) or 0)
        assert command_line(["bench", *arguments]) == 0
        return found[0]

    return settings


@pytest.fixture
def subject(engine):
    return Subject("tiny", engine, None, 0, 0.0)


def swept(settings: Settings, subject: Subject) -> list[dict]:
    return list(run.sweep(settings, subject, Screen(quiet=True)))


def test_the_cross_product_has_every_method_once(asked):
    given = ("-p", "8,16", "-n", "4", "-d", "0,32", "-t", "1,2", "--method", "full,adakv")
    tests = list(cases_of(asked(*given, "--budget", "25%,50%")))
    cells = [(str(t.method), t.threads, t.name) for t in tests]
    assert len(set(cells)) == len(cells) == 2 * 3 * 4  # full is one, adakv two
    names = {"pp8", "pp16", "tg4", "tg4 @ d32"}
    assert {t.name for t in tests} == {t.name for t in cases_of(asked(*given, "-p", "0"))} == names
    assert {t.name for t in cases_of(asked("-p", "0", "-n", "4"))} == {"tg4 @ d4096"}


def test_defaults_quick_and_the_depths_of_a_picture(asked):
    usual, quick = asked(), asked("--quick", "-r", "7")
    assert (usual.prompts, usual.depths, usual.repeat) == ([4096], [4096], 3)
    assert usual.methods == ["full", "adakv", "kvzip"] and usual.output == "md"
    assert (quick.prompts, quick.generates, quick.depths, quick.repeat) == ([1024], [32], [2048], 7)
    assert asked("--plot", "a.png").depths == [1024, 2048, 4096, 8192]
    assert asked("--plot", "a.png", "-d", "8").depths == [8]


def test_csv_and_lines_of_json_say_the_same_of_flat_records():
    given = ("--method", "full,adakv:window=4", "-r", "3", "-o", "csv", "-oe", "jsonl")
    done = kvchat("bench", *SMALL, *given)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    records = [json.loads(line) for line in done.stderr.splitlines()]
    for row, record in zip(rows, records, strict=True):
        assert list(row) == list(record) == list(records[0]) and record.keys() >= KEYS
        for key, value in record.items():
            assert not isinstance(value, dict)
            if isinstance(value, list):
                assert json.loads(row[key]) == value
            else:
                assert row[key] == ("" if value is None else str(value))
        tokens = record["n_prompt"] or record["n_gen"]
        assert record["samples_ts"] == [1e9 * tokens / ns for ns in record["samples_ns"]]
        parts = ("weights", "kv", "workspace", "process")
        peak = record["peak_decode_bytes"] or record["peak_prefill_bytes"]
        assert sum(record[f"peak_{part}_bytes"] for part in parts) == peak
    prefill, decoding, other, _ = records
    assert [record["test"] for record in records] == ["pp32", "tg2 @ d32"] * 2
    assert prefill["ttft_ns"] == prefill["avg_ns"] == sum(prefill["samples_ns"]) / 3
    assert prefill["tpot_ns"] is prefill["peak_decode_bytes"] is decoding["ttft_ns"] is None
    assert decoding["tpot_ns"] == decoding["avg_ns"] / 2 and decoding["select_ns"] > 0
    assert other["spec"] == "adakv:window=4" and "window=4" in other["options"].split(",")


def table_of(settings: Settings, subject: Subject, records: list[dict]) -> list[str]:
    """The lines of the table of records."""
    stream = io.StringIO()
    table = Table(stream, settings, subject, None)
    for record in records:
        table.row(record)
    table.end()
    return stream.getvalue().splitlines()


def test_a_table_has_the_numbers_of_its_records(asked, subject):
    settings = asked(*SMALL, "--method", "full")
    records = swept(settings, subject)
    lines = [line for line in table_of(settings, subject, records) if line.startswith("|")]
    titles, marks, *rows = (re.split(r"\s*\|\s*", line)[1:-1] for line in lines)
    assert titles == ["method", "kept", "test", "t/s", "TTFT/TPOT", "KV MiB", "full", "peak"]
    assert all(re.fullmatch("-{3,}|-{2,}:", mark) for mark in marks)
    for row, record in zip(rows, records, strict=True):
        cells = dict(zip(titles, row, strict=True))
        assert cells["t/s"] == speed(record) and cells["kept"] == "100%"
        assert cells["TTFT/TPOT"] == figures(record["ttft_ns"] or record["tpot_ns"], 1e6)
        assert cells["KV MiB"] == figures(record["kv_bytes"], 2**20)


@pytest.mark.parametrize(("speeds", "best"), [
    ({"full": 100.0, "kvzip": 110.0}, "--method full (100"),
    ({"full": 100.0, "kvzip": 210.0}, "--method kvzip --budget 25% (210 tok/s, 2.1 times"),
    ({"kvzip": 50.0, "adakv": 60.0}, "--method adakv --budget 25% (60"),
    ({}, ""),
])  # fmt: skip
def test_one_line_recommends_a_method(speeds, best):
    """By decoding behind the longest document alone; whatever ran out of memory does not count."""
    records = [
        {"method": name, "spec": name, "budget": "25%", "n_gen": 8, "n_depth": depth,
         "avg_ts": speed * (1 if depth else 9), "error": None}
        for name, speed in speeds.items() for depth in (0, 4096)
    ]  # fmt: skip
    records.append(dict.fromkeys(("method", "spec", "avg_ts"), None)
                   | {"n_gen": 8, "n_depth": 9999, "error": "out of memory"})  # fmt: skip
    found = recommendation(records)
    assert best in found and bool(found) == bool(best)


def test_numbers_have_digits_enough():
    cell = {"error": None, "avg_ts": 51.43, "stddev_ts": 0.12}
    assert speed(cell) == "51.4 ± 0.1"
    assert speed(cell | {"avg_ts": 4800.2, "stddev_ts": 11.4}) == "4800 ± 11"
    assert speed(cell | {"avg_ts": 0.0623}) == "0.062 ± 0.120"
    values = (3413.31, 296.2, 19.456, 0.5, 0.015625, None)
    assert [figures(v, 1) for v in values] == ["3413", "296", "19.46", "0.50", "0.0156", ""]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-d", "16384", "--method", "full,streamingllm", "--weights", "int4"),
        ("-t", "1,2", "--method", "full,adakv"),
        ("--method", "expected-attention"),
    ],
)
def test_a_table_fits_eighty_columns_and_has_every_result(asked, subject, arguments):
    settings = asked(*arguments)
    table = Table(io.StringIO(), settings, subject, 80)
    assert 1 + sum(c.columns + 1 + 2 * len(table.gap) for c in table.columns) <= 80
    assert len(table.columns) == 8 + ("-t" in arguments)
    assert {Table(io.StringIO(), settings, subject, width).gap for width in (None, 200)} == {" "}


def test_on_a_terminal_no_line_is_wrapped(tmp_path):
    arguments = ["bench", *SMALL, "--method", "full,adakv:window=4", "--budget", "50%"]
    child = Child(arguments, env={"HOME": str(tmp_path), "TERM": "xterm", **ONE_THREAD}, timeout=60)
    child.expect(pexpect.EOF)
    rows = re.findall(r"\|[^\r\n]*", child.before.decode())
    assert len(rows) == 6 and len({len(row) for row in rows}) == 1
    assert all(row.endswith("|") and len(row) <= 80 for row in rows)


@pytest.mark.parametrize("spec", ["full", "adakv:window=4", "full:bits=8", "kvzip"])
def test_bytes_are_those_of_the_tensors(engine, asked, subject, spec):
    settings = asked("-p", "96", "-n", "3", "-d", "96", "-r", "2", "--method", spec)
    prefill, decoding = swept(settings, subject)
    ids, method = subject.ids(96), parse_method(spec)
    cache, _ = read(engine, ids, method)

    def used() -> int:
        tensors = [t for s in cache.segments() for t in s.tensors().values()]
        tensors += [t for layer in cache.layers for t in (layer.tail.k, layer.tail.v)]
        return sum({t.data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    assert prefill["kv_bytes"] == cache.memory().total
    if spec != "full:bits=8":  # packed entries have parts of their own
        assert prefill["kv_bytes"] >= used() > 0
    decoded = engine.decode(cache, torch.zeros(engine.config.vocab_size), measure.Sampling())
    for _ in range(4):
        next(decoded)
    assert decoding["kv_bytes"] == cache.memory().total
    assert prefill["kv_full_bytes"] == 96 * engine.kv_bytes(1)
    assert decoding["kv_full_bytes"] == 99 * engine.kv_bytes(1)
    assert prefill["kept_fraction"] == cache.kept / (96 * 2 * 2)
    assert prefill["model_size"] == engine.weights_bytes == prefill["peak_weights_bytes"]


def peaks_begin_anew() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not peaks_begin_anew(), reason="the system does not let a peak begin anew")
def test_a_peak_is_of_its_own_test(engine, monkeypatch):
    def peak(tokens: int) -> int:
        test = Test(Full(), 0, tokens, 0, 0)
        found = measure.measure(engine, test, random_ids(tokens), 2, True, lambda text: None)
        assert found["peak_decode_bytes"] is None and len(found["samples_ns"]) == 2
        return found["peak_workspace_bytes"] + found["kv_bytes"]

    drain, large = measure.drain, 2**26
    quiet = peak(64)
    with monkeypatch.context() as patch:
        patch.setattr(
            measure, "drain", lambda work, see: torch.ones(large // 4).sum() and drain(work)
        )
        assert 0.95 * large < peak(64) < 1.2 * large
    assert quiet < large / 8 and peak(64) < large / 8


def test_a_cell_without_room_says_so_and_the_sweep_goes_on(monkeypatch, capsys):
    from kvchat.cli.main import run as command_line

    prefill, rested = measure.prefill, []

    def small(engine, test, ids):
        if len(ids) > 40:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return prefill(engine, test, ids)

    monkeypatch.setattr(measure, "prefill", small)
    monkeypatch.setattr(run, "sleep", rested.append)
    arguments = ["bench", "-p", "32,64", "-n", "2", "-d", "32", "-r", "1", "--no-warmup"]
    arguments += ["--method", "adakv:window=8", "--delay", "0.5"]
    assert command_line([*arguments, "-o", "jsonl"]) == 6
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["test"], bool(r["error"])) for r in records] == [
        ("pp32", False), ("pp64", True), ("tg2 @ d32", False),
    ]  # fmt: skip
    assert records[1]["needed_bytes"] > 0 and records[1]["avg_ts"] is None
    assert list(records[1]) == list(records[0]) and rested == [0.5] * 3
    assert command_line(arguments) == 6
    table = capsys.readouterr().out.splitlines()
    assert [line for line in table if "pp64" in line and re.search(r"\| +OOM +\|", line)]
    assert [line for line in table if line.startswith("- adakv:window=8 25% pp64: ")]


def test_a_prefill_that_had_to_slow_down_says_so(engine, asked, subject, monkeypatch):
    prefill = type(engine).prefill

    def short(self, *given):
        yield Smaller(256)
        return (yield from prefill(self, *given))

    monkeypatch.setattr(type(engine), "prefill", short)
    settings = asked(*SMALL, "--method", "full")
    records = swept(settings, subject)
    assert [record["prefill_chunk"] for record in records] == [256, 256]
    notes = [line for line in table_of(settings, subject, records) if line.startswith("- full")]
    assert len(notes) == 2 and all(" 256 " in note for note in notes)


def test_a_test_beyond_the_limit_is_not_tried():
    given = ("-n", "0", "-r", "1", "--no-warmup", "--method", "full", "-o", "jsonl")
    roomy = json.loads(kvchat("bench", "-p", "16", *given).stdout)
    limit = f"{roomy['peak_prefill_bytes'] + 2**27}B"
    done = kvchat("bench", "-p", "16,30000", *given, "--mem-limit", limit)
    assert done.returncode == 6, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["error"] is None and second["error"] and second["peak_prefill_bytes"] is None
    assert second["needed_bytes"] > second["free_bytes"]


def test_what_was_measured_before_ctrl_c_is_whole(monkeypatch, capsys):
    from kvchat.cli.main import run as command_line

    measured = measure.measure

    def once(*given):
        monkeypatch.setattr(run, "measure", interrupted)
        return measured(*given)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "measure", once)
    assert command_line(["bench", *SMALL, "--method", "full"]) == 130
    said = capsys.readouterr().out
    assert "pp32" in said and "tg2" not in said and "kvchat eval" in said, "the end of the table"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-o", "xml"], "--output jsonl"),
        (["-oe", "sql"], "--output-err jsonl"),
        (["-p", "0", "-n", "0"], "-p 512"),
        (["-n", "0", "--plot", "a.png"], "-n 64"),
        (["--plot", "a.pdf"], "a.pdf.png"),
        (["--dummy", "7b"], "llama-3.1-8b"),
        (["-p", "40000"], "32,768"),
        (["--method", "adakv", "--budget", "20"], "20"),
        (["--dummy", "1b", "--from-file", str(SAMPLE)], "--dummy"),
        (["--from-file", str(DEMO / "config.json")], "4,096"),
    ],
)
def test_what_cannot_be_is_said_with_a_way_out_and_nothing_else(arguments, part):
    done = kvchat("bench", *arguments)
    assert done.returncode in (2, 4, 5) and part in done.stderr.decode()
    assert b"try: " in done.stderr and done.stdout == b""


def test_tokens_of_a_file_and_of_a_seed(asked, subject):
    assert subject.ids(50) == subject.ids(60)[:50] != replace(subject, seed=1).ids(50)
    assert replace(subject, document=[5, 6, 7]).ids(2) == [5, 6]
    done = kvchat("bench", *SMALL, "--from-file", str(SAMPLE), "--method", "full", "-o", "jsonl")
    assert json.loads(done.stdout.splitlines()[0])["text"] == str(SAMPLE)


def test_named_shapes_are_the_published_ones():
    published = {
        "llama-3.1-8b": (8_030_261_248, 128),
        "mistral-7b": (7_248_023_552, 128),
        "1b": (1_235_814_400, 32),
    }
    for name, (parameters, kib_per_token) in published.items():
        found, config = dummy.dummy(name)
        assert (found, config.parameters, config.dtype) == (name, parameters, "bfloat16")
        assert 2 * config.kv_values_per_token == kib_per_token * 2**10


def test_a_config_without_weights_is_measured_and_devices_are_listed():
    done = kvchat("bench", *SMALL, "--dummy", str(DEMO / "config.json"), "--method", "full")
    assert done.returncode == 0 and b"tg2 @ d32" in done.stdout
    assert kvchat("bench", "--list-devices").stdout.startswith(b"cpu  ")
    assert b"128 KiB" in kvchat("plan", "--dummy", "llama-3.1-8b", "--tokens", "4k").stdout


def test_a_picture_of_speed_and_bytes(asked, subject, tmp_path, monkeypatch):
    plots = pytest.importorskip("kvchat.plots", exc_type=KvchatError)
    render = import_module("kvchat.bench.picture").render
    given = ("-p", "0", "-n", "2", "-d", "16-64*2", "-r", "2", "--method", "full,adakv:window=4")
    records = swept(asked(*given), subject)
    seen: list = []
    kept = plots.Figure.savefig
    monkeypatch.setattr(
        plots.Figure, "savefig", lambda self, *a, **k: seen.append(self) or kept(self, *a, **k)
    )
    render(tmp_path / "a.png", records)
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 20_000
    speed_axes, kv_axes = seen[0].axes
    for line, spec in zip(kv_axes.lines, ("full", "adakv:window=4"), strict=False):
        mine = [r for r in records if r["spec"] == spec]
        assert list(line.get_xdata()) == [18, 34, 66]
        assert list(line.get_ydata()) == [r["kv_bytes"] / 2**20 for r in mine]
    names = [text.get_text() for text in speed_axes.get_legend().get_texts()]
    assert names == ["full", "adakv:window=4 25%"]
    assert all(a < b for a, b in pairwise(kv_axes.lines[2].get_ydata()))
