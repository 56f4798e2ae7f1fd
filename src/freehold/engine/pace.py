"""How long steps take, learned while they run."""

from __future__ import annotations

import bisect
import math
from collections import deque
from statistics import fmean, median

_REMEMBERED = 5
"""Measurements that an estimate is the median of: one hiccup of the machine changes nothing."""
_REMEMBERED_ANSWERS = 32
_SHARE = 1.25
"""What prompts may add to a step that also writes answers, in steps that only write answers."""
_AMORTISED = 1.25
"""What they may add in any case, in steps with a single prompt token: deep in a long text the first few tokens cost
hardly more than the first."""
_MOST_SHARE = 1.5
"""If that is more than this, prompts are left out of most steps instead: one in a period takes them, and as many
tokens as fit into the share of all of its steps."""
_FIRST_TOKENS = 16
"""Prompt tokens beside answers while there is nothing to go by."""
_PERIOD = 40
"""Of so many steps with both, one leaves the prompts out, to measure decoding alone, and one takes more of them than
seems right, to see whether it still is."""


class Pace:
    """What decoding takes, and what prompt tokens add to it, by their number and their depth (the tokens before them).

    While answers are being written, a step takes as many prompt tokens as keep the time between an answer's tokens
    to about twice what it is undisturbed, however long the prompts are. Where one prompt token takes longer than that,
    nearly all steps are undisturbed, and prompts get the same share of the time in the others.
    """

    def __init__(self, prefill_chunk: int) -> None:
        self._chunk = prefill_chunk
        # 1, 2, 3, 4, 6, 8, 12, ...: the numbers of prompt tokens that are told apart.
        sizes = sorted({size << k for k in range(prefill_chunk.bit_length()) for size in (1, 3)})
        self._sizes = [size for size in sizes if size < prefill_chunk] + [prefill_chunk]
        self._decode: deque[float] = deque(maxlen=_REMEMBERED)
        # Octave of the depth -> index of the size -> seconds that it added.
        self._added: dict[int, dict[int, deque[float]]] = {}
        # Steps in a row with answers and prompts, and with answers alone.
        self._mixed = self._alone = 0
        self._answers: deque[int] = deque(maxlen=_REMEMBERED_ANSWERS)

    def prompt_tokens(self, depth: int) -> int:
        """How many prompt tokens to compute beside answers in the next step, where the deepest stands at `depth`. It
        may be 0, but not for more than a period."""
        if self._mixed >= _PERIOD:
            return 0
        costs = self._costs(depth)
        if not costs or not self._decode:
            return min(self._chunk, _FIRST_TOKENS)
        limit = max(_SHARE * self.decode_seconds, _AMORTISED * costs[0])
        if limit > _MOST_SHARE * self.decode_seconds:
            if self._alone < _PERIOD:
                return 0
            limit = _PERIOD * _SHARE * self.decode_seconds
        best = max((i for i, cost in enumerate(costs) if cost <= limit), default=0)
        if self._mixed == _PERIOD // 2:
            best = min(best + 1, len(costs) - 1)
        return self._sizes[best]

    @property
    def answer_tokens(self) -> float:
        """How long answers were lately; 0 before there was one."""
        return fmean(list(self._answers)) if self._answers else 0.0

    @property
    def decode_seconds(self) -> float:
        """A step that only decodes; 0 before there was one."""
        return median(self._decode) if self._decode else 0.0

    def prompt_seconds(self, depth: int) -> float:
        """One prompt token at `depth`, in a whole chunk; 0 before there was one."""
        costs = self._costs(depth)
        return costs[-1] / self._chunk if costs else 0.0

    def _costs(self, depth: int) -> list[float]:
        """What each of the sizes adds to a step, as far as it is known; empty before anything is.

        A size that was never tried is taken to cost in proportion to the next larger one that was, or else to the
        largest: trying it will tell.
        """
        octaves = list(self._added)
        if not octaves:
            return []
        octave = _octave(depth)
        known = self._added[min(octaves, key=lambda seen: (abs(seen - octave), seen))]
        costs = [median(known[i]) if i in known else math.inf for i in range(len(self._sizes))]
        least = math.inf  # of the larger sizes that are known
        for i in reversed(range(len(costs))):
            if i in known:
                least = costs[i] = min(costs[i], least)
            elif least < math.inf:
                costs[i] = costs[i + 1] * self._sizes[i] / self._sizes[i + 1]
        for i in range(max(known) + 1, len(costs)):
            costs[i] = costs[i - 1] * self._sizes[i] / self._sizes[i - 1]
        return costs

    def ended(self, answer_tokens: int) -> None:
        """An answer came to its end, whatever end."""
        self._answers.append(answer_tokens)

    def observe(self, seconds: float, *, tokens: int, depth: int, decoding: bool) -> None:
        """Learns from a step: `tokens` prompt tokens, the deepest at `depth`, and whether answers were written."""
        if tokens == 0:
            self._decode.append(seconds)
            self._mixed, self._alone = 0, self._alone + 1
            return
        if decoding:
            self._mixed, self._alone = self._mixed + 1, 0
            if seconds < self.decode_seconds:  # there are fewer or shorter answers than when it was measured
                self._decode.append(seconds)
            # Next to noise, a few tokens may seem to be free; many are not.
            seconds = max(seconds - self.decode_seconds, seconds / 4)
        size = bisect.bisect_right(self._sizes, tokens) - 1
        known = self._added.setdefault(_octave(depth), {}).setdefault(size, deque(maxlen=_REMEMBERED))
        known.append(seconds * self._sizes[size] / tokens)


def _octave(depth: int) -> int:
    return (depth // 1024).bit_length()
