"""What an address means: the files in a folder, those that a glob matches, or one file, with the state of each."""

import glob
import posixpath
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from job.launch.activity import doing
from job.remote.addresses import is_pattern
from job.remote.place import NO_STATE, Place, State, state_of
from job.remote.tree import NUM_THREADS
from job.wording import redacted


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What an address means."""

    place: Place
    root: str
    """The folder that the files are in, as ``fsspec`` calls it."""
    meant: str
    """What is meant there: a glob, or empty for all."""
    locations: Mapping[str, str]
    """Files, relative to ``root``, to what ``fsspec`` calls them."""
    states: Mapping[str, State]

    @property
    def name(self) -> str:
        """The address of the folder, without secrets."""
        return redacted(self.place.url(self.root)).rstrip("/")


def list_place(place: Place) -> Listed:
    """Ask what an address means now.

    Raises:
        UsageError: it means nothing, cannot be read, or the package for it is not installed.
        Unavailable: the store does not answer.
    """
    doing(f"listing {place.shown}")
    root, meant, found = place.ask(lambda: _find(place))
    infos = dict(found)
    vague = [location for location, info in infos.items() if state_of(info) == NO_STATE]
    with ThreadPoolExecutor(NUM_THREADS) as pool:  # a web server's index has only names
        infos |= zip(vague, pool.map(lambda each: place.ask(lambda: place.system.info(each)), vague), strict=True)
    names = {_name(place, root, location): location for location in infos}
    states = {name: state_of(infos[location]) for name, location in names.items()}
    return Listed(place=place, root=root, meant=meant, locations=names, states=states)


def _find(place: Place) -> tuple[str, str, Mapping[str, Mapping[str, Any]]]:
    """Return the folder of what an address means, what is meant in it, and the files with what is known of them."""
    system, path = place.system, place.path
    system.invalidate_cache()
    if is_pattern(place.full):
        root = path
        while set(root) & set("*" if place.is_web else "*?["):
            root = posixpath.dirname(root)
        return root, path[len(root) :].lstrip("/"), _files(system.glob(path, detail=True))
    if not (place.is_web and path.endswith("/")):
        info = system.info(path)
        if info["type"] != "directory":
            plain = path.partition("?")[0] if place.is_web else path
            root = posixpath.dirname(plain)
            return root, glob.escape(_name(place, root, path)), {path: info}
    return path.rstrip("/"), "", _files(system.find(path, detail=True))


def _files(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the files in a listing: no folders, no objects that stand for folders, no links that sort an index."""
    files = {name: info for name, info in found.items() if info["type"] == "file"}
    return {name: info for name, info in files.items() if not name.endswith("/") and "/?" not in name}


def _name(place: Place, root: str, location: str) -> str:
    """Return what a file is called in its folder."""
    path = location[len(root) :].lstrip("/")
    return unquote(path.partition("?")[0]) if place.is_web else path
