"""The store in Redis or Valkey 5 or newer, for servers on several machines.

One primary, with or without replicas; not Redis Cluster. A step on a cluster is a transaction that
is run again if another process changed the cluster in the meantime (WATCH); heartbeats are a script
of their own and disturb none. Time is the primary's: all servers agree on it. Whatever Redis loses
when it fails (its own setting, `appendonly`), instances register anew; only keys are gone then.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from typing import Any

import orjson
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from stun_server.store import absence
from stun_server.store.base import (
    AUDIT_PER_CLUSTER,
    AuditEvent,
    ClusterKey,
    ClusterView,
    Founding,
    FoundingLimits,
    Lease,
    Listing,
    Renewal,
    StoreUnavailable,
    T,
    Totals,
    next_revision,
)
from stun_server.store.known import ClusterState, KnownLeases, leases_with_times
from stun_server.store.redis_scripts import FOUND, LIST, NOW, RENEW, RESUME

PREFIX = "comfy-cluster-registry:1:"
TIMEOUT = 3.0  # seconds of a connection, and of one command
MOST_TRIES = 200  # of a step that others were faster than
LONGEST_PAUSE = 0.02  # seconds before the next try
_LOCKS = 64

_OUTCOMES = (Renewal.MISSING, Renewal.REPLACED, Renewal.RENEWED)
_WATCHED = ("keys", "cluster", "leases")  # of a cluster, while a step lasts
_FOUNDINGS = (Founding.HELD, Founding.TOO_MANY, Founding.FULL, Founding.DONE)
_KEPT_APART = ("last_ping_at", "expires_at")  # what heartbeats change


class RedisStore:
    """`url` as redis-py has it. Connects by its first use; thread-safe, fork-safe."""

    def __init__(self, url: str, *, wall: Callable[[], float] = time.time) -> None:
        # Neither the password before "@" nor one in the query is for logs.
        self._where = url.partition("?")[0].partition("//")[2].rpartition("@")[2]
        self._wall = wall
        self._client: Any = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            health_check_interval=30,
            # Once, at once: for connections of before a restart of Redis. Not after a time-out,
            # since a Redis that hangs would hold each request for many times as long.
            retry=Retry(NoBackoff(), 1, (redis.ConnectionError,)),
        )
        self._known = KnownLeases()
        self._found = self._client.register_script(FOUND)
        self._list = self._client.register_script(LIST)
        self._now = self._client.register_script(NOW)
        self._renew = self._client.register_script(RENEW)
        self._resume = self._client.register_script(RESUME)
        # Threads of one process do not race each other for a cluster.
        self._locks = _new_locks()
        self._owner_pid = os.getpid()

    def now(self) -> float:
        with self._errors():
            return _seconds(self._client.time())

    def update(self, cluster_id: str, step: Callable[[ClusterView], T]) -> T:
        with self._errors(), self._alone_with(cluster_id):
            for _ in range(MOST_TRIES):
                now = self._now_after_absence()  # before what is judged by it is read
                with self._client.pipeline() as pipe:
                    try:
                        pipe.watch(*(_key(name, cluster_id) for name in _WATCHED))
                        view = _View(pipe, cluster_id, now, self._wall())
                        result = step(view)
                        pipe.multi()
                        view.flush()
                        pipe.execute()
                        return result
                    except redis.WatchError:
                        time.sleep(random.uniform(0, LONGEST_PAUSE))  # not in step with the others
        raise StoreUnavailable(
            f"STUN_STORE, Redis at {self._where}: cluster {cluster_id!r} is changed by others all "
            "the time"
        )

    def renew(
        self, cluster_id: str, instance_id: str, boot_id: str | None, *, ttl: float, wall: float
    ) -> Renewal:
        with self._errors():
            told = self._renew(
                keys=[_key(name, cluster_id) for name in ("leases", "expiry", "pings")],
                args=[PREFIX, instance_id, boot_id or "", ttl, wall],
            )
        renewed, outcome = divmod(int(told), len(_OUTCOMES))
        absence.tell(renewed)
        return _OUTCOMES[outcome]

    def listing(self, cluster_id: str) -> Listing:
        with self._errors():
            state, now, times, _ = self._read(cluster_id, with_leases=False)
            leases = self._known.with_times(cluster_id, state, times)
            if leases is None:
                state, now, times, texts = self._read(cluster_id, with_leases=True)
                noted = self._known.note(cluster_id, state, map(_lease, texts))
                leases = leases_with_times(noted, [each for each in times if each[0] in noted])
        return Listing(state.epoch, state.revision, now, leases)

    def _read(
        self, cluster_id: str, *, with_leases: bool
    ) -> tuple[ClusterState, float, list[tuple[str, float, float]], list[str]]:
        names = ("cluster", "leases", "expiry", "pings")
        text = self._list(
            keys=[*(_key(name, cluster_id) for name in names), _key("epoch")],
            args=[int(with_leases)],
        )
        epoch, revision, changed_at, seconds, micros, times, leases = orjson.loads(text)
        return (
            ClusterState(epoch or self._new_epoch(), int(revision), float(changed_at)),
            _seconds((seconds, micros)),
            [(each, float(ping_at), float(ends_at)) for each, ping_at, ends_at in times],
            list(leases),
        )

    def revisions(self, cluster_ids: Collection[str]) -> dict[str, int]:
        with self._errors():
            pipe = self._client.pipeline(transaction=False)
            for cluster_id in cluster_ids:
                pipe.hget(_key("cluster", cluster_id), "revision")
            found = pipe.execute()
        pairs = zip(cluster_ids, found, strict=True)
        return {cluster_id: int(revision or 0) for cluster_id, revision in pairs}

    def clusters_with_expired(self) -> list[str]:
        with self._errors():
            active = sorted(self._client.smembers(_key("active")))
            now = _seconds(self._client.time())
            pipe = self._client.pipeline(transaction=False)
            for cluster_id in active:
                pipe.zcount(_key("expiry", cluster_id), "-inf", now)
            counts = pipe.execute()
        return [cluster_id for cluster_id, count in zip(active, counts, strict=True) if count]

    def keys(self, cluster_id: str) -> tuple[ClusterKey, ...]:
        with self._errors():
            return _cluster_keys(self._client.hvals(_key("keys", cluster_id)))

    def clusters_with_key(self, key_hash: str) -> list[str]:
        with self._errors():
            return sorted(self._client.smembers(_key("clusters-with", key_hash)))

    def change_keys(
        self,
        cluster_id: str,
        change: Callable[[tuple[ClusterKey, ...]], tuple[ClusterKey, ...]],
        event: AuditEvent,
    ) -> tuple[ClusterKey, ...]:
        where = _key("keys", cluster_id)
        with self._errors(), self._alone_with(cluster_id):
            for _ in range(MOST_TRIES):
                with self._client.pipeline() as pipe:
                    try:
                        pipe.watch(where)
                        before = _cluster_keys(pipe.hvals(where))
                        wanted = change(before)
                        after = tuple(key for key in wanted if key.is_valid(self._wall()))
                        if wanted == before:
                            return after
                        pipe.multi()
                        _write_keys(pipe, cluster_id, before, after)
                        if after:
                            _record(pipe, event)
                        else:
                            _write_nothing_more(pipe, cluster_id)
                        pipe.execute()
                        return after
                    except redis.WatchError:
                        time.sleep(random.uniform(0, LONGEST_PAUSE))
        raise StoreUnavailable(f"STUN_STORE, Redis at {self._where}: keys change all the time")

    def found(
        self, cluster_id: str, key: ClusterKey, event: AuditEvent, limits: FoundingLimits
    ) -> Founding:
        counted = _count_key(limits.bucket, limits.window, key.created_at)
        with self._errors():
            told = self._found(
                keys=[counted, _key("clusters-with", key.key_hash)],
                args=[
                    *(PREFIX, cluster_id, limits.clusters, limits.tries, _kept(limits.window)),
                    *(key.key_hash, json.dumps(asdict(key)), json.dumps(asdict(event))),
                    AUDIT_PER_CLUSTER,
                ],
            )
        return _FOUNDINGS[int(told)]

    def forget_idle(self, *, before: float) -> list[str]:
        with self._errors():
            cluster_ids = sorted(self._client.smembers(_key("with-keys")))
            pipe = self._client.pipeline(transaction=False)
            for cluster_id in cluster_ids:
                _read_idleness(pipe, cluster_id)
            found = iter(pipe.execute())
            idle = [
                cluster_id
                for cluster_id, *told in zip(cluster_ids, found, found, found, strict=True)
                if _is_idle(*told, before=before)
            ]
            return [cluster_id for cluster_id in idle if self._forget(cluster_id, before)]

    def _forget(self, cluster_id: str, before: float) -> bool:
        """False: somebody has registered this moment."""
        with self._client.pipeline() as pipe:
            pipe.watch(*(_key(name, cluster_id) for name in _WATCHED))
            stored = pipe.hvals(_key("keys", cluster_id))
            changed_at = pipe.hget(_key("cluster", cluster_id), "changed_at")
            lease_count = pipe.hlen(_key("leases", cluster_id))
            if not _is_idle(stored, changed_at, lease_count, before=before):
                return False
            pipe.multi()
            _write_keys(pipe, cluster_id, _cluster_keys(stored), ())
            _write_nothing_more(pipe, cluster_id)
            try:
                pipe.execute()
            except redis.WatchError:
                return False
        return True

    def count(self, bucket: str, *, window: float, wall: float) -> int:
        where = _count_key(bucket, window, wall)
        with self._errors():
            pipe = self._client.pipeline()
            pipe.incr(where)
            pipe.expire(where, _kept(window))
            return int(pipe.execute()[0])

    def count_of(self, bucket: str, *, window: float, wall: float) -> int:
        with self._errors():
            return int(self._client.get(_count_key(bucket, window, wall)) or 0)

    def audit(self, cluster_id: str, *, limit: int) -> list[AuditEvent]:
        with self._errors():
            entries = self._client.xrevrange(_key("audit", cluster_id), count=limit)
        return [AuditEvent(**json.loads(fields["event"])) for _, fields in entries]

    def prune_audit(self, *, before: float) -> None:
        with self._errors():
            pipe = self._client.pipeline(transaction=False)
            for cluster_id in self._client.smembers(_key("audited")):
                pipe.xtrim(_key("audit", cluster_id), minid=int(before * 1000))
            pipe.execute()

    def resume(self, *, ttl: float, silence: float) -> int:
        with self._errors():
            return int(self._resume(args=[PREFIX, ttl, silence]))

    def totals(self) -> Totals:
        with self._errors():
            active = self._client.smembers(_key("active"))
            now = _seconds(self._client.time())
            pipe = self._client.pipeline(transaction=False)
            pipe.scard(_key("with-keys"))
            for cluster_id in active:
                pipe.zcount(_key("expiry", cluster_id), f"({now}", "+inf")
            clusters, *leases = pipe.execute()
        return Totals(clusters=clusters, leases=sum(leases))

    def close(self) -> None:
        self._client.close()

    def _now_after_absence(self) -> float:
        """Redis' time, by which leases may be judged."""
        seconds, micros, renewed = self._now(args=[PREFIX])
        absence.tell(renewed)
        return _seconds((seconds, micros))

    def _new_epoch(self) -> str:
        self._client.set(_key("epoch"), secrets.token_hex(4), nx=True)
        return str(self._client.get(_key("epoch")))

    @contextlib.contextmanager
    def _alone_with(self, cluster_id: str) -> Iterator[None]:
        """No other thread of this process changes the cluster meanwhile."""
        if self._owner_pid != os.getpid():  # those that were held when it forked stay so
            self._locks, self._owner_pid = _new_locks(), os.getpid()
        lock = self._locks[hash(cluster_id) % _LOCKS]
        if not lock.acquire(timeout=TIMEOUT):
            raise redis.TimeoutError("those before this one got no answer")
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise StoreUnavailable(
                f"STUN_STORE, Redis at {self._where}: {error}. Is it running, and does it take "
                "this password?"
            ) from error


