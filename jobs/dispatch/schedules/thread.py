"""The thread in which schedules fire, and how a firing becomes a job of the queue."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import cast
from zoneinfo import ZoneInfo

from jobs.dispatch.client import QueueClient
from jobs.dispatch.schedules.rule import find_next_tick_s
from jobs.dispatch.schedules.store import ScheduleStore, StoredSchedule
from jobs.dispatch.wire import FiringFacts, ScheduleFacts, Template
from jobs.queue.rows import JobRow
from jobs.queue.store import sibling_engine

ROUND_S = 5.0
SCHEDULE_VERBS = ("add", "all", "show", "pause", "resume", "remove", "run_now")  # what clients may ask


class ScheduleThread:
    """Ticks every few seconds, in a thread of its own: a firing is planned by a small job, which takes seconds."""

    def __init__(self, store_url: str, jobs_address: str, jobs: Callable[[], list[JobRow]]):
        self._store = ScheduleStore(sibling_engine(store_url, "schedules"))
        self._address, self._jobs = jobs_address, jobs
        self.trouble = ""
        threading.Thread(target=self._loop, name="schedules", daemon=True).start()

    def add(self, name: str, template: Template, cron: str, timezone: str, rules: dict[str, str]) -> ScheduleFacts:
        return self._shown(self._store.add(name, template, cron, timezone, time.time(), **rules))

    def all(self) -> list[ScheduleFacts]:
        return [self._shown(stored) for stored in self._store.all()]

    def show(self, name: str) -> ScheduleFacts:
        """A schedule, with what became of its latest ticks."""
        return {**self._shown(self._store.show(name)), "history": self.history(name)}

    def pause(self, name: str) -> ScheduleFacts:
        return self._shown(self._store.pause(name))

    def resume(self, name: str) -> ScheduleFacts:
        return self._shown(self._store.resume(name, time.time()))

    def remove(self, name: str) -> ScheduleFacts:
        self._store.remove(name)
        return {"removed": name}

    def run_now(self, name: str) -> ScheduleFacts:
        return {"occurrence": self._store.run_now(name, time.time())}

    def history(self, name: str) -> list[FiringFacts]:
        """The latest ticks, each with its job where it has one."""
        jobs = {job.occurrence: job for job in self._jobs() if job.occurrence}
        rows = []
        for firing in self._store.history(name):
            job = jobs.get(firing.occurrence)
            found = {"job_id": job.job_id, "job_state": str(job.state)} if job else {"job_id": "", "job_state": ""}
            rows.append(cast(FiringFacts, {**asdict(firing), "state": str(firing.state), **found}))
        return rows

    def _shown(self, stored: StoredSchedule) -> ScheduleFacts:
        schedule = stored.schedule
        next_s = None if schedule.paused else find_next_tick_s(schedule, time.time())
        zone = ZoneInfo(schedule.timezone)
        tick = None if next_s is None else datetime.fromtimestamp(next_s, UTC).astimezone(zone).isoformat()
        facts = {name: str(value) for name, value in asdict(schedule).items()}
        plain = {"paused": schedule.paused, "spec": stored.template["spec"], "next": tick}
        return cast(ScheduleFacts, {**facts, **plain})

    def _loop(self) -> None:
        while True:
            try:
                self._store.tick(time.time(), self._fire, self._is_active)
                self.trouble = ""
            except Exception as error:  # the firing stays owed to the next round
                causes = getattr(error, "exceptions", [error])
                self.trouble = "; ".join(str(cause) for cause in causes)
            time.sleep(ROUND_S)

    def _fire(self, stored: StoredSchedule, occurrence: str) -> None:
        """Plans and submits, as `backbone submit` would; the job's id holds the occurrence, so twice is once."""
        question = {name: value for name, value in stored.template.items() if name != "code"}
        QueueClient(self._address).ask("submit", {**question, "occurrence": occurrence}, stored.template.get("code"))

    def _is_active(self, occurrence: str) -> bool:
        return any(job.occurrence == occurrence and not job.state.is_over for job in self._jobs())
