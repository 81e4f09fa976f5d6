"""What a group is made of, and what no broker takes for one."""

import pytest

from cqrs_sync.broker import Group


def test_a_group_takes_any_iterable_of_topics():
    """A topic that is named twice counts once."""
    assert Group("billing", ("orders", "refunds")) == Group("billing", iter(["orders", "refunds", "orders"]))
    assert Group("billing", ["orders"], (1.0, 2.0)) == Group("billing", ["orders"], delays=iter([1.0, 2.0]))


def test_a_bare_string_is_no_list_of_topics():
    with pytest.raises(TypeError, match=r"the topics of a group are a list: write \['orders'\]"):
        Group("billing", "orders")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": ""}, "needs a name"),
        ({"name": " "}, "needs a name"),
        ({"name": None}, "needs a name"),
        ({"topics": []}, "'billing' needs topics"),
        ({"topics": ["orders", ""]}, "needs topics that have names"),
        ({"topics": [None]}, "needs topics that have names"),
        ({"delays": (1.0, 0)}, "seconds above 0"),
        ({"delays": (-1.0,)}, "seconds above 0"),
        ({"prefetch": 0}, "1 or more, not 0"),
    ],
)
def test_what_no_broker_takes_is_refused_when_the_group_is_made(values, words):
    with pytest.raises(ValueError, match=words):
        Group(**{"name": "billing", "topics": ["orders"], **values})
