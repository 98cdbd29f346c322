"""Which commits of a model and its adapters a run reads: those that its manifest names, or the newest when it begins.

To be asked once for all processes of a launch, because a branch may move at any moment.
"""

from dataclasses import replace
from pathlib import Path

from job.config import RunConfig
from job.engine.model.adapters.adapter import base_of
from job.engine.model.naming import check_adapter_name, check_name
from job.errors import UsageError
from job.output.parts.manifest import Manifest
from job.remote.hub import pin
from job.remote.model_files import ModelFiles
from job.remote.refusals import of_adapter
from job.run.older_runs import adapter_commits, model_commit


def model_files(config: RunConfig, found: Manifest | None = None) -> ModelFiles:
    """Return where the files of a model and its adapters are.

    Args:
        found: the manifest in the run directory, if there is one already.

    Raises:
        UsageError: there is no such model, adapter or revision, or the run's model is not known.
        Unavailable: the Hub does not answer.
    """
    commits = adapter_commits(config.model, found)
    adapters = tuple(adapter_files(name, commit) for name, commit in zip(config.model.adapter, commits, strict=True))
    revision = None
    if not config.model.model:
        name, revision = base_of(adapters)
        config = replace(config, model=replace(config.model, model=name))
        _check_base(name, adapters)
    name = config.model.model
    check_name(name)
    commit = model_commit(config.model, found)
    if Path(name).is_dir():
        return ModelFiles(name=name, adapters=adapters)
    repository = pin("model", name, commit or config.model.revision or revision)
    return ModelFiles(name=name, repository=repository, adapters=adapters)


def adapter_files(name: str, commit: str | None = None) -> ModelFiles:
    """Return where the files of an adapter are.

    Args:
        name: a directory, or an id of the Hub, perhaps with ``@revision``.
        commit: the one to use, whatever revision it names; None: look the revision up.

    Raises:
        UsageError: there is no such adapter or revision.
        Unavailable: the Hub does not answer.
    """
    check_adapter_name(name)
    if Path(name).is_dir():
        return ModelFiles(name=name)
    repository, _, revision = name.partition("@")
    with of_adapter(name):
        return ModelFiles(name=name, repository=pin("model", repository, commit or revision or None))


def based(config: RunConfig, files: ModelFiles) -> RunConfig:
    """Return the configuration with the name of the model if the user has left that to an adapter."""
    return config if config.model.model else replace(config, model=replace(config.model, model=files.name))


def _check_base(name: str, adapters: tuple[ModelFiles, ...]) -> None:
    """Check that the model of an adapter is still where it was, if that was a directory.

    Raises:
        UsageError: it is not.
    """
    try:
        check_name(name)
    except UsageError:
        raise UsageError(
            f"--adapter {adapters[0].name} was trained on {name}, which is not the directory of a model on this "
            "machine. Give --model."
        ) from None
