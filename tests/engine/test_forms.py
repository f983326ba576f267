"""Answers in a given form: JSON by a schema, or what a grammar makes."""

import json

import pytest
import torch

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import TurnDone, drain
from kvchat.engine.loading import load_engine
from kvchat.engine.model.read import load_config
from kvchat.engine.session import Session
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.grammar import Forms, closed
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError
from tests.support.errors import refused
from tests.support.program import DEMO

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine():
    return drain(load_engine(DEMO, load_config(DEMO), "f32", "cpu"))


@pytest.fixture(scope="module")
def session(engine):
    dialogue = Dialogue(Tokenizer.load(DEMO), has_document=False)
    return Session(engine, dialogue)


@pytest.fixture(scope="module")
def forms(engine, session):
    return Forms(session.dialogue.tokenizer, engine.config.vocab_size, session.ends)


def asked(session, form, **sampling):
    session.clear()
    events = session.ask("Who is it?", Sampling(**sampling), 200, constraint=form)
    return next(event for event in events if isinstance(event, TurnDone))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.0, 1.0, 30.0])
def test_json_by_a_schema(session, forms, temperature, seed):
    """However the model draws: at 30 every token is as likely."""
    done = asked(session, forms.of_schema(SCHEMA), temperature=temperature, seed=seed)
    found = json.loads(done.answer)
    assert done.finish_reason == "stop" and list(found) == ["name", "age", "tags"]
    assert len(found["name"]) <= 12 and 0 <= found["age"] <= 999
    assert set(found["tags"]) <= {"red", "blue"} and len(found["tags"]) <= 3


def test_any_object(session, forms):
    done = asked(session, forms.of_schema({"type": "object", "maxProperties": 2}), temperature=0.0)
    if done.finish_reason == "stop":
        assert isinstance(json.loads(done.answer), dict)
    assert done.answer.startswith("{")


def test_a_grammar(session, forms):
    words = {asked(session, forms.of_grammar('start: "yes" | "no" | /[0-9]{3}/'),
                   temperature=50.0, seed=seed).answer for seed in range(6)}  # fmt: skip
    assert len(words) > 1
    assert all(word in ("yes", "no") or (word.isdigit() and len(word) == 3) for word in words)


@pytest.mark.parametrize(
    "schema",
    [{"type": "nope"}, {"$ref": "https://a.example/x"}, {"type": "object", "required": 3}],
)
def test_schemas_that_cannot_be_used(forms, schema):
    with refused("usage"):
        forms.of_schema(schema)


def test_grammars_that_cannot_be_used(forms):
    for grammar in ("", "nonsense", "start: other", "start: " + "(" * 500):
        with refused("usage"):
            forms.of_grammar(grammar)
    with refused("usage"):
        forms.of_grammar('start: "' + "x" * 2**19 + '"')


def test_what_may_not_come_is_never_drawn(forms):
    form = forms.of_grammar('start: "ab"')
    logits = torch.zeros(forms._vocabulary)
    allowed = form.masked(logits).isfinite().nonzero().flatten().tolist()
    names = {forms._tokenizer.decode_str([token]) for token in allowed}
    assert names and names <= {"a", "ab"} and bool(logits.eq(0).all())
    other = next(token for token in range(forms._vocabulary) if token not in allowed)
    with pytest.raises(KvchatError):
        form.accept(other)


def test_objects_have_the_properties_that_are_named():
    """Unless the schema says that they may have others, or what it says beside would contradict."""
    named = {"type": "object", "properties": {"a": {"type": "string"}}}
    inner = {"type": "array", "items": named}
    got = closed({"properties": {"b": inner}, "$defs": {"c": named}, "anyOf": [named]})
    assert got["properties"]["b"]["items"]["additionalProperties"] is False
    assert got["$defs"]["c"]["additionalProperties"] is False
    assert got["anyOf"][0]["additionalProperties"] is False and "additionalProperties" not in got
    said = named | {"additionalProperties": {"type": "integer"}}
    assert closed(said) == said and closed({"type": "object"}) == {"type": "object"}
    both = {"allOf": [named, {"properties": {"b": {}}}]}
    assert closed(both) == both


def test_one_of_several_forms(session, forms):
    schema = {"oneOf": [{"enum": ["red"]}, {"enum": ["blue"]}]}
    assert json.loads(asked(session, forms.of_schema(schema), seed=3).answer) in ("red", "blue")
