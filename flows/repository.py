"""DVC's side of the data's versions: what is in its cache and on its remote, by the text of a pin file.

All of it happens in a throw-away repository that shares the project's cache and remotes: of the checkout, `data/<domain>` alone is ever replaced.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from components.inputs import InputError
from components.plain import masked, one_line
from flows import paths
from flows.notices import say

PIN = "data.dvc"


def read_pin(text: str | None) -> tuple[str | None, dict[str, str]]:
    """Return (digest of all of data/, digest of each domain) from the text of a pin file."""
    if not text:
        return None, {}
    try:
        pin = yaml.safe_load(text)
        domains = {name: entry["md5"] for name, entry in (pin.get("meta") or {}).get("domains", {}).items()}
        return pin["outs"][0]["md5"], domains
    except (yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"{PIN} must be a DVC file with outs and meta.domains, got one that cannot be read ({type(error).__name__}). Restore it: git checkout {PIN}"
        ) from error


def restore(text: str, domain: str, target: Path, fits: Callable[[Path], bool]) -> bool:
    """Bring data/<domain> back from the cache, else from the remote, where what they have `fits`. Tell whether that worked; else all stays as it is."""
    with _scratch(text) as repo:
        wanted = str(Path(repo.root_dir) / "data" / domain)
        for attempt in ("checkout", "pull"):
            if attempt == "pull" and not repo.config.get("remote"):
                break
            try:
                getattr(repo, attempt)([wanted], force=True)
            except Exception as error:  # each kind of remote has errors of its own
                if attempt == "pull":
                    say(f"The DVC remote does not give data/{domain}: {one_line(error)}")
                continue
            if Path(wanted).is_dir():
                if found := fits(Path(wanted)):
                    paths.swap(Path(wanted), target)
                return found
    return False


def add(text: str | None, domains: dict[str, str], domain: str, digest: str) -> str:
    """Add data/<domain> to the cache beside the domains already pinned; return the text of the pin that holds them all.

    Where there is a remote, it is given what it lacks. Where there is none, and the manifest of the others is not in the cache either, the pin holds their
    digests alone, until a run brings them back. Raises InputError where a remote does not take the files, or does not have that manifest.
    """
    others = {name: md5 for name, md5 in domains.items() if name != domain}
    made = _tracked(text if others else None, domain)
    if made is None:
        say(f"{PIN} also pins {', '.join(others)}, whose files are at hand nowhere: their digests stay, the files come with their next run")
        made = _tracked(None, domain)
    assert made is not None
    made["meta"] = {"domains": {name: {"md5": md5} for name, md5 in sorted((others | {domain: digest}).items())}}
    return str(yaml.safe_dump(made, sort_keys=False))


def _tracked(text: str | None, domain: str) -> dict[str, Any] | None:
    """Add data/<domain> to the cache and push it where there is a remote; return a pin of it and of all that `text` pins.

    None where the manifest of what `text` pins is not in the cache and there is no remote to have it.
    """
    from dvc.exceptions import DvcException

    with _scratch(text) as repo:
        remote = bool(repo.config.get("remote") and repo.config["core"].get("remote"))
        folder = Path(repo.root_dir) / "data" / domain
        shutil.copytree(paths.data() / domain, folder)
        try:
            repo.add(str(folder.parent if text is None else folder))
        except DvcException as error:
            if text is None:
                raise
            if remote:
                raise InputError(f"{PIN} also pins domains whose manifest is not in the cache ({error}). Run dvc fetch, or a run of them first.") from error
            return None
        if remote:
            _push(repo)
        return dict(yaml.safe_load((Path(repo.root_dir) / PIN).read_text()))


def _push(repo: Any) -> None:
    """Give the remote what the cache has. Raises InputError where it does not take it."""
    name = repo.config["core"]["remote"]
    try:
        repo.push()
    except Exception as error:  # each kind of remote has errors of its own
        where = masked(str(repo.config["remote"][name].get("url")))
        raise InputError(f"The DVC remote {name} ({where}) must take the data, got: {one_line(error)}. See dvc push, or unset core.remote.") from error


@contextmanager
def _scratch(text: str | None) -> Iterator[Any]:
    """Open a throw-away DVC repository with the project's cache and remotes, holding this pin."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    from dvc.config import Config
    from dvc.repo import Repo

    own = paths.root() / ".dvc"
    shared: dict[str, Any] = {"cache": {"dir": str(own / "cache")}, "core": {"analytics": False, "autostage": False}}
    if (own / "config").exists():
        project = Config(str(own))  # relative paths in it come back absolute
        shared["remote"] = {name: dict(remote) for name, remote in project.get("remote", {}).items()}
        if project["core"].get("remote"):
            shared["core"]["remote"] = project["core"]["remote"]
        if project.get("cache", {}).get("dir"):
            shared["cache"]["dir"] = project["cache"]["dir"]
    # Of every throw-away repository it says that it was initialised; above errors it draws no bars, which tell of transfers alone.
    logging.getLogger("dvc").setLevel(logging.WARNING if "remote" in shared["core"] else logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir=paths.runs(), prefix=".dvc-") as work:
        Repo.init(work, no_scm=True).close()
        if text is not None:
            (Path(work) / PIN).write_text(text)
        with Repo(work, config=shared) as repo:
            yield repo
