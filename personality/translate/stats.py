"""Samples of resource usage as Docker's API gives them."""

from __future__ import annotations

from typing import Any

from personality.times import NEVER, rfc3339
from portlayer.v1 import execution_pb2

Sample = execution_pb2.StreamStatsResponse


def statistics(container_id: str, name: str, sample: Sample, previous: Sample | None) -> dict[str, Any]:
    """One object of GET /containers/{id}/stats; `previous` is the sample before it."""
    return {
        "name": f"/{name}",
        "id": container_id,
        "read": rfc3339(sample.time_unix_ns),
        "preread": rfc3339(previous.time_unix_ns) if previous else NEVER,
        "num_procs": 0,
        "storage_stats": {},
        "pids_stats": {"current": sample.pids, "limit": sample.pids_limit} if sample.pids else {},
        "cpu_stats": _cpu(sample),
        "precpu_stats": _cpu(previous or Sample()),
        "memory_stats": _memory(sample),
        "blkio_stats": _block(sample),
        **_networks(sample),
    }


def _cpu(sample: Sample) -> dict[str, Any]:
    return {
        "cpu_usage": {
            "total_usage": sample.cpu_total_ns,
            "usage_in_kernelmode": sample.cpu_system_ns,
            "usage_in_usermode": sample.cpu_user_ns,
        },
        "system_cpu_usage": sample.system_cpu_ns,
        "online_cpus": sample.online_cpus,
        "throttling_data": {
            "periods": 0,
            "throttled_periods": sample.throttled_periods,
            "throttled_time": sample.throttled_ns,
        },
    }


def _memory(sample: Sample) -> dict[str, Any]:
    if not sample.memory_usage_bytes:
        return {}
    return {
        "usage": sample.memory_usage_bytes,
        "limit": sample.memory_limit_bytes,
        "stats": dict(sample.memory_stat),
    }


def _block(sample: Sample) -> dict[str, Any]:
    def entries(*values: tuple[str, str]) -> list[dict[str, Any]]:
        return [
            {"major": device.major, "minor": device.minor, "op": operation, "value": getattr(device, field)}
            for device in sample.block
            for operation, field in values
        ]

    return {
        "io_service_bytes_recursive": entries(("read", "read_bytes"), ("write", "write_bytes")),
        "io_serviced_recursive": entries(("read", "read_operations"), ("write", "write_operations")),
        "io_queue_recursive": None,
        "io_service_time_recursive": None,
        "io_wait_time_recursive": None,
        "io_merged_recursive": None,
        "io_time_recursive": None,
        "sectors_recursive": None,
    }


def _networks(sample: Sample) -> dict[str, Any]:
    """Left out where nobody counts; clients take that for no traffic."""
    if not sample.networks:
        return {}
    counted = {
        one.interface: {
            "rx_bytes": one.received_bytes,
            "rx_packets": one.received_packets,
            "rx_errors": 0,
            "rx_dropped": one.received_dropped,
            "tx_bytes": one.sent_bytes,
            "tx_packets": one.sent_packets,
            "tx_errors": 0,
            "tx_dropped": one.sent_dropped,
        }
        for one in sample.networks
    }
    return {"networks": counted}
