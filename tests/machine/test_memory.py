"""Memory that is shown is memory that is there: against tensors, the system, and the plan."""

import os
from types import SimpleNamespace

import psutil
import pynvml
import pytest
import torch

from kvchat import ram
from kvchat.engine.methods.specs import parse_spec
from kvchat.engine.model.geometries import GEOMETRIES
from kvchat.engine.model.hugging_face import interpret
from kvchat.errors import KvchatError
from kvchat.machine import gpu_processes
from kvchat.machine import resources as machine
from kvchat.machine.plan import Workload, make_plan, require_memory

CPU = machine.CPU


def test_a_tensor_shows_in_the_process_and_goes_again():
    before = machine.resident()
    ballast = torch.ones(64 * 2**20 // 4)
    assert machine.resident() - before == pytest.approx(ballast.nbytes, rel=0.1)
    del ballast
    assert machine.resident() - before < 8 * 2**20


def test_free_memory_is_what_the_system_says(monkeypatch):
    """Without `/proc` too, and not more than the control group leaves."""
    says = SimpleNamespace(total=16 * 2**30, available=2 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: says)
    monkeypatch.setattr(ram, "_limits", lambda paths: [])
    assert machine.free(CPU) == 2 * 2**30 and machine.total(CPU) == 16 * 2**30
    assert machine.free(CPU, 2**30) == 2**30
    limits = {ram.CGROUP: [3 * 2**30], ram.CGROUP_USED: [2 * 2**30 + 5]}
    monkeypatch.setattr(ram, "_limits", limits.__getitem__)
    assert machine.free(CPU) == 2**30 - 5 and machine.total(CPU) == 3 * 2**30


def test_which_processes_use_a_card(monkeypatch):
    """By a library in place of the driver's: no card has been asked."""
    mine, gib = os.getpid(), 2**30
    there = {4242: ("/usr/bin/python3", int(6.6 * gib)), 77: ("a\x1b[2J b", None), mine: ("me", 9)}
    found = [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, (_, used) in there.items()]

    def handle(identity):
        if identity != "GPU-7":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: found)
    monkeypatch.setattr(pynvml, "nvmlSystemGetProcessName", lambda pid: there[pid][0])
    others = gpu_processes.processes("GPU-7")
    assert [(each.pid, each.used) for each in others] == [(4242, int(6.6 * gib)), (77, 0)]
    text = gpu_processes.described(int(7.2 * gib), int(23.6 * gib), others)
    numbers = ("7.20 of 23.60 GiB", "pid 4242 python3, 6.60 GiB", "pid 77 a·[2J b")
    assert all(part in text for part in numbers)
    assert gpu_processes.processes("GPU-8") == []


def test_a_machine_without_a_card(monkeypatch):
    assert gpu_processes.other_processes(CPU) == ""

    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert gpu_processes.processes("GPU-7") == []


def test_an_error_says_who_else_uses_the_card():
    method = parse_spec("full")
    config = interpret(GEOMETRIES["llama-3.1-8b"])
    plan = make_plan(Workload(config, 2, 32768, method, 131072, 2048, cuda=True))
    with pytest.raises(KvchatError, match="pid 4242"):
        require_memory(plan, 2**30, "cuda:0", "full", others=lambda: "pid 4242")
