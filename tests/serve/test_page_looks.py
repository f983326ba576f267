"""How the page looks: colours that can be told apart, nothing cut off, nothing that moves."""

import re

import pytest

from kvchat.serve.app import PAGE
from tests.serve.pages import ANSWER, QUESTION, ask, browser, page_at, shown

__all__ = ["browser"]  # a fixture


def contrast(one, other):
    """WCAG's ratio of two colours `#rrggbb`."""
    shades = []
    for colour in (one, other):
        full = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(full[n : n + 2], 16) / 255 for n in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        shades.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(shades) + 0.05) / (min(shades) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(dark):
    rules = re.findall(r":root \{([^}]*)\}", PAGE.read_text("utf-8"))[dark]
    colours = dict(re.findall(r"--([a-z-]+): (#\w+)", rules))
    for front in ("front", "soft", "accent", "bad"):
        for back in ("back", "panel"):
            assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    assert contrast(colours["front"], colours["mark"]) >= 4.5


LOOKS = """() => {
    const shade = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const hex = (parts) => "#" + parts.slice(0, 3).map((p) => p.toString(16).padStart(2, "0")).join("");
    const found = [];
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
        if (!own || !node.checkVisibility() || node.closest(":disabled, script")) continue;
        let back = node;
        while (back && (shade(getComputedStyle(back).backgroundColor)[3] === 0)) back = back.parentElement;
        found.push([node.textContent.slice(0, 30), hex(shade(getComputedStyle(node).color)),
                    hex(shade(getComputedStyle(back || document.body).backgroundColor))]);
    }
    return found;
}"""  # noqa: E501


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_how_it_looks(browser, server, scheme, width):
    """Nothing is cut off on a phone, and all of it can be read, in both schemes."""
    given = {"viewport": {"width": width, "height": 740}, "color_scheme": scheme}
    with page_at(browser, server.url, reduced_motion="reduce", **given) as (page, problems):
        shown(page, "valley.txt").wait_for()
        turn = ask(page, QUESTION, ANSWER)
        turn.get_by_role("button").first.click()
        page.locator("mark").first.wait_for()
        page.evaluate(
            """show({ id: "file-1", filename: "a".repeat(200), status: "error",
                      status_details: "b".repeat(200), kvchat: {} });
               say("c".repeat(200), true)"""
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        looks = page.evaluate(LOOKS)
        assert len(looks) > 20
        assert not [each for each in looks if contrast(*each[1:]) < 4.5]
        assert page.evaluate(
            "getComputedStyle(document.getElementById('talk')).scrollBehavior"
        ) == ("auto")
        moving = (
            "[...document.querySelectorAll('*')].filter((each) => "
            "getComputedStyle(each).transitionDuration !== '0s' || each.getAnimations().length)"
        )
        assert page.evaluate(f"{moving}.length") == 0
        assert problems == []