class _View:
    """A ClusterView: reads at once, and writes when the step is over."""

    def __init__(self, pipe: Any, cluster_id: str, now: float, wall: float) -> None:
        self._pipe = pipe
        self._cluster_id = cluster_id
        self._wall = wall
        self.now = now
        stored = pipe.hgetall(_key("cluster", cluster_id))
        # A cluster that was forgotten starts above all that it ever had.
        self.revision = int(stored.get("revision", wall))
        self._generation = int(stored.get("generation", wall))
        self._leases = _leases(
            pipe.hgetall(_key("leases", cluster_id)),
            pipe.zrange(_key("expiry", cluster_id), 0, -1, withscores=True),
            pipe.hgetall(_key("pings", cluster_id)),
        )
        self._written: dict[str, Lease | None] = {}
        self._events: list[AuditEvent] = []
        self._is_changed = False

    def keys(self) -> tuple[ClusterKey, ...]:
        return _cluster_keys(self._pipe.hvals(_key("keys", self._cluster_id)))

    def leases(self) -> dict[str, Lease]:
        found = {**self._leases, **self._written}
        return {name: lease for name, lease in found.items() if lease is not None}

    def put(self, lease: Lease) -> None:
        self._written[lease.instance_id] = lease

    def delete(self, instance_id: str) -> None:
        self._written[instance_id] = None

    def bump(self) -> None:
        self.revision = next_revision(self.revision, self._wall)
        self._is_changed = True

    def next_generation(self) -> int:
        self._generation += 1
        self._is_changed = True
        return self._generation

    def record(self, event: AuditEvent) -> None:
        self._events.append(event)

    def flush(self) -> None:
        pipe, cluster_id = self._pipe, self._cluster_id
        for instance_id, lease in self._written.items():
            _write_lease(pipe, cluster_id, instance_id, lease)
        if self.leases():
            pipe.sadd(_key("active"), cluster_id)
        else:
            pipe.srem(_key("active"), cluster_id)
        if self._is_changed:
            pipe.hset(
                _key("cluster", cluster_id),
                mapping={
                    "revision": self.revision,
                    "generation": self._generation,
                    "changed_at": self._wall,
                },
            )
        for event in self._events:
            _record(pipe, event)


