"""Redemption: a request uses up its nonce in the first commit it makes (RFC 8555 §6.5).

Invariants:
- Nothing is answered, and nothing is changed, before the nonce is durably used up: of two requests
  with one nonce the second is refused, on any node and after any crash, whatever it asked for.
- What fails, or only reads, uses its nonce up too, in a commit of its own at its end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar

from estserver.errors import Error, Unavailable
from estserver.protocols.acme import records
from estserver.protocols.acme.nonces import Nonce, bad_nonce
from estserver.steps import Apart, Steps, Together, Write, write
from estserver.store import Transaction

T = TypeVar("T")
_Told = Callable[[], T]


class _Replayed(Exception):
    """One of several nonces had been used before: each request is to be tried by itself."""


@dataclass(frozen=True, slots=True)
class _Redeemed:
    """What came of a step: an outcome or a refusal; neither if the nonce was not fresh."""

    fresh: bool
    outcome: Any = None

    @property
    def refusal(self) -> Error | None:
        """The outcome if it is a refusal."""
        return self.outcome if isinstance(self.outcome, Error) else None


@dataclass(frozen=True, slots=True)
class _Redeeming:
    """Does `together` for requests after using up their nonces; a refusal keeps its nonce used up.

    Equal ones are the same step, which a convoy takes for all that ask for it.
    """

    together: Together[Any, Any]

    def __call__(self, tx: Transaction, asked: Sequence[tuple[Nonce, Any]]) -> list[_Redeemed]:
        if records.redeem_nonces(tx, [nonce for nonce, _ in asked]):
            outcomes = self.together(tx, [mine for _, mine in asked])
            return [_Redeemed(fresh=True, outcome=outcome) for outcome in outcomes]
        if len(asked) > 1:
            raise _Replayed
        return [_Redeemed(fresh=False)]


def redeeming(nonce: Nonce, steps: Steps[T]) -> Steps[T]:
    """Walk `steps`, using up `nonce` in the same commit as what they write first.

    It is used up by itself before what is done apart, which may write what it likes, and at the
    end of steps that wrote nothing. Raises Problem badNonce: it had been used; what the steps
    raise; Unavailable, and then nothing may have been changed at all.
    """
    ending = _settling(steps)
    used = False
    outcome: Any = None
    error: Exception | None = None
    while True:
        try:
            step = ending.send(outcome) if error is None else ending.throw(error)
        except StopIteration as end:
            if not used:
                yield from _use_up(nonce)
            told: _Told[T] = end.value
            return told()
        if isinstance(step, Apart) and not used:
            yield from _use_up(nonce)
            used = True
        if isinstance(step, Write) and not used:
            step = Write(_Redeeming(step.together), (nonce, step.mine))
        outcome = error = None
        try:
            outcome = yield step
        except Exception as failure:  # noqa: BLE001 - the steps' to judge
            error = failure
        if isinstance(outcome, _Redeemed):
            _require(outcome)
            used = True
            outcome, error = outcome.outcome, outcome.refusal


def _settling(steps: Steps[T]) -> Steps[_Told[T]]:
    """Walk `steps`; return what returns what they return, or raises what they raise."""
    try:
        result = yield from steps
    except Unavailable:
        raise
    except Exception as error:  # noqa: BLE001 - raised once the nonce is used up
        return partial(_raise, error)
    return lambda: result


def _raise(error: Exception) -> NoReturn:
    raise error


def _use_up(nonce: Nonce) -> Steps[None]:
    _require((yield from write(_Redeeming(_nothing), (nonce, None))))


def _require(redeemed: _Redeemed) -> None:
    if not redeemed.fresh:
        raise bad_nonce()


def _nothing(_tx: Transaction, asked: Sequence[None]) -> Sequence[None]:
    return asked
