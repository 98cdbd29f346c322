"""What Slurm says about a step in its own notation: node lists and tasks per node. Also derives a rendezvous port."""

import re
from collections.abc import Mapping


def tasks_here(env: Mapping[str, str]) -> str:
    """Return the number of tasks on this node.

    SLURM_TASKS_PER_NODE looks like "2(x3),1", which expands to one entry per node.

    >>> tasks_here({"SLURM_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "3"})
    '1'
    """
    tasks_per_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "1")
    counts = [
        m["count"]
        for m in re.finditer(r"(?P<count>\d+)(\(x(?P<times>\d+)\))?", tasks_per_node)
        for _ in range(int(m["times"] or 1))
    ]
    node_idx = _number(env, "SLURM_NODEID")
    return counts[node_idx] if node_idx < len(counts) else "1"


def job_id(env: Mapping[str, str]) -> str | None:
    """Return the id by which Slurm knows this job or array task; None outside of Slurm.

    >>> job_id({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2"}), job_id({})
    ('10_2', None)
    """
    array = env.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{env.get('SLURM_ARRAY_TASK_ID', '')}" if array else env.get("SLURM_JOB_ID")


def first_node(env: Mapping[str, str]) -> str:
    """Return the host of rank 0. Empty if Slurm does not name it."""
    return first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", ""))


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm node list.

    >>> first_host("node[03-05,9],other"), first_host("gpu-a1,gpu-a2"), first_host("r[1-2]n[3-4]")
    ('node03', 'gpu-a1', 'r1n3')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0]) if first else ""


def port(env: Mapping[str, str]) -> str:
    """Derive the rendezvous port from the job and the step, so that jobs and steps that share a node do not collide.

    It is below the ephemeral range (from 32768 on Linux), in which the kernel may have assigned it to another process.
    """
    return str(20_000 + (_number(env, "SLURM_JOB_ID") * 37 + _number(env, "SLURM_STEP_ID")) % 12_000)


def _number(env: Mapping[str, str], name: str) -> int:
    value = env.get(name, "")
    return int(value) if re.fullmatch(r"\d+", value) else 0
