"""Where cgroups can be made, on this machine and on others."""

import pytest

from generator.sandboxes.local import cgroups

V1 = """\
25 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 25 0:27 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
"""
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V2_PART = "30 23 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "membership", "writable", "given", "folders"),
    [
        (
            V1,
            "3:memory:/job\n2:pids:/\n0::/\n",
            {"/sys/fs/cgroup/memory/job", "/sys/fs/cgroup/pids"},
            {},
            {"memory": "/sys/fs/cgroup/memory/job/box", "pids": "/sys/fs/cgroup/pids/box"},
        ),
        (V1, "3:memory:/job\n2:pids:/\n", {"/sys/fs/cgroup/memory"}, {}, {}),
        (
            V2,
            "0::/user.slice/app.slice/run.scope\n",
            {
                "/sys/fs/cgroup/user.slice/app.slice",
                "/sys/fs/cgroup/user.slice/app.slice/run.scope",
            },
            {"/sys/fs/cgroup/user.slice/app.slice/cgroup.subtree_control": "cpu memory pids"},
            {
                "memory": "/sys/fs/cgroup/user.slice/app.slice/box",
                "pids": "/sys/fs/cgroup/user.slice/app.slice/box",
            },
        ),
        (
            V2_PART,
            "0::/docker/abc\n",
            {"/sys/fs/cgroup"},
            {"/sys/fs/cgroup/cgroup.subtree_control": "pids"},
            {"pids": "/sys/fs/cgroup/box"},
        ),
        (V2, "0::/\n", {"/sys/fs/cgroup", "/sys/fs"}, {}, {}),
        ("", "0::/\n", set(), {}, {}),
    ],
    ids=["version 1", "read-only", "version 2", "container", "nothing given", "no cgroups"],
)
def test_cgroups_are_planned_where_they_can_be_made(
    mountinfo: str,
    membership: str,
    writable: set[str],
    given: dict[str, str],
    folders: dict[str, str],
) -> None:
    planned = cgroups.plan(
        "box",
        mountinfo=mountinfo,
        membership=membership,
        writable=writable.__contains__,
        read=lambda path: given.get(path, ""),
    )
    assert planned == folders
