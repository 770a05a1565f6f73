"""The search for nodes in the real page: what artists type finds our nodes.

The page that comes with ComfyUI 0.3.75 looks at names and ids alone, and in a name not beyond its 30th character.
"""

from __future__ import annotations

from typing import Any

WORDS = {
    "lumina": "DiMOO Sampler (Lumina)",
    "inpaint": "DiMOO Mask Paint (inpaint, outpaint)",
    "outpaint": "DiMOO Mask Paint (inpaint, outpaint)",
    "text to image": "DiMOO Text Encode (text to image)",
    "image to text": "DiMOO Describe (image to text)",
    "style transfer": "DiMOO Image Edit (style transfer)",
    "describe": "DiMOO Describe (image to text)",
    "caption": "DiMOO Caption Folder",
    "edit": "DiMOO Image Edit (style transfer)",
    "image edit": "DiMOO Image Edit (style transfer)",
    "lora": "DiMOO LoRA",
    "dimoo": "DiMOO Loader (Lumina)",
}
NOTHING = "qqqqqqqq"
# The names of the nodes that are offered: the first line of each entry that is on the screen.
OFFERED = """() => [...document.querySelectorAll('[role=option]')].filter(one => one.offsetParent)
    .map(one => one.innerText.trim().split('\\n')[0].trim())"""


OPEN = "app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"  # what a double click on the canvas does


def test_what_artists_type_finds_our_nodes(page: Any) -> None:
    page.evaluate(OPEN)
    search = page.locator("input[role=combobox]").first
    for word, name in WORDS.items():
        search.fill(NOTHING)
        page.wait_for_function(f"name => !({OFFERED})().includes(name)", arg=name)
        search.fill(word)
        page.wait_for_function(f"name => ({OFFERED})().includes(name)", arg=name)
