"""What a tokenizer is made of, whichever kind of file it came from."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from freehold.core.errors import TokenizerError
from freehold.model.tokenizer_pre import PreTokenizer


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """The library's object and the facts that it does not hold.

    where: the file or directory, for messages.
    eos_ids: in the order of the sources, the tokenizer's own first.
    """

    where: str
    backend: Backend
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    chat_template: str | None


def build_byte_level(
    where: str,
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    pre: PreTokenizer,
    added: dict[int, AddedToken],
) -> Backend:
    """A byte-level BPE tokenizer; `added` tokens are set on the ids they are given.

    Raises TokenizerError if a merge names a token that does not exist, or an added token cannot have its id.
    """
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.ignore_merges)
    except Exception as error:  # the library raises bare Exception for everything
        raise TokenizerError(f"{where}: its merges do not fit its vocabulary: {error}") from error
    backend = Backend(model)
    normalizer = pre.build_normalizer()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre.build()
    backend.decoder = decoders.ByteLevel()
    # The library numbers tokens it does not know yet from the end of the vocabulary, in this order.
    for _, token in sorted(added.items()):
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    for token_id, token in added.items():
        given = backend.token_to_id(token.content)
        if given != token_id:
            raise TokenizerError(
                f"{where}: the added token {token.content!r} should have the id {token_id}, but the "
                f"vocabulary leaves it {given}; the files contradict each other"
            )
    return backend
