"""The model where none is asked for: which one of a machine, which download, and what is asked."""

import json
import os
import shutil
import sys

import pexpect
import pytest

from kvchat.documents import decode, read
from kvchat.engine.model.read import load_config
from kvchat.hub import catalog, choose
from kvchat.hub.describe import Described
from kvchat.machine import fit
from kvchat.machine.fit import Room
from tests.support.hub import serving
from tests.support.program import DEMO, ONE_THREAD, ROOT, SAMPLE, kvchat

GIB = 2**30
CPU, CARD = Room("cpu", 16 * GIB), Room("cuda", 16 * GIB)


def model(name, billions, tmp_path, **about):
    known = {"window": 32768, "chat": True, "fits": "yes"} | about
    place = {"place": "models/", "parameters": round(billions * 1e9)}
    return Described(name, tmp_path / name, **(place | known))


@pytest.mark.parametrize(
    ("room", "tokens", "models", "wanted"),
    [
        (CPU, None, {"small": (1, {}), "large": (3, {})}, "large"),
        (CPU, None, {"small": (1, {}), "slow": (8, {})}, "small"),
        (CARD, None, {"small": (1, {}), "large": (8, {})}, "large"),
        (CPU, None, {"slow": (8, {}), "slower": (14, {})}, "slow"),
        (CARD, None, {"small": (1, {}), "huge": (70, {"fits": "no"})}, "small"),
        (CARD, None, {"chat": (1, {}), "base": (8, {"chat": False})}, "chat"),
        (CARD, 20000, {"short": (8, {"window": 8192}), "long": (1, {})}, "long"),
        (CARD, 20000, {"short": (8, {"window": 8192})}, "short"),
        (CARD, None, {"small": (1, {}), "packed": (8, {"fits": "int4"})}, "small"),
        (CARD, None, {"packed": (8, {"fits": "int4"})}, "packed"),
        (CPU, None, {"demo": (0.001, {"place": "bundled"})}, None),
        (CPU, None, {"broken": (1, {"fits": "", "reason": "damaged"})}, None),
        (CPU, None, {}, None),
    ],
)
def test_which_local_model(monkeypatch, tmp_path, room, tokens, models, wanted):
    here = [model(name, size, tmp_path, **about) for name, (size, about) in models.items()]
    monkeypatch.setattr(choose, "at_hand", lambda aliases: here)
    monkeypatch.setattr(choose, "described", lambda found, room, tokens: found)
    found, why = choose.best({}, room, tokens)
    assert (found.name if found else None) == wanted and why


