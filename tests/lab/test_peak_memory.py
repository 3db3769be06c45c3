"""Guarantees of `lab.environment.PeakMemory`."""

import multiprocessing
import os
import subprocess
import sys
import time

import psutil
import pytest

from moxin_lab.lab.environment import PeakMemory, _resident_bytes

MIB = 2**20


def wait(seconds):
    time.sleep(seconds)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what processes share")
def test_a_page_that_forked_workers_share_counts_once():
    held = bytearray(os.urandom(MIB) * 200)
    alone = _resident_bytes(psutil.Process())
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=wait, args=(60,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        together = _resident_bytes(psutil.Process())
        summed = sum(psutil.Process(worker.pid).memory_info().rss for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    assert summed > 600 * MIB  # what a sum of resident sizes would add
    assert together < alone + 150 * MIB
    assert len(held) == 200 * MIB


def test_what_a_child_holds_of_its_own_counts():
    before = _resident_bytes(psutil.Process())
    code = "held = b'x' * (200 << 20); print(len(held), flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline().strip() == str(200 * MIB).encode()
    memory = PeakMemory(interval=0.01)
    time.sleep(0.3)
    child.communicate(b"\n")
    assert memory.stop() > before + 190 * MIB


def test_a_child_that_has_ended_and_was_not_waited_for_stops_no_measurement():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert _resident_bytes(psutil.Process()) > 0
    child.wait()
