"""The region is netmap API 14, byte for byte: a C program prints every offset and size, and a table written by hand
from net/netmap.h's documentation, not from our header, says what they must be."""

import subprocess

from pktring.shm import _shm

# (struct, field): (offset, size)
NETMAP_API_14 = {
    "pr_slot": (0, 16),
    "pr_slot.buf_idx": (0, 4),
    "pr_slot.len": (4, 2),
    "pr_slot.flags": (6, 2),
    "pr_slot.ptr": (8, 8),
    "pr_ring": (0, 256),
    "pr_ring.buf_ofs": (0, 8),
    "pr_ring.num_slots": (8, 4),
    "pr_ring.nr_buf_size": (12, 4),
    "pr_ring.ringid": (16, 2),
    "pr_ring.dir": (18, 2),
    "pr_ring.head": (20, 4),
    "pr_ring.cur": (24, 4),
    "pr_ring.tail": (28, 4),
    "pr_ring.flags": (32, 4),
    "pr_ring.ts": (40, 16),
    "pr_ring.offset_mask": (56, 8),
    "pr_ring.buf_align": (64, 8),
    "pr_ring.sem": (128, 128),
    "pr_if": (0, 56),
    "pr_if.ni_name": (0, 16),
    "pr_if.ni_version": (16, 4),
    "pr_if.ni_flags": (20, 4),
    "pr_if.ni_tx_rings": (24, 4),
    "pr_if.ni_rx_rings": (28, 4),
    "pr_if.ni_bufs_head": (32, 4),
    "pr_if.ni_host_tx_rings": (36, 4),
    "pr_if.ni_host_rx_rings": (40, 4),
    "pr_if.ni_spare1": (44, 12),
    "pr_if.ring_ofs": (56, 8),
}
FLAGS = {
    "PR_NS_BUF_CHANGED": 1, "PR_NS_REPORT": 2, "PR_NS_FORWARD": 4, "PR_NS_NO_LEARN": 8, "PR_NS_INDIRECT": 16,
    "PR_NS_MOREFRAG": 32, "PR_NS_TXMON": 64, "PR_NS_PORT_MASK": 0xFF00, "PR_NR_TIMESTAMP": 2, "PR_NR_FORWARD": 4,
    "PR_RX": 0, "PR_TX": 1, "PR_MAX_FRAGS": 64,
}  # fmt: skip


def test_the_extension_was_built_with_netmaps_layout():
    ours = {name: place for name, place in _shm.LAYOUT.items() if name in NETMAP_API_14}
    assert ours == NETMAP_API_14


def test_a_c_program_prints_netmaps_offsets_sizes_and_flags(tmp_path, shm_include):
    fields = [name.split(".") for name in NETMAP_API_14 if "." in name]
    lines = [
        f'printf("{s}.{f} %zu %zu\\n", offsetof(struct {s}, {f}), sizeof(((struct {s}*)0)->{f}));'
        for s, f in fields
        if f != "ring_ofs"
    ]
    lines += [f'printf("{name} %zu %zu\\n", (size_t)0, sizeof(struct {name}));' for name in NETMAP_API_14 if "." not in name]
    lines += [f'printf("{name} %d\\n", (int){name});' for name in FLAGS]
    source = tmp_path / "layout.c"
    source.write_text('#include <stdio.h>\n#include "layout.h"\nint main(void){' + "".join(lines) + "return 0;}")
    subprocess.run(["cc", "-std=gnu11", "-Wall", "-Werror", f"-I{shm_include}", source, "-o", tmp_path / "layout"], check=True)
    printed = dict(line.split(" ", 1) for line in subprocess.check_output([tmp_path / "layout"], text=True).splitlines())
    for name, (offset, size) in NETMAP_API_14.items():
        if name != "pr_if.ring_ofs":
            assert printed[name] == f"{offset} {size}", name
    for name, value in FLAGS.items():
        assert int(printed[name]) == value, name


def test_the_parts_of_a_region_do_not_overlap_and_buffers_start_page_aligned():
    g = _shm.carve(16, 16, 1024, 5000, 2048)
    ends = [4096, g["if_ofs"] + 16 * 1024, g["ring_ofs"] + 16 * g["ring_size"], g["meta_ofs"] + 5000 * 64]
    starts = [g["if_ofs"], g["ring_ofs"], g["meta_ofs"], g["buf_ofs"]]
    assert all(end <= start for end, start in zip(ends, starts, strict=True))
    assert g["buf_ofs"] % 4096 == 0
    assert g["size"] >= g["buf_ofs"] + 5001 * 2048, "one extra chunk pads the end"
    assert g["ring_size"] >= 256 + 1024 * 16
