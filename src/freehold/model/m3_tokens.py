"""The special tokens of MiniMax-M3 that its chat format uses: their text, and their ids in the release.

The text decides; small checkpoints number their tokens differently, so look ids up in the tokenizer.
"""

from __future__ import annotations

from freehold.model.tokenizer import Tokenizer

BEGIN_OF_DIALOGUE = "]~!b["
ROLE_OPENER = "]~b]"
END_OF_TURN = "[e~["
IMAGE = "]<]image[>["
VIDEO = "]<]video[>["
START_OF_IMAGE = "]<]start of image[>["
END_OF_IMAGE = "]<]end of image[>["
TOOL_NAMESPACE = "]<]minimax[>["
THINK_OPEN = "<mm:think>"
THINK_CLOSE = "</mm:think>"

RELEASE_IDS: dict[str, int] = {
    ROLE_OPENER: 200019,
    END_OF_TURN: 200020,
    IMAGE: 200025,
    VIDEO: 200026,
    START_OF_IMAGE: 200029,
    END_OF_IMAGE: 200030,
    BEGIN_OF_DIALOGUE: 200034,
    TOOL_NAMESPACE: 200058,
    THINK_OPEN: 200059,
    THINK_CLOSE: 200060,
}


def special_id(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of a special token by its text; None if the vocabulary has no such token."""
    ids = tokenizer.encode(text, allow_special=True, add_bos=False)
    return ids[0] if len(ids) == 1 and ids[0] in tokenizer.special_ids else None
