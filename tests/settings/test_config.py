"""config.toml: strict with line numbers, origins in order, aliases."""

import json
import subprocess
import sys

import pytest

from kvchat.errors import KvchatError
from kvchat.hub.find import find_model
from kvchat.settings import config
from kvchat.settings.options import OPTIONS, Options
from tests.support.forked import kvchat
from tests.support.program import DEMO

GOOD = f"""
[defaults]
model = "tiny"
budget = "50%"
temperature = 1

[models.tiny]
path = "{DEMO}"
ctx_size = 4096
budget = "10%"

[methods.kvzip]
chunk = 64

[ui]
stats = "long"
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "kvchat").mkdir()
    return tmp_path / "kvchat" / "config.toml"


def test_no_file_is_an_empty_config(path):
    assert config.load().defaults == {}


def test_values_and_their_origins_in_order(path):
    path.write_text(GOOD)
    found = config.load()
    options = config.settle({"seed": "3", "top_p": None}, found, {"KVCHAT_TOP_K": "5"})
    origins = options.origins
    assert (options.seed, options.top_k, options.top_p) == (3, 5, None)
    assert (options.model, options.budget, options.ctx_size) == ("tiny", "10%", 4096)
    assert options.temperature == 1 and options.stats == "long"
    assert origins["seed"] == "flag" and origins["top_k"] == "KVCHAT_TOP_K"
    assert "[models.tiny]" in origins["budget"] and "[defaults]" in origins["temperature"]
    assert "top_p" not in origins
    budget = {"KVCHAT_BUDGET": "7%", "KVCHAT_PLAIN": "1"}
    assert config.settle({"budget": "5%"}, found, budget).budget == "5%"
    options = config.settle({}, found, budget)
    assert options.budget == "7%" and options.plain is True
    options = config.settle({"model": "other"}, found, {})
    assert options.budget == "50%" and options.ctx_size is None


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_means_the_same_wherever_it_comes_from(name, path):
    """Flag, environment, config.toml and /set read a value alike, and refuse one alike."""
    option = OPTIONS[name]
    texts = {"N": "2", "X": "0.5", "SIZE": "5GiB", "SHARE": "2%", "": "off"}
    text = option.kind.choices[0] if option.kind.choices else texts.get(option.kind.metavar, "abc")
    given = [text] if option.many else text
    value = getattr(config.settle({name: given}, config.Config(path), {}), name)
    found = [value]
    if option.table:
        variable = {option.variable: text}
        found.append(getattr(config.settle({}, config.Config(path), variable), name))
        path.write_text(f"[{option.table}]\n{name} = {json.dumps(text)}")
        found.append(getattr(config.settle({}, config.load(), {}), name))
    if option.live and not option.many:
        found.append(getattr(Options().changed(name, text, "/set"), name))
    if name == "method_options":
        found = [[*each] for each in found]
    assert found == [found[0]] * len(found) and (name == "kv_bits" or found[0] is not None)
    if option.kind.metavar in ("N", "X", "SIZE", "SHARE", "NAME"):
        with pytest.raises(KvchatError) as caught:
            config.settle({name: "-x-"}, config.Config(path), {})
        assert caught.value.exit_code == 2 and option.flag in caught.value.message


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("[defaults]\nbuget = '1%'", 2, "budget"),
        ("[defaults]\nseed = 1\nseed2 = 'x'", 3, "seed2"),
        ("[default]\n", 1, "defaults"),
        ("budget = '25%'", 1, "budget"),
        ("[defaults]\n\nseed = 'x'", 3, "seed"),
        ("[defaults]\nseed = true", 2, "seed"),
        ("[ui]\nmarkdown = 1", 2, "markdown"),
        ("[defaults]\ntop_p = 2.0", 2, "top_p"),
        ("[models.a]\nseed = 1", 1, "path"),
        ("[models.a]\npath='x'\nrepo='y'", 1, "repo"),
        ("[defaults]\nmodel 3", 2, "line 2"),
        ("models = 3", 1, "models"),
    ],
)
def test_mistakes_are_named_with_their_line(path, text, line, part):
    path.write_text(text)
    with pytest.raises(KvchatError, match=part) as caught:
        config.load()
    assert f"line {line}" in caught.value.message and caught.value.exit_code == 2


def test_a_byte_order_mark_is_left_out(path):
    path.write_bytes(b"\xef\xbb\xbf[defaults]\nseed = 4")
    assert config.settle({}, config.load(), {}).seed == 4


@pytest.mark.parametrize(("name", "text"), [("SEED", "x"), ("MARKDOWN", "maybe"), ("TOP_P", "")])
def test_environment_of_the_wrong_type(path, name, text):
    with pytest.raises(KvchatError, match=f"KVCHAT_{name}"):
        config.settle({}, config.load(), {f"KVCHAT_{name}": text})


def test_aliases_name_models(path, tmp_path):
    path.write_text(GOOD)
    aliases = config.load().models
    assert find_model("tiny", aliases).path == DEMO
    assert find_model("tiny", aliases).name == "tiny"
    path.write_text("[models.gone]\npath = '/no/such/folder'")
    with pytest.raises(KvchatError, match="gone"):
        find_model("gone", config.load().models)
    with pytest.raises(KvchatError, match="nobody/nothing") as caught:
        find_model("nobody/nothing")
    assert "kvchat models pull nobody/nothing" in caught.value.tries


def test_the_program_obeys_and_shows(path, tmp_path, monkeypatch):
    monkeypatch.delenv("KVCHAT_MODEL")
    path.write_text(GOOD)
    place = {"XDG_CONFIG_HOME": str(tmp_path)}
    text = kvchat("config", "show", "--origin", **place).stdout.decode()
    assert "50%" not in text and "10%" in text and "[models.tiny]" in text
    done = kvchat("-p", "Who?", "-n", "2", "--json", "--temp", "0", stdin=b"The mill.", **place)
    assert done.returncode == 0, done.stderr
    assert b'"budget": "10%"' in done.stdout and b'"chunk": 64' in done.stdout
    assert b'"model": "tiny"' in done.stdout
    path.write_text("[defaults]\nbuget = '1%'")
    done = kvchat("-p", "x", **place)
    assert done.returncode == 2 and b"line 2" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["plan"], ["models"], ["sessions", "list"], ["config", "show"], ["config", "path"]],
)
def test_quick_commands_do_not_import_torch(path, arguments):
    code = (
        "import sys; from kvchat.cli.main import run; code = run(sys.argv[1:]);"
        "print('HEAVY', {'torch', 'transformers'} & set(sys.modules)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("HEAVY set()\n")


def test_doctor_and_completion(path):
    done = kvchat("doctor")
    assert done.returncode == 0 and b"torch" in done.stdout and b"saved chats" in done.stdout
    path.write_text("[x]")
    assert kvchat("doctor", XDG_CONFIG_HOME=str(path.parent.parent)).returncode == 7
    for shell in ("bash", "zsh", "fish"):
        assert b"_KVCHAT_COMPLETE" in kvchat("completion", shell).stdout
    assert kvchat("completion", "tcsh").returncode == 2
    words = {"COMP_WORDS": "kvchat mod", "COMP_CWORD": "1", "_KVCHAT_COMPLETE": "complete_bash"}
    assert b"models" in kvchat(**words).stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "inf"), ("repeat_penalty", "nan")],
)
def test_numbers_that_are_none(path, name, value):
    with pytest.raises(KvchatError):
        config.settle({name: value}, config.Config(path), {})
