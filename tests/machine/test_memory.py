"""Memory that is shown is memory that is there: against tensors, the system, and the plan."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvchat.chat.memory import Breakdown, breakdown, lines
from kvchat.engine.budget import Budget
from kvchat.engine.methods.options import REPEAT
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.prefill.replay_texts import tellings
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError
from kvchat.machine import gpu_processes as others
from kvchat.machine import resources as machine
from kvchat.machine.method_facts import cost_of
from kvchat.machine.plan import PROCESS, Cost, longest, make_plan, require_memory
from tests.engine.tiny import SHAPE, load_engine, random_ids, read
from tests.support.forked import kvchat
from tests.support.program import DEMO, SAMPLE
from tests.support.scene import Scene, shown, string_screen
from tests.terminal.test_text import LLAMA_8B

CPU = torch.device("cpu")


@pytest.fixture
def scene(chat_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return Scene(chat_folder("byte-level", "chatml"))


def storage_bytes(tensors):
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def test_the_breakdown_is_the_tensors(scene):
    scene.ask("What?")
    found, session = breakdown(scene.chat), scene.chat.session
    segments = [t for s in session.cache.segments() for t in s.tensors().values()]
    tails = [t for layer in session.cache.layers for t in vars(layer.tail).values()]
    tails = [t for t in tails if isinstance(t, torch.Tensor)]
    assert found.weights == storage_bytes(session.engine.model.parameters())
    assert found.document == storage_bytes(segments)
    assert found.tail == storage_bytes(tails)
    live = sum(layer.tail.keys.nbytes + layer.tail.values.nbytes for layer in session.cache.layers)
    entries = sum(layer.tail.k.nbytes + layer.tail.v.nbytes for layer in session.cache.layers)
    assert found.preallocated == entries - live
    assert found.full == session.cache.position * session.engine.kv_bytes_per_token
    assert found.index == 0


def status(name):
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_the_breakdown_agrees_with_the_system(scene):
    found = breakdown(scene.chat)
    assert found.process == pytest.approx(status("VmRSS"), rel=0.05)
    assert found.peak == pytest.approx(status("VmHWM"), rel=0.05)
    meminfo = Path("/proc/meminfo").read_text()
    total = int(re.search(r"MemTotal:\s+(\d+)", meminfo)[1]) * 1024
    assert found.total <= total and 0 <= found.free <= found.total
    assert found.weights + found.document + found.tail + found.other <= found.process * 1.001


def test_a_tensor_shows_in_the_process_and_goes_again():
    before = machine.resident()
    ballast = torch.ones(64 * 2**20 // 4)
    assert machine.resident() - before == pytest.approx(ballast.nbytes, rel=0.1)
    del ballast
    assert machine.resident() - before < 8 * 2**20


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_view_has_every_line_and_fits(scene, width):
    text = lines(breakdown(scene.chat), width, True)
    whole = "\n".join(text)
    for name in (
        "weights",
        "KV kept",
        "KV index",
        "preallocated",
        "this process",
        "others",
        "free",
    ):
        assert name in whole
    assert "KV in full would be" in whole
    assert width < 80 or max(map(len, text)) <= max(width, 80)


@pytest.mark.parametrize("spec", ["full", "adakv:budget=25%", "snapkv:budget=10%,window=8"])
@pytest.mark.parametrize("tokens", [500, 1000])
def test_planned_kv_is_within_two_percent_of_the_tensors(checkpoint, spec, tokens):
    engine = load_engine(checkpoint(max_position_embeddings=2048))
    method = parse_method(spec)
    cache, _ = read(engine, random_ids(tokens), method)
    plan = make_plan(engine.config, 4, tokens, method.budget, 2048, 512)
    held = storage_bytes(t for s in cache.segments() for t in s.tensors().values())
    assert plan.kv_kept == pytest.approx(held, rel=0.02)
    assert plan.weights == storage_bytes(engine.model.parameters())


@pytest.mark.parametrize(
    "spec", ["pqcache:budget=20%", "pqcache@quality:budget=20%,dense_layers=0"]
)
def test_a_plan_tells_what_is_kept_from_what_is_read(checkpoint, spec):
    engine, tokens = load_engine(checkpoint(max_position_embeddings=2048)), 1400
    method = parse_method(spec)
    cache, _ = read(engine, random_ids(tokens), method)
    plan = make_plan(engine.config, 4, tokens, method.budget, 2048, 512, cost=cost_of(method))
    held = storage_bytes(t for s in cache.segments() for t in s.tensors().values())
    held += sum(layer.window_bytes for layer in cache.layers)
    assert plan.kv_kept == pytest.approx(held, rel=0.02)
    assert plan.read == pytest.approx(cache.read * 2 * 16 * 4, rel=0.04)  # positions are not there
    assert cache.read == 0.2 * cache.kept
    assert "a written token reads" in plan.reads
    short = make_plan(engine.config, 4, 1000, method.budget, 2048, 512, cost=Cost(code=(2, 6)))
    assert (short.kv_kept, short.read, short.reads) == (short.kv_full, 0, "")


# Reads random tokens with random weights in a process of its own and prints what that took at most
# beyond what the imports take.
PEAK = """
import json, sys
from pathlib import Path
import torch
from kvchat.machine import gpu_processes as others
from kvchat.machine import resources as machine
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.model.config import ModelConfig
from kvchat.errors import KvchatError
from kvchat.engine.weights.checkpoint import random_weights
from kvchat.engine.prefill.prefill import Compression

