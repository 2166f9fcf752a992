"""A follower's side of orders: validates them, queues them, and tells the leader what came of them.

How it works. An order becomes a prompt in ComfyUI's queue, before all others, and a run that its
nodes find by the prompt's id. When the prompt is over, its outcome goes to the leader. A cancelled
order is taken out of the queue, or interrupted; nothing else of this instance is touched. When the
leader is lost, all that it ordered is cancelled.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from comfy_cluster.cluster import Cluster
from comfy_cluster.config import LEADER
from comfy_cluster.errors import ClusterError, RemoteProtocolError
from comfy_cluster.errors import PeerLost as PeerLostError
from comfy_cluster.protocol.events import PeerLost
from comfy_cluster.transport.handle import Handle
from comfy_cluster.wire import LARGEST_MESSAGE_PAYLOAD, MessageType
from comfy_cluster.work.host import Host, Phase, PromptState
from comfy_cluster.work.orders import (
    Cancel,
    Failure,
    Order,
    OrderKind,
    Progress,
    Result,
    Trouble,
    WorkState,
    job_id_in,
)
from comfy_cluster.work.run import Run

logger = logging.getLogger("comfy_cluster.work")

_REMEMBERED = 1_000  # jobs whose order or cancel may still come, perhaps once more

MakeRun = Callable[[Order], Run]


@dataclass
class _Work:
    """One order that is under way here."""

    order: Order
    run: Run
    job: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


class Following:
    """Orders of the leader that are under way here. Thread-safe; no method blocks."""

    def __init__(
        self,
        cluster: Cluster,
        host: Host,
        *,
        make_run: MakeRun,
        add_run: Callable[[str, Run], None],
        remove_run: Callable[[str], None],
    ) -> None:
        """`add_run(prompt_id, run)` makes a run known to the prompt's nodes."""
        self._cluster = cluster
        self._host = host
        self._make_run = make_run
        self._add_run = add_run
        self._remove_run = remove_run
        self._works: dict[str, _Work] = {}
        self._taken: OrderedDict[str, None] = OrderedDict()
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()  # guards the three above
        cluster.add_message_listener(MessageType.DISTRIBUTE_PROMPT, self._on_order)
        cluster.add_message_listener(MessageType.EXECUTE_WORKFLOW, self._on_order)
        cluster.add_message_listener(MessageType.EXECUTION_CANCEL, self._on_cancel)
        cluster.add_peer_listener(self._on_peer_event)

    # On the control thread.

    def _on_order(self, peer: int, payload: bytes) -> None:
        try:
            order = Order.parse(payload)
            if peer != LEADER:
                raise RemoteProtocolError(f"instance {peer} is not the leader")
        except RemoteProtocolError as error:
            logger.warning("! an order of instance %d was dropped: %s", peer, error)
            job_id = job_id_in(payload)
            if peer == LEADER and job_id:
                message = f"does not understand the order: {error}. Is it of the same version?"
                self._tell(Trouble(job_id, Failure.REFUSED.value, message))
            return
        if order.kind == OrderKind.CHECK.value:
            checked = self._host.check(order.prompt, order.prompt_id)
            checked.add_done_callback(lambda done: self._on_checked(order, done))
            return
        work = _Work(order, self._make_run(order))
        with self._lock:
            if order.job_id in self._cancelled or order.job_id in self._taken:
                return
            _remember(self._taken, order.job_id)
            self._works[order.job_id] = work
        self._cluster.declare_ready()
        try:
            work.job.enter_context(self._cluster.job(order.job_id))
        except ClusterError as error:
            self._end(work)
            self._tell(Trouble(order.job_id, Failure.LOST.value, str(error)))
            return
        logger.info("< %d job %s: %d nodes", peer, order.job_id, len(order.prompt))
        self._add_run(order.prompt_id, work.run)
        submitted = self._host.submit(order.prompt, order.prompt_id, extra_data=order.extra_data)
        submitted.add_done_callback(lambda done: self._on_submitted(work, done))

    def _on_cancel(self, peer: int, payload: bytes) -> None:
        try:
            cancel = Cancel.parse(payload)
        except RemoteProtocolError as error:
            logger.debug("< %d message dropped: %s", peer, error)
            return
        if peer == LEADER:
            self._cancel(cancel.job_id, cancel.reason or "the leader cancelled it")

    def _on_peer_event(self, event: object) -> None:
        if isinstance(event, PeerLost) and event.peer == LEADER:
            for job_id in list(self._works):
                self._cancel(job_id, f"the leader was lost: {event.reason}")

    def _cancel(self, job_id: str, reason: str) -> None:
        with self._lock:
            _remember(self._cancelled, job_id)
            work = self._works.get(job_id)
        if work is not None:
            logger.info("= job %s ends: %s", job_id, reason)
            self._host.cancel(work.order.prompt_id)

    # On ComfyUI's threads.

    def _on_checked(self, order: Order, checked: Handle[None]) -> None:
        error = checked.exception()
        self._tell(Result(order.job_id) if error is None else _refusal(order, error))

    def _on_submitted(self, work: _Work, submitted: Handle[None]) -> None:
        order = work.order
        error = submitted.exception()
        if error is not None:
            self._end(work)
            self._tell(_refusal(order, error))
            return
        self._tell(Progress(order.job_id, WorkState.QUEUED.value))
        self._host.watch(
            order.prompt_id,
            on_progress=lambda fraction: self._tell(
                Progress(order.job_id, WorkState.RUNNING.value, fraction), require_ack=False
            ),
            on_over=lambda state: self._on_over(work, state),
        )
        if order.job_id in self._cancelled:  # it came while the prompt was validated
            self._host.cancel(order.prompt_id)

    def _on_over(self, work: _Work, state: PromptState) -> None:
        self._end(work)
        job_id = work.order.job_id
        if job_id in self._cancelled:
            return
        if state.phase is Phase.SUCCEEDED:
            self._tell_result(job_id, state)
            return
        failure = _failure_of(state)
        message = state.message or "it is no longer in the queue"
        self._tell(Trouble(job_id, failure.value, message, state.failed_node))

    def _tell_result(self, job_id: str, state: PromptState) -> None:
        result = Result(job_id, state.outputs)
        try:
            size = len(result.pack())
            if size > LARGEST_MESSAGE_PAYLOAD:
                raise ValueError(
                    f"it has {size >> 20} MiB, at most {LARGEST_MESSAGE_PAYLOAD >> 20} can go"
                )
        except Exception as error:  # outputs are what nodes of others left in the history
            logger.exception("! the outputs of job %s cannot be told", job_id)
            told = f"left something in the history that cannot be sent: {error!r}"
            result = Result(job_id, {each: {"error": told} for each in state.outputs})
        self._tell(result)

    def _end(self, work: _Work) -> None:
        with self._lock:
            self._works.pop(work.order.job_id, None)
        work.run.close("the prompt is over")
        self._remove_run(work.order.prompt_id)
        work.job.close()

    def _tell(self, message: Progress | Result | Trouble, *, require_ack: bool = True) -> None:
        # Who is lost meanwhile needs no answer, and a closed cluster has nobody to give one to.
        with contextlib.suppress(ClusterError):
            self._cluster.send_message(
                LEADER, type(message).message_type, message.pack(), require_ack=require_ack
            )


def _failure_of(state: PromptState) -> Failure:
    if state.phase is not Phase.FAILED:
        return Failure.INTERRUPTED
    return Failure.LOST if state.error_type == _full_name(PeerLostError) else Failure.FAILED


def _full_name(error_type: type[BaseException]) -> str:
    """As ComfyUI's history names the type of what a node raised (`execution.full_type_name`)."""
    return f"{error_type.__module__}.{error_type.__qualname__}"


def _remember(jobs: OrderedDict[str, None], job_id: str) -> None:
    jobs[job_id] = None
    if len(jobs) > _REMEMBERED:
        jobs.popitem(last=False)


def _refusal(order: Order, error: BaseException) -> Trouble:
    return Trouble(order.job_id, Failure.REFUSED.value, str(error) or repr(error))
