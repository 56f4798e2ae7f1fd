"""The calls of one turn of the assistant, and the results that follow: the same rules for every API."""

from __future__ import annotations

from freehold.core.errors import RequestError
from freehold.server.wire import shown


class CalledTools:
    """Ids of the calls of one turn, in their order, and those of them that have a result.

    A result belongs to a call by its id. So no two calls of a turn have the same one, no call has two results, and
    there is no result without a call. A later turn may use an id again, as clients do that count calls from zero.
    """

    def __init__(self) -> None:
        self._calls: dict[str, bool] = {}  # id -> whether there is a result

    @property
    def waits(self) -> bool:
        """Whether a call has no result yet."""
        return not all(self._calls.values())

    def call(self, call_id: str, place: str) -> None:
        """Takes in a call. place: of its id in the request. Raises RequestError if another call has this id."""
        if call_id in self._calls:
            raise _refused(place, call_id, "another call of this turn has the same id")
        self._calls[call_id] = False

    def result(self, call_id: str, place: str) -> None:
        """Takes in a result. place: where the request names its call. Raises RequestError for a second result of one
        call, and where there is no such call."""
        if call_id not in self._calls:
            raise no_call(call_id, place)
        if self._calls[call_id]:
            raise _refused(place, call_id, "this call has a result already")
        self._calls[call_id] = True

    def position(self, call_id: str) -> int:
        """Which of the calls it is. Templates tell results apart by their order."""
        return list(self._calls).index(call_id)


def no_call(call_id: str, place: str) -> RequestError:
    """What is said of a result without a call."""
    return _refused(place, call_id, "the assistant's turn before has no call with this id")


def _refused(place: str, call_id: str, why: str) -> RequestError:
    return RequestError(f"{place} is {shown(call_id)}; {why}", field=place)