torch.set_num_threads(1)
path, tokens, spec = sys.argv[1], int(sys.argv[2]), sys.argv[3]
config = ModelConfig.from_dict(json.loads(Path(path).read_text()))
method = parse_method(spec)
cpu = torch.device("cpu")
torch.randn(64, 64) @ torch.randn(64, 64)
baseline = machine.resident()
machine.reset_peak(cpu)
engine = Engine(random_weights(config, torch.float32, cpu))
drain(engine.prefill([1] * tokens, [Compression(method)]))
print(machine.peak(cpu) - baseline)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
@pytest.mark.parametrize("spec", ["full", "adakv:budget=25%", "kvzip:budget=25%"])
def test_planned_peak_is_within_ten_percent_of_what_is_measured(tmp_path, spec):
    """Over 1 GiB: wide hidden states and many KV heads, so that a short reading weighs much."""
    raw = {
        **SHAPE,
        "model_type": "llama",
        "vocab_size": 120_000,
        "hidden_size": 1024,
        "intermediate_size": 1024,
        "num_hidden_layers": 14,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "max_position_embeddings": 8192,
    }
    path, tokens = tmp_path / "config.json", 2600
    path.write_text(json.dumps(raw))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(tokens), spec],
        capture_output=True,
        text=True,
        check=True,
    )
    config = ModelConfig.from_dict(raw)
    method = parse_method(spec)
    plan = make_plan(config, 4, tokens, method.budget, 8192, 512, cost=cost_of(method))
    measured = int(done.stdout)
    assert spec != "full" or measured > 2**30
    assert plan.reading - PROCESS == pytest.approx(measured, rel=0.1)


def test_the_longest_document_just_fits():
    config = ModelConfig.from_dict(LLAMA_8B)
    for text in ("100%", "25%"):
        budget = Budget.parse(text)
        tokens = longest(config, 2, budget, 2**17, 2048, 24 * 2**30, True)
        fits = make_plan(config, 2, tokens, budget, tokens + 512, 2048, True)
        more = make_plan(config, 2, tokens + 1, budget, tokens + 513, 2048, True)
        assert max(fits.reading, fits.chatting) <= 24 * 2**30
        assert tokens == 2**17 - 512 or max(more.reading, more.chatting) > 24 * 2**30


