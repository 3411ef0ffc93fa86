"""What a scrape says when the disk is full."""

from __future__ import annotations

from full_disk import full_disk
from trimtab.wire.metrics import Metrics


def line(metrics: Metrics, name: str) -> str:
    return next(line for line in metrics.render().decode().splitlines() if line.startswith(f"{name} "))


def test_a_worker_answers_for_itself_when_its_file_cannot_be_written(tmp_path):
    one, two = Metrics(tmp_path, "worker0"), Metrics(tmp_path, "worker1")
    one.set("trimtab_cache_errors_total", 1)
    two.set("trimtab_cache_errors_total", 10)
    two.save()
    assert line(one, "trimtab_cache_errors_total") == "trimtab_cache_errors_total 11"
    with full_disk():
        one.set("trimtab_cache_errors_total", 2)
        assert line(one, "trimtab_cache_errors_total") == "trimtab_cache_errors_total 12"
    assert line(two, "trimtab_cache_errors_total") == "trimtab_cache_errors_total 11"  # until the next second
    one.save()
    assert line(two, "trimtab_cache_errors_total") == "trimtab_cache_errors_total 12"
