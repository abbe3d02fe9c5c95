"""Dynamic batching over either runner."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeRunner, Server, seed_model
from PIL import Image

import swsl
from swsl import EagerRunner, ImageError
from swsl.deploy.batching import DynamicBatcher
from swsl.deploy.feeding import MAX_WAIT
from swsl.prediction import Result


class Recorder:
    """A runner whose result is the source itself, and that keeps what it was asked for. It goes on when it may."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.taken: list[Any] = []

    def stream(self, sources: Iterator[Any], **options: Any) -> Iterator[Result]:
        self.options = options
        return self._results(sources)

    def _results(self, sources: Iterator[Any]) -> Iterator[Result]:
        for source in sources:
            self.taken.append(source)
            assert self.may_go_on.wait(60)
            if source == "fail":
                raise RuntimeError("no more memory")
            yield Result(source, [])


def test_every_thread_gets_its_own_image(make_runner: MakeRunner) -> None:
    images = [
        np.random.default_rng(number).integers(256, size=(70, 80, 3), dtype=np.uint8) for number in range(12)
    ]
    runner = make_runner(16)
    expected = runner.embed(images)
    with DynamicBatcher(runner, max_batch=4, outputs="embedding") as batcher, ThreadPoolExecutor(6) as pool:

        def ask(number: int) -> Any:
            if number % 3:
                return batcher.submit(images[number]).result(60).embedding
            with pytest.raises(ImageError, match=f"no {number}"):
                batcher.submit(f"no {number}").result(60)
            return expected[number]

        torch.testing.assert_close(torch.stack(list(pool.map(ask, range(12)))), expected)


def test_each_image_tells_what_it_took(make_runner: MakeRunner, photo: Path) -> None:
    with DynamicBatcher(make_runner(16), max_batch=2, max_wait=60) as batcher:
        found = [future.result(60).spent for future in [batcher.submit(photo) for _ in range(4)]]
    assert [spent.batch for spent in found if spent] == [2, 2, 2, 2]
    assert all(spent.decode > 0 and spent.forward > 0 for spent in found if spent)
    assert found[0].forward == found[1].forward != found[2].forward == found[3].forward
    *_, bad = make_runner(16).run([photo, b"no image"], errors="return")
    assert bad.spent is not None
    assert bad.spent[1:] == (0, 0)


def test_who_does_not_wait_is_told_of_a_full_queue() -> None:
    recorder = Recorder()
    with DynamicBatcher(recorder, max_queue=1) as batcher:
        first = batcher.submit("a")
        while not recorder.taken:
            time.sleep(0.001)
        second = batcher.submit("b", wait=False)
        with pytest.raises(queue.Full, match="submit: 1 images wait"):
            batcher.submit("c", wait=False)
        recorder.may_go_on.set()
        assert [first.result(60).source, second.result(60).source] == ["a", "b"]
        assert batcher.submit("d", wait=False).result(60).source == "d"


def test_images_share_a_forward_pass(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in eager PyTorch; the compiled runner's stream is tested for how it puts batches together."""
    model = seed_model(swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=10))
    runner, sizes = EagerRunner(model, spec=swsl.PreprocessSpec(input_size=(64, 64))), []
    compute = runner._compute
    monkeypatch.setattr(
        runner,
        "_compute",
        lambda model, batch, names: sizes.append(len(batch)) or compute(model, batch, names),
    )
    with DynamicBatcher(runner, max_batch=6, max_wait=60) as batcher:
        futures = [batcher.submit(photo) for _ in range(6)]
        assert all(future.result(60).predictions for future in futures)
    assert sizes == [6]


