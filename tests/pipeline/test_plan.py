"""The plan of a data set: exact where it counts, measured where it must."""

import json

import pytest

import strainflow
from pipeline.description import describe_dataset
from pipeline.plan import make_plan
from pipeline.run import simulate_dataset
from pipeline.simulate import Simulator
from storage.errors import InputError
from storage.writer import dataset_size


@pytest.mark.parametrize("flags", [(), ("--encoding=int8", "--network_snr.maximum=60")])
def test_the_predicted_size_is_that_of_the_files(et_bbh, tmp_path, flags):
    config = et_bbh("--events=7", "--events_per_shard=3", "--cluster.workers=1", *flags)
    predicted, files = dataset_size(
        describe_dataset(config, Simulator.from_config(config.simulation))
    )
    simulate_dataset(config, tmp_path / "x.zarr")
    sizes = [item.stat().st_size for item in (tmp_path / "x.zarr").rglob("*") if item.is_file()]
    assert files == len(sizes)
    assert predicted == pytest.approx(sum(sizes), abs=250 * 3)  # the manifests' digits and checks


@pytest.mark.slow
def test_a_plan_adds_up_and_leaves_nothing_behind(et_bbh, tmp_path):
    config = et_bbh("--events=1000000", "--cluster.workers=2", "--network_snr.minimum=50")
    plan = make_plan(config, 3.0, train_events_per_second=512.0, scratch=str(tmp_path))
    measured = plan.calibration
    assert measured.workers == plan.workers == 2
    assert measured.events > 0
    assert 0.1 < plan.accepted < 0.9  # with a window that cuts the prior in two
    assert plan.core_hours == pytest.approx(
        1e6 / 3600 * measured.core_seconds / measured.events, rel=1e-12
    )
    # Two workers cannot use more than two cores.
    assert plan.hours > 0.9 * plan.core_hours / 2
    assert plan.epoch_hours == pytest.approx(1e6 / 512 / 3600)
    assert plan.read_bytes_per_second == 512 * 786_432
    assert list(tmp_path.iterdir()) == []


def test_a_million_events_take_fewer_than_ten_thousand_files(et_bbh):
    config = et_bbh("--events=1000000", "--encoding=null")
    schema = describe_dataset(config, Simulator.from_config(config.simulation))
    assert dataset_size(schema, 140e3)[1] < 10_000


@pytest.mark.slow
def test_workers_elsewhere_share_the_work(et_bbh, tmp_path):
    flags = ("--events=1000000", "--cluster.kind=slurm", "--cluster.workers=200")
    plan = make_plan(et_bbh(*flags), 2.0, 256.0, str(tmp_path))
    measured = plan.calibration
    each = measured.events / measured.seconds / measured.workers
    assert plan.workers == 200
    assert plan.hours == pytest.approx((measured.start + 1e6 / (200 * each)) / 3600)


@pytest.mark.slow
def test_the_command_line_says_it_in_words_and_in_json(capsys, monkeypatch, tmp_path):
    words = ["plan", "--config=pipeline/recipes/et-demo.yaml", f"--scratch={tmp_path}"]
    assert strainflow.main([*words, "--seconds=1"]) == 0
    said = capsys.readouterr().out
    assert "2,560 events in 20 shards" in said
    assert "core-seconds an event" in said
    assert strainflow.main([*words, "--seconds=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 20 * 4 + 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0.0}, "seconds: got 0"),
        ({"train_events_per_second": -1.0}, "train_events_per_second: got -1"),
        ({"scratch": "/nowhere"}, "scratch: /nowhere is no folder"),
    ],
)
def test_an_impossible_plan_is_one_sentence(et_bbh, settings, message):
    given = {"seconds": 1.0, "train_events_per_second": 256.0, "scratch": None} | settings
    with pytest.raises(InputError, match=message):
        make_plan(et_bbh(), **given)
