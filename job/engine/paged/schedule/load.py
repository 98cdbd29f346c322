"""What an engine has to do, from its scheduler: how full it is, and what has not been begun."""

from job.engine.paged.schedule.scheduler import Scheduler
from job.engine.paged.tasks.logits_task import LogitsTasks
from job.engine.protocol import Load
from job.records import Generation, Request


class Scheduling:
    """The part of an ``Engine`` that its scheduler knows."""

    scheduler: Scheduler
    _tasks: LogitsTasks

    @property
    def num_pending(self) -> int:
        """See ``Engine``."""
        return self.scheduler.num_pending

    @property
    def load(self) -> Load:
        """See ``Engine``."""
        pages = self.scheduler.pages
        return Load(
            num_running=len(self.scheduler.running),
            num_cache_tokens=pages.num_pages * pages.page_tokens,
            num_used_cache_tokens=(pages.num_pages - pages.num_free) * pages.page_tokens,
            num_preemptions=self.scheduler.num_preemptions,
        )

    def withdraw(self) -> list[Request]:
        """See ``Engine``."""
        sequences = self.scheduler.queues.withdraw(self.scheduler.running)
        for sequence in sequences:  # the tasks forget them
            self._tasks.fail(sequence, Generation(request=sequence.request, token_ids=[], finish_reason=None))
        return list({sequence.request.key: sequence.request for sequence in sequences}.values())
