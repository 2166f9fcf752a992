"""The leader's side of orders: gives them to followers, and hears what becomes of them.

Knows no workflow: `region_run.py` and `workflow_run.py` make the orders and use the outcome.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from comfy_cluster.cluster import Cluster
from comfy_cluster.errors import (
    ClusterError,
    PeerLost,
    RemoteProtocolError,
    TransferCancelled,
    TransferError,
    WorkflowError,
)
from comfy_cluster.protocol.events import PeerLost as PeerLostEvent
from comfy_cluster.transport.handle import Handle
from comfy_cluster.wire import MessageType
from comfy_cluster.work.orders import (
    Cancel,
    Failure,
    Order,
    OrderKind,
    Progress,
    Result,
    Trouble,
    job_id_in,
)

logger = logging.getLogger("comfy_cluster.work")


class Assignment:
    """One order at one follower, as the leader sees it. Thread-safe."""

    def __init__(self, instance: int, order: Order) -> None:
        self.instance = instance
        self.order = order
        self.fraction = 0.0
        """How much of it is done, 0.0 to 1.0."""
        self.is_over_there = False
        """Whether the follower has ended it, or is lost, or was told to end it."""
        name = f"job {order.job_id} on instance {instance}"
        self.accepted: Handle[None] = Handle(f"{name}, to be queued")
        """Done when it was validated and queued there."""
        self.finished: Handle[Mapping[str, Any]] = Handle(name)
        """Done with the outputs of its output nodes. Fails with WorkflowError, PeerLost, or what
        has ended this instance."""

    def fail(self, error: BaseException) -> None:
        """Nothing more comes of it."""
        self.accepted.set_exception(error)
        self.finished.set_exception(error)

    def finish(self, outputs: Mapping[str, Any]) -> None:
        self.fraction = 1.0
        self.accepted.set_result(None)
        self.finished.set_result(outputs)


class Leading:
    """Orders that are under way. Thread-safe; no method blocks."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._assignments: dict[tuple[str, int], Assignment] = {}
        self._lock = threading.Lock()  # guards the assignments
        cluster.add_message_listener(MessageType.EXECUTION_PROGRESS, self._on_progress)
        cluster.add_message_listener(MessageType.EXECUTION_RESULT, self._on_result)
        cluster.add_message_listener(MessageType.EXECUTION_ERROR, self._on_trouble)
        cluster.add_peer_listener(self._on_peer_event)
        cluster.ended.add_done_callback(self._on_ended)

    def give(self, instance: int, order: Order) -> Assignment:
        """Sends an order; its outcome is told by what is returned."""
        assignment = Assignment(instance, order)
        with self._lock:
            self._assignments[order.job_id, instance] = assignment
        assignment.finished.add_done_callback(lambda _: self._forget(assignment))
        if self._cluster.ended.done():  # after it is among those that are failed when that happens
            self._on_ended(self._cluster.ended)
            return assignment
        kind = (
            MessageType.DISTRIBUTE_PROMPT
            if order.kind == OrderKind.REGION.value
            else MessageType.EXECUTE_WORKFLOW
        )
        sent = self._cluster.send_message(instance, kind, order.pack())
        sent.add_done_callback(lambda done: _fail_unless_sent(assignment, done))
        logger.debug("> %d order for job %s, %d nodes", instance, order.job_id, len(order.prompt))
        return assignment

    def cancel(self, assignment: Assignment, reason: str) -> None:
        """Tells the follower to stop; what is waited for fails with TransferCancelled.

        An order that has failed here only, because something could not be sent, is still under way
        there.
        """
        if assignment.is_over_there:
            return
        assignment.is_over_there = True
        assignment.fail(TransferCancelled(f"{assignment.finished.description}: {reason}"))
        payload = Cancel(assignment.order.job_id, reason[:200]).pack()
        self._cluster.send_message(assignment.instance, MessageType.EXECUTION_CANCEL, payload)

    def _forget(self, assignment: Assignment) -> None:
        with self._lock:
            self._assignments.pop((assignment.order.job_id, assignment.instance), None)

    def _on_ended(self, ended: Handle[None]) -> None:
        """This instance has left the cluster: no news will come, not even of a lost peer."""
        error = ended.exception()
        with self._lock:
            left = list(self._assignments.values())
        for assignment in left:
            assignment.is_over_there = True  # or soon: the follower loses this instance
            text = f"{assignment.finished.description}: {error}"
            is_closed = isinstance(error, TransferCancelled)
            assignment.fail(TransferCancelled(text) if is_closed else TransferError(text))

    # On the control thread.

    def _parsed(self, parse: Callable[[bytes], Any], peer: int, payload: bytes) -> Any:
        """None: it makes no sense, and the work that it is about fails, if that can be told."""
        try:
            return parse(payload)
        except RemoteProtocolError as error:
            logger.debug("< %d message dropped: %s", peer, error)
            assignment = self._assignments.get((job_id_in(payload), peer))
            if assignment is not None:
                assignment.fail(WorkflowError(f"instance {peer}: {error}"))
            return None

    def _on_progress(self, peer: int, payload: bytes) -> None:
        if (progress := self._parsed(Progress.parse, peer, payload)) is None:
            return
        if (assignment := self._assignments.get((progress.job_id, peer))) is not None:
            assignment.fraction = max(assignment.fraction, progress.fraction)
            assignment.accepted.set_result(None)

    def _on_result(self, peer: int, payload: bytes) -> None:
        if (result := self._parsed(Result.parse, peer, payload)) is None:
            return
        if (assignment := self._assignments.get((result.job_id, peer))) is not None:
            assignment.is_over_there = True
            assignment.finish(result.outputs)

    def _on_trouble(self, peer: int, payload: bytes) -> None:
        if (trouble := self._parsed(Trouble.parse, peer, payload)) is None:
            return
        if (assignment := self._assignments.get((trouble.job_id, peer))) is not None:
            logger.info("< %d job %s: %s", peer, trouble.job_id, trouble.message)
            assignment.is_over_there = True
            if trouble.failure == Failure.LOST.value:
                assignment.fail(PeerLost(f"instance {peer}: {trouble.message}", peer=peer))
            else:
                assignment.fail(WorkflowError(_trouble_text(peer, trouble)))

    def _on_peer_event(self, event: object) -> None:
        if not isinstance(event, PeerLostEvent):
            return
        with self._lock:
            lost = [each for (_, peer), each in self._assignments.items() if peer == event.peer]
        for assignment in lost:
            assignment.is_over_there = True
            text = f"instance {event.peer} was lost: {event.reason}"
            assignment.fail(PeerLost(f"{assignment.finished.description}: {text}", peer=event.peer))


def _fail_unless_sent(assignment: Assignment, sent: Handle[None]) -> None:
    error = sent.exception()
    if error is not None:
        assignment.fail(error if isinstance(error, ClusterError) else WorkflowError(str(error)))


def _trouble_text(peer: int, trouble: Trouble) -> str:
    if trouble.failure == Failure.REFUSED.value:
        return f"instance {peer} {trouble.message}"
    where = f", {trouble.node}" if trouble.node else ""
    if trouble.failure == Failure.INTERRUPTED.value:
        return f"instance {peer}{where}: the work was interrupted there"
    return f"instance {peer}{where}: {trouble.message}"


def unless_lost(error: BaseException) -> Handle[None]:
    """For `Handle.recover`: a lost instance is no failure, others do its share."""
    return Handle.completed(None) if isinstance(error, PeerLost) else Handle.failed(error)
