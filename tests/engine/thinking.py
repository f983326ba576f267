"""The shapes of templates of models that think, and of those that write a date."""

TURNS = """
{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
{%- endfor %}"""
STRIPPED = """
{%- for m in messages %}{%- set text = m['content'] %}
{%- if m['role'] == 'assistant' and '</think>' in text %}
{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{%- endfor %}"""
ASKED = """
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
# QwQ, Qwen3-Thinking-2507: the generation prompt opens a thought.
OPENS = (
    STRIPPED
    + """
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"""
)
# DeepSeek-R1-Distill: so does this one, and the white space after a thought stays.
DEEPSEEK = OPENS.replace(".lstrip('\n')", "").replace("assistant\n<think>", "assistant<think>")
DEEPSEEK = DEEPSEEK.replace("m['role'] + '\n'", "m['role']")
# Qwen3 hybrid: the model itself opens one, unless it is told not to.
HYBRID = (
    STRIPPED
    + ASKED
    + """
{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}{%- endif %}"""
)
# SmolLM3: the switch is told in the system message too, which has the date, and history keeps
# thoughts (and an empty one before answers without).
NAMED = """
{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}
{%- set empty = '' if enable_thinking else '<think>\n\n</think>\n' %}
{%- set form = "%d %B %Y" %}{%- set today = strftime_now(form) %}
{%- set mode = '/think' if enable_thinking else '/no_think' %}
{{- '<|im_start|>system\nToday: ' ~ today ~ '\nMode: ' ~ mode ~ '\n\n' }}
{%- if messages[0].role == "system" %}{{- messages[0].content }}{%- set messages = messages[1:] %}
{%- endif %}{{- '<|im_end|>\n' }}
{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' }}
{%- if m['role'] == 'assistant' %}{{- empty }}{%- endif %}
{{- m['content'] + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' + empty }}{%- endif %}"""
# Magistral: other marks, special tokens; nothing is dropped.
MAGISTRAL = (
    """{%- set _ = 'First [THINK]your thoughts[/THINK], then the answer.' %}""" + TURNS + ASKED
)
# Granite 3.2: thoughts are asked for in a system message, but not beside one that is given.
GRANITE = (
    """{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\nToday: ' + strftime_now('%B %d, %Y') }}
{%- if thinking %}{{- "\nWrite 'Here is my thought process:' and 'Here is my response:'." }}
{%- endif %}
{{- '<|im_end|>\n' }}{%- endif %}"""
    + TURNS
    + ASKED
)
# Llama 3.1: a date of its own where nobody gives one and there is no clock.
DATE_STRING = (
    """{%- if not date_string is defined %}{%- if strftime_now is defined %}
{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}
{%- endif %}{%- endif %}{{- '<|im_start|>system\nToday Date: ' + date_string + '\n\n' }}
{%- if messages[0].role == "system" %}{{- messages[0].content }}{%- set messages = messages[1:] %}
{%- endif %}{{- '<|im_end|>\n' }}"""
    + TURNS
    + ASKED
)
TEMPLATES = {
    "opens": OPENS,
    "deepseek": DEEPSEEK,
    "hybrid": HYBRID,
    "named": NAMED,
    "magistral": MAGISTRAL,
    "granite": GRANITE,
    "date-string": DATE_STRING,
}
