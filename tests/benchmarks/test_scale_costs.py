"""Costs of very many pictures: the arithmetic by hand, and inputs that stand where the table says they do."""

import sys
from pathlib import Path

import faiss
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import scale_costs
from scale_costs import ASSUMPTIONS, changed, costs, index_flops, main, number, report

from lrvsf.search.index import TRAINED, default_factory

DOCS = Path(__file__).parents[2] / "docs"
# Round numbers, so that what comes out can be said by hand; 10 nodes of one GPU.
BY_HAND = {
    "gpus": 10, "gpus_per_node": 1, "cores_per_gpu": 4, "actor_images_per_s": 2000, "gpu_images_per_s": 5000,
    "core_images_per_s": 1000, "decode_times": 2, "cpu_images_per_s": 2, "node_gbit": 8, "disk_gigabytes_per_s": 0.25,
    "image_kilobytes": 45, "thumbnail_kilobytes": 4, "metadata_bytes": 200, "dims": 400, "images_per_read": 100,
    "images_per_catalog": 2e7, "listed_per_s": 10_000, "listing_bytes": 500, "listed_bytes": 100,
    "copy_gigabytes_per_s": 0.1, "index_cores": 4, "index_bytes": 50, "query_ms": 2, "questions_per_s": 10,
    "server_cores": 8, "server_gigabytes": 5, "server_terabytes": 1, "gpu_price": 2, "core_price": 0.1,
    "server_price": 1, "bucket_price": 20, "disk_price": 100, "read_price": 0.5,
}  # fmt: skip


def by_hand(images, **other):
    settings = [f"{name}={value}" for name, value in {**BY_HAND, **other}.items()]
    return costs(images, {name: value for name, (value, _, _) in changed(settings).items()})


def test_embedding_by_hand():
    found = by_hand(3.6e7)
    # Of each picture 45 kB are read, and 800 + 4,000 + 200 bytes written.
    assert found.rates == {
        "one process a GPU": 10_000, "GPUs": 50_000, "cores": 20_000, "network of nodes": 200_000, "disk": 5_000,
    }  # fmt: skip
    assert found.embed_hours == 2 and found.embed_dollars == 40  # at the disk's rate
    assert found.cpu_core_hours == 5_000 and found.cpu_dollars == 500
    assert by_hand(3.6e7, disk_gigabytes_per_s=100).embed_hours == 1


def test_the_one_process_and_what_it_holds_by_hand():
    found = by_hand(3.6e7)
    assert found.catalogs == 2
    assert found.list_hours == 1 and found.copy_hours == pytest.approx(0.5)  # 180 GB
    assert found.list_gigabytes == 9 and found.node_gigabytes == pytest.approx(1.8)  # of 18 million
    assert found.hours == found.embed_hours + found.list_hours + found.copy_hours + found.index_hours
    assert found.one_process_dollars == pytest.approx((1 + found.copy_hours + found.index_hours) * 4 * 0.1)


def test_disks_and_answers_by_hand():
    found = by_hand(3.6e7)
    assert found.pictures_terabytes == pytest.approx(1.62) and found.catalog_terabytes == pytest.approx(0.18)
    assert found.pictures_dollars == pytest.approx(32.4) and found.catalog_dollars == pytest.approx(18)
    assert found.reads_dollars == pytest.approx(0.18)  # 360,000 reads
    assert found.index_gigabytes == 9 and found.question_core_ms == 72
    assert found.servers == {"memory": 1.8, "cores": pytest.approx(0.09), "disks": pytest.approx(0.18)}
    assert found.servers_dollars == 2 * 730


def test_the_index_by_hand():
    assert index_flops(1e6, 512) == 2 * 512 * 4_000 * (1e6 + 10 * 200_000)
    assert index_flops(1e8, 512) == 2 * 512 * 40_000 * (1e8 + 10 * 2_000_000)  # 400 times as much
    as_measured = {"dims": 512, "index_cores": 2, "index_seconds": 66}
    assert by_hand(1e6, **as_measured).index_hours * 3600 == pytest.approx(66)
    assert by_hand(2e8, **as_measured, images_per_catalog=1e8).index_hours * 3600 == pytest.approx(2 * 400 * 66)


def test_the_index_is_the_one_that_search_builds():
    rows = 1_000_000
    assert default_factory(rows).startswith(f"IVF{round(scale_costs.LISTS * rows**0.5)},")
    assert scale_costs.SAMPLE == TRAINED
    quantizer = faiss.IndexFlatIP(8)
    assert faiss.IndexIVFFlat(quantizer, 8, 4).cp.niter == scale_costs.ROUNDS


def test_measured_numbers_stand_where_the_table_says():
    values = {name: (number, source) for name, number, _, source in ASSUMPTIONS}
    gpu, search = ((DOCS / page).read_text() for page in ("gpu.md", "search.md"))
    rows = [line.replace(" ", "") for line in (gpu + search).splitlines()]
    actor, at_rest, alone = (values[f"{name}_images_per_s"][0] for name in ("actor", "gpu", "core"))
    assert f"|B/16|512|bfloat16|{at_rest:,}|{actor:,}|2.50|" in rows and actor / 2.5 == alone
    seconds, megabytes, ms = (values[name][0] for name in ("index_seconds", "index_bytes", "query_ms"))
    assert f"|IVF4000,RaBitQ(default)|{seconds}|{megabytes}|{ms}|1.53|0.983|" in rows
    assert any(row.startswith("|B/16|32clients|4.8|") for row in rows) and values["cpu_images_per_s"][0] == 4.8 / 2
    known = ("assumed", "gpu.md: ", "search.md: ", "bench_indexing.py", "of B/16")
    assert all(source.startswith(known) for _, source in values.values())


def test_the_page_prints_what_the_command_prints():
    printed = report([1e8, 1e10], [])
    assert printed in (DOCS / "scale.md").read_text()
    assert max(map(len, printed.splitlines())) <= 80
    assert "--set" in report([1e8], ["gpus=8"]).splitlines()[0]


@pytest.mark.parametrize(
    "setting", ["gpu=8", "gpus", "gpus=", "gpus=0", "gpus=-1", "gpus=nan", "gpus=inf", "gpus=many"]
)
def test_what_is_no_assumption_is_refused(setting, capsys):
    with pytest.raises(SystemExit):
        main(["--set", setting])
    told = capsys.readouterr().err
    assert setting in told and ("no assumption" in told or "a number above 0" in told)


@pytest.mark.parametrize("images", ["0", "999999", "nan", "inf"])
def test_few_pictures_are_refused(images, capsys):
    with pytest.raises(SystemExit):
        main(["--images", images])
    assert "1,000,000 or more" in capsys.readouterr().err


def test_numbers_are_short():
    assert [number(value) for value in (0.0042, 0.523, 5, 52.4, 5208.4)] == ["0.004", "0.52", "5", "52", "5,208"]
