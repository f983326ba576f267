"""Models of this machine by name: of ollama, LM Studio, llama.cpp, the Hugging Face cache."""

import json

import pytest
from huggingface_hub import constants

from kvchat.errors import KvchatError
from kvchat.hub import catalog, find, gguf_files, ollama, places
from kvchat.hub.find import find_model
from kvchat.hub.places import Found, Missing, at_hand
from tests.support import gguf_files as made
from tests.support.errors import refused
from tests.support.program import kvchat

MODEL = "application/vnd.ollama.image.model"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without models, with the Hugging Face cache in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ollama, "SERVICE", tmp_path / "service")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for module in (places, find):  # not those that `make model` may have brought to the checkout
        monkeypatch.setattr(module, "MODEL_FOLDERS", (tmp_path / "models",))
    return tmp_path


def pulled(home, place, digest="sha256:ab12", **layers):
    """A manifest of ollama and its blob. `layers`: digests by the end of the media type."""
    top = home / ".ollama" / "models"
    blob = top / "blobs" / digest.replace(":", "-")
    made.llama(blob)
    manifest = top / "manifests" / place
    manifest.parent.mkdir(parents=True, exist_ok=True)
    kinds = {MODEL: digest} | {f"application/vnd.ollama.image.{k}": v for k, v in layers.items()}
    manifest.write_text(
        json.dumps({"layers": [{"mediaType": k, "digest": v} for k, v in kinds.items()]})
    )
    return blob


def names() -> dict[str, Found]:
    return {found.name: found for found in at_hand()}


@pytest.mark.parametrize(
    ("place", "name", "asked"),
    [
        ("registry.ollama.ai/library/llama3.2/1b", "llama3.2:1b", "ollama:llama3.2:1b"),
        ("registry.ollama.ai/library/llama3.2/1b", "llama3.2:1b", "llama3.2:1b"),
        ("registry.ollama.ai/library/mistral/latest", "mistral:latest", "ollama:mistral"),
        ("registry.ollama.ai/ada/tiny/q8", "ada/tiny:q8", "ollama:ada/tiny:q8"),
        ("registry.ollama.ai/ada/tiny/q8", "ada/tiny:q8", "ada/tiny:q8"),
        ("hf.co/ada/tiny/Q8_0", "hf.co/ada/tiny:Q8_0", "ollama:hf.co/ada/tiny:Q8_0"),
    ],
)
def test_a_model_of_ollama_is_its_blob(home, place, name, asked):
    blob = pulled(home, place, projector="sha256:00", template="sha256:11")
    assert find_model(asked).path == blob
    assert names()[f"ollama:{name}"].path == blob
    assert find_model(str(blob)).name == name, "as a saved chat knows it"


def test_where_ollama_keeps_its_models(home, monkeypatch):
    blob = pulled(home, "registry.ollama.ai/library/tiny/latest")
    elsewhere = home / "elsewhere"
    (home / ".ollama" / "models").rename(elsewhere)
    with pytest.raises(KvchatError) as caught:
        find_model("ollama:tiny")
    assert caught.value.code == "model" and "ollama pull tiny" in caught.value.tries
    monkeypatch.setenv("OLLAMA_MODELS", str(elsewhere))
    assert find_model("ollama:tiny").path == elsewhere / "blobs" / blob.name


