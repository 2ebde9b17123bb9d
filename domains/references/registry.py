"""The objects that this domain has handed to others, and those that others have handed to it.

An object keeps its home: the domain that made it. Pickling it exports it under a number that nobody can guess; where
the pickle is opened a reference of the same class stands for it, one per domain, and talks to the home by messages.
Sent home, it is the original object again.

Who keeps what alive: an export lives while a domain holds a reference to it, or while a pickle with it is on its way.
A pickle's journey is a `hold`, kept by who pickled it, until the receiver has said `HoldReference` to the home, which
then says `DischargeHold`; until the job that it is an argument of has ended without opening it; or until the domain
that it went to is gone. Because all messages between two domains take one way, a release never overtakes the hold that
it comes after. That a job has ended says nothing of what it has opened, for its answer comes by another way.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from domains.conversation import Buffers, Conversation
from domains.errors import Cancelled, ConnectionLost, DomainsError, copy_of
from domains.identity import current
from domains.ipc.pickling import Memory
from domains.ipc.segments import random_number
from domains.protocol import DischargeHold, HoldReference, ReleaseReference
from domains.references.calls import Calls
from domains.references.kind import Export, Kind
from domains.references.pickling import ReferencePickling, open_reference
from domains.references.routes import Routes
from domains.scheduler.switch import Switch


class _Hold:
    """A pickle's journey: what must live meanwhile, and the address that it was sent to, if that is known.

    It has `arrived`, where it may be opened again all the same.
    """

    __slots__ = ("arrived", "export", "target", "to")

    def __init__(self, target: Any, export: Export | None) -> None:
        self.target = target
        self.export = export
        self.to: int | None = None
        self.arrived = False


class Outsider(Protocol):
    """What other threads have to do with the loop by."""

    def loop_ended(self) -> None:
        """The loop is closed: nothing comes from it any more."""


class References(Routes):
    """One process's share in the objects that several domains know. Belongs to one loop and its thread."""

    def __init__(self, kinds: Iterable[Kind], switch: Switch, memory: Memory | None = None) -> None:
        super().__init__()
        self.kinds = {kind.name: kind for kind in kinds}
        self.pickling: ReferencePickling = ReferencePickling(self, memory)
        self.calls = Calls(self, switch)
        self._switch = switch
        self.exports: dict[int, Export] = {}
        self._by_identity: dict[int, Export] = {}
        self._imports: dict[tuple[int, int], weakref.ref[Any]] = {}
        self._holds: dict[int, _Hold] = {}
        self._kept: set[int] = set()  # holds of pickles that are sent again if they are lost
        self._latest_hold = 0
        self.open_manager: Callable[[int], Any] | None = None
        """What a domain manager that was handed to this process means here, given its default number of domains."""
        self.when_domain_gone: list[Callable[[int, DomainsError], None]] = []
        """Called with the address of each domain that has ended, and how."""
        self.outsiders: weakref.WeakSet[Outsider] = weakref.WeakSet()
        """Those in other threads who have to hear that the loop is closed."""

    def _register(self, conversation: Conversation) -> None:
        self.handle(conversation, HoldReference, self._hold)
        self.handle(conversation, DischargeHold, self._discharged)
        self.handle(conversation, ReleaseReference, self._release)
        self.calls.converse(conversation)
        for kind in self.kinds.values():
            kind.converse(self, conversation)

    # Pickling

    def reduce(self, target: Any, kind: Kind) -> Any:
        """What an object, or a reference to one, is pickled as; begins a hold."""
        hold = self._latest_hold = self._latest_hold + 1
        export: Export | None = None
        is_reference = type(target) is kind.classes[-1]
        if not is_reference:
            export = self._export(target, kind)
            export.holds += 1
            home, number, home_name = self.address, export.number, current().name
        else:
            home, number, home_name = target.home, target.number, target.home_name
        self._holds[hold] = _Hold(target, export)
        self.pickling.holds.append(hold)
        return open_reference, (kind.name, home, number, home_name, self.address, hold, kind.label_of(target))

    def _export(self, target: Any, kind: Kind) -> Export:
        export = self._by_identity.get(id(target))
        if export is None:
            export = Export(random_number(), target, kind.name)
            kind.exported(export)
            self.exports[export.number] = self._by_identity[id(target)] = export
        return export

    def discharge(self, holds: Iterable[int]) -> None:
        """Pickles will not be opened any more."""
        for hold in holds:
            self._kept.discard(hold)
            found = self._holds.pop(hold, None)
            if found is not None and found.export is not None:
                found.export.holds -= 1
                self._drop_if_unused(found.export)

    def _sent(self, holds: Iterable[int], to: int) -> None:
        for hold in holds:
            if hold in self._holds:  # else it was discharged while the message waited for its way
                self._holds[hold].to = to

    def _undeliverable(self, message: Any, holds: Iterable[int], error: DomainsError) -> None:
        self.undelivered(holds, error)
        if isinstance(message, HoldReference):
            self._send_discharge(message.issuer, message.hold)

    def keep(self, holds: Iterable[int]) -> None:
        """These pickles may be opened more than once: that one has arrived does not discharge them.

        To be said again whenever they are sent again.
        """
        for hold in holds:
            found = self._holds.get(hold)
            if found is not None:  # else its home is gone
                self._kept.add(hold)
                found.arrived = False

    def opened(self, holds: Iterable[int], by: int) -> None:
        """The domain with this address has opened these pickles, and nobody will again.

        Their homes will say so: until then who opened them counts on what is held here.
        """
        for hold in holds:
            self._kept.discard(hold)
            found = self._holds.get(hold)
            if found is None:
                continue  # it was said already
            if found.arrived:
                self.discharge([hold])
            else:
                found.to = by

    def undelivered(self, holds: Iterable[int], error: DomainsError) -> None:
        """The domain that pickles were sent to has died: one that never opened them is a holder that is gone."""
        for hold in holds:
            self._kept.discard(hold)
            found = self._holds.pop(hold, None)
            if found is not None and found.export is not None:
                export = found.export
                export.holds -= 1
                self.kinds[export.kind].undelivered(export, error)
                if not export.holders and not export.holds:
                    self.kinds[export.kind].holder_gone(export, error)
                self._drop_if_unused(export)

    def _drop_if_unused(self, export: Export) -> None:
        if not export.holders and not export.holds and export.number in self.exports:
            del self.exports[export.number]
            del self._by_identity[id(export.target)]
            self.kinds[export.kind].dropped(export.target)

    # Opening

    def open(self, name: str, home: int, number: int, home_name: str, issuer: int, hold: int, label: Any) -> Any:
        """What a pickle's reference means here: the object itself at home, else the one reference to it."""
        if home == self.address:
            export = self.exports.get(number)
            if export is None:
                raise LookupError("the object that came home is not known here any more")
            target = export.target
            self._send_discharge(issuer, hold)
            return target
        reference = self.reference(home, number)
        if reference is None:
            if (home, number) in self._imports:
                # The one before is gone, and what it held with it; the home was not told yet.
                self.send(ReleaseReference(home, self.address, number))
            reference = self.kinds[name].make_reference(self, home, number, label)
            reference.home_name = home_name
            self._imports[home, number] = weakref.ref(reference, self._dropper(home, number))
            self.send(HoldReference(home, self.address, number, issuer, hold))
        else:
            self._send_discharge(issuer, hold)
        return reference

    def reference(self, home: int, number: int) -> Any:
        """The reference to that object, if somebody here has one."""
        found = self._imports.get((home, number))
        return None if found is None else found()

    def _send_discharge(self, issuer: int, hold: int) -> None:
        if issuer == self.address:
            self._arrived(hold)
        else:
            self.send(DischargeHold(issuer, self.address, hold))

    def _dropper(self, home: int, number: int) -> Callable[[weakref.ref[Any]], None]:
        def dropped(found: weakref.ref[Any]) -> None:
            # Called by the garbage collector, in whichever thread it runs.
            try:
                self.call_on_own_thread(self._dropped, home, number, found)
            except RuntimeError:
                return  # the loop is closed, and the link with it

        return dropped

    def _dropped(self, home: int, number: int, found: weakref.ref[Any]) -> None:
        # If it came again meanwhile there is a new reference, and a new hold; this release must not undo that.
        if self._imports.get((home, number)) is found:
            del self._imports[home, number]
            if not self._is_ending():
                self.send(ReleaseReference(home, self.address, number))
            unreachable = self._unreachable.get(home)
            if unreachable is not None and not isinstance(unreachable, ConnectionLost) and not self._knows(home):
                del self._unreachable[home]

    def _knows(self, home: int) -> bool:
        return any(address == home for address, _ in self._imports)

    def _is_ending(self) -> bool:
        """Whether this domain was told to end: what it drops then is lost with it, and its home is told so by that."""
        try:
            self._switch.check()
        except Cancelled:
            return True
        return False

    def _fail_references(self, home: int, error: DomainsError) -> None:
        for (address, _), found in list(self._imports.items()):
            reference = found() if address == home else None
            if reference is not None:
                reference.home_gone(copy_of(error))  # each raises its own: a shared one would keep all their frames
        self.calls.home_gone(home, error)
        # Nobody is left to say that these have arrived.
        self.discharge(
            [hold for hold, found in self._holds.items() if found.export is None and found.target.home == home]
        )

    # At home

    def _hold(self, message: HoldReference, _: Buffers) -> None:
        export = self.exports.get(message.number)
        if export is not None:
            export.holders.add(message.sender)
        self._send_discharge(message.issuer, message.hold)

    def _discharged(self, message: DischargeHold, _: Buffers) -> None:
        self._arrived(message.hold)

    def _arrived(self, hold: int) -> None:
        if hold not in self._kept:
            self.discharge([hold])
        elif (found := self._holds.get(hold)) is not None:
            found.arrived = True

    def _release(self, message: ReleaseReference, _: Buffers) -> None:
        export = self.exports.get(message.number)
        if export is not None:
            export.holders.discard(message.sender)
            self.kinds[export.kind].domain_gone(export, message.sender, _released(export))
            self._drop_if_unused(export)

    def _forget_holder(self, holder: int, error: DomainsError) -> None:
        self.undelivered([hold for hold, found in self._holds.items() if found.to == holder], error)
        self.calls.caller_gone(holder)
        for callback in self.when_domain_gone:
            callback(holder, error)
        for export in list(self.exports.values()):
            if holder in export.holders:
                export.holders.discard(holder)
                self.kinds[export.kind].domain_gone(export, holder, error)
                if not export.holders and not export.holds:
                    self.kinds[export.kind].holder_gone(export, error)
                self._drop_if_unused(export)


def _released(export: Export) -> DomainsError:
    return DomainsError(f"the last reference to {export.target!r} in another domain was dropped while it held it")
