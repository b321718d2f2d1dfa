"""The law of conservation, from the counters of rings at rest (shm/counters.h)."""

DRIVER_RX = ("drop_gso", "drop_csum", "drop_trunc", "drop_runt")
PATH = ("drop_filter", "drop_direction", "drop_limit", "drop_tx_full", "drop_bad_slot")
DRIVER_TX = (
    "drop_mtu",
    "drop_runt",
    "drop_gso",
    "drop_csum",
    "drop_trunc",
    "drop_bad_slot",
    "drop_down",
    "drop_tx_kernel",
    "drop_error",
)


def unaccounted(region) -> dict[str, int]:
    """What each row's books are out by; all zero when every frame is accounted for. Rings must be empty."""
    out = {}
    for row in region.counters():
        if " rx" in row["row"]:
            arrived = row["rx_kernel"] + row["rx_pieces"] - row["rx_supers"] - row["rx_frames"]
            out[row["row"] + " driver"] = arrived - sum(row[c] for c in DRIVER_RX)
            out[row["row"] + " path"] = row["rx_frames"] - row["delivered"] - row["forwarded"] - sum(row[c] for c in PATH)
        else:
            out[row["row"]] = row["tx_queued"] - row["tx_frames"] - sum(row[c] for c in DRIVER_TX)
    return out


def balanced(region) -> bool:
    """Nothing unaccounted for, in any row."""
    books = unaccounted(region)
    assert not any(books.values()), books
    return True