@pytest.mark.parametrize(
    ("damage", "part"), [("adapter", "adapter"), ("blob", "missing"), ("json", "no manifest")]
)
def test_what_ollama_has_and_cannot_be_read(home, damage, part):
    layers = {"adapter": "sha256:77"} if damage == "adapter" else {}
    blob = pulled(home, "registry.ollama.ai/library/tiny/latest", **layers)
    if damage == "blob":
        blob.unlink()
    if damage == "json":
        (home / ".ollama/models/manifests/registry.ollama.ai/library/tiny/latest").write_text("{")
    with refused("model", part):
        find_model("ollama:tiny")
    listed = names()["ollama:tiny:latest"].why
    assert part in listed and "/manifests/" not in listed


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (".lmstudio/models/ada/Tiny-GGUF/Tiny-Q4_K_M.gguf", "Tiny-Q4_K_M"),
        (".cache/lm-studio/models/ada/Tiny-GGUF/Tiny-Q4_K_M.gguf", "Tiny-Q4_K_M"),
        (".cache/llama.cpp/ada_Tiny_Tiny.gguf", "ada_Tiny_Tiny"),
        ("hub/models--ada--tiny/snapshots/c0/Tiny-Q8_0.gguf", "ada/tiny:Q8_0"),
    ],
)
def test_a_listed_name_is_what_m_takes(home, place, name):
    file = made.llama(home / place)
    made.llama(file.with_name("mmproj-Tiny-F16.gguf"))
    if place.startswith("hub"):
        refs = file.parents[2] / "refs"
        refs.mkdir()
        (refs / "main").write_text("c0")
    assert [found.name for found in at_hand() if found.place != "bundled"] == [name]
    assert find_model(name).path == file == find_model(name.lower()).path


def test_llama_cpp_has_a_folder_of_its_own_choice(home, monkeypatch):
    file = made.llama(home / "mine" / "tiny.gguf")
    monkeypatch.setenv("LLAMA_CACHE", str(file.parent))
    assert names()["tiny"].path == file


def test_a_repository_of_several_formats(home):
    snapshot = home / "hub" / "models--ada--tiny" / "snapshots" / "c0"
    for kind in ("Q4_K_M", "Q8_0"):
        made.llama(snapshot / f"Tiny-{kind}.gguf")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c0")
    assert find_model("ada/tiny:q8_0").path == snapshot / "Tiny-Q8_0.gguf"
    with pytest.raises(KvchatError) as caught:
        find_model("ada/tiny")
    assert caught.value.details["models"] == ["ada/tiny:Q4_K_M", "ada/tiny:Q8_0"]
    with pytest.raises(Missing) as missing:
        find_model("ada/tiny:Q5_K_M")
    assert "kvchat models pull ada/tiny:Q5_K_M" in missing.value.tries


def test_a_folder_has_one_model_or_names_them(home):
    folder = home / "given"
    for number in (1, 2):
        made.llama(folder / f"Tiny-{number:05}-of-00002.gguf")
    assert find_model(str(folder)).path.name == "Tiny-00001-of-00002.gguf"
    assert find_model(str(folder / "Tiny-00002-of-00002.gguf")).name == "Tiny"
    made.llama(folder / "Other.gguf")
    with pytest.raises(KvchatError) as caught:
        find_model(str(folder))
    assert [name.rpartition("/")[2] for name in caught.value.details["models"]] == [
        "Other.gguf",
        "Tiny-00001-of-00002.gguf",
    ]
    for way in caught.value.tries:
        assert find_model(way.removeprefix("-m ")).path.parent == folder


def test_models_beside_the_program(home, monkeypatch):
    monkeypatch.chdir(home)
    file = made.llama(home / "models" / "Tiny-Q8_0.gguf")
    inner = made.llama(home / "models" / "folder" / "x.gguf")
    assert find_model("Tiny-Q8_0").path.resolve() == file
    assert find_model("folder").path.resolve() == inner
    assert {"Tiny-Q8_0", "folder"} <= names().keys()


def test_names_of_files():
    tags = {
        "Llama-3.2-1B-Instruct-Q4_K_M.gguf": "Q4_K_M",
        "qwen3-0.6b-q8_0.gguf": "Q8_0",
        "x/Phi-UD-Q4_K_XL-00001-of-00003.gguf": "UD-Q4_K_XL",
        "m.BF16.gguf": "BF16",
        "model.gguf": "",
    }
    assert {name: gguf_files.tag(name) for name in tags} == tags
    parts = ["a-00002-of-00002.gguf", "a-00001-of-00002.gguf", "b.GGUF", "mmproj-b.gguf", "c.txt"]
    assert gguf_files.models(parts) == {
        "a": ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"],
        "b": ["b.GGUF"],
    }


