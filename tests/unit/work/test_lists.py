"""Lists: fanned out, born in a region, taken together in it, gathered."""

from __future__ import annotations

import pytest
import torch

from tests.unit.work.instances import Instances, same, single_run
from tests.unit.work.prompts import prompt_of
from tests.unit.work.whole import failure_on_all, run_on_all

FANNED_OUT = """
    1 Photographs count={first}
    2 Photographs count={second} seed=2 size=5
    3 ListOf first=1.0 second=2.0
    4 ClusterFanOutImage images=3.0
    5 Blur images=4.0
    6 ClusterFanInImages images=5.0
    7 Save images=6.0
"""
FANNED_OUT_AND_ENCODED = """
    1 Photographs count=3
    2 Photographs count=7 seed=2
    3 ListOf first=1.0 second=2.0
    4 ClusterFanOutImage images=3.0
    5 Encode images=4.0
    6 Sample latent=5.0
    7 ClusterFanInLatents latent=6.0
    8 Save images=7.0
"""
BORN = """
    1 Photographs count={count}
    2 ClusterFanOutImage images=1.0
    3 ClusterSplitBatchToList batch=2.0 items_per_element=1
    4 Blur images=3.0
    5 ClusterFanInImages images=4.0
    6 Save images=5.0
"""
BORN_AND_JOINED = """
    1 Photographs count=7
    2 ClusterFanOutImage images=1.0
    3 ClusterSplitBatchToList batch=2.0 items_per_element=2
    4 Blur images=3.0
    5 JoinedList images=4.0
    6 ClusterFanInImages images=5.0
    7 Save images=6.0
"""
BORN_IN_A_LIST = """
    1 Photographs count=3
    2 Photographs count=4 seed=2
    3 ListOf first=1.0 second=2.0
    4 ClusterFanOutImage images=3.0
    5 ClusterSplitBatchToList batch=4.0 items_per_element=1
    6 ClusterFanInImages images=5.0
    7 Save images=6.0
"""
ENCODED_IN_PARTS = """
    1 Photographs count=8
    2 ClusterFanOutImage images=1.0
    3 ClusterSplitBatchToList batch=2.0 items_per_element={parts}
    4 Encode images=3.0
    5 Sample latent=4.0
    6 Decode latent=5.0
    7 ClusterFanInImages images=6.0
    8 Save images=7.0
"""
FROM_UPSTREAM = """
    1 Photographs count=5
    2 Photographs count=1 seed=2
    3 Photographs count=1 seed=3
    4 ListOf first=2.0 second=3.0
    5 ClusterFanOutImage images=1.0
    6 Compose images=5.0 masks=4.0
    7 Encode images=6.0
    8 Sample latent=7.0
    9 Decode latent=8.0
    10 ClusterFanInImages images=9.0
    11 Save images=10.0
"""
BORN_BESIDE_UPSTREAM = """
    1 Photographs count=4
    2 Photographs count=1 seed=2
    3 Photographs count=1 seed=3
    4 ListOf first=2.0 second=3.0
    5 ClusterFanOutImage images=1.0
    6 Compose images=5.0 masks=4.0
    7 ClusterSplitBatchToList batch=6.0 items_per_element=1
    8 ClusterFanInImages images=7.0
    9 Save images=8.0
"""
FANNED_OUT_BESIDE_UPSTREAM = """
    1 Photographs count={count}
    2 Photographs count={count} seed=2
    3 ListOf first=1.0 second=2.0
    4 Photographs count=1 seed=5
    5 Photographs count=1 seed=6
    6 ListOf first=4.0 second=5.0
    7 ClusterFanOutImage images=3.0
    8 Compose images=7.0 masks=6.0
    9 ClusterFanInImages images=8.0
    10 Save images=9.0
"""
WITH_ONE_FOR_ALL = """
    1 Photographs count=6
    2 Photographs count=6 seed=2
    3 ListOf first=1.0 second=2.0
    4 Photographs count=1 seed=3
    5 Masks images=4.0
    6 ClusterFanOutImage images=3.0
    7 ClusterFanOutMask masks=5.0
    8 Compose images=6.0 masks=7.0
    9 ClusterFanInImages images=8.0
    10 Save images=9.0
"""
BROADCAST = """
    1 Photographs count=2
    2 Photographs count=3 seed=2 size=5
    3 ListOf first=1.0 second=2.0
    4 ClusterBroadcastTensor tensor=3.0
    6 Save images=4.0
"""
BROADCAST_INTO_REGION = """
    1 Photographs count=2
    2 Photographs count=3 seed=2
    3 ListOf first=1.0 second=2.0
    4 ClusterBroadcastTensor tensor=3.0
    5 JoinedList images=4.0
    6 First images=5.0
    7 Photographs count=6 seed=4
    8 ClusterFanOutImage images=7.0
    9 Compose images=8.0 masks=6.0
    10 ClusterFanInImages images=9.0
    11 Save images=10.0
"""
GATHERED = """
    1 Photographs count=7
    2 ClusterFanOutImage images=1.0
    3 Blur images=2.0
    4 ClusterGatherImages images=3.0
    5 Save images=4.0
"""


