"""What is planned is what prefill takes: against tensors and against a process that does it."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.options import REPEAT
from kvchat.engine.methods.specs import parse_spec
from kvchat.engine.model.geometries import GEOMETRIES
from kvchat.engine.model.hugging_face import interpret
from kvchat.engine.prefill.replay_texts import replays_of
from kvchat.engine.sizes import PLAIN
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError
from kvchat.machine.loaded import workload
from kvchat.machine.plan import PROCESS, Workload, cost_of, longest, make_plan, require_memory
from tests.engine.tiny import SHAPE, load_engine, random_ids, read
from tests.support.forked import kvchat
from tests.support.program import DEMO, SAMPLE

LLAMA_8B = GEOMETRIES["llama-3.1-8b"]
LLAMA_7B = LLAMA_8B | {
    "vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}  # fmt: skip


def work(shape, spec, tokens, limit=2**17, **others):
    """Prefill of `tokens` tokens with a model of that shape in bf16, 2,048 at a time."""
    given = {"itemsize": 2, "chunk": 2048, "cuda": False} | others
    method, config = parse_spec(spec), interpret(shape)
    return Workload(config=config, tokens=tokens, method=method, limit=limit, **given)


def storage_bytes(tensors):
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def ways(plan, free):
    with pytest.raises(KvchatError) as caught:
        require_memory(plan, free, "here", "adakv")
    assert caught.value.exit_code == 6 and caught.value.details["free"] == free
    return " ".join(caught.value.tries)


def test_a_card_needs_room_for_plain_attention():
    """What `--attention torch` has at once; nothing on a CPU."""
    usual = make_plan(work(LLAMA_8B, "full", 8192, cuda=True)).workspace
    plain = make_plan(work(LLAMA_8B, "full", 8192, cuda=True, attention="torch")).workspace
    assert plain - usual == PLAIN < 2**29
    assert make_plan(work(LLAMA_8B, "full", 8192, attention="torch")).workspace == usual


def test_plan_of_a_known_model():
    plan = make_plan(work(LLAMA_8B, "adakv:budget=25%", 2**17 - 1024))
    assert plan.kv_full == 128 * 1024 * (2**17 - 1024)  # 128 KiB per token
    assert plan.dense_layer * 32 == plan.kv_full
    assert plan.kv_kept == pytest.approx(plan.kv_full / 4, rel=0.01)
    assert plan.weights == pytest.approx(8.03e9 * 2, rel=0.001)
    assert plan.tail == 128 * 1024 * 1024
    require_memory(plan, plan.prefill, "cpu", "adakv")
    ways(plan, plan.prefill - 1)
    card = make_plan(work(LLAMA_8B, "adakv:budget=25%", 2**17 - 1024, cuda=True))
    assert card == replace(plan, base=card.base) and card.base != PROCESS


def test_a_plan_of_documents_that_exceed_the_window():
    """A part at a time is alive; a budget in entries is the same for every length."""
    part, window = 8192 // 2 - 512, 8192

    def planned(spec, tokens, streams=True):
        return make_plan(work(LLAMA_8B, spec, tokens, window, streams=streams))

    short, long = planned("kvzap:budget=2048", 10**5), planned("kvzap:budget=2048", 10**6)
    assert replace(long, kv_full=0) == replace(short, kv_full=0)
    assert long.kv_full == 10 * short.kv_full and long.hidden == part * 4096 * 2
    assert long.dense_layer * 32 == 128 * 1024 * part and long.tail == 128 * 1024 * 4096
    assert planned("kvzip:budget=2048", 10**5).hidden == long.hidden // 2
    whole = planned("kvzap:budget=2048", 7000)  # it fits
    assert whole == planned("kvzap:budget=2048", 7000, streams=False)


def test_plan_of_a_full_cache_offers_compression():
    plan = make_plan(work(LLAMA_8B, "full", 100_000))
    for free, offered in ((plan.prefill - 2**30, True), (2**30, False)):  # if it is enough
        assert ("--method adakv" in ways(plan, free)) == offered


def test_a_7b_fits_a_card_of_8_gb_in_4_bits_and_the_way_out_says_so():
    wanted, free = work(LLAMA_7B, "adakv:budget=25%", 3500, 4096, cuda=True), 8 * 10**9
    plan, few = make_plan(wanted), make_plan(replace(wanted, weights="int4"))
    assert few.weights == plan.weights_int4 == pytest.approx(6.74e9 * 0.55, rel=0.02)
    assert "--weights int4" in ways(plan, free)
    require_memory(few, free, "cuda:0", "adakv")
    assert "int4" not in ways(few, few.weights), "it is that already"
    assert "int4" not in ways(plan, 2**30), "it would not fit either"


@pytest.mark.parametrize("spec", ["full", "adakv:budget=25%", "snapkv:budget=10%,window=8"])
@pytest.mark.parametrize("tokens", [500, 1000])
def test_planned_kv_is_within_two_percent_of_the_tensors(checkpoint, spec, tokens):
    engine, method = load_engine(checkpoint(max_position_embeddings=2048)), parse_method(spec)
    cache, _ = read(engine, random_ids(tokens), method)
    plan = make_plan(workload(engine, method, tokens, 2048))
    kept = storage_bytes(t for s in cache.segments() for t in s.tensors().values())
    assert plan.kv_kept == pytest.approx(kept, rel=0.02)
    assert plan.weights == storage_bytes(engine.model.parameters())


@pytest.mark.parametrize(
    "spec", ["pqcache:budget=20%", "pqcache@quality:budget=20%,dense_layers=0"]
)
def test_a_plan_tells_what_is_kept_from_what_is_attended_to(checkpoint, spec):
    engine, tokens = load_engine(checkpoint(max_position_embeddings=2048)), 1400
    method = parse_method(spec)
    cache, _ = read(engine, random_ids(tokens), method)
    plan = make_plan(workload(engine, method, tokens, 2048))
    kept = storage_bytes(t for s in cache.segments() for t in s.tensors().values())
    kept += sum(layer.window_bytes for layer in cache.layers)
    assert plan.kv_kept == pytest.approx(kept, rel=0.02)
    assert plan.read == pytest.approx(cache.read * 2 * 16 * 4, rel=0.04)  # positions are not there
    assert cache.read == 0.2 * cache.kept and plan.reads
    short = make_plan(workload(engine, parse_method("pqcache:budget=25%"), 1000, 2048))
    assert (short.kv_kept, short.read, short.reads) == (short.kv_full, 0, "")


# Prefill of random tokens with random weights in a process of its own: prints what that took at
# most beyond what the imports take.
PEAK = """
import json, sys
from pathlib import Path
import torch
from kvchat.machine import resources as machine
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.hugging_face import interpret
from kvchat.engine.weights.checkpoint import random_weights
from kvchat.engine.prefill.prefill import Compression