def test_plan_as_a_command(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    dummy = ("--dummy", str(tmp_path / "config.json"), "--dtype", "bf16")
    table = kvchat("plan", *dummy, "--tokens", "32k,100K").stdout.decode()
    assert "32,000" in table and "102,400" in table and "14.96 GiB" in table
    found = json.loads(
        kvchat("plan", *dummy, "--fit", "24GiB", "--device", "cuda", "--json").stdout
    )
    lengths = {plan["method"]: plan["tokens"] for plan in found["plans"]}
    assert lengths["full"] < lengths["kvzip"]
    table = kvchat("plan", *dummy, "--fit", "8GB", "--device", "cuda").stdout.decode()
    assert "try: --weights int4" in table
    table = kvchat("plan", *dummy, "--fit", "8GB", "--weights", "int4").stdout.decode()
    table = " ".join(table.split())  # the path in the heading may wrap it
    assert "weights 4.43 GiB in int4" in table and "try" not in table
    assert "--keep-full host holds KV full in RAM" in table
    for arguments, code in (
        (["--tokens", "1000000000"], 2),
        (["--tokens", "200k"], 5),
        (["--tokens", "x"], 2),
        (["--fit", "lots"], 2),
        (["--method", "nope"], 2),
        (["--device", "tpu"], 2),
        (["--dtype", "int3"], 2),
        (["--weights", "int3"], 2),
    ):
        assert kvchat("plan", *dummy, *arguments).returncode == code, arguments
    assert kvchat("plan", "-m", str(DEMO), "--tokens", "4k").returncode == 0


@pytest.mark.parametrize("spec", ["adakv:nonsense=3", "adakv:window=0", "adakv@most", "cam:bits=2"])
def test_a_plan_refuses_what_a_chat_would_refuse(spec):
    done = kvchat("plan", "--dummy", "llama-3.1-8b", "--tokens", "1000", "--method", spec)
    assert done.returncode == 2 and done.stdout == b""


SEEN = Breakdown(
    "cpu AMD EPYC", weights=4560000, stored="f32", document=4980000, tail=1100000, index=0,
    workspace=0, preallocated=995000, other=343600000, process=354300000, peak=365100000,
    others=4434500000, free=20497700000, total=25275900000, full=19723700, host=0, disk=0, read="",
    captured=None,
)  # fmt: skip
NARROW = """\
memory · cpu AMD EPYC
  weights         4.35 MiB  f32
  KV kept         5.80 MiB
    document 4.75 MiB (25% of all)
    + chat 1.05 MiB
  KV index             0 B
  preallocated     972 KiB
    for the next turns
  the rest        0.32 GiB
    libraries, tokenizer, workspace
  this process    0.33 GiB
    0.34 GiB at most, while reading
  others          4.13 GiB
    other processes
  free           19.09 GiB  of 23.54 GiB
  KV in full would be 18.81 MiB ·
    13.01 MiB saved, 3.2× smaller"""
MIDDLE = """\
  KV kept         5.80 MiB  document 4.75 MiB (25% of all)
                            + chat 1.05 MiB
  KV index             0 B
  preallocated     972 KiB  for the next turns"""
WIDE = "  KV kept         5.80 MiB  document 4.75 MiB (25% of all) + chat 1.05 MiB\n"


@pytest.mark.parametrize(("width", "part"), [(40, NARROW), (60, MIDDLE), (80, WIDE), (120, WIDE)])
def test_the_view_fits_every_terminal(width, part):
    screen = string_screen(width)
    for line in lines(SEEN, width, True):
        screen.tell(line)
    text = shown(screen)
    assert part in text and max(map(len, text.splitlines())) <= width


def test_who_else_holds_memory_of_a_card(monkeypatch, tmp_path):
    """By a program in place of the driver's: no card has been asked."""
    told = f"4242, /usr/bin/python3, 6758\n77, a\x1b[2J b, c, [N/A]\n{os.getpid()}, me, 900\n"
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ $1 = --id=GPU-7 ] && cat <<'END'\n{told}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    there = others.processes("GPU-7")
    assert [(each.pid, each.held) for each in there] == [(4242, 6758 * 2**20), (77, 0)]
    text = others.described(int(7.2 * 2**30), int(23.6 * 2**30), there)
    assert text == (
        "7.20 of 23.60 GiB are held by others (pid 4242 python3, 6.60 GiB; pid 77 a·[2J b, c)"
    )
    assert others.processes("GPU-8") == [], "the program has failed"
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert others.processes("GPU-7") == [] and others.holders(CPU) == ""
    plan = make_plan(ModelConfig.from_dict(LLAMA_8B), 2, 32768, Budget(fraction=1.0), 131072, 2048)
    with pytest.raises(KvchatError, match=r"hidden states .*; 7 GiB are held by others"):
        require_memory(plan, 2**30, "cuda:0", "full", others=lambda: "7 GiB are held by others")


@pytest.mark.parametrize("chunk", [32, 64, 512])
def test_the_plan_counts_what_a_document_is_told_with(chunk):
    dialogue = Dialogue(Tokenizer.load(DEMO))
    ids = dialogue.document(SAMPLE.read_text())
    told = sum(len(replay.ids) for replay in tellings(dialogue, ids, {(REPEAT, chunk)}))
    cost = cost_of(parse_method(f"kvzip:chunk={chunk}"))
    assert cost.told * len(ids) == pytest.approx(told, rel=0.02)
