"""How likely the model took a token to be."""

from __future__ import annotations

from dataclasses import dataclass

MOST_ALTERNATIVES = 20
"""So many of the likeliest tokens may be asked for beside the one that was chosen."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities at one position.

    They are of the model's own distribution: the log-softmax, in float64, of the logits as the model gave them,
    before penalties, biases, temperature, cuts and grammars. So a token that a grammar forced may be very unlikely.

    logprob: of the token that stands there.
    top: (token id, logprob) of the likeliest, as many as were asked for; best first, ties to the lower id. The token
        that stands there is among them only if it is one of them.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
