"""What makes a command start sooner."""

from __future__ import annotations

import gc

#: More objects than a start makes: imports, models of the config, the engine's compiled code.
OBJECTS_OF_A_START = 400_000


def put_off_collection() -> None:
    """Let the first garbage collection wait until the start is over; later ones come as they always do.

    A start makes some 200,000 objects that stay, and Python would go through them again and again, which is
    0.1 to 0.15 of its 0.9 CPU seconds. Calling it again does nothing, nor where the collector is off.
    """
    usual = gc.get_threshold()
    if not gc.isenabled() or not 0 < usual[0] < OBJECTS_OF_A_START or _restore in gc.callbacks:
        return
    _Usual.threshold = usual
    gc.set_threshold(OBJECTS_OF_A_START, *usual[1:])
    # stays there: whoever leaves the list while it is gone through makes the next one be passed over
    gc.callbacks.append(_restore)


class _Usual:
    threshold: tuple[int, int, int] | None = None


def _restore(_phase: str, _info: dict[str, int]) -> None:
    if _Usual.threshold is not None:
        gc.set_threshold(*_Usual.threshold)
        _Usual.threshold = None
