"""What `--think` and `/think` come to with a model's template."""

from kvchat.engine.text.chat_template import Dialogue

READ = "what the documents stand behind says otherwise until they are processed again"


def how(dialogue: Dialogue, think: str) -> str:
    """What is done about thoughts from the next answer on: a line for the person."""
    thoughts, off = dialogue.form.thoughts, think == "off"
    if thoughts is None:
        return f"the chat template knows no thoughts: think {think} changes nothing"
    if off:
        way = "the chat template's switch" if thoughts.switch else "writing an empty one at once"
        line = f"thoughts are off, by {way}"
    else:
        line = "thoughts are hidden" if think == "hide" else "thoughts are shown while they come"
    return f"{line}; {READ}" if (not off) in thoughts.renews else line