@pytest.mark.parametrize(
    ("alias", "name", "same"),
    [
        ("llama-3.2-1b", "bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", True),
        ("llama-3.2-1b", "ollama:llama3.2:1b", True),
        ("llama-3.2-1b", "Llama-3.2-11B-Vision", False),
        ("llama-3.1-8b", "bartowski_Meta-Llama-3.1-8B-Instruct-GGUF_x", True),
        ("llama-3.1-8b", "nvidia/Llama-3.1-8B-UltraLong-Base", False),
        ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", True),
        ("mistral-7b", "ada/Zephyr-Mistral-7B", False),
        ("smollm2-135m", "SmolLM2-135M-Instruct-Q8_0", True),
        ("smollm2-135m", "smollm2-1350m", False),
    ],
)
def test_names_of_the_field_find_local_models(home, alias, name, same):
    entry = catalog.entry(alias)
    found = catalog.matching(entry, [Found(name, home, "here")])
    assert [each.name for each in found] == [name] * same


def test_a_name_of_the_field_that_is_not_here_can_be_pulled(home):
    with pytest.raises(Missing) as caught:
        find_model("mistral-7b")
    assert caught.value.repository == catalog.entry("mistral-7b").source
    assert caught.value.tries == ("kvchat models pull mistral-7b",)
    with pytest.raises(KvchatError) as close:
        find_model("mistral7b")
    assert "-m mistral-7b" in close.value.tries


def test_the_catalog_is_short_and_complete():
    assert len(catalog.TABLE) <= 10 and len({each.name for each in catalog.TABLE}) > 8
    for entry in catalog.entries():
        assert entry.licence and entry.window >= 8192
        size = {"bf16": 2, "Q8_0": 1.07}.get(entry.format, 0.62) * entry.config.parameters
        assert entry.bytes == pytest.approx(size, rel=0.12), entry.name
        assert entry.held >= 0.95 * entry.bytes


@pytest.mark.parametrize("long", [False, True])
def test_a_model_is_no_document(home, long):
    file = made.llama(home / "tiny.gguf")
    if long:
        with file.open("r+b") as stream:
            stream.truncate(200_000_001)
    done = kvchat("-f", str(file), "-p", "x")
    assert done.returncode == 4 and f"-m {file}".encode() in done.stderr


def test_doctor_counts_the_models_of_each_place(home):
    pulled(home, "registry.ollama.ai/library/tiny/latest")
    made.llama(home / ".cache" / "llama.cpp" / "tiny.gguf")
    text = kvchat("doctor").stdout.decode()
    lines = {line[4:].split("  ")[0].strip(): line for line in text.splitlines()}
    assert lines["ollama"].startswith("ok") and "1 model in" in lines["ollama"]
    assert lines["llama.cpp"].startswith("ok") and lines["LM Studio"].startswith("no")


def test_places_of_this_home(home):
    assert not [found for found in at_hand() if found.place in ("ollama", "LM Studio", "llama.cpp")]
    assert places.lm_studio()[0].is_relative_to(home)


@pytest.mark.parametrize("flag", ["-m", "--dummy"])
def test_a_file_is_planned_from_its_header(home, flag):
    file = made.llama(home / "tiny.gguf", window=2048)
    done = kvchat("plan", flag, str(file), "--tokens", "1000", "--json")
    found = json.loads(done.stdout)
    assert found["window"] == 2048, done.stderr
    # 2 layers of 2 KV heads of 16 values, keys and values, in bf16
    assert found["plans"][0]["kv_full"] == 1000 * 2 * 2 * 16 * 2 * 2


def test_another_tag_of_ollama_is_a_way_out(home):
    pulled(home, "registry.ollama.ai/library/qwen/0.5b", "sha256:a1")
    pulled(home, "registry.ollama.ai/library/qwen3/1b", "sha256:b2")
    with pytest.raises(KvchatError) as caught:
        find_model("ollama:qwen")
    assert caught.value.tries[0] == "-m ollama:qwen:0.5b"
    assert not any("qwen3" in way for way in caught.value.tries)
