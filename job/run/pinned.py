"""Which commits a run reads: those that its manifest names, or those that are the newest when it begins.

To be asked once for all processes of a launch, because a branch may move at any moment.
"""

from pathlib import Path

from job.config import RunConfig
from job.engine.model.naming import check_name
from job.output.parts.manifest import Manifest
from job.output.store.addresses import open_store
from job.remote.hub import pin
from job.remote.model_files import ModelFiles
from job.run.older_runs import model_commit
from job.run.preparation import found_in


def pinned_model(config: RunConfig) -> ModelFiles:
    """Return where the files of the run's model are.

    A run that exists goes on with the commit that it began with, unless ``--revision`` names another.

    Raises:
        UsageError: there is no such model or revision, or the run's model is not known.
        Unavailable: the Hub does not answer.
    """
    return model_files(config, found_in(open_store(config.output.output)))


def model_files(config: RunConfig, found: Manifest | None = None) -> ModelFiles:
    """Return where the files of a model are.

    Args:
        found: the manifest in the run directory, if there is one already.

    Raises:
        UsageError: there is no such model or revision, or the run's model is not known.
        Unavailable: the Hub does not answer.
    """
    name = config.model.model
    check_name(name)
    recorded = model_commit(found, name)
    if Path(name).is_dir():
        return ModelFiles(name=name)
    return ModelFiles(name=name, repository=pin("model", name, config.model.revision or recorded))
