"""One side of a comparison in a process of its own: a JSON message on each line of stdin, an answer on stdout.

A message is {"call": name, ...arguments}; the answer is {"value": ...} or {"error": text}. The process sleeps in
`readline` between messages, so that the other side has the machine.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import IO, Any

from freehold.bench.machine import peak_memory, resident_memory

SIDES = {
    "freehold": ("freehold.bench.side_freehold", "FreeholdSide", ("load", "answer", "cache_elements")),
    "dense": ("freehold.bench.side_freehold", "FreeholdSide", ("load", "answer")),
    "slice": ("freehold.bench.side_slice", "SliceSide", ("load", "answer")),
    "transformers": ("freehold.bench.side_transformers", "TransformersSide", ("load", "answer")),
    "llama.cpp": ("freehold.bench.side_llama_cpp", "LlamaCppSide", ("load", "answer")),
}
"""Side -> module, class, and the methods that may be called."""


def serve(side: Any, calls: tuple[str, ...], messages: IO[str], answers: IO[str]) -> None:
    """Answers messages until their end. Errors are answers too; the process lives on."""
    for line in messages:
        try:
            message = json.loads(line)
            answer = {"value": _call(side, calls, message.pop("call"), message)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _call(side: Any, calls: tuple[str, ...], name: str, arguments: dict[str, Any]) -> Any:
    if name == "memory":
        return {"peak_nbytes": peak_memory(), "resident_nbytes": resident_memory()}
    if name not in calls:
        raise ValueError(f"no call {name!r}; there are {', '.join(('memory', *calls))}")
    return getattr(side, name)(**arguments)


def main(name: str) -> None:
    """Serves the side of that name over this process's stdin and stdout."""
    # Libraries may print: what they write to stdout goes to stderr, and only answers to the real stdout.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, class_name, calls = SIDES[name]
    serve(getattr(import_module(module), class_name)(), calls, sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1])
