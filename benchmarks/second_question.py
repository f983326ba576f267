"""Right answers to several questions in sequence, with entries chosen by the document's end or anew
by every question from a full copy: `python benchmarks/second_question.py`.

The document is of the demo model's world; turns stay in the conversation, answers are greedy.
"""

import argparse
import json
from statistics import mean

import torch

from kvchat.engine.events import TurnDone, drain
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.read import load_config
from kvchat.engine.prefill.archive_writer import InMemory
from kvchat.engine.session import Session
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.eval.case import Draw
from kvchat.eval.tasks import TASKS
from kvchat.hub.find import demo_model

LONGEST = 48  # tokens of an answer


def main() -> None:
    """A line per cell: method, budget, what chooses, right answers, seconds of choosing."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=2000)
    options.add_argument("--documents", type=int, default=8)
    options.add_argument("--questions", type=int, default=5)
    options.add_argument("--methods", nargs="+", default=["adakv", "snapkv", "kvzip"])
    options.add_argument("--budgets", nargs="+", default=["10%", "5%"])
    options.add_argument("--seed", type=int, default=2 * 10**12)
    chosen = options.parse_args()
    folder = demo_model().path
    engine = drain(load_engine(folder, load_config(folder), device="cpu"))
    dialogue = Dialogue(Tokenizer.load(folder))
    cases = [
        TASKS["world"](Draw(chosen.seed + number, chosen.tokens, chosen.questions))
        for number in range(chosen.documents)
    ]
    cells = [("full", False)]
    for method in chosen.methods:
        for budget in chosen.budgets:
            spec = f"{method}:budget={budget}"
            cells += [(spec, False), (spec, True)]
    for spec, by_question in cells:
        right, seconds = [], []
        for case in cases:
            session = Session(engine, dialogue, by_question=by_question)
            archiving = InMemory() if by_question else None
            ids = dialogue.document(case.document)
            drain(session.prefill(ids, parse_method(spec), archiving=archiving))
            for question in case.questions:
                done = list(session.ask(question.text, max_tokens=LONGEST))[-1]
                assert isinstance(done, TurnDone)
                right.append(question.is_right(done.answer))
                seconds.append(session.question_seconds or 0.0)
        found = {
            "cell": spec,
            "select": "question" if by_question else "document",
            "right": sum(right),
            "of": len(right),
            "select_ms": round(1000 * mean(seconds), 1),
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
