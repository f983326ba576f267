"""`--auto-loss`: whether an allowed loss chooses the budget, and what is said of it."""

import re

from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.engine.prefill.auto_budget import Kept
from kvchat.errors import KvchatError
from kvchat.settings.options import SAVED_CHAT, Options
from kvchat.terminal.screen import Screen

INLINE = re.compile(r"(^|[:,])\s*budget\s*=")


def allowed_loss(options: Options, method: Method) -> float | None:
    """The share of held-out tokens that may change, if that is what chooses the budget.

    A flag that says otherwise goes before the loss of the config, and so does the budget of a
    saved chat. Raises KvchatError("usage") if both are flags.
    """
    if options.auto_loss is None:
        return None
    by_flag = options.origin("auto_loss") == "flag"
    spec = [options.method, *options.method_options]
    others = {
        "--budget": options.budget is not None and options.origin("budget") == "flag",
        "a budget of --method": any(map(INLINE.search, spec)),
        f"--select {options.select}": options.select in ("question", "instruction"),
        f"--keep-full {options.keep_full}": options.keep_full not in ("", "off"),
        f"--method {name_of(method)}": method.retrieves or isinstance(method, Full),
    }
    for other, given in others.items():
        if given and by_flag:
            raise KvchatError(
                "usage",
                f"--auto-loss chooses how much is kept: that does not go with {other}",
                "--auto-loss 2% --method kvzip",
            )
        if given:
            return None
    kept = options.budget is not None and options.origin("budget") == SAVED_CHAT
    return None if kept and not by_flag else options.auto_loss


def tell(kept: Kept, screen: Screen) -> None:
    """Which budget stays within the allowed loss, or that none does."""
    budget, wanted = kept.method.budget, f"{100 * kept.allowed:.3g} % may"
    if kept.loss is None:
        screen.warn(f"the document has no sentences to measure --auto-loss with: budget {budget}")
        return
    held = f"{100 * kept.loss:.3g} % of held-out tokens change"
    if kept.holds:
        screen.say(f"budget {budget}: {held}, {wanted}")
    else:
        screen.warn(f"no budget keeps what --auto-loss allows: at {budget} {held}, {wanted}")
