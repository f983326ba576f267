"""Chat templates as programs: within limits, out of reach of Python, as transformers has them."""

import time
from datetime import date, datetime

import pytest
from transformers import AutoTokenizer

from kvchat.engine.text import rendering
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.rendering import render
from kvchat.engine.text.tokenizer import Tokenizer
from tests.engine.texts import CHATML
from tests.support.intime import in_time

DAY = date(2026, 11, 30)
QUESTION = [{"role": "user", "content": "Why?"}]
LOOPS = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLED = (
    "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}{{ ns.x }}"
)


def one(template: str, **variables: str) -> tuple[str | None, str]:
    """What comes of a question, and the reason if nothing does."""
    found = render(template, variables, [(QUESTION, {})], [DAY])[0]
    return found.texts[0], found.reasons[0]


@pytest.fixture
def tokenizer(tokenizer_folder):
    return Tokenizer.load(tokenizer_folder("byte-level", "chatml"))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (LOOPS, f"{rendering.SECONDS} s"),
        ("{{ 9 ** (9 ** 9) }}", f"{rendering.SECONDS} s"),
        ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", ""),
        ("{{ 'a' * 3000000000 }}", "256 MiB"),
        (DOUBLED, "256 MiB"),
        ("{{ 'x'.center(10 ** 9) }}", "256 MiB"),
        ("{{ 'a' * 2000000 }}", f"{rendering.LONGEST:,}"),
        ("{{ '%9999999d' % 1 }}", f"{rendering.LONGEST:,}"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", ""),
        ("{% for m in messages %}", "endfor"),
        ("{{ raise_exception('no roles\nhere') }}", "no roles"),
        ("{{ nothing.at.all }}", "undefined"),
    ],
)
def test_a_template_without_limits_is_ended_and_the_reason_said(tokenizer, template, why):
    tokenizer.hf.chat_template = template
    with in_time(30):
        dialogue = Dialogue(tokenizer)
    assert not dialogue.form.is_template
    assert dialogue.why_plain and why in dialogue.why_plain and "\n" not in dialogue.why_plain


def test_time_on_a_machine_without_time_for_it_is_not_counted(monkeypatch):
    """What counts is processor time: importing and waiting do not."""
    began = time.perf_counter()
    assert one("{{ messages[0].content }}") == ("Why?", "")
    assert time.perf_counter() - began < rendering.PATIENCE
    monkeypatch.setattr(rendering, "PATIENCE", 0.001)
    assert one("{{ messages[0].role }}")[0] is None


def test_a_template_is_rendered_once_for_all_conversations_and_days(tokenizer, monkeypatch):
    ran = []
    run = rendering._run
    monkeypatch.setattr(rendering, "_known", {})
    monkeypatch.setattr(rendering, "_run", lambda *given: ran.append(given) or run(*given))
    tokenizer.hf.chat_template = CHATML + "{# once #}"
    another = date(1998, 11, 30)  # than the one on which this runs
    for day in (date.today(), another, date(2000, 1, 1)):
        for has_document in (True, False):
            for thinks in (None, True, False):
                assert Dialogue(tokenizer, has_document, day, thinks).form.is_template
    assert len(ran) == 1
    tokenizer.hf.chat_template = "{{ strftime_now('%d') }}" + CHATML
    dialogue = Dialogue(tokenizer)
    assert dialogue.form.is_template and len(ran) == 2, "both days at once"
    assert dialogue.on(another).form.lead.startswith("30") and len(ran) == 3


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ dict.__globals__ }}",
        "{{ namespace.__globals__ }}",
        "{{ strftime_now.__self__ }}",
        "{{ (messages|map(attribute='__class__')|list)[0].__name__ }}",
        "{% set ns = namespace(__class__='x') %}{{ 1 }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}{{ 1 }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/hostname' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ self.__init__.__globals__ }}",
    ],
)
def test_nothing_of_python_is_reached(escape):
    text, why = one(escape)
    assert text in (None, "") and (text == "" or why)


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m }}"
        "{% endfor %}x\n  {% if tools %}{{ tools }}{% endif %}\ny",
        "{{ messages | tojson }} {{ messages | tojson(indent=2) }} "
        "{{ {'b': 'é<', 'a': 1} | tojson }}",
        "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
        "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% endfor %}"
        "{{ ns.a }}{{ dict(a=1) }}{{ tools is defined }}{{ tools is none }}{{ documents }}",
        "{{ messages[::-1][0]['content'].split('h')[-1].lstrip('W') }}{{ 'a' in messages[0] }}"
        "{{ messages[0].get('x', 'none') }}{{ 'x' | upper }}"
        "{{ [1, 2] | join(',') }}{{ 1 is string }}",
    ],
)
def test_templates_are_rendered_as_transformers_does(tokenizer_folder, template):
    folder = tokenizer_folder("byte-level", "chatml")
    hf = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    wanted = hf.apply_chat_template(
        QUESTION, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    variables = {name: str(token) for name, token in hf.special_tokens_map.items()}
    assert one(template, **variables) == (wanted, "")


def test_the_day_is_in_any_format():
    for directives in ("%d %b %Y", "%B %-d, %Y", "%Y-%m-%d %H:%M", "%A %j %%"):
        text, _ = one(f"{{{{ strftime_now('{directives}') }}}}")
        assert text == datetime(2026, 11, 30).strftime(directives)


def test_a_template_of_several_and_of_none(tokenizer):
    tokenizer.hf.chat_template = {"rag": CHATML}
    assert Dialogue(tokenizer).why_plain
    tokenizer.hf.chat_template = {"rag": "x", "default": CHATML}
    assert Dialogue(tokenizer).form.is_template
    tokenizer.hf.chat_template = None
    assert not Dialogue(tokenizer).form.is_template


def test_a_full_memory_forgets_nothing_that_is_asked_for(monkeypatch):
    """One day of two is known, and there is no room for the other."""
    monkeypatch.setattr(rendering, "KEPT", 1)
    rendering._known.clear()
    later, template = date(2026, 12, 1), "{{ strftime_now('%d') }}"
    for days, texts in [
        ([DAY], ["30"]),
        ([DAY, later, DAY], ["30", "01", "30"]),
        ([later], ["01"]),
    ]:
        found = render(template, {}, [(QUESTION, {})], days)
        assert [each.texts[0] for each in found] == texts
