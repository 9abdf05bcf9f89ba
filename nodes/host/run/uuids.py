"""The uuids by which the rows of a batch are told."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID, uuid5


def make_distinct(conds: Mapping[str, list[dict] | None]) -> None:
    """Give each conditioning of a run a uuid of its own, {prompt: its conditionings as the host has processed them}.

    Beside a prompt for a region the host puts copies of it into the other prompts, under the same uuid.
    """
    known: set[UUID] = set()
    for name, rows in conds.items():
        for row in rows or ():
            while row["uuid"] in known:
                row["uuid"] = uuid5(row["uuid"], name)
            known.add(row["uuid"])