class Broken:
    """What asks for its pixels gets something that nobody has thought of."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        raise LookupError("no pixels today")


@pytest.mark.parametrize("bad", [memoryview(bytes(100))[::2], Broken(), object(), b""], ids=str)
def test_one_bad_image_costs_no_other_its_answer(make_runner: MakeRunner, photo: Path, bad: Any) -> None:
    with make_runner(16) as runner:
        with pytest.raises(TypeError, match=r"top_k: submit has no such option; make a swsl\.DynamicBatcher"):
            runner.submit(photo, top_k=2)
        good = runner.submit(photo)
        assert runner.submit(bad).exception(60)
        assert good.result(60).predictions
        assert runner.submit(photo).result(60).predictions
        ((first,), (second,)) = (
            [r.error for r in runner.stream([image], max_wait=None)] for image in (bad, photo)
        )
        assert first
        assert second is None


def test_a_runner_that_has_failed_once_gets_another_batcher(make_runner: MakeRunner, photo: Path) -> None:
    with make_runner(16) as runner:
        assert runner.submit(photo).result(60).predictions
        first = runner._batcher
        first._failed = RuntimeError("no more memory")
        assert runner.submit(photo).result(60).predictions
        assert runner._batcher is not first
        first._failed = None
        first.close()


def test_a_future_may_close_its_runner(make_runner: MakeRunner, photo: Path) -> None:
    runner, closed = make_runner(16), threading.Event()
    runner.submit(photo).add_done_callback(lambda _: (runner.close(), closed.set()))
    assert closed.wait(60)


def test_a_coroutine_can_await_it(make_runner: MakeRunner, photo: Path) -> None:
    async def ask() -> list[Result]:
        with DynamicBatcher(make_runner(16), top_k=2) as batcher:
            return await asyncio.gather(*(asyncio.wrap_future(batcher.submit(photo)) for _ in range(3)))

    assert [len(result.predictions) for result in asyncio.run(ask())] == [2, 2, 2]


def test_a_runner_batches_what_is_submitted(make_runner: MakeRunner, photo: Path) -> None:
    with make_runner(4) as runner:
        futures = [runner.submit(photo) for _ in range(6)]
    assert len({future.result().predictions[0].index for future in futures}) == 1
    with pytest.raises(RuntimeError, match="closed"):
        runner.submit(photo)


def test_what_is_cancelled_is_not_computed() -> None:
    runner = Recorder()
    batcher = DynamicBatcher(runner, max_batch=3, max_wait=0.5)
    assert runner.options == {"batch_size": 3, "max_wait": 0.5}
    futures = [batcher.submit(number) for number in range(4)]
    assert futures[2].cancel()
    runner.may_go_on.set()
    batcher.close()
    assert [future.result().source for future in (*futures[:2], futures[3])] == [0, 1, 3]
    with pytest.raises(CancelledError):
        futures[2].result()
    assert runner.taken == [0, 1, 3]


def test_submit_waits_where_too_many_wait_for_their_turn() -> None:
    runner = Recorder()
    batcher = DynamicBatcher(runner, max_queue=2)
    submitted = []
    client = threading.Thread(target=lambda: submitted.extend(batcher.submit(number) for number in range(10)))
    client.start()
    client.join(0.3)
    assert client.is_alive()
    assert len(runner.taken) == 1
    runner.may_go_on.set()
    client.join(60)
    assert [future.result(60).source for future in submitted] == list(range(10))
    batcher.close()


def test_a_runner_that_fails_fails_what_was_submitted() -> None:
    runner = Recorder()
    batcher = DynamicBatcher(runner)
    futures = [batcher.submit(source) for source in ("good", "fail", "after", "that")]
    runner.may_go_on.set()
    assert futures[0].result(60).source == "good"
    for future in futures[1:]:
        with pytest.raises(RuntimeError, match="no more memory"):
            future.result(60)
    with pytest.raises(RuntimeError, match="submit: no more memory"):
        batcher.submit("late")
    batcher.close()


def test_a_closed_batcher_says_so() -> None:
    batcher = DynamicBatcher(Recorder())
    batcher.close()
    batcher.close()
    with pytest.raises(RuntimeError, match="submit: the batcher is closed"):
        batcher.submit("late")
    with pytest.raises(ValueError, match="max_queue: expected 1 or more, got 0"):
        DynamicBatcher(Recorder(), max_queue=0)
    with pytest.raises(ValueError, match="max_wait: expected seconds"):
        DynamicBatcher(Recorder(), max_wait=None)  # type: ignore[arg-type]


def test_defaults_are_those_of_cpp() -> None:
    default = {
        name: parameter.default for name, parameter in inspect.signature(DynamicBatcher).parameters.items()
    }
    headers = Path(__file__).parents[2] / "cpp" / "include" / "swsl"
    batcher, stream = ((headers / name).read_text() for name in ("dynamic_batcher.h", "stream.h"))
    assert f" max_batch = {default['max_batch']};" in batcher
    assert f" max_queue = {default['max_queue']};" in batcher
    assert f" max_wait = std::chrono::milliseconds({default['max_wait'] * 1000:g});" in batcher
    assert f" max_wait = std::chrono::milliseconds({MAX_WAIT * 1000:g});" in stream


def test_a_forked_process_is_told_to_make_its_own() -> None:
    batcher = DynamicBatcher(Recorder())
    child = os.fork()
    if child == 0:
        try:
            batcher.submit("photo")
        except RuntimeError as error:
            os._exit(0 if "before the process forked" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    batcher.close()


def test_images_that_take_time_are_prepared_side_by_side(
    make_runner: MakeRunner, photo: Path, server: Server
) -> None:
    """None of the URLs is answered before all that may are asked for, and meanwhile what is there is computed."""
    count = 3
    together = threading.Barrier(count)
    server.before_sending = lambda: together.wait(60)
    urls = [f"{server.url}/{number}.jpg" for number in range(2 * count)]
    server.files = {f"/{number}.jpg": photo.read_bytes() for number in range(2 * count)}
    runner = make_runner(16)
    with DynamicBatcher(runner, workers=count) as batcher:
        futures = [batcher.submit(url) for url in urls]
        missing = batcher.submit(f"{server.url}/missing.jpg")
        opened = Image.open(photo)
        pillow = batcher.submit(opened)
        assert batcher.submit(photo).result(60).predictions
    # Closing has waited for all of them.
    expected = runner.classify([photo])[0][0].index
    results = [future.result(0) for future in futures]
    assert [result.source for result in results] == urls
    assert pillow.result(0).source is opened
    assert {result.predictions[0].index for result in [*results, pillow.result(0)]} == {expected}
    with pytest.raises(ImageError, match=r"missing\.jpg: cannot be fetched"):
        missing.result(0)


def test_how_many_are_prepared_is_bounded_and_a_cancelled_one_is_not(
    make_runner: MakeRunner, photo: Path, server: Server
) -> None:
    may_go_on = threading.Event()
    server.before_sending = lambda: may_go_on.wait(60)
    server.files = {f"/{number}.jpg": photo.read_bytes() for number in range(4)}
    with DynamicBatcher(make_runner(16), workers=1, max_queue=3) as batcher:
        futures = [batcher.submit(f"{server.url}/{number}.jpg") for number in range(3)]
        assert futures[1].cancel()
        client = threading.Thread(
            target=lambda: futures.append(batcher.submit(f"{server.url}/3.jpg")), daemon=True
        )
        client.start()
        client.join(0.3)
        assert client.is_alive()  # the queue is full of what is being prepared
        may_go_on.set()
        client.join(60)
    assert [future.cancelled() for future in futures] == [False, True, False, False]
    assert server.requests == ["/0.jpg", "/2.jpg", "/3.jpg"]


def test_a_url_whose_future_closes_its_runner(make_runner: MakeRunner, server: Server) -> None:
    runner, closed = make_runner(16), threading.Event()
    future = runner.submit(f"{server.url}/missing.jpg")
    future.add_done_callback(lambda _: (runner.close(), closed.set()))
    assert closed.wait(60)


def test_a_runner_that_fails_fails_what_is_being_prepared(photo: Path) -> None:
    may_go_on = threading.Event()

    class Slow(Recorder):
        def _prepared(self, image: Any) -> Any:
            assert may_go_on.wait(60)
            return image

    runner = Slow()
    runner.may_go_on.set()
    with DynamicBatcher(runner, workers=1) as batcher:
        waiting = [batcher.submit(Image.open(photo)) for _ in range(2)]
        with pytest.raises(RuntimeError, match="no more memory"):
            batcher.submit("fail").result(60)
        may_go_on.set()
        for future in waiting:
            with pytest.raises(RuntimeError, match="no more memory"):
                future.result(60)


def test_submitting_keeps_a_runner_until_it_is_closed(make_runner: MakeRunner, photo: Path) -> None:
    runner = make_runner(4)
    runner.submit(photo).result(60)
    kept = weakref.ref(runner)
    del runner
    gc.collect()
    assert kept().submit(photo).result(60).predictions
    kept().close()
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("wrong", ["model.pt", swsl.ResNeXt, None])
def test_what_is_no_runner_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^runner: expected a runner, got .*swsl\.Runner\(FILE\) or swsl\.Eager"
    ):
        DynamicBatcher(wrong)


def test_an_option_that_there_is_not(make_runner: MakeRunner) -> None:
    with pytest.raises(TypeError, match=r"^topk: stream has no such option; did you mean top_k\?"):
        DynamicBatcher(make_runner(4), topk=3)
