"""Seeded chance at every entrance but documents: what it makes of good files ends in 0 or in an
error of ours (codes 2 to 8, one line), never in "please report it".

`KVCHAT_FUZZ=SEED` begins elsewhere, `KVCHAT_FUZZ_COUNT=N` takes N inputs for each.
"""

import json
import os
import random

import pytest
import torch

from kvchat.chat import chatlog, resume
from kvchat.chat.generation import with_model_defaults
from kvchat.chat.prepare import prepare
from kvchat.chat.setup import chosen_method
from kvchat.engine.events import drain
from kvchat.engine.gguf.file import GGUF
from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.hugging_face import interpret
from kvchat.engine.model.read import load_config
from kvchat.engine.store import Refused
from kvchat.engine.store.archive import load_archives
from kvchat.engine.store.cached_document import load
from kvchat.engine.store.tensors import Mapped, write
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.engine.weights.checkpoint import load_weights
from kvchat.hub.find import Model, find_model
from kvchat.prompt_cache import files
from kvchat.settings import config
from kvchat.settings.options import Options
from tests.engine import test_archive as archives
from tests.engine.test_store import IDS, KEY, METHODS, saved
from tests.engine.tiny import load_engine, save_model
from tests.fuzz.mutations import another, exit_code, others, tensor_like, toml
from tests.support import gguf_files
from tests.support.scene import Scene, shown

SEED = int(os.environ.get("KVCHAT_FUZZ", "0"))
COUNT = int(os.environ.get("KVCHAT_FUZZ_COUNT", "300"))
CPU = torch.device("cpu")


def dice(name: str) -> random.Random:
    """Chance of a test's own, the same in every run."""
    return random.Random(f"{name} {SEED}")


def require(codes: set[int], *there: int) -> None:
    """The codes that were seen are ours; those `there` among them, or nothing was tested."""
    assert codes <= {0, 2, 3, 4, 5, 6, 7, 8} and codes >= set(there)


CONFIG = {
    "defaults": {"model": "m", "temperature": 0.7, "seed": 3, "budget": "25%", "method": "adakv",
                 "max_tokens": 100, "ctx_size": "8k", "weights": "int4"},
    "ui": {"color": "never", "markdown": True, "notify": "off", "stats": "long"},
    "models": {"m": {"path": ".", "temperature": 0.2}, "n": {"repo": "a/b", "top_k": 3}},
    "methods": {"adakv": {"window": 8}},
    "loaders": {".pdf": ["pdftotext", "{}", "-"]},
}  # fmt: skip


def test_config_toml(tmp_path):
    chance, codes, path = dice("config"), set(), tmp_path / "config.toml"

    def settled():
        found = config.load(path)
        options = config.settle({}, found, {})
        chosen_method(options, False)
        assert options.sampling and options.longest
        find_model(options.model, options.aliases)

    for _ in range(COUNT):
        data = toml(another(CONFIG, chance)).encode("utf-8", "replace")
        path.write_bytes(others(data, chance) if chance.random() < 0.3 else data)
        codes.add(exit_code(settled))
    require(codes, 2, 3)