@pytest.mark.parametrize("instances", [2, 3, 4])
@pytest.mark.parametrize(("first", "second"), [(5, 8), (1, 6), (2, 1), (1, 1)])
def test_a_list_of_batches_is_fanned_out_batch_by_batch(
    instances: int, first: int, second: int
) -> None:
    prompt = prompt_of(FANNED_OUT.format(first=first, second=second))
    with Instances(instances) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


def test_places_in_a_list_of_batches() -> None:
    prompt = prompt_of(FANNED_OUT_AND_ENCODED)
    with Instances(4) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("instances", [2, 4])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_lists_that_are_born_in_the_region_are_strung_together(instances: int, count: int) -> None:
    prompt = prompt_of(BORN.format(count=count))
    with Instances(instances) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


def test_lists_that_end_in_the_region() -> None:
    prompt = prompt_of(BORN_AND_JOINED)
    with Instances(3) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize(("parts", "instances"), [(1, 2), (1, 8), (2, 4), (4, 2)])
def test_elements_of_a_list_have_no_places_in_the_batch(parts: int, instances: int) -> None:
    prompt = prompt_of(ENCODED_IN_PARTS.format(parts=parts))
    with Instances(instances) as joined:
        assert same(joined.run(prompt), single_run(prompt))


@pytest.mark.parametrize("instances", [2, 3])
@pytest.mark.parametrize("is_whole", [False, True])
def test_a_batch_that_is_worked_on_once_for_each_of_a_list(instances: int, is_whole: bool) -> None:
    prompt = prompt_of(FROM_UPSTREAM)
    with Instances(instances) as joined:
        results = run_on_all(joined, prompt)[0] if is_whole else joined.run(prompt)
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("is_whole", [False, True])
def test_lists_of_each_of_a_list_come_in_another_order_and_it_says_so(is_whole: bool) -> None:
    prompt = prompt_of(BORN_BESIDE_UPSTREAM)
    with Instances(2) as joined:
        results = run_on_all(joined, prompt)[0] if is_whole else joined.run(prompt)
        assert "their order may be another one" in joined.leader.shown[-1].text
    expected = single_run(prompt)["9"]
    assert sorted(each.sum().item() for each in results["9"]) == pytest.approx(
        sorted(each.sum().item() for each in expected)
    )


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_list_that_is_cut_beside_another_one_is_refused(is_whole: bool) -> None:
    prompt = prompt_of(FANNED_OUT_BESIDE_UPSTREAM.format(count=1))
    with Instances(2) as joined:
        state = failure_on_all(joined, prompt) if is_whole else joined.failure(prompt)
    assert "node 8 (Compose) reads another list" in state.message


def test_batches_of_which_all_get_some_go_with_another_list() -> None:
    prompt = prompt_of(FANNED_OUT_BESIDE_UPSTREAM.format(count=3))
    with Instances(2) as joined:
        assert same(joined.run(prompt), single_run(prompt))


def test_lists_in_lists_have_no_order() -> None:
    with Instances(2) as joined:
        state = joined.failure(prompt_of(BORN_IN_A_LIST))
    assert "their order cannot be told" in state.message


@pytest.mark.parametrize("seed", range(3))
def test_a_list_beside_one_item_for_all(seed: int) -> None:
    prompt = prompt_of(WITH_ONE_FOR_ALL)
    with Instances(3, seed=seed) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))


def test_a_gather_is_a_list_with_an_element_for_each_instance() -> None:
    prompt = prompt_of(GATHERED)
    with Instances(3) as joined:
        results = joined.run(prompt)
    assert [len(each) for each in results["5"]] == [3, 2, 2]
    assert same([torch.cat(results["5"])], single_run(prompt)["5"])


def test_a_list_of_single_pictures_is_worked_on_by_all() -> None:
    prompt = prompt_of(FANNED_OUT.format(first=1, second=1))
    with Instances(2) as joined:
        results = joined.run(prompt)
        assert [dict(host.last.computed)["Blur"] for host in joined.hosts] == [1, 1]
    assert same(results, single_run(prompt))


@pytest.mark.parametrize("is_heard", [False, True])
def test_a_list_is_broadcast_whole(is_heard: bool) -> None:
    prompt = prompt_of(BROADCAST)
    if is_heard:
        prompt["5"] = {"class_type": "ClusterListenTensorBroadcast", "inputs": {}}
        prompt["6"]["inputs"]["images"] = ["5", 0]
    with Instances(3) as joined:
        results = run_on_all(joined, prompt)
    assert same(results, [single_run(prompt)] * 3)


def test_a_list_that_is_broadcast_into_a_region() -> None:
    prompt = prompt_of(BROADCAST_INTO_REGION)
    with Instances(3) as joined:
        results = joined.run(prompt)
    assert same(results, single_run(prompt))
