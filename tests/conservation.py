"""The law of conservation, from the counters of rings at rest (shm/counters.h)."""

DRIVER_RX = ("drop_gso", "drop_csum", "drop_trunc", "drop_runt")
PATH = (
    "drop_filter",
    "drop_direction",
    "drop_limit",
    "drop_tx_full",
    "drop_bad_slot",
    "drop_no_rule",
    "drop_no_buffer",
)
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
    """What each row's books are out by; all zero when every frame is accounted for. Rings must be empty.

    What a killed process took along is missing on the way in or on the way on, and is drop_crash in all.
    """
    out = {}
    for row in region.counters():
        if " rx" in row["row"]:
            arrived = row["rx_kernel"] + row["rx_pieces"] - row["rx_supers"] - row["rx_frames"]
            driver = arrived - sum(row[c] for c in DRIVER_RX)
            path = row["rx_frames"] - row["delivered"] - row["forwarded"] - row["classified"] - sum(row[c] for c in PATH)
            if not row["drop_crash"] or driver < 0 or path < 0:
                out[row["row"] + " driver"], out[row["row"] + " path"] = driver, path
            else:
                out[row["row"]] = driver + path - row["drop_crash"]
        else:
            out[row["row"]] = row["tx_queued"] - row["tx_frames"] - sum(row[c] for c in DRIVER_TX) - row["drop_crash"]
    return out


def balanced(region) -> bool:
    """Nothing unaccounted for, in any row."""
    books = unaccounted(region)
    assert not any(books.values()), books
    return True
