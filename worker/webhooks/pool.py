"""The pool of a worker of ``webhooks``: threads that claim deliveries and one event loop that sends them.

It takes the place of ``worker.pool.slots.ServicePool``. A delivery waits for the network and computes nothing, so an
event loop sends hundreds at the same time and no pool process is needed. Claims, leases and completion are those of any
job.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import uuid

from celery.worker import state

from worker.ledger import commands
from worker.ledger.sync_ledger import Ledger
from worker.ledger.worker_commands import Batch, CancelledRun
from worker.names import WEBHOOKS
from worker.pool.base import LeasedPool
from worker.pool.feeder import Feeder
from worker.service import Service
from worker.webhooks.outbox import OutboxMover
from worker.webhooks.sender import MAX_CLAIMED, Sender

log = logging.getLogger("services.worker")

#: Most deliveries of a claim.
CLAIM = 50
#: In effect unlimited: attempts are limited by time (``SERVICES_WEBHOOK_GIVE_UP_S``), not by number.
MAX_ATTEMPTS = 1_000_000


class WebhookPool(LeasedPool):
    """The pool of ``celery worker -Q webhooks``."""

    def on_start(self) -> None:
        """Start all threads. Nothing here waits for Redis."""
        self.prepare(lambda job_id: self.ledger.run(commands.cancel(WEBHOOKS, job_id)))
        self.sender = Sender(self.settings, self.ledger, self.reporter)
        self.loop = asyncio.new_event_loop()
        self.about = {WEBHOOKS: ("", {**Service.knobs(), "max_batch_size": CLAIM, "max_attempts": MAX_ATTEMPTS})}
        self.renewer.ready(self.about)
        self.feeder = Feeder(
            self.settings, f"webhooks-{uuid.uuid4().hex}", lambda: self.renewer.worker, self.about, lambda: None
        )
        self.feeding = threading.Thread(target=self._feed, name="feeder", daemon=True)
        self.sending = threading.Thread(target=self._run_loop, name="sender", daemon=True)
        mover = OutboxMover(Ledger(self.settings), self.stopping)
        for thread in (self.renewer, self.reporter, self.sending, mover):
            thread.start()

    def stop_claiming(self) -> None:
        """Claim no further delivery; safe in a signal handler."""
        if hasattr(self, "feeder"):
            self.stopping.set()
            self.feeder.stop()

    def on_stop(self) -> None:
        """A warm shutdown: let open requests end, then give back the other deliveries."""
        self.stop_claiming()
        if state.should_terminate:  # Celery comes here from the signal handler of a second Ctrl-C too
            self.loop.call_soon_threadsafe(self.sender.abandon)
        self.sending.join()
        self.renewer.leave()

    def on_terminate(self) -> None:
        """A cold shutdown: cancel open requests and give back all deliveries, which another worker then sends again."""
        self.stop_claiming()
        self.loop.call_soon_threadsafe(self.sender.abandon)
        self.on_stop()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._send_until_stopped())
        self.loop.close()

    async def _send_until_stopped(self) -> None:
        await self.sender.start()
        self.feeding.start()
        log.info("service ready name=%s", WEBHOOKS)
        await asyncio.to_thread(self.feeding.join)
        await self.sender.finish()

    def _feed(self) -> None:
        """Claim deliveries while the sender has fewer than ``MAX_CLAIMED``."""
        while not self.stopping.is_set():
            if self.sender.claimed >= MAX_CLAIMED:
                self.stopping.wait(0.05)
            elif batch := self.feeder.next_batch():
                self._hand_over(batch)

    def _hand_over(self, batch: Batch) -> None:
        """Wait until the sender has taken the batch, or the worker stops."""
        taken = asyncio.run_coroutine_threadsafe(self.sender.take(batch), self.loop)
        while not self.stopping.is_set():
            concurrent.futures.wait([taken], timeout=0.5)
            if taken.done():
                break
        if taken.done() and (error := taken.exception()):
            log.error("batch %s was not taken; it is sent when this worker ends", batch.token, exc_info=error)

    def on_cancel(self, runs: list[CancelledRun]) -> None:
        """Stop sending the cancelled deliveries."""
        self.loop.call_soon_threadsafe(self.sender.abandon, [run.job_id for run in runs])

    def on_lease_lost(self) -> None:
        """Stop sending all deliveries."""
        self.loop.call_soon_threadsafe(self.sender.abandon)
