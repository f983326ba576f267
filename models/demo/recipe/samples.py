"""Write the sample documents and their questions, from fixed held-out seeds.

python models/demo/recipe/samples.py [FOLDER]
"""

import argparse
import json
from pathlib import Path
from random import Random

from kvchat.eval import world

# name: seed above HELD_OUT, tokens at most, answerable and unanswerable questions
SAMPLES = {"valley": (1, 4800, 16, 4), "county": (2, 11000, 24, 6)}


def write(folder: Path, name: str) -> None:
    """One document as text, its questions and answers as JSON lines."""
    offset, tokens, answerable, unanswerable = SAMPLES[name]
    seed = world.HELD_OUT + offset
    doc = world.document(seed, tokens)
    rng = Random(seed)
    # Facts from evenly spaced places, so that every part of the document is asked about.
    step = len(doc.facts) / answerable
    places = [int((i + rng.random()) * step) for i in range(answerable)]
    turns = [world.question(*doc.facts[place], rng) for place in places]
    turns += [world.ask(doc, rng, unknown=1.0) for _ in range(unanswerable)]
    rng.shuffle(turns)
    lines = [{"question": world.text(q), "answer": world.text(a)} for q, a, _ in turns]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(world.text(doc.ids))
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    """Write all samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    root = Path(__file__).resolve().parents[3]
    parser.add_argument("folder", type=Path, nargs="?", default=root / "samples")
    for name in SAMPLES:
        write(parser.parse_args().folder, name)


if __name__ == "__main__":
    main()
