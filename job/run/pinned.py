"""Which commit of a model a run reads: the one that its manifest names, or the newest when it begins.

To be asked once for all processes of a launch, because a branch may move at any moment.
"""

from pathlib import Path

from job.config import RunConfig
from job.engine.model.naming import check_name
from job.output.parts.manifest import Manifest
from job.remote.hub import pin
from job.remote.model_files import ModelFiles
from job.run.older_runs import model_commit


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
    commit = model_commit(config.model, found)
    if Path(name).is_dir():
        return ModelFiles(name=name)
    return ModelFiles(name=name, repository=pin("model", name, commit or config.model.revision))