def _new_locks() -> list[threading.Lock]:
    return [threading.Lock() for _ in range(_LOCKS)]


def _key(name: str, subject: str = "") -> str:
    return f"{PREFIX}{name}:{subject}" if subject else PREFIX + name


def _count_key(bucket: str, window: float, wall: float) -> str:
    return _key("count", f"{bucket}:{wall // window * window:.0f}")


def _kept(window: float) -> int:
    """Seconds that a count is kept; processes' clocks may differ."""
    return int(2 * window) + 1


def _seconds(told: tuple[int, int]) -> float:
    return int(told[0]) + int(told[1]) / 1_000_000


def _leases(
    stored: dict[str, str], expiry: list[tuple[str, float]], pings: dict[str, str]
) -> dict[str, Lease]:
    ends = dict(expiry)
    return {
        instance_id: _lease(text)._replace(
            last_ping_at=float(pings.get(instance_id, 0.0)), expires_at=ends.get(instance_id, 0.0)
        )
        for instance_id, text in stored.items()
    }


def _lease(text: str) -> Lease:
    """But for its times, which are kept apart."""
    fields = orjson.loads(text)
    fields["candidates"] = tuple(fields["candidates"])
    fields["replaced"] = tuple(fields["replaced"])
    return Lease(**fields, last_ping_at=0.0, expires_at=0.0)