torch.set_num_threads(1)
path, tokens, spec = sys.argv[1], int(sys.argv[2]), sys.argv[3]
config = interpret(json.loads(Path(path).read_text()))
method = parse_method(spec)
torch.randn(64, 64) @ torch.randn(64, 64)
baseline = machine.resident()
machine.reset_peak(machine.CPU)
engine = Engine(random_weights(config, torch.float32, machine.CPU))
drain(engine.prefill([1] * tokens, [Compression(method)]))
print(machine.peak(machine.CPU) - baseline)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
@pytest.mark.parametrize("spec", ["full", "adakv:budget=25%", "kvzip:budget=25%"])
def test_planned_peak_is_within_ten_percent_of_what_is_measured(tmp_path, spec):
    """Over 512 MiB, a third of them KV: a large vocabulary and many layers compute little."""
    shape = SHAPE | {
        "model_type": "llama", "vocab_size": 640_000, "hidden_size": 128,
        "intermediate_size": 128, "num_hidden_layers": 48, "num_attention_heads": 16,
        "num_key_value_heads": 16, "head_dim": 64, "tie_word_embeddings": True,
        "dtype": "float32", "max_position_embeddings": 8192,
    }  # fmt: skip
    path, tokens = tmp_path / "config.json", 600
    path.write_text(json.dumps(shape))
    command = [sys.executable, "-c", PEAK, str(path), str(tokens), spec]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    plan = make_plan(work(shape, spec, tokens, 8192, itemsize=4, chunk=512))
    measured = int(done.stdout)
    assert spec != "full" or measured > 2**29
    assert plan.prefill - PROCESS == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("spec", ["full", "adakv:budget=25%"])
def test_the_longest_document_just_fits(spec):
    wanted, free = work(LLAMA_8B, spec, 0, cuda=True), 24 * 2**30
    tokens = longest(wanted, free)
    fits = make_plan(replace(wanted, tokens=tokens, limit=tokens + 512))
    more = make_plan(replace(wanted, tokens=tokens + 1, limit=tokens + 513))
    assert max(fits.prefill, fits.chat) <= free
    assert tokens == 2**17 - 512 or max(more.prefill, more.chat) > free


def test_plan_as_a_command(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    dummy = ("--dummy", str(tmp_path / "config.json"), "--dtype", "bf16")

    def shown(*options):
        done = kvchat("plan", *dummy, *options)
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.decode().split())  # the path in the heading may wrap it

    table = shown("--tokens", "32k,100K")
    assert all(part in table for part in ("32,000", "102,400", "14.96 GiB", "--keep-full"))
    found = json.loads(shown("--fit", "24GiB", "--device", "cuda", "--json"))
    lengths = {plan["method"]: plan["tokens"] for plan in found["plans"]}
    assert lengths["full"] < lengths["kvzip"]
    assert "--weights int4" in shown("--fit", "8GB", "--device", "cuda")
    assert kvchat("plan", "-m", str(DEMO), "--tokens", "4k").returncode == 0
    few = shown("--fit", "8GB", "--weights", "int4")
    assert "4.43 GiB" in few and "--weights" not in few


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--tokens", "1000000000"], 2),
        (["--tokens", "200k"], 5),
        (["--tokens", "x"], 2),
        (["--fit", "lots"], 2),
        (["--method", "nope"], 2),
        (["--method", "adakv:nonsense=3"], 2),
        (["--method", "adakv:window=0"], 2),
        (["--method", "adakv@most"], 2),
        (["--method", "cam:bits=3"], 2),
        (["--device", "tpu"], 2),
        (["--dtype", "int3"], 2),
        (["--weights", "int3"], 2),
    ],
)
def test_what_cannot_be_planned(arguments, code):
    assert kvchat("plan", "--dummy", min(GEOMETRIES), *arguments).returncode == code


@pytest.mark.parametrize("chunk", [32, 64, 512])
def test_the_plan_counts_the_replays_of_a_document(chunk):
    dialogue = Dialogue(Tokenizer.load(DEMO))
    ids = dialogue.document(SAMPLE.read_text())
    told = sum(len(replay.ids) for replay in replays_of(dialogue, ids, {(REPEAT, chunk)}))
    cost = cost_of(parse_spec(f"kvzip:chunk={chunk}"))
    assert cost.replayed * len(ids) == pytest.approx(told, rel=0.02)