ROPES = {
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "longrope": {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
}


def test_config_json(checkpoint):
    """Of a family after the other; what passes is loaded in the next test."""
    chance, codes = dice("config.json"), set()
    plain = json.loads((checkpoint() / "config.json").read_text())
    for family in ("llama", "mistral", "qwen3", "gemma2", "gemma3_text", "granite", "glm4"):
        rope = chance.choice(list(ROPES))
        about = {"rope_type": rope, "rope_theta": 1e4, "original_max_position_embeddings": 256}
        more = {"rope_parameters": about | ROPES[rope]} if chance.random() < 0.5 else {}
        good = plain | {"model_type": family, "sliding_window": 64} | more
        for _ in range(COUNT // 6):
            raw = another(good, chance)
            codes.add(exit_code(lambda: interpret(raw if isinstance(raw, dict) else {})))  # noqa: B023
    require(codes, 0, 3)


def test_model_folder(tmp_path):
    """config.json, generation_config.json, the index, and the header and bytes of a shard."""
    folder = save_model(tmp_path, max_shard_size="20KB")
    chance, codes, model = dice("model"), set(), Model("m", folder)
    texts = {name: json.loads((folder / name).read_text()) for name in
             ("config.json", "model.safetensors.index.json")}  # fmt: skip
    texts["generation_config.json"] = {
        "do_sample": True, "temperature": 0.6, "top_k": 50, "top_p": 0.9, "min_p": 0.0,
        "repetition_penalty": 1.1, "eos_token_id": [1, 2],
    }  # fmt: skip
    shard = min(folder.glob("*.safetensors"))
    data = shard.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")

    def loaded():
        options, ends = with_model_defaults(Options(), model)
        assert options.sampling and set(ends) >= set()
        for event in load_weights(folder, load_config(folder), torch.float32, CPU):
            last = event
        assert isinstance(last, torch.nn.Module)

    for _ in range(COUNT):
        name = chance.choice([*texts, "header", "bytes"])
        place = shard if name in ("header", "bytes") else folder / name
        if name == "bytes":
            bad = others(data, chance)
        elif name == "header":
            text = json.dumps(another(json.loads(data[8:end]), chance)).encode()
            bad = len(text).to_bytes(8, "little") + text + data[end:]
        else:
            bad = json.dumps(another(texts[name], chance)).encode()
        place.write_bytes(bad)
        codes.add(exit_code(loaded))
        place.write_bytes(data if place == shard else json.dumps(texts[name]).encode())
    require(codes, 0, 3)


def test_what_passes_computes(tmp_path):
    """A config that is accepted gives logits, whatever they are worth."""
    folder = save_model(tmp_path)
    chance, codes, place = dice("compute"), set(), folder / "config.json"
    good = json.loads(place.read_text())

    def answered():
        engine = load_engine(folder)
        drain(engine.extend(engine.empty_cache(), [1, 2, 3]))

    for _ in range(COUNT // 2):
        place.write_text(json.dumps(another(good, chance)))
        codes.add(exit_code(answered))
    require(codes, 0, 3)


def test_gguf(tmp_path):
    chance, codes = dice("gguf"), set()
    place = gguf_files.llama(tmp_path / "model.gguf", window=64)
    about = dict(GGUF(place))
    data, begin = place.read_bytes(), min(i.offset for i in GGUF(place).tensors.values())

    def read():
        dict(GGUF(place))
        load_config(place)
        for _ in load_weights(place, load_config(place), torch.float32, CPU):
            pass

    for _ in range(COUNT):
        if chance.random() < 0.5:
            place.write_bytes(others(data[:begin], chance) + data[begin:])
        else:
            name = chance.choice([*about, "llama.rope.scaling.type", "tokenizer.ggml.scores"])
            value = chance.choice((True, 0, 1, 2**32 - 1, -1.0, 1e30, "", "x", [], [1], ["x"]))
            gguf_files.llama(place, window=64, **{name: value})
        codes.add(exit_code(read))
        codes.add(exit_code(lambda: Tokenizer.load(place).encode([("Who are you?", False)])))
    require(codes, 0, 3)


def forged(good: Mapped, chance: random.Random) -> tuple[dict, dict]:
    """Tensors and metadata of a cached document, one of them another."""
    tensors, metadata = dict(good.tensors), dict(good.header.metadata)
    name, how = chance.choice(list(tensors)), chance.random()
    if how < 0.65:
        tensors[name] = tensor_like(tensors[name], chance)
    elif how < 0.75:
        del tensors[name]
    elif how < 0.8:
        tensors[chance.choice(("x", "0.9.k", "7.0.k", "0.0.x", "0.tail.k"))] = tensors[name]
    else:
        key = chance.choice(("segments", "about"))
        metadata[key] = json.dumps(another(json.loads(metadata[key]), chance))
    return {n: t.clone() for n, t in tensors.items()}, metadata


def use(work) -> bool:
    """Whether a cached document was used; it may be refused, and nothing else."""
    try:
        work()
    except Refused as problem:
        assert str(problem) and "\n" not in str(problem)
        return False
    return True


@pytest.mark.parametrize("method", METHODS)
def test_cached_documents_with_right_checksums(engine, tmp_path, method):
    """What is used in spite of all computes, and finds its entries inside its tensors."""
    chance, path, used = dice(f"cache {method}"), tmp_path / f"{KEY}.safetensors", []
    saved(engine, path, method)
    good, bad = Mapped(path), tmp_path / f"{'a' * 32}.safetensors"

    def loaded():
        cache = load(bad, engine, IDS, KEY)
        drain(engine.extend(cache, [3, 4]))
        drain(engine.extend(cache, [5]))
        for segment in cache.segments():
            assert segment.span[1] <= len(IDS)
            for name in ("k", "v"):
                entries = getattr(segment, name, None)
                assert entries is None or len(entries) == segment.ends[-1]

    for _ in range(max(COUNT // len(METHODS), 50)):
        write(bad, *forged(good, chance))
        used.append(use(loaded))
        assert path in [entry.path for entry in files.entries(tmp_path)]
    assert {True, False} == set(used)


def test_full_copies_with_right_checksums(engine, tmp_path):
    chance, path, used = dice("archive"), tmp_path / "all.safetensors", []
    archives.archived(engine, archives.ADAKV, archives.on_disk(engine, path))
    good, bad = Mapped(path), tmp_path / "bad.safetensors"

    def chosen():
        found = load_archives(bad, archives.IDS, archives.KEY, 2, archives.SHAPE)
        for spec in ("snapkv:budget=20%", "expected-attention"):
            assert engine.chosen(found, parse_method(spec)) is not None or spec

    for _ in range(COUNT // 3):
        write(bad, *forged(good, chance))
        used.append(use(chosen))
    assert {True, False} == set(used)


def test_chat_logs(chat_folder, tmp_path, monkeypatch):
    """A damaged chat is named, stops no other, and what comes back of one can be gone on with."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    scene = Scene(chat_folder("byte-level", "chatml"))
    for question in ("One?", "Two?"):
        scene.ask(question, "Yes.")
    for line in ("/undo", "/set seed 7", "/rename good"):
        scene.run(line)
    scene.context.writer.close()
    good = scene.context.writer.path
    data = good.read_bytes()
    lines = [json.loads(line) for line in data.splitlines()]
    chance, codes = dice("chat"), set()
    bad, other = good.with_name("20200101-000000-abcd.jsonl"), Scene(scene.chat.model.path)

    def came_back():
        resume.load(other.chat, other.context.screen, str(bad)).close()
        other.chat.session.clear()

    def prepared():
        prepare(Options(resume=str(bad)), other.context.screen, piped=False)

    for _ in range(COUNT):
        number = chance.randrange(len(lines))
        changed = [*lines[:number], another(lines[number], chance), *lines[number + 1 :]]
        text = "".join(json.dumps(line) + "\n" for line in changed).encode()
        bad.write_bytes(others(data, chance) if chance.random() < 0.2 else text)
        assert all(chatlog.summary(each) for each in chatlog.listing())
        assert exit_code(lambda: chatlog.find(good.stem)) == 0
        codes |= {exit_code(prepared), exit_code(came_back)}
        shown(other.context.screen)
    require(codes, 0, 8)
