from concurrent.futures import CancelledError, Future

import pytest

from shortlist.serve.gate import FullError, Gate, Limits, TooLargeError


def test_requests_are_bounded_and_those_that_leave_make_room():
    gate = Gate(Limits(queue_requests=2))
    first, _ = gate.enter(), gate.enter()
    with pytest.raises(FullError, match="2 requests"):
        gate.enter()
    first.leave()
    assert gate.enter()


def test_tokens_are_bounded_and_those_that_leave_make_room():
    gate = Gate(Limits(queue_tokens=100))
    first, second = gate.enter(), gate.enter()
    first.reserve(60)
    with pytest.raises(FullError, match="60 tokens are waiting, and 50 more"):
        second.reserve(50)
    second.reserve(40)
    first.leave()
    assert gate.tokens == 40
    gate.enter().reserve(60)


def test_what_can_never_fit_is_told_apart():
    gate = Gate(Limits(queue_tokens=100))
    with pytest.raises(TooLargeError, match="takes 101 tokens, and the server accepts 100"):
        gate.enter().reserve(101)


def test_no_more_is_accepted_than_can_be_read_in_a_quarter_of_the_time():
    gate = Gate(Limits(timeout_seconds=10), speed=lambda: 20.0)
    gate.enter().reserve(40)
    with pytest.raises(FullError) as refused:
        gate.enter().reserve(20)
    assert refused.value.seconds == 2  # 40 tokens at 20 a second
    gate.enter().reserve(10)


def test_a_server_at_rest_accepts_whatever_fits():
    gate = Gate(Limits(timeout_seconds=1), speed=lambda: 1.0)
    gate.enter().reserve(1000)
    assert gate.tokens == 1000


def test_cancelling_a_request_cancels_what_is_under_way_and_what_would_follow():
    ticket = Gate(Limits()).enter()
    under_way: Future[int] = ticket.watch(Future())
    ticket.cancel()
    assert under_way.cancelled()
    late: Future[int] = Future()
    with pytest.raises(CancelledError):
        ticket.watch(late)
    assert late.cancelled()
