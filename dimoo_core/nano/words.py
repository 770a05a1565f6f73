"""DiMOO-nano's own tokenizer and ids: a word is a token, and so is each task's system prompt."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from ..sequence.prompt import DESCRIBE, EDITS, GENERATE
from ..sequence.token_table import TokenTable
from .captions import PLURALS
from .scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES

QUESTIONS = (
    "describe the picture",
    "describe this image",
    "describe the image",
    "what is in the picture",
    "what is this",
)
_UNKNOWN = "<unk>"
_OTHER_WORDS = """
    a an the empty background on in at left right top bottom middle of and with add remove replace make
    generate canny hed depth edge map pose estimation according to image
    does do show yes no is it there this that which what where how big shape colour size place many
    or are shapes none one two three above below
"""
# named special tokens: (name in the id table, text)
_SPECIAL = {
    "mask": "<|mdm_mask|>",
    "newline": "<|newline|>",
    "image_begin": "<|image|>",
    "image_end": "<|/image|>",
    "uncondition": "<uncondition>",
    "answer_begin": "<|answer|>",
    "answer_end": "<|/answer|>",
    "end_of_text": "<|endoftext|>",
    "pad": "<|pad|>",
}
_TAGS = ("<system>", "</system>", "<user>", "</user>")


def words() -> list[str]:
    """The words of nano's world, sorted; the unknown word first."""
    known = {*SHAPES, *PLURALS.values(), *COLOURS, *BACKGROUNDS, *SIZES, *_OTHER_WORDS.split()}
    known |= {word for question in QUESTIONS for word in question.split()}
    return [_UNKNOWN, *sorted(known)]


def build_tokenizer() -> Tokenizer:
    """The tokenizer: lower case, punctuation dropped, unknown words to one token.

    Each system prompt is one token: nano never reads another text there, and short sequences train faster.
    """
    vocabulary = {word: index for index, word in enumerate(words())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[.,;:!?]"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in (*_TAGS, *_SPECIAL.values())])
    systems = {task.system for task in (GENERATE, DESCRIBE, *EDITS.values())}
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in sorted(systems)])
    return tokenizer


def build_table(tokenizer: Tokenizer, codes: int) -> TokenTable:
    """The id table: the codes follow the tokenizer's own tokens."""
    every = tokenizer.get_vocab()
    ids = {name: every[text] for name, text in _SPECIAL.items()}
    return TokenTable(**ids, code_offset=tokenizer.get_vocab_size(), codebook_size=codes)
