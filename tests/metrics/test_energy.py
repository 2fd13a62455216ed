"""Energy and carbon, against known watts."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import textwrap
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from extras import extra, needs

from analogy.metrics import efficiency

JOULES_PER_KWH = 3.6e6


# --- energy


@pytest.fixture
def codecarbon():
    return extra("codecarbon")


@pytest.fixture
def parts():
    """The machine's parts as codecarbon knows them."""
    return extra("codecarbon.external.hardware")


@pytest.fixture
def known_watts(parts, monkeypatch, tmp_path):
    """A machine of 36 W of memory and a CPU of 100 W at half load; a folder to find files in."""
    monkeypatch.setenv("CODECARBON_FORCE_RAM_POWER", "36")
    monkeypatch.setenv("CODECARBON_FORCE_CPU_POWER", "100")
    monkeypatch.setattr(parts.SystemCPULoadMeter, "percent", lambda meter: 50.0)
    monkeypatch.setattr("codecarbon.core.gpu.is_nvidia_system", lambda: False)
    monkeypatch.setattr("codecarbon.core.gpu.is_rocm_system", lambda: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def work(codecarbon, known_watts, monkeypatch):
    """Work that takes the seconds that it is told, by the only clock of ours and codecarbon's."""
    passed = SimpleNamespace(seconds=0.0)
    clock = SimpleNamespace(perf_counter=lambda: passed.seconds)
    monkeypatch.setattr(efficiency, "time", clock)
    monkeypatch.setattr("codecarbon.emissions_tracker.time", clock)

    def run(seconds):
        passed.seconds += seconds

    return run


def intensity(country: str) -> float:
    """Kilograms of CO2 equivalent per kWh, straight from codecarbon's table."""
    table = Path(extra("codecarbon").__file__).parent / "data/private_infra/global_energy_mix.json"
    return json.loads(table.read_text())[country]["carbon_intensity"] / 1000


def test_energy_repeats_the_work_until_enough_is_done(work):
    calls = []
    found = efficiency.energy(
        lambda: (calls.append(None), work(0.125)), country="DEU", n_images=2, at_least_s=0.3
    )
    assert len(calls) == 3
    assert found.n_images == 6
    assert found.duration_s == 0.375
    assert found.ram_kwh_per_image * 6 == pytest.approx(36 * 0.375 / JOULES_PER_KWH)


@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_energy_is_power_times_time(work, seconds):
    found = efficiency.energy(lambda: work(seconds), country="deu", n_images=4)
    assert found.duration_s == seconds
    ram = 36 * seconds / JOULES_PER_KWH / 4
    cpu = 100 * (0.1 + 0.9 * 0.5**3) * seconds / JOULES_PER_KWH / 4
    assert found.ram_kwh_per_image == pytest.approx(ram)
    assert found.cpu_kwh_per_image == pytest.approx(cpu)
    assert found.gpu_kwh_per_image is None
    total = found.cpu_kwh_per_image + found.ram_kwh_per_image
    assert found.energy_kwh_per_image == pytest.approx(total)
    assert found.emissions_kg_per_image == pytest.approx(total * intensity("DEU"))
    assert found.carbon_intensity_kg_per_kwh == pytest.approx(intensity("DEU"))
    assert (found.country, found.n_images, found.pue) == ("DEU", 4, 1.0)


def test_energy_says_what_is_estimated(work):
    found = efficiency.energy(lambda: work(0.2), country="FRA", n_images=1)
    assert found.estimated == ("cpu", "ram")
    assert found.cpu_method.startswith("estimated: the CPU's load")
    assert found.ram_method == "estimated: watts from codecarbon's settings"
    assert found.gpu_method.startswith("not counted")


def test_each_way_of_reading_power_is_called_what_it_is(parts):
    RAM = extra("codecarbon.external.ram").RAM  # noqa: N806

    def cpu(mode):
        part = object.__new__(parts.CPU)
        part._mode = mode
        return part

    def chip(kind, of):
        part = object.__new__(kind)
        part.chip_part = of
        return part

    rapl = efficiency._methods([RAM(), cpu("intel_rapl"), object.__new__(parts.GPU)])
    assert rapl["cpu"] == "measured: RAPL"
    assert rapl["gpu"].startswith("measured")
    assert rapl["ram"] == "estimated: watts by memory installed"
    for mode in ("cpu_load", "constant", "of the future"):
        assert efficiency._methods([cpu(mode)])["cpu"].startswith("estimated")
    for mode in ("windows_emi", "intel_power_gadget"):
        assert efficiency._methods([cpu(mode)])["cpu"].startswith("measured")
    apple = [chip(parts.AppleSiliconChip, of) for of in ("CPU", "GPU")]
    assert efficiency._methods(apple)["gpu"] == "estimated: powermetrics"
    board = efficiency._methods([chip(parts.Raspberry, of) for of in ("CPU", "RAM")])
    assert board["cpu"].startswith("measured")
    assert board["ram"].startswith("measured")
    assert set(efficiency._methods([]).values()) == {
        "not counted: codecarbon found no CPU",
        "not counted: codecarbon found no GPU that it can read",
        "not counted: codecarbon found no memory",
    }


def test_settings_neither_move_the_machine_nor_send_nor_write(known_watts, work, monkeypatch):
    for name, value in {
        "ELECTRICITYMAPS_API_TOKEN": "token",
        "CO2_SIGNAL_API_TOKEN": "token",
        "EMISSIONS_ENDPOINT": "http://localhost:9",
        "OUTPUT_METHODS": "csv,api",
        "OUTPUT_DIR": "no/such/folder",
        "FORCE_CARBON_INTENSITY_G_CO2E_KWH": "1",
        "REGION": "california",
        "CLOUD_PROVIDER": "gcp",
        "CLOUD_REGION": "europe-north1",
        "TRACKING_MODE": "process",
        "ALLOW_MULTIPLE_RUNS": "False",
        "PUE": "1.5",
    }.items():
        monkeypatch.setenv(f"CODECARBON_{name}", value)
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda *address: asked.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **kwargs: asked.append(address))
    found = efficiency.energy(lambda: work(0.2), country="USA", n_images=1)
    assert found.carbon_intensity_kg_per_kwh == pytest.approx(intensity("USA"))
    watts = found.ram_kwh_per_image * JOULES_PER_KWH / found.duration_s
    assert watts == pytest.approx(1.5 * 36)
    assert found.pue == 1.5
    assert not asked
    assert not list(known_watts.iterdir())