@pytest.mark.parametrize(
    ("room", "tokens", "wanted"),
    [
        (Room("cpu", GIB // 4), None, None),
        (Room("cpu", GIB), None, "smollm2-135m"),
        (Room("cpu", 64 * GIB), None, "llama-3.2-3b"),
        (Room("cuda", 80 * GIB), None, "llama-3.1-8b"),
        (Room("cpu", 64 * GIB), 100_000, "llama-3.2-3b"),
        (Room("cuda", 24 * GIB), 100_000, "llama-3.1-8b"),
    ],
)
def test_which_download(monkeypatch, room, tokens, wanted):
    old = [each for each in catalog.TABLE if each.family in ("llama", "mistral")]
    monkeypatch.setattr(catalog, "TABLE", old)
    row = choose.recommended(choose.offered(room, tokens), room, tokens)
    assert (row.entry.name if row else None) == wanted


def test_what_is_needed_grows_with_the_document_and_is_within_the_window():
    config, held = load_config(DEMO), 10**6
    needs = [fit.needed(config, held, CPU, tokens) for tokens in (0, 4096, 16384, 10**9)]
    assert needs == sorted(needs) and len(set(needs)) == 4
    window = config.context_limit
    assert needs[-1] == fit.needed(config, held, CPU, window)
    assert fit.needed(config, held + 77, CPU, 4096) == needs[1] + 77


def test_room_is_asked_without_torch():
    code = "import sys; from kvchat.machine.fit import room; room(); print('torch' in sys.modules)"
    done = pexpect.run(f'{sys.executable} -c "{code}"', env=os.environ, cwd=str(ROOT))
    assert done.strip() == b"False"


def test_a_limit_bounds_the_room(monkeypatch):
    monkeypatch.setattr(fit, "card_free", lambda device: None)
    monkeypatch.setattr(fit.ram, "free", lambda: 8 * GIB)
    fit.room.cache_clear()
    assert fit.room("auto", GIB) == Room("cpu", GIB) and fit.room() == Room("cpu", 8 * GIB)
    monkeypatch.setattr(fit, "card_free", lambda device: 5 * GIB)
    fit.room.cache_clear()
    assert fit.room() == Room("cuda", 5 * GIB) and fit.room("cpu").free == 8 * GIB
    fit.room.cache_clear()


def test_the_sample_is_known_by_its_text(tmp_path):
    sample = read(str(SAMPLE))
    shutil.copy(SAMPLE, tmp_path / "copy.txt")
    other = decode("x", SAMPLE.read_bytes() + b"!")
    assert choose.of_the_sample([sample, read(str(tmp_path / "copy.txt"))])
    assert not choose.of_the_sample([sample, other]) and not choose.of_the_sample([])
    assert not choose.of_the_sample([read(str(SAMPLE.with_name("skerry.txt")))]), "it is prose"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An environment of its own, in a folder of its own, where no model is named."""
    monkeypatch.delenv("KVCHAT_MODEL")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("The ferry leaves at nine. " * 40)
    here = {name: str(tmp_path / name) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    no = {"HF_TOKEN": "", "NO_PROXY": "*", "no_proxy": "*", "HF_HUB_DISABLE_TELEMETRY": "1"}
    # a checkout without what `make model` may have brought to this one
    site = tmp_path / "site"
    shutil.copytree(ROOT / "kvchat", site / "kvchat", ignore=shutil.ignore_patterns("numba-*"))
    (site / "models").mkdir()
    (site / "models" / "demo").symlink_to(DEMO)
    (site / "samples").symlink_to(SAMPLE.parent)
    path = f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    # machine code would have to be made for this copy of the sources
    no |= {"HF_HUB_OFFLINE": "0", "KVCHAT_KERNELS": "torch"}
    return here | no | {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": path}


@pytest.mark.parametrize("more", [(), ("--json",), ("--jsonl",)])
def test_without_any_model_a_pipe_gets_the_command_to_type(place, more):
    done = kvchat("book.txt", "-p", "When?", "--mem-limit", "900MiB", *more, **place)
    assert done.returncode == 3, done.stderr
    told = done.stdout if more else done.stderr
    assert b"kvchat models pull smollm2-135m" in told and b"Traceback" not in done.stderr


def test_the_sample_is_read_by_the_bundled_model(place):
    quick = ("-n", "2", "--method", "streamingllm")
    done = kvchat("-p", "Who?", "--json", *quick, stdin=SAMPLE.read_bytes(), **place)
    assert done.returncode == 0 and json.loads(done.stdout)["model"] == "demo", done.stderr


def test_a_local_model_that_fits_is_taken(place, chat_folder, tmp_path):
    shutil.copytree(chat_folder("byte-level", "chatml"), tmp_path / "models" / "mine")
    done = kvchat("book.txt", "-p", "When?", "-n", "2", "--json", **place)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model"] == "mine" and any("mine" in each for each in found["warnings"])
    assert b"mine" in done.stderr
    config = tmp_path / "XDG_CONFIG_HOME" / "kvchat" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[defaults]\nmodel = "{DEMO}"\n')
    done = kvchat("book.txt", "-p", "When?", "-n", "2", "--json", **place)
    assert json.loads(done.stdout)["model"] == "demo", "what is configured goes before"


@pytest.mark.parametrize("answer", ["\r", "1", "n"])
def test_a_download_is_offered_at_a_terminal(place, chat_folder, tmp_path, answer):
    folder = chat_folder("byte-level", "chatml")
    with serving(folder, repository=catalog.entry("smollm2-135m").source) as hub:
        code = "from kvchat.__main__ import main; main()"
        told = ["book.txt", "--no-save", "--prompt-cache", "off", "--mem-limit", "900MiB"]
        child = pexpect.spawn(
            sys.executable,
            ["-c", code, *told],
            env=os.environ | ONE_THREAD | place | {"HF_ENDPOINT": hub.address, "TERM": "dumb"},
            timeout=60,
        )
        child.expect(r"smollm2-135m .* Apache-2.0")
        child.expect(r"download smollm2-135m, .*Enter.*n.o")
        assert not hub.fetched, "it is asked first"
        child.send(answer)
        if answer == "n":
            child.expect("kvchat models pull smollm2-135m")
            assert not hub.fetched
        else:
            child.expect(r"SmolLM2-135M-Instruct \(llama.*> ")
            assert "model.safetensors" in hub.fetched
            child.send("\x04")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == (3 if answer == "n" else 0)
