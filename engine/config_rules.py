"""What the parts of a configuration are together: rules said twice or never reached, a device that is two ports, absent CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from .config_keys import MAX_RULES
from .config_toml import Path
from .config_types import Config

Problem = tuple[Path, str]


def problems(config: Config) -> Iterator[Problem]:
    """Yield what cannot be, and where it stands."""
    yield from _ports(config)
    yield from _rules(config)
    yield from _protocols(config)


def _ports(config: Config) -> Iterator[Problem]:
    seen: dict[tuple[str, str], str] = {}
    for port in config.ports.values():
        device = (port.base, port.options.get("netns", ""))
        if device in seen and not port.base.startswith("null:"):
            yield ("port", port.name), f"{port.base} is [port.{seen[device]}] already: a device is one port"
        seen.setdefault(device, port.name)


def _rules(config: Config) -> Iterator[Problem]:
    said: set[tuple[str, str, str]] = set()
    for i, rule in enumerate(config.forwards):
        for from_, to in rule.ways():
            if (from_, to, rule.filter) in said and from_ != to:
                yield ("forward", i), f"from {from_} to {to} was said before, with the same filter: remove one (both = true is both ways)"
            said.add((from_, to, rule.filter))
    for i, mirror in enumerate(config.mirrors):
        if mirror in config.mirrors[:i]:
            yield ("mirror", i), "was said before, each frame would be copied twice: remove one"
    for name in config.ports:
        forwards = sum(from_ == name for rule in config.forwards for from_, _ in rule.ways())
        mirrors = sum(mirror.from_ == name for mirror in config.mirrors)
        if max(forwards, mirrors) > MAX_RULES:
            yield (
                ("port", name),
                f"{forwards} forwards and {mirrors} mirrors begin here, {MAX_RULES} of each are the most: join filters by `or`",
            )


def _protocols(config: Config) -> Iterator[Problem]:
    for (_, before), (i, protocol) in combinations(enumerate(config.protocols), 2):
        if protocol.name == before.name or protocol.proto == before.proto:
            which = f"{before.name} is number {before.proto} and has a handler already"
            yield ("protocol", i), f"{protocol.name} (number {protocol.proto}): {which}: one name, one number, one handler"


def warnings(config: Config) -> list[str]:
    """Tell which forwards no frame ever comes to."""
    all_taken: dict[str, str] = {}
    lines = []
    for i, rule in enumerate(config.forwards, 1):
        for from_, to in rule.ways():
            if from_ in all_taken:
                lines.append(f"W_RULE [[forward]] {i}: no frame from {from_} comes so far: all of them go to {all_taken[from_]} before")
            elif not rule.filter:
                all_taken[from_] = to
    return lines


def placement(config: Config, cpus: list[int]) -> tuple[list[str], list[str]]:
    """Look for the CPUs that workers want. -> (warnings, problems); where affinity is not strict workers run on what there is (F23)."""
    here = f"this process may use {', '.join(map(str, cpus))}"
    wanted = config.workers if isinstance(config.workers, tuple) else ()
    lacking = [f"worker={n} wanted cpu{cpu}, {here}" for n, cpu in enumerate(wanted, 1) if cpu not in cpus]
    if isinstance(config.workers, int) and config.workers > len(cpus):
        lacking = [f"workers={config.workers} wanted, one a CPU, {here}"]
    forced = config.settled(cpus)[1]
    if config.strict_affinity:
        return forced, [f"{each}: change workers, or strict_affinity" for each in lacking]
    return [f"W_AFFINITY {each}" for each in lacking] + forced, []
