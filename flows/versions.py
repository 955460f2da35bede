"""Versions of the data: `data/` is one DVC output, pinned by `data.dvc`; each domain's own sub-tree has a digest of its own.

The pin file carries the sub-trees' digests in its `meta`, so a clone without a cache can still tell whether a rebuilt domain is the
pinned one. What DVC keeps of them is `flows/repository.py`'s. The checkout is never touched except for `data/<domain>` and, when the
config says so, `data.dvc`.
"""

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from components.contracts import DomainSection
from components.inputs import InputError
from components.plain import fingerprint, to_plain
from flows import holds, paths
from flows.notices import say
from flows.repository import PIN, add, read_pin, restore


@dataclass(frozen=True)
class Pinned:
    """What `data/<domain>` is after pinning: its digest, the text of the pin file, how it came, and whether it is a new version."""

    domain: str
    path: str
    md5: str
    data_md5: str
    pin: str
    how: str
    new: bool


def tree_md5(folder: Path) -> str | None:
    """Return DVC's digest of a folder (md5 of its manifest, with `.dir`), or None where the folder is missing."""
    if not folder.is_dir():
        return None
    entries = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        with file.open("rb") as opened:
            entries.append({"md5": hashlib.file_digest(opened, "md5").hexdigest(), "relpath": file.relative_to(folder).as_posix()})
    entries.sort(key=lambda e: e["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def source_digest(domain: DomainSection) -> str:
    """Return the digest of all that makes the pool, its options and what the user's own files hold: another value is other data.

    Raises InputError where the user's own files are not there.
    """
    from components.domains.options import OPTIONS, OwnFiles, content

    source, options = dict(domain.source), OPTIONS[domain.name](**domain.source)
    if isinstance(options, OwnFiles):
        source = {name: value for name, value in source.items() if value or name not in options.younger}
        source |= {"reading": options.read} if options.read else {}
        if options.given:  # what they hold counts, not where they lie
            source[options.own] = content(options.place)
    splits = {name: value for name, value in to_plain(domain.splits).items() if value is not None}
    return fingerprint({"name": domain.name, "source": source, "splits": splits})


def find_pin(where: str | None) -> str | None:
    """Return the text of the pin to restore: the checkout's own, a file's, a git revision's, or a run's."""
    own = paths.root() / PIN
    if where is None:
        return own.read_text() if own.exists() else None
    if Path(where).is_file():
        return Path(where).read_text()
    shown = subprocess.run(["git", "show", "--end-of-options", f"{where}:./{PIN}"], cwd=paths.root(), capture_output=True, text=True)
    if shown.returncode == 0:
        return shown.stdout
    from flows import tracking

    text = tracking.run_artifact(where, PIN)
    if text is None:
        raise InputError(f"data.pin must be a run id, a git revision or a {PIN} file, got {where!r}. See the runs' ids with make ui.")
    return text


def current_digest(domain: DomainSection, where: str | None) -> str | None:
    """Return the digest that pinning would leave in data/<domain>, where that is known without building anything."""
    _, domains = read_pin(find_pin(where))
    pinned = domains.get(domain.name)
    actual = tree_md5(paths.data() / domain.name)
    if actual is None or (where is None and not _made_by(paths.data() / domain.name, domain)):
        return pinned if where is not None or actual is None else None
    return actual if actual == pinned or (where is None and (pinned is None or _newer(domain, actual) is not None)) else pinned


Accept = Callable[[Path], object]


@contextmanager
def pinned(
    domain: DomainSection, where: str | None, write: bool, mirror: str | None, patient: bool = False, accept: Accept = lambda pool: None
) -> Iterator[Pinned]:
    """Yield what pin_data leaves, which stays until this is over; who needs other data of the domain waits if `patient`, or gets an InputError.

    `accept` looks at the folder of a new version before it takes the place of what is there: where it raises, data and pin stay as they are.
    """
    with ExitStack() as stack:

        def pin() -> Pinned:
            with _alone():
                found = _pin(domain, where, write, mirror, accept)
                stack.enter_context(holds.used(domain.name))
                return found

        yield holds.patiently(pin, patient)


def pin_data(domain: DomainSection, where: str | None, write: bool, mirror: str | None) -> Pinned:
    """Leave data/<domain> in the pinned state: already there; else from cache or remote; else built from the source.

    A digest that differs from the pin is a new version: added to the cache, pushed when there is a remote, and said loudly.
    Raises InputError where somebody uses other data of the domain (see `pinned`).
    """
    with pinned(domain, where, write, mirror) as found:
        return found


def _alone() -> FileLock:
    """Return the lock of whoever looks at data/ and may change it."""
    paths.runs().mkdir(parents=True, exist_ok=True)
    return FileLock(paths.locks() / "data.lock")  # waits


def _pin(domain: DomainSection, where: str | None, write: bool, mirror: str | None, accept: Accept) -> Pinned:
    text = find_pin(where)
    whole, domains = read_pin(text)
    expected, target = domains.get(domain.name), paths.data() / domain.name

    def usable(pool: Path) -> bool:
        return where is not None or _made_by(pool, domain)

    actual = tree_md5(target)
    if expected is not None and actual == expected and usable(target):
        return Pinned(domain.name, str(target), expected, str(whole), str(text), "already there", False)
    own = _newer(domain, actual) if where is None else None
    if own is not None and not write:
        return Pinned(domain.name, str(target), str(actual), str(read_pin(own)[0]), own, f"already there, newer than {PIN}", False)
    with nullcontext() if own is not None else holds.changed(domain.name):
        return _renew(domain, text, where, write, mirror, usable, accept, own is not None)


def _renew(
    domain: DomainSection, text: str | None, where: str | None, write: bool, mirror: str | None, usable: Callable[[Path], bool], accept: Accept, newer: bool
) -> Pinned:
    """Bring the pinned data back, else make a new version: of what the source gives, or of what is there where it is `newer` than the pin."""
    whole, domains = read_pin(text)
    expected, target = domains.get(domain.name), paths.data() / domain.name
    if not newer and expected is not None and text is not None:
        harmed = target.exists() and tree_md5(target) != expected
        if restore(text, domain.name, target, lambda pool: tree_md5(pool) == expected and usable(pool)):
            if harmed:
                say(f"data/{domain.name} was not what {PIN} pins (changed or partly deleted), and is restored")
            return Pinned(domain.name, str(target), expected, str(whole), text, "restored by DVC", False)
    if where is not None and expected is None:
        raise InputError(f"data.pin={where} must pin domain {domain.name}, but it holds {', '.join(domains) or 'none'}. Choose a version that has it.")
    if expected is not None and where is not None:
        raise InputError(f"data.pin={where} pins {domain.name} {expected}, which is neither in the cache nor on a remote. Run dvc pull, or leave out data.pin.")
    if newer:
        accept(target)
    else:
        say(f"data/{domain.name}: building it from its source")
        _build(domain, mirror, target, expected, accept)
    actual = str(tree_md5(target))
    new_text = add(text, domains, domain.name, actual)
    if actual == expected and read_pin(new_text)[0] == whole:
        return Pinned(domain.name, str(target), actual, str(whole), str(text), "built from its source, equal to the pin", False)
    was = f", pinned was {expected}" if expected not in (None, actual) else ""
    say(f"NEW DATA VERSION: {domain.name} {actual}{was}. " + (f"{PIN} is rewritten: commit it." if write else f"{PIN} in the checkout is left as it was."))
    if write:
        paths.write(paths.root() / PIN, new_text)
    paths.write(_newest_pin(domain.name), json.dumps({"md5": actual, "pin": new_text}))
    how = "already there, a new version" if newer else "built from its source, a new version"
    return Pinned(domain.name, str(target), actual, str(read_pin(new_text)[0]), new_text, how, True)


def _newest_pin(domain: str) -> Path:
    """Return the file with the pin of the newest version of a domain's data, which a checkout may not pin: deployed runs leave its pin alone."""
    return paths.locks() / f"data-{domain}.json"


def _newer(domain: DomainSection, actual: str | None) -> str | None:
    """Return the pin of data/<domain>, whose digest is `actual`, where a run has made and added just these, of what the source holds now; else None."""
    try:
        told = json.loads(_newest_pin(domain.name).read_text())
        return str(told["pin"]) if told["md5"] == actual and is_current(domain) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def newest_pins() -> list[str]:
    """Return the pins of the newest version of each domain's data."""
    return [str(json.loads(path.read_text())["pin"]) for path in sorted(paths.locks().glob("data-*.json"))]


def is_current(domain: DomainSection) -> bool:
    """Tell whether data/<domain> was made of what its source holds now."""
    return _made_by(paths.data() / domain.name, domain)


@contextmanager
def newest(domain: DomainSection, mirror: str | None) -> Iterator[Path]:
    """Yield a folder with the pool that the source gives now; data/ stays as it is, also while it is looked at: an older one is built for the moment."""
    with ExitStack() as stack:
        with _alone():
            if current := is_current(domain):
                stack.enter_context(holds.used(domain.name))
        if current:
            yield paths.data() / domain.name
            return
    with tempfile.TemporaryDirectory(dir=paths.runs(), prefix=".newest-") as work:
        _write(domain, mirror, Path(work) / domain.name)
        yield Path(work) / domain.name


def _made_by(folder: Path, domain: DomainSection) -> bool:
    """Tell whether the pool in `folder` was made by these options."""
    try:
        return bool(json.loads((folder / "pool.json").read_text())["source"] == source_digest(domain))
    except (OSError, ValueError, KeyError):
        return False


def _write(domain: DomainSection, mirror: str | None, folder: Path) -> None:
    from components.domains import load_domain
    from components.domains.options import OPTIONS
    from components.domains.pool import write_pool

    source = load_domain(domain.name).build(OPTIONS[domain.name](**domain.source), mirror)
    write_pool(source, domain.splits, domain.name, source_digest(domain), folder)


def _build(domain: DomainSection, mirror: str | None, target: Path, expected: str | None, accept: Accept) -> None:
    with tempfile.TemporaryDirectory(dir=paths.runs(), prefix=".build-") as work:
        made = Path(work) / domain.name
        _write(domain, mirror, made)
        if tree_md5(made) != expected:
            accept(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        paths.swap(made, target)
