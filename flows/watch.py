"""The data watcher: a flow that says, as a Prefect event, that a domain's source is not what it was. Deployment `on-new-data` listens.

What counts is the digest of what the source holds (`flows/versions.py`): touched or moved files are the same source.
"""

import asyncio
import time
from typing import Any

from filelock import FileLock
from prefect import flow

from components.domains.options import OPTIONS, OwnFiles
from flows import paths, versions
from flows.config import load
from flows.notices import completed

CHANGED = "fewloop.data.changed"


@flow(name="watch", persist_result=False)
def watch(overrides: list[str] | None = None, preset: list[str] | None = None, settle: float = 20.0) -> Any:
    """Look at the source of the domain that the config names, and tell of a new one once.

    Args:
        overrides: as of the pipeline that is to run on new data, such as ["experiment=image_folder", "domain.source.root=/data/pictures"].
        preset: choices that come before the overrides; a deployment's own.
        settle: seconds for which a new source must stay as it is, so that nothing is trained on half a copy.
    """
    config = load([*(preset or []), *(overrides or [])])
    domain, record = config.domain, paths.runs() / "watch" / f"{config.registry.model}.txt"
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(record.with_suffix(".lock")):
        found, last = versions.source_digest(domain), record.read_text() if record.exists() else None
        options = OPTIONS[domain.name](**domain.source)
        told = f"{domain.name}: source {found[:8]}"
        if found == last or versions.is_current(domain):
            told += " is what it was"
        elif last is None and not (paths.data() / domain.name).exists() and not (isinstance(options, OwnFiles) and options.given):
            told += " was never used, and is no files of yours: the first pipeline makes it"
        else:
            time.sleep(settle)
            if versions.source_digest(domain) != found:
                return completed(f"{domain.name}: the source is changing right now; it is looked at again next time")
            asyncio.run(_emit(domain.name, {"overrides": overrides or [], "source": found, "was": last}))
            told += f" is new{f', it was {last[:8]}' if last else ''}: event {CHANGED}"
        paths.write(record, found)  # after the event: told twice rather than never
    return completed(told)


async def _emit(domain: str, payload: dict[str, Any]) -> None:
    """Send the event and wait until the server has it."""
    from prefect.events import Event, Resource
    from prefect.events.clients import get_events_client

    async with get_events_client(checkpoint_every=1) as client:
        await client.emit(Event(event=CHANGED, resource=Resource({"prefect.resource.id": f"fewloop.data.{domain}"}), payload=payload))
