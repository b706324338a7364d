"""The rows of what the cluster is doing and how it is set: jobs, stores, settings."""

from dsdb.sql.cluster_settings import CLUSTER_SETTINGS
from dsdb.sql.execute.services import Execution
from dsdb.sql.rows import Row


async def cluster_setting_rows(execution: Execution) -> list[Row]:
    """Describe the cluster's settings: name, value, default, and what each is for."""
    values = await execution.services.steering.settings()
    return [
        (name, setting.spelled(values.get(name, setting.default)), setting.spelled(setting.default), setting.description)
        for name, setting in sorted(CLUSTER_SETTINGS.items())
    ]


async def job_rows(execution: Execution) -> list[Row]:
    """Describe what the cluster is doing."""
    return [
        (
            job.kind,
            job.range_id,
            job.node_id,
            job.what,
            job.started_us,
            job.left,
            job.unit,
            job.job_id,
            job.state,
            job.done,
            job.why,
            job.ended_us,
        )
        for job in await execution.services.steering.jobs()
    ]


async def store_rows(execution: Execution) -> list[Row]:
    """Describe the stores."""
    return [
        (
            info.store_id,
            info.node_id,
            info.liveness,
            info.silence_s,
            info.replicas,
            info.leases,
            info.used_bytes,
            info.capacity_bytes,
            info.requests_per_s,
        )
        for info in await execution.services.steering.stores()
    ]