def _write_lease(pipe: Any, cluster_id: str, instance_id: str, lease: Lease | None) -> None:
    leases, expiry, pings = (_key(name, cluster_id) for name in ("leases", "expiry", "pings"))
    if lease is None:
        pipe.hdel(leases, instance_id)
        pipe.zrem(expiry, instance_id)
        pipe.hdel(pings, instance_id)
        return
    fields = lease._asdict()
    for name in _KEPT_APART:
        del fields[name]
    pipe.hset(leases, instance_id, json.dumps(fields))
    pipe.zadd(expiry, {instance_id: lease.expires_at})
    pipe.hset(pings, instance_id, repr(lease.last_ping_at))


def _cluster_keys(stored: list[str]) -> tuple[ClusterKey, ...]:
    keys = [ClusterKey(**json.loads(text)) for text in stored]
    return tuple(sorted(keys, key=lambda key: (-key.created_at, key.key_hash)))


def _read_idleness(pipe: Any, cluster_id: str) -> None:
    pipe.hvals(_key("keys", cluster_id))
    pipe.hget(_key("cluster", cluster_id), "changed_at")
    pipe.hlen(_key("leases", cluster_id))


def _is_idle(stored: list[str], changed_at: str | None, lease_count: int, *, before: float) -> bool:
    keys = _cluster_keys(stored)
    if lease_count or any(key.is_operators and key.expires_at is None for key in keys):
        return False
    changes = [max(key.created_at, key.expires_at or 0.0) for key in keys]
    return max([float(changed_at or 0), *changes]) < before


def _write_keys(
    pipe: Any, cluster_id: str, before: tuple[ClusterKey, ...], after: tuple[ClusterKey, ...]
) -> None:
    where = _key("keys", cluster_id)
    pipe.delete(where)
    for key in before:
        pipe.srem(_key("clusters-with", key.key_hash), cluster_id)
    for key in after:
        pipe.hset(where, key.key_hash, json.dumps(asdict(key)))
        pipe.sadd(_key("clusters-with", key.key_hash), cluster_id)
    if after:
        pipe.sadd(_key("with-keys"), cluster_id)
    else:
        pipe.srem(_key("with-keys"), cluster_id)


def _write_nothing_more(pipe: Any, cluster_id: str) -> None:
    names = ("cluster", "leases", "expiry", "pings", "audit")
    pipe.delete(*(_key(name, cluster_id) for name in names))
    for members in ("active", "audited"):
        pipe.srem(_key(members), cluster_id)


def _record(pipe: Any, event: AuditEvent) -> None:
    where = _key("audit", event.cluster_id)
    text = json.dumps(asdict(event))
    pipe.sadd(_key("audited"), event.cluster_id)
    pipe.xadd(where, {"event": text}, maxlen=AUDIT_PER_CLUSTER, approximate=True)
