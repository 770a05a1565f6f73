"""What strangers may hand a user: a checkpoint that says, and files whose names and captions are, HTML and links."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from tokenizers import Regex, Tokenizer, decoders

from .comfyhost.client import Workflow
from .tiny import tokenizer_json, write_checkpoint

TAG = '<img src=x onerror="window.hacked=1">'
SAYS = (
    f"{TAG}<b>bold</b> 1 < 2 & 2<3 & AT&T &lt;i> &copy [[x|https://one.test/]] ![y](https://one.test/y.png) "
    "__LNK7__ <!-- no\nhttps://two.test/?a=1&b=2"
)
FOLDER = f"{TAG}<b>set"  # a folder's name may hold anything but a slash
FILE = "<i>one<b> 1 < 2 &lt;.png"


def tokenizer() -> str:
    """The text of a tokenizer.json with which every answer reads SAYS."""
    made = Tokenizer.from_str(tokenizer_json())
    made.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(Regex(r"(?m)\A.+\z"), SAYS)])
    return made.to_str()


@contextmanager
def gifts(base: Path) -> Iterator[None]:
    """All of it in the base folder of a ComfyUI, for the time of the block: a checkpoint and a folder, both named
    FOLDER, and in the folder a picture named FILE with SAYS as its caption."""
    checkpoint, folder = base / "models" / "dimoo" / FOLDER, base / "input" / FOLDER
    write_checkpoint(checkpoint, tokenizer=tokenizer())
    folder.mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / FILE)
    (folder / FILE).with_suffix(".txt").write_text(SAYS, encoding="utf-8")
    try:
        yield
    finally:
        for made in (checkpoint, folder):
            for path in sorted(made.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            made.rmdir()


def prompt(folder: str = FOLDER) -> Workflow:
    """Every node that shows text, each at work on what the stranger gave; `folder` is what it is called."""
    model = {"model": ["loader", 0], "vq": ["loader", 1]}
    short = {"max_tokens": 8, "steps": 1, "block_length": 8}
    return {
        "loader": {"class_type": "DimooLoader", "inputs": {"checkpoint": folder, "weight_dtype": "auto"}},
        "picture": {
            "class_type": "EmptyImage",
            "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 0},
        },
        "describe": {
            "class_type": "DimooDescribe",
            "inputs": {**model, "image": ["picture", 0], "question": "What?", "temperature": 0.0, "cfg": 0.0, "seed": 0}
            | short,
        },
        "words": {"class_type": "DimooTextEncode", "inputs": {"text": "a word", "negative": ""}},
        "best": {
            "class_type": "DimooBestOf",
            "inputs": {**model, "image": ["picture", 0], "prompt": ["words", 0], "judge_by": "description"},
        },
        "folder": {
            "class_type": "DimooCaptionFolder",
            "inputs": {**model, "folder": folder, "question": "What?", "again": False} | short,
        },
        "save": {"class_type": "DimooSaveText", "inputs": {"text": ["describe", 0], "filename_prefix": "said"}},
    }
