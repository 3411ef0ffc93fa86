"""Writes of one turn go out together, in order; a task that is alone does not wait."""

import asyncio

from trimtab.outbox import outbox


class Transport:
    def __init__(self, said):
        self.said = said
        self.closing = False

    def is_closing(self):
        return self.closing

    def write(self, data):
        self.said.append(data)


async def test_alone_it_writes_at_once():
    said, box = [], outbox()
    box.expect()
    box.began()
    box.write(Transport(said), b"a")
    assert said == [b"a"]


async def test_tasks_of_one_turn_write_together_when_the_last_has_run():
    said, seen, box = [], [], outbox()

    async def task(name):
        box.began()
        box.write(Transport(said), name)
        seen.append(list(said))

    tasks = []
    for name in (b"a", b"b", b"c"):
        box.expect()
        tasks.append(asyncio.create_task(task(name)))
    await asyncio.gather(*tasks)
    assert seen == [[], [], [b"a", b"b", b"c"]]


async def test_what_nobody_sends_goes_out_a_turn_later():
    said, box = [], outbox()
    box.expect()  # of a task that never runs
    box.write(Transport(said), b"a")
    assert said == []
    await asyncio.sleep(0)
    assert said == [b"a"]
    box.began()


async def test_order_holds_and_nothing_is_written_to_a_closing_transport():
    said, box = [], outbox()
    here, gone = Transport(said), Transport(said)
    box.expect()
    box.write(here, b"1")
    box.write(gone, b"never")
    box.write(here, b"2")
    gone.closing = True
    box.began()
    box.write(here, b"3")
    assert said == [b"1", b"2", b"3"]


async def test_flush_writes_what_waits_before_a_close():
    said, box = [], outbox()
    box.expect()
    box.write(Transport(said), b"last")
    box.flush()
    assert said == [b"last"]
    box.began()


async def test_one_outbox_per_loop():
    assert outbox() is outbox()