@needs("codecarbon")
@pytest.mark.slow
def test_energy_is_silent_in_a_fresh_process(tmp_path):
    program = """
        import time
        from analogy.metrics.efficiency import energy
        energy(lambda: time.sleep(0.2), country="DEU", n_images=1)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert not list(tmp_path.iterdir())


def test_the_meter_is_stopped_and_given_its_voice_back_when_a_run_fails(
    work, codecarbon, monkeypatch
):
    stopped = []
    stop = codecarbon.OfflineEmissionsTracker.stop
    monkeypatch.setattr(
        codecarbon.OfflineEmissionsTracker, "stop", lambda self: stopped.append(stop(self))
    )

    def run():
        work(0.1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        efficiency.energy(run, country="DEU", n_images=1)
    assert len(stopped) == 1
    assert stopped[0] > 0
    assert not logging.getLogger("codecarbon").filters


def test_the_device_is_waited_for_before_the_meter_stops(work, codecarbon, two_gpus, monkeypatch):
    events = []
    stop = codecarbon.OfflineEmissionsTracker.stop

    def stopped(self):
        events.append("stop")
        return stop(self)

    monkeypatch.setattr(codecarbon.OfflineEmissionsTracker, "stop", stopped)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))

    def run():
        events.append("run")
        work(0.15)

    efficiency.energy(run, country="DEU", n_images=1, device="cuda:0")
    assert events == ["wait", "run", "wait", "stop"]


def test_a_run_too_short_for_the_meter_is_an_error(work):
    with pytest.raises(ValueError, match=r"expected 0\.1 s of work or more, got 0\.090 s"):
        efficiency.energy(lambda: work(0.09), country="DEU", n_images=1)


@needs("codecarbon")
@pytest.mark.parametrize(
    ("country", "near"),
    [
        ("Germany", r"got 'Germany'; near: DEU \(Germany\)"),
        ("DE", r"got 'DE'; near: .*DEU \(Germany\)"),
        ("FRZ", r"got 'FRZ'; near: .*FRA \(France\)"),
        ("", "got ''; such as DEU"),
        (None, "got None; such as DEU"),
    ],
)
def test_an_unknown_country_is_an_error_with_near_ones(country, near):
    with pytest.raises(ValueError, match=near):
        efficiency.energy(pytest.fail, country=country, n_images=1)


def test_every_country_of_the_table_has_an_intensity(codecarbon):
    table = Path(codecarbon.__file__).parent / "data/private_infra/global_energy_mix.json"
    countries = json.loads(table.read_text())
    assert len(countries) > 200
    assert {efficiency._country_code(code.lower()) for code in countries} == set(countries)


def test_without_codecarbon_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'analogy-bench\[energy\]'"):
        efficiency.energy(pytest.fail, country="DEU", n_images=1)


def test_what_codecarbon_swallows_is_raised(codecarbon, monkeypatch):
    def broken(self):
        raise OSError("no meter here")

    monkeypatch.setattr(codecarbon.OfflineEmissionsTracker, "_ensure_hardware_ready", broken)
    with pytest.raises(RuntimeError, match=r"measured nothing; it said: .*no meter here"):
        efficiency.energy(lambda: time.sleep(0.11), country="DEU", n_images=1)


# --- results


def test_results_are_json(known_watts):
    ticks = count()
    for found in (
        efficiency.timing(lambda: next(ticks), device="cpu", repeats=2),
        efficiency.peak_memory(lambda: None, device="cpu"),
        efficiency.energy(lambda: time.sleep(0.11), country="DEU", n_images=1),
    ):
        plain = found.to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert list(plain) == list(type(found).__dataclass_fields__)


# --- a real GPU


@pytest.mark.gpu
def test_cuda_energy_is_counted(square):
    def run():
        for _ in range(2000):
            square @ square

    found = efficiency.energy(run, country="DEU", n_images=1, device="cuda")
    assert found.gpu_method.startswith("measured")
    watts = found.gpu_kwh_per_image * JOULES_PER_KWH / found.duration_s
    assert 20 < watts < 2000 * torch.cuda.device_count()
