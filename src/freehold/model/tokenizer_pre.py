"""Pre-tokenizers by the name that GGUF files give them: how a text is cut before byte pairs are merged.

A wrong cut gives wrong tokens without any error, so a name that is not in the table is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from freehold.core.errors import TokenizerError

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

# Words with their leading space, digits with their leading space, other signs, white space.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# A word takes one preceding sign of any kind; line ends stick to the signs before them.
_CL100K_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _CL100K_TAIL
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _CL100K_TAIL

# As above, and words are also cut where lower case turns to upper; slashes stick to signs like line ends do.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How one family of byte-level vocabularies cuts a text.

    pattern: the regular expression whose matches are the pieces.
    single_digits: each digit is a piece of its own, before `pattern` is applied.
    nfc: the text is first brought to Unicode normal form C.
    ignore_merges: a piece that is itself in the vocabulary becomes that token, whatever the merges say.
    add_bos: whether the family starts a text with its BOS, where a file does not say.
    """

    pattern: str
    single_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The `tokenizers` object that cuts a text and spells its bytes as letters."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(steps)

    def build_normalizer(self) -> normalizers.Normalizer | None:
        """The `tokenizers` normalizer, or None where the text is taken as it is."""
        return normalizers.NFC() if self.nfc else None


_GPT2_FAMILY = PreTokenizer(_GPT2)
_DIGITS_FAMILY = PreTokenizer(_GPT2, single_digits=True)
_LLAMA3_FAMILY = PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True)
_QWEN2_FAMILY = PreTokenizer(_QWEN2, nfc=True)
_O200K_FAMILY = PreTokenizer(_O200K)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "codeshell": _DIGITS_FAMILY,
    "command-r": _DIGITS_FAMILY,
    "deepseek-r1-qwen": _QWEN2_FAMILY,
    "exaone": _DIGITS_FAMILY,
    "gpt-2": _GPT2_FAMILY,
    "gpt-4o": _O200K_FAMILY,
    "llama-bpe": _LLAMA3_FAMILY,
    "llama-v3": _LLAMA3_FAMILY,
    "llama3": _LLAMA3_FAMILY,
    "llama4": _O200K_FAMILY,
    "minimax-m2": _O200K_FAMILY,
    "mpt": _GPT2_FAMILY,
    "olmo": _GPT2_FAMILY,
    "phi-2": _GPT2_FAMILY,
    "qwen2": _QWEN2_FAMILY,
    "refact": _DIGITS_FAMILY,
    "smaug-bpe": PreTokenizer(_LLAMA3),
    "smollm": _DIGITS_FAMILY,
    "starcoder": _DIGITS_FAMILY,
}


def pre_tokenizer(name: str | None) -> PreTokenizer:
    """The pre-tokenizer called `name`.

    Raises TokenizerError for None and for a name not in `PRE_TOKENIZERS`. "default" is one of those: it means
    that whoever wrote the file did not know how its texts were cut.
    """
    known = ", ".join(sorted(PRE_TOKENIZERS))
    if name is None:
        raise TokenizerError(
            "the vocabulary does not say which pre-tokenizer it was trained with (tokenizer.ggml.pre); "
            f"convert the model again with a current converter. Known pre-tokenizers: {known}"
        )
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        raise TokenizerError(
            f"the vocabulary needs the pre-tokenizer {name!r}, which is not known here, and any other would "
            f"give wrong tokens; use the model's directory with its tokenizer.json. "
            f"Known pre-tokenizers: {known}"
        ) from None
