"""The variables of an ipykernel as they were at a checkpoint, and what has become of them at another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from torpor.errors import StoreError

Changed = Callable[[int, int], bool]
"""Whether the bytes at an address, so many, are others in the two snapshots that are compared."""


@dataclass(frozen=True)
class Variable:
    """One variable at a checkpoint."""

    name: str
    type: str
    summary: str
    mark: int | None
    """A fingerprint; None where there was no time for one."""
    places: tuple[tuple[int, int], ...] | None
    """Addresses and sizes of its data in memory, if it is an array."""

    def as_json(self) -> dict[str, str]:
        """For the REST API."""
        return {"name": self.name, "type": self.type, "summary": self.summary}


class Listing:
    """The variables of a kernel at a checkpoint."""

    def __init__(self, text: str) -> None:
        """Read what `kernels.ipython.list_variables` gave. Raises StoreError when it is something else."""
        try:
            self.process, found = json.loads(text)
            self.variables = {
                name: Variable(name, kind, summary, mark, places and tuple((at, size) for at, size in places))
                for name, kind, summary, mark, places in found
            }
        except (TypeError, ValueError) as error:
            raise StoreError(f"a list of variables in the store cannot be read: {error}") from error

    def since(self, before: Listing, changed: Changed) -> dict[str, list[dict[str, str]]]:
        """What is new, gone and different since an earlier listing."""
        mine, theirs = self.variables, before.variables
        same = self.process == before.process
        return {
            "added": [variable.as_json() for name, variable in mine.items() if name not in theirs],
            "removed": [variable.as_json() for name, variable in theirs.items() if name not in mine],
            "changed": [
                variable.as_json() | {"before": theirs[name].summary}
                for name, variable in mine.items()
                if name in theirs and _differ(variable, theirs[name], same, changed)
            ],
        }


def _differ(now: Variable, before: Variable, same_process: bool, changed: Changed) -> bool:
    if (now.type, now.summary) != (before.type, before.summary):
        return True
    if not same_process:  # identities and addresses mean nothing
        return False
    if None not in (now.mark, before.mark) and now.mark != before.mark:
        return True
    return now.places != before.places or any(changed(at, size) for at, size in now.places or ())
