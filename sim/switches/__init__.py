"""The rules of vLLM that have changed between releases, with the release in which each value came in: data.

`sim.profiles` composes the rules of a release from them. Standard library only: the core's settings, the
plain-Python twin and the recorder of real releases read them.
"""

from sim.switches.drafts import DRAFTS
from sim.switches.kind import FEATURES, Onset, Switch, release_key
from sim.switches.scheduling import SCHEDULING
from sim.switches.sizing import SIZING
from sim.switches.states import STATES

SWITCHES: tuple[Switch, ...] = (*SCHEDULING, *DRAFTS, *STATES, *SIZING)
#: Switches that decide how layers are grouped and a pool is sized, and nothing that a step does.
SIZE_SWITCHES: tuple[str, ...] = tuple(s.name for s in SWITCHES if "model" in s.concerns)

__all__ = ["FEATURES", "SIZE_SWITCHES", "SWITCHES", "Onset", "Switch", "release_key"]
