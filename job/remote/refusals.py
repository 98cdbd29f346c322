"""Why a repository of the Hub cannot be read, in one line: what the Hub answered means, and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from job.errors import UsageError, first_line
from job.remote.hub_cache import SHA1, folder_of
from job.remote.transient import status_of


def why_not(kind: str, name: str, error: Exception, revision: str | None = None) -> str:
    """Return why a repository cannot be read.

    Args:
        kind: ``model`` or ``dataset``.
        name: ``org/name``.
        error: what ``huggingface_hub`` has raised.
        revision: the branch, tag or commit that was asked for.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    option = f"--{kind} {name}"
    status = status_of(error)
    server_says = str(getattr(error, "server_message", None) or "")
    if isinstance(error, GatedRepoError) and status == 403:
        return (
            f"{option} is gated, and the account of your token has no access to it. Request access on its page, "
            f"{page(kind, name)}, then run the same command."
        )
    if isinstance(error, GatedRepoError):
        return (
            f"{option} is gated. Accept its terms on its page, {page(kind, name)}, then set HF_TOKEN to a token of "
            "that account, or run 'hf auth login'."
        )
    if status == 401 and "credentials" in server_says.lower():
        return (
            f"{option}: the Hub does not accept your token; it is invalid or has expired. Set HF_TOKEN to a new one, "
            "or run 'hf auth login'. Public repositories need none: 'hf auth logout' and unset HF_TOKEN."
        )
    if isinstance(error, RevisionNotFoundError) and revision and SHA1.fullmatch(revision):
        return (
            f"{option}: the Hub has no commit {revision}. It may have been removed with the history of its branch. "
            f"Check {revision_option(kind)}; a run that began at it goes on only where it is in the cache (HF_HOME)."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{option} has no branch, tag or commit {revision!r} on the Hub. Check {revision_option(kind)}."
    is_unmarked = status in (401, 404) and not isinstance(error, EntryNotFoundError)  # from a mirror
    if isinstance(error, RepositoryNotFoundError) or is_unmarked:
        return (
            f"{option}: there is no such {local_kind(kind)}, and the Hub shows you no {kind} of this name. Check its "
            "spelling. If it is private, set HF_TOKEN to a token of an account that may read it, or run "
            "'hf auth login'."
        )
    if isinstance(error, HfHubHTTPError) and status is not None:  # its message may hold a signed URL
        said = f" ({first_line(Exception(server_says))})" if server_says else ""
        return f"{option} cannot be read: the Hub answered {status}{said}."
    if isinstance(error, OSError) and error.errno is not None:
        from huggingface_hub import constants

        return (
            f"{option} cannot be kept in {constants.HF_HUB_CACHE}: {error.strerror}. Set HF_HOME to a directory that "
            "can be written and has room."
        )
    return f"{option} cannot be read: {first_line(error)}"


def not_cached(kind: str, name: str, revision: str | None, path: str = "") -> str:
    """Return what to do about something that is not in the cache, offline."""
    repo_type = "" if kind == "model" else f" --repo-type {kind}"
    at = f" --revision {revision}" if revision else ""
    if path:
        what = f"{path} of {name}"
    elif revision and folder_of(kind, name).is_dir():
        what = f"revision {revision}"
    else:
        what = f"there is no such {local_kind(kind)}, and this name"
    return (
        f"--{kind} {name}: {what} is not in the cache (HF_HOME), and HF_HUB_OFFLINE is set. Where there is a "
        f"network, run 'hf download {name}{repo_type}{at}' with the same HF_HOME."
    )


def local_kind(kind: str) -> str:
    """Return what a model or a dataset is if it is not on the Hub."""
    return "directory" if kind == "model" else "file or directory"


def revision_option(kind: str) -> str:
    """Return the option that names a revision of a model or a dataset."""
    return "--revision" if kind == "model" else "--dataset-revision"


def page(kind: str, name: str) -> str:
    """Return the address of a repository's page."""
    from huggingface_hub import constants

    endpoint: Any = constants.ENDPOINT
    return f"{endpoint}/{'' if kind == 'model' else f'{kind}s/'}{name}"


@contextmanager
def of_adapter(name: str) -> Iterator[None]:
    """Let refusals of a repository of the Hub, which is read as that of a model, name the option of adapters.

    Args:
        name: what the user typed.

    Raises:
        UsageError: there was one.
    """
    try:
        yield
    except UsageError as error:
        text = str(error).replace("Check --revision", "Check what follows the @")
        plain = name.partition("@")[0]
        option = next((each for each in (f"--model {name}", f"--model {plain}") if text.startswith(each)), "")
        text = f"--adapter {name}{text.removeprefix(option)}" if option else text
        raise UsageError(text) from error
