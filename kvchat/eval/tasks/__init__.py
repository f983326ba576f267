"""Documents with questions, made from seeds. A task is a function of a `Draw`.

`world` speaks the demo model's language; the others are plain English for any chat model.
"""

from kvchat.eval.case import Task
from kvchat.eval.tasks.lists import common_words, frequent_words, key_value
from kvchat.eval.tasks.needles import (
    multi_key,
    multi_query,
    multi_value,
    needle,
    passkey,
    variables,
)
from kvchat.eval.tasks.people import about_the_world

TASKS: dict[str, Task] = {
    "world": about_the_world,
    "needle": needle,
    "multi-key": multi_key,
    "multi-value": multi_value,
    "multi-query": multi_query,
    "key-value": key_value,
    "variable-tracking": variables,
    "passkey": passkey,
    "common-words": common_words,
    "frequent-words": frequent_words,
}
