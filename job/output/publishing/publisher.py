"""Brings a repository to the state of a run: what differs is committed, a limited number of parts at a time.

Each step looks at the repository, decides what it lacks from its listing alone, and makes one commit on top of what it
has seen. So a step can be killed at any line and done by any process, and nothing is sent twice.
"""

import contextlib
import io
import time
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from job.errors import JobError, UsageError
from job.launch.activity import doing, telling_what_takes_long
from job.output.looking.found import FoundRun
from job.output.parts.card import is_ours, make_card, other_origin
from job.output.publishing.contents import PublicParts, digests_of
from job.output.publishing.publication import Publication, read_publication
from job.output.publishing.repository import Head, Repository, Source
from job.output.store.names import CARD, PART_PATTERN, PUBLISHED, within
from job.remote.tree import Tree

MAX_FILES, MAX_BYTES = 100, 5_000_000_000
"""Limits on the parts of one commit: a commit of many files may be refused, and a failed one has to be repeated."""

MAX_CONFLICTS = 20
"""How many times in a row another commit may come first."""


class Publisher:
    """Publishes one run to one repository, once or repeatedly."""

    def __init__(self, run: FoundRun, repository: Repository, note: Callable[[str], None]) -> None:
        """Remember what was published before.

        Args:
            note: shows a line to the user.
        """
        self._run, self._repository, self._note = run, repository, note
        self._store, self._names = run.directory.store, run.directory.names
        record = read_publication(self._store)
        self._parts = PublicParts(run, record.parts if record else {})
        self._recorded = record if record and record.repository == repository.name else None
        self._card_digest = self._recorded.card if self._recorded else None
        """Of the card in the repository, if it was published from here."""
        known = self._recorded.parts if self._recorded else {}
        self._own = {(name, digest) for name, part in known.items() for digest in part.digests}
        """Parts in the repository that are known to be this run's: names and digests."""
        self._told: set[str] = set()
        self._sent: tuple[str, frozenset[str]] = "", frozenset()
        """The last commit, and the digests of what it should contain."""

    def publish(self) -> Publication:
        """Publish everything that is finished now.

        Raises:
            UsageError: the repository holds something else, or may not be written to.
            JobError: a part is damaged, or the Hub refuses what is sent.
            Unavailable: the Hub does not answer.
        """
        num_conflicts = 0
        with telling_what_takes_long(self._note):
            while True:
                doing(f"publishing to {self._repository.name}")
                try:
                    outcome = self._step()
                except OSError as error:
                    where = error.filename or self._store.describe()
                    raise JobError(f"{where} cannot be read: {error.strerror or error}.") from None
                if isinstance(outcome, Publication):
                    return outcome
                num_conflicts = 0 if outcome else num_conflicts + 1
                if num_conflicts > MAX_CONFLICTS:
                    raise JobError(
                        f"{self._repository.url} changes all the time: {num_conflicts} commits came before this one. "
                        "Run the same command again when nobody else writes to it."
                    )
                time.sleep(min(num_conflicts, 10))

    def publish_repeatedly(self, every_secs: float, wait: Callable[[float], object]) -> Publication:
        """Publish what is finished, again and again, until the run is complete."""
        while not (publication := self.publish()).is_complete:
            doing("waiting for further parts")
            wait(every_secs)
        return publication

    def _step(self) -> Publication | bool:
        """Make at most one commit.

        Returns:
            What is published, if nothing was left to do; else whether the commit was made.
        """
        self._parts.look()
        head = self._repository.head()
        self._check_parts(head)
        missing, are_all = self._missing(head.files)
        present = [idx for idx in self._parts.shards if self._names.part(idx) in head.files or idx in set(missing)]
        is_complete = self._parts.are_complete and are_all
        card = self._card(head, present, is_complete=is_complete)
        if not missing and card is None:
            return self._keep_record(head.commit, head.files, is_complete=is_complete)
        self._check_progress(head.commit, missing, card)
        commit = self._commit(head, missing, card, present)
        if commit is None:
            return False
        self._keep_record(commit, head.files, missing, is_complete=is_complete)
        return True

    def _check_parts(self, head: Head) -> None:
        """Refuse a repository with parts that are not this run's: readers would take them for its rows.

        Raises:
            UsageError: it has one.
        """
        for path, file in head.files.items():
            name = PurePosixPath(path).name
            is_part = path == within(self._names.part_dir, name) and fnmatchcase(name, PART_PATTERN)
            if not is_part or (path, file.digest) in self._own:
                continue
            shard_idx = self._names.shard_of(name)
            if shard_idx is None or not self._is_own(head, shard_idx):
                raise UsageError(
                    f"{self._repository.url} holds {path}, which is not of the run in {self._store.describe()}. "
                    "Publish to another repository, or delete the file there."
                )
            self._own.add((path, file.digest))

    def _is_own(self, head: Head, shard_idx: int) -> bool:
        """Whether a part in the repository is as in the run directory, or an earlier version of it."""
        path = self._names.part(shard_idx)
        if shard_idx in self._parts.shards and self._parts.of(shard_idx).is_at(head.files[path]):
            return True
        digest = self._repository.metadata_of(head, path).get(b"job.manifest")
        return digest == self._run.manifest.digest.encode()

    def _missing(self, files: Tree) -> tuple[list[int], bool]:
        """Return the shards of which the repository lacks the part, for one commit; and whether they are all."""
        missing: list[int] = []
        num_bytes = 0
        for shard_idx in self._parts.shards:
            part = self._parts.of(shard_idx)
            if part.is_at(files.get(self._names.part(shard_idx))):
                continue
            num_bytes += part.num_bytes
            if missing and (len(missing) == MAX_FILES or num_bytes > MAX_BYTES):
                return missing, False
            missing.append(shard_idx)
        return missing, True

    def _card(self, head: Head, present: Sequence[int], *, is_complete: bool) -> bytes | None:
        """Return the card to be committed; None if the repository has it, or has one that a person wrote.

        Raises:
            UsageError: the card describes another run.
        """
        wanted = self._wanted_card(present, is_complete=is_complete)
        found = head.files.get(CARD)
        if found is None:
            return wanted
        if found.digest in _digests_of(wanted):
            self._card_digest = found.digest
            return None
        if found.digest != self._card_digest:
            text = self._repository.read(head, CARD)
            if not is_ours(text):
                self._tell_once(f"{self._repository.url} has a README.md of its own, which stays as it is.")
                return None
            if other := other_origin(text.decode(errors="replace"), self._run.manifest):
                raise UsageError(
                    f"{self._repository.url} holds another run: {other}. Publish to another repository, or delete its "
                    "README.md and parts there."
                )
        return wanted

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._note(text)

    def _wanted_card(self, present: Sequence[int], *, is_complete: bool) -> bytes:
        if is_complete:
            with contextlib.suppress(OSError):
                text = self._store.read(CARD)
                if not is_ours(text):  # the user's own
                    return text
        return make_card(
            self._run.manifest,
            self._parts.counts(present),
            address=self._repository.name,
            num_planned_rows=None if is_complete else self._run.plan.num_completions,
        ).encode()

    def _check_progress(self, head: str, missing: Sequence[int], card: bytes | None) -> None:
        """Raise an error if the last commit is there without what it should contain."""
        sending = self._digests(missing, card)
        if head == self._sent[0] and sending & self._sent[1]:
            names = ", ".join(map(self._names.part, missing[:3])) or CARD
            raise JobError(
                f"{self._repository.url} accepted a commit without keeping {names}. Does its .gitignore name it?"
            )

    def _digests(self, shards: Sequence[int], card: bytes | None) -> frozenset[str]:
        found = {digest for shard_idx in shards for digest in self._parts.of(shard_idx).digests}
        return frozenset(found | set(_digests_of(card) if card is not None else ()))

    def _commit(self, head: Head, shards: Sequence[int], card: bytes | None, present: Sequence[int]) -> str | None:
        rows = f"{self._run.plan.count(present):,} of {self._run.plan.num_completions:,} {self._run.plan.unit}"
        with contextlib.ExitStack() as stack:
            files: dict[str, Source] = {
                self._names.part(shard_idx): stack.enter_context(self._parts.open(shard_idx)) for shard_idx in shards
            }
            if card is not None:
                files[CARD] = card
            doing(f"uploading {len(shards):,} parts to {self._repository.name}")
            commit = self._repository.commit(head, files, f"Add rows: {rows}" if shards else f"Describe {rows}")
        if commit is not None:
            self._sent = commit, self._digests(shards, card)
            if card is not None:
                self._card_digest = _digests_of(card)[1]
            parts = f"{len(shards):,} part{'' if len(shards) == 1 else 's'}"
            self._note(f"{self._repository.name}: {parts if shards else 'the card'} published; it has {rows}")
        return commit

    def _keep_record(self, commit: str, files: Tree, sent: Collection[int] = (), *, is_complete: bool) -> Publication:
        """Record in the run directory what the repository holds now. If it cannot be written, that is only said."""
        parts = {}
        for shard_idx in self._parts.shards:
            name, part = self._names.part(shard_idx), self._parts.known(shard_idx)
            if part is not None and (shard_idx in sent or part.is_at(files.get(name))):
                parts[name] = part
                self._own.update((name, digest) for digest in part.digests)
        publication = Publication(
            repository=self._repository.name,
            commit=commit,
            is_complete=is_complete,
            num_rows=self._run.plan.count(idx for idx in self._parts.shards if self._names.part(idx) in parts),
            card=self._card_digest,
            parts=parts,
        )
        if publication != self._recorded:
            self._recorded = publication
            try:
                self._store.replace(PUBLISHED, publication.to_json())
            except OSError as error:
                self._note(
                    f"{self._store.describe(PUBLISHED)} cannot be written: {error.strerror or error}. "
                    "What is published is not affected."
                )
        return publication


def _digests_of(card: bytes) -> tuple[str, ...]:
    return digests_of(io.BytesIO(card))[1]
