"""Who has had how much."""

from __future__ import annotations

import pytest

from freehold.engine.served import Served


def test_a_client_that_comes_starts_level_with_the_least_served():
    served = Served()
    served.enter(("early",))
    served.charge(("early",), 100)
    served.enter(("rich",))
    served.charge(("rich",), 900)
    served.enter(("late",))
    assert served[("late",)] == served[("early",)] == (100,)


def test_leaving_for_a_moment_clears_no_debt():
    served = Served()
    for client in ("poor", "rich"):
        served.enter((client,))
    served.charge(("rich",), 900)
    served.leave(("rich",))
    served.enter(("rich",))
    assert served[("rich",)] == (900,)


def test_being_away_earns_no_claim():
    served = Served()
    for client in ("here", "away"):
        served.enter((client,))
    served.charge(("away",), 10)
    served.leave(("away",))
    served.charge(("here",), 500)
    served.enter(("away",))
    assert served[("away",)] == (500,)


def test_a_client_with_several_requests_leaves_with_the_last():
    served = Served()
    for client in ("a", "b", "b"):
        served.enter((client,))
    served.charge(("b",), 7)
    served.leave(("b",))
    assert served[("b",)] == (7,)
    served.leave(("b",))
    served.charge(("a",), 7)
    served.leave(("a",))
    with pytest.raises(KeyError):  # nobody is here, so nothing needs to be remembered
        served[("b",)]


def test_names_that_say_nothing_any_more_are_forgotten():
    served = Served()
    served.enter(("stays",))
    for number in range(1000):
        served.enter((f"passer-by {number}",))
        served.charge((f"passer-by {number}",), 1)
        served.leave((f"passer-by {number}",))
        served.charge(("stays",), 2)
    assert len(served._tokens) <= 2


def test_a_key_gets_no_more_by_naming_many_users():
    served = Served()
    served.enter(("one", "0"))
    for user in range(3):
        served.enter(("many", str(user)))
        served.charge(("many", str(user)), 100)
    served.charge(("one", "0"), 200)
    served.enter(("many", "new"))
    assert min([("many", "new"), ("one", "0")], key=served.__getitem__) == ("one", "0")
    assert served[("many", "new")] == (300, 100)


def test_users_of_one_key_share_what_it_gets():
    served = Served()
    for user in ("a", "b", ""):
        served.enter(("key", user))
    served.charge(("key", "a"), 5)
    served.charge(("key", ""), 3)
    assert sorted([("key", ""), ("key", "a"), ("key", "b")], key=served.__getitem__) == [
        ("key", "b"),
        ("key", ""),
        ("key", "a"),
    ]


def test_what_belongs_to_who_left_is_forgotten_with_him():
    served = Served()
    served.enter(("stays", ""))
    for user in range(100):
        served.enter(("passer-by", str(user)))
        served.charge(("passer-by", str(user)), 5)
    for user in range(100):
        served.leave(("passer-by", str(user)))
    assert set(served._tokens) == {("stays",), ("stays", ""), ("passer-by",)}


def test_who_is_away_is_not_remembered_without_end():
    served = Served()
    served.enter(("key", "waits"))
    for user in range(3000):
        served.enter(("key", str(user)))
        served.charge(("key", str(user)), 1 + user)
        served.leave(("key", str(user)))
    assert len(served._tokens) < 1100
    served.enter(("key", "2999"))
    assert served[("key", "2999")][1] == 3000  # of those away, who had most are remembered
