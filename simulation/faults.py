"""What can go wrong, as a table: each fault acts on the world once, and says for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.ports import AccountLimit
from policy.limits import LEASE_S, STALE_S
from simulation.machine import Machine

if TYPE_CHECKING:
    from simulation.world import World


async def crash(world: World) -> None:
    """Killed; a successor reads the log."""
    gateway = world.pick()
    if gateway is None:
        return
    disk = world.crash(gateway)
    await asyncio.sleep(world.rng.choice((0.0, 0.5, 10.0)))
    world.start(gateway.machine, disk)


async def crash_late(world: World) -> None:
    """Killed; nobody comes back before the end."""
    gateway = world.pick()
    if gateway is not None:
        world.disks.append(world.crash(gateway))


async def disk_lost(world: World) -> None:
    """Killed together with its disk: what it held is spent for good."""
    gateway = world.pick()
    if gateway is not None:
        world.crash(gateway)
        world.start(gateway.machine, world.new_disk(gateway.machine))


async def drain(world: World) -> None:
    """An orderly restart, perhaps under a store that does not answer."""
    gateway = world.pick()
    if gateway is None:
        return

    if world.rng.random() < 0.5:
        gateway.ask(world.request())
        await asyncio.sleep(0)

    async def restart() -> None:
        if await gateway.drain():
            world.closed.append(gateway.leases.holder)
        world.start(gateway.machine, gateway.disk.image())

    world.background(restart())


async def pause(world: World) -> None:
    """The process is stopped and goes on later: perhaps after its leases ended."""
    gateway = world.pick()
    if gateway is not None:
        _stop_for(world, gateway.machine, world.rng.choice((2.0, 30.0, LEASE_S + 50)))


async def suspend(world: World) -> None:
    """The machine sleeps, and its clocks know it."""
    gateway = world.pick()
    if gateway is None:
        return
    seconds = world.rng.choice((1.5, 30.0, 400.0))

    def wake() -> None:
        gateway.machine.slept_s += seconds
        gateway.machine.go_on()

    gateway.machine.stop()
    asyncio.get_running_loop().call_later(seconds, wake)


async def freeze_frame(world: World) -> None:
    """The hypervisor stops the machine, clocks and all; later its wall clock is put right at once."""
    gateway = world.pick()
    if gateway is None:
        return
    machine, seconds = gateway.machine, world.rng.choice((3.0, 60.0))

    def wake() -> None:
        machine.boot_offset_s -= seconds
        machine.step_wall(-seconds)
        machine.go_on()
        asyncio.get_running_loop().call_later(7.0, machine.step_wall, seconds)

    machine.stop()
    asyncio.get_running_loop().call_later(seconds, wake)


async def clone(world: World) -> None:
    """The machine is copied with memory and disk; the copy wakes later, and both live on."""
    await _copy(world, original_dies=False)


async def rollback(world: World) -> None:
    """The machine is put back to a snapshot of some time ago, memory and disk."""
    await _copy(world, original_dies=True)


async def wall_step(world: World) -> None:
    """The wall clock jumps, back or forth."""
    gateway = world.pick()
    if gateway is not None:
        gateway.machine.step_wall(world.rng.choice((-300.0, -45.0, -1.6, 1.6, 45.0, 300.0)))


async def boot(world: World) -> None:
    """The process is carried into another boot."""
    gateway = world.pick()
    if gateway is not None:
        gateway.machine.boots += 1
        gateway.machine.boot_offset_s += world.rng.choice((0.0, 1000.0))


async def outage(world: World) -> None:
    """The store answers nobody for a while."""
    world.store.away = True
    asyncio.get_running_loop().call_later(
        world.rng.choice((1.0, 20.0, LEASE_S + 20)), setattr, world.store, "away", False
    )


async def lossy(world: World) -> None:
    """Requests and replies are lost, late, and overtake one another."""
    world.network.loss, world.network.delay_s = world.rng.choice((0.1, 0.4)), world.rng.choice((0.05, 1.0))
    asyncio.get_running_loop().call_later(world.rng.choice((5.0, 40.0)), setattr, world.network, "loss", 0.0)


async def slow(world: World) -> None:
    """The store is far away."""
    world.network.delay_s = world.rng.choice((0.2, 2.0))


async def failover(world: World) -> None:
    """A standby that lagged takes over: grants of the last moments are forgotten."""
    image = world.store.image()
    asyncio.get_running_loop().call_later(world.rng.choice((0.2, 2.0, 6.0)), _restore, world, image)


async def restore(world: World) -> None:
    """An old backup of the store is put back."""
    image = world.store.image()
    asyncio.get_running_loop().call_later(world.rng.choice((30.0, 60.0)), _restore, world, image)


async def old_disk(world: World) -> None:
    """A dead gateway's disk comes back from a backup that is older than any log that may be believed.

    The store is whole: nobody inside can tell when the store and the logs all go back together.
    """
    gateway = world.pick()
    if gateway is None or gateway.machine.clocks_moved or world.faults["failover"] + world.faults["restore"]:
        return
    image = gateway.disk.image()

    async def later() -> None:
        await asyncio.sleep(STALE_S + LEASE_S + 60)
        if gateway.serving and not gateway.dead and not gateway.machine.clocks_moved:
            world.crash(gateway)
            world.start(gateway.machine, image)

    world.background(later())


async def limit(world: World) -> None:
    """A limit is raised or lowered, and one gateway takes it."""
    key = world.rng.choice(sorted(world.limits, key=str))
    world.limits[key] = int(world.limits[key] * world.rng.choice((0.1, 0.5, 0.9, 1.5, 4))) + 1
    gateway = world.pick()
    if gateway is not None:
        world.background(gateway.reload())


async def operator_limit(world: World) -> None:
    """An operator changes a limit in the store itself."""
    names = sorted(name for name in world.model.books.limits if name not in world.model.steps)
    if names:
        name = world.rng.choice(names)
        bits = int(world.store.limit_bits(name) * world.rng.choice((0.3, 0.8, 2))) + 1
        world.store.apply("register", [AccountLimit(account=name, limit_bits=bits)])


async def thaw(world: World) -> None:
    """An operator thaws whatever is frozen."""
    world.store.thaw()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How a fault happens, and how often beside the others."""

    act: Callable[[World], Awaitable[None]]
    weight: int = 2


