from __future__ import annotations

from comfy_cluster.protocol.recent import RecentSet


def test_the_oldest_is_forgotten_first_and_adding_again_renews() -> None:
    recent: RecentSet[str] = RecentSet(limit=2)
    recent.add("a")
    recent.add("b")
    recent.add("a")
    recent.add("c")
    assert "b" not in recent
    assert "a" in recent and "c" in recent
    recent.discard("a")
    recent.discard("never there")
    assert len(recent) == 1
