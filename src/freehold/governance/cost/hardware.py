"""What own hardware costs: bought and written off, powered, looked after. US dollars, like the price table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from freehold.core.errors import ConfigError
from freehold.governance.toml import read_toml

_MOST = 10**12
HOURS_PER_YEAR = Decimal(8766)
HOURS_PER_MONTH = HOURS_PER_YEAR / 12


@dataclass(frozen=True, slots=True)
class Machine:
    """count: how many of the kind. price: of one, with all that was bought for it. years: until it is written off.
    residual: what it is worth then. watts_busy, watts_idle: of one, measured at the plug."""

    name: str
    price: Decimal
    years: Decimal
    watts_busy: Decimal
    watts_idle: Decimal
    count: int = 1
    residual: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class OwnCost:
    """The parts of a period's cost. energy_idle: what it takes without any load; energy_busy: what the load added."""

    amortisation: Decimal
    operation: Decimal
    energy_idle: Decimal
    energy_busy: Decimal

    @property
    def total(self) -> Decimal:
        """All of it."""
        return self.amortisation + self.operation + self.energy_idle + self.energy_busy

    @property
    def fixed(self) -> Decimal:
        """What it costs without any load."""
        return self.amortisation + self.operation + self.energy_idle


@dataclass(frozen=True, slots=True)
class Hardware:
    """price_per_kwh: of electricity. overhead: power of the room for each watt of a machine, as PUE has it.
    per_month: space, network, people, whatever else is paid for it."""

    machines: tuple[Machine, ...]
    price_per_kwh: Decimal
    overhead: Decimal = Decimal(1)
    per_month: Decimal = Decimal(0)

    def cost(self, hours: Decimal, busy_hours: Decimal) -> OwnCost:
        """What a period cost in which the machines were busy for some of its hours."""
        amortisation = sum(
            (m.count * (m.price - m.residual) / (m.years * HOURS_PER_YEAR) * hours for m in self.machines), Decimal(0)
        )
        idle = sum((m.count * m.watts_idle for m in self.machines), Decimal(0))
        more = sum((m.count * (m.watts_busy - m.watts_idle) for m in self.machines), Decimal(0))
        per_watt_hour = self.overhead * self.price_per_kwh / 1000
        return OwnCost(
            amortisation,
            self.per_month * hours / HOURS_PER_MONTH,
            idle * hours * per_watt_hour,
            more * busy_hours * per_watt_hour,
        )


_MACHINE = {"name", "count", "price", "years", "residual", "watts_busy", "watts_idle"}
_NEEDED = {"name", "price", "years", "watts_busy", "watts_idle"}


def read_hardware(path: Path) -> Hardware:
    """From a TOML file: `[[machine]]` entries, `[power]` and perhaps `[operation]`. Raises ConfigError."""
    document = read_toml(path, "the hardware file")
    where = f"the hardware file {path}"
    _known(document, {"machine", "power", "operation"}, {"machine", "power"}, where)
    machines = []
    if not isinstance(document["machine"], list) or not document["machine"]:
        raise ConfigError(f"{where}: it has no machine; each begins with [[machine]]")
    for number, given in enumerate(document["machine"], 1):
        place = f"{where}, machine {number}"
        _known(given, _MACHINE, _NEEDED, place)
        numbers = {name: _number(given, name, place) for name in given if name not in ("name", "count")}
        count = given.get("count", 1)
        if type(count) is not int or not 1 <= count <= 10**6 or not numbers["years"] >= Decimal("0.01"):
            raise ConfigError(
                f"{place}: count is a whole number above 0 and years are at least 0.01; they are {str(count)[:40]} and "
                f"{numbers['years']}"
            )
        if numbers["watts_busy"] < numbers["watts_idle"] or numbers["price"] < numbers.get("residual", 0):
            raise ConfigError(f"{place}: a busy machine takes no less power than an idle one, nor gains in worth")
        machines.append(Machine(name=str(given["name"]), count=count, **numbers))
    power, operation = document["power"], document.get("operation", {})
    _known(power, {"price_per_kwh", "overhead"}, {"price_per_kwh"}, f"{where}, power")
    _known(operation, {"per_month"}, set(), f"{where}, operation")
    overhead = _number(power, "overhead", where) if "overhead" in power else Decimal(1)
    if overhead < 1:
        raise ConfigError(f"{where}: overhead is {overhead}; the whole room takes at least what the machines take (1)")
    per_month = _number(operation, "per_month", where) if "per_month" in operation else Decimal(0)
    return Hardware(tuple(machines), _number(power, "price_per_kwh", where), overhead, per_month)


def _known(given: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: it must be a table, not {given!r}")
    if unknown := set(given) - known:
        raise ConfigError(f"{where}: unknown: {', '.join(sorted(unknown))}; it may have {', '.join(sorted(known))}")
    if missing := needed - set(given):
        raise ConfigError(f"{where}: it lacks {', '.join(sorted(missing))}")


def _number(given: Mapping[str, Any], name: str, where: str) -> Decimal:
    value = given[name]
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or not Decimal(value).is_finite() or value < 0:
        raise ConfigError(f"{where}: {name} is {value!r}; it must be a number that is not negative")
    if value > _MOST:
        raise ConfigError(f"{where}: {name} is {str(value)[:40]}; it must be no more than {_MOST:,}")
    return Decimal(value)