FAULTS = {
    "crash": Fault(act=crash, weight=5),
    "crash, recovered late": Fault(act=crash_late),
    "disk lost": Fault(act=disk_lost, weight=1),
    "orderly restart": Fault(act=drain, weight=3),
    "pause": Fault(act=pause),
    "suspend": Fault(act=suspend),
    "stopped with its clocks": Fault(act=freeze_frame),
    "clone": Fault(act=clone),
    "rollback of a machine": Fault(act=rollback),
    "wall clock step": Fault(act=wall_step),
    "another boot": Fault(act=boot, weight=1),
    "store outage": Fault(act=outage, weight=3),
    "lossy network": Fault(act=lossy, weight=4),
    "slow network": Fault(act=slow),
    "failover": Fault(act=failover, weight=3),
    "restore": Fault(act=restore),
    "old disk": Fault(act=old_disk, weight=1),
    "limit changed": Fault(act=limit, weight=3),
    "limit changed in the store": Fault(act=operator_limit, weight=1),
    "thaw": Fault(act=thaw, weight=1),
}


def _stop_for(world: World, machine: Machine, seconds: float) -> None:
    machine.stop()
    asyncio.get_running_loop().call_later(seconds, machine.go_on)


def _restore(world: World, image: object) -> None:
    if world.faults["old disk"]:
        return
    world.trace("the store forgets")
    world.store.restore(image)  # type: ignore[arg-type]


async def _copy(world: World, *, original_dies: bool) -> None:
    gateway = world.pick()
    if gateway is None:
        return
    before = gateway.machine
    machine = Machine(f"{before.name}'", wall_offset_s=before.wall_offset_s)
    machine.boot_offset_s, machine.slept_s, machine.boots = before.boot_offset_s, before.slept_s, before.boots
    machine.clocks_moved = before.clocks_moved
    machine.boot_name = before.boot_name
    copy = await gateway.copied(world.process_name, machine, gateway.disk.image_for(machine))
    if copy is None:
        return
    seconds = world.rng.choice((1.5, 20.0, 200.0))

    def wake() -> None:
        machine.boot_offset_s -= seconds  # it was not there to count them
        if original_dies and gateway.serving and not gateway.dead:
            world.crash(gateway)
        copy.wake()
        world.gateways.append(copy)

    asyncio.get_running_loop().call_later(seconds, wake)
