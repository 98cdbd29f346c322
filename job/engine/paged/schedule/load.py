"""How full an engine is, from the numbers of its scheduler."""

from job.engine.paged.schedule.scheduler import Scheduler
from job.engine.protocol import Load


class Scheduling:
    """The part of an ``Engine`` that its scheduler knows."""

    scheduler: Scheduler

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
