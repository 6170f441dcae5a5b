"""What the fleet's routes decide: whom a group's devices may ask, and what a rollout is."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from maas.core.errors import InvalidRequest, NotFound
from maas.gateway.authority import ProjectAuthority
from maas.gateway.devices.schemas import (
    CodeBody,
    DeviceChangeBody,
    GroupBody,
    GroupChangeBody,
    RolloutBody,
)
from maas.gateway.fine_tuning.service import check_metadata
from maas.gateway.relay.snapshot import SnapshotReader
from maas.store.device_groups import NewGroup
from maas.store.device_keys import device_terms
from maas.store.fleet import Fleet
from maas.store.fleet_records import (
    DEFAULT_GROUP,
    Device,
    EnrolmentCode,
    Group,
    NewRollout,
    Rollout,
)
from maas.store.rollout_rules import Stage
from maas.store.text import as_name

# What can be left out of a change, but not taken away.
_NEVER_NULL = frozenset({"name", "group", "heartbeat_s"})


@dataclass(frozen=True)
class FleetService:
    """What the routes work with."""

    fleet: Fleet
    snapshots: SnapshotReader

    def create_group(self, who: ProjectAuthority, body: GroupBody) -> Group:
        """Make a group.

        Raises:
            ModelNotFound: The fallback model is not there.
            PermissionDenied: The one who asks may not ask it either.
        """
        self._check_fallback(who, body.fallback_model)
        labels = _labels(body.metadata)
        new = NewGroup(
            name=body.name,
            channel=body.channel,
            bundle_id=body.bundle_id,
            fallback_model=body.fallback_model,
            heartbeat_s=body.heartbeat_s,
        )
        return self.fleet.groups.create(who.project.id, new, labels)

    def modify_group(self, who: ProjectAuthority, name: str, body: GroupChangeBody) -> Group:
        """Change a group.

        Raises:
            ModelNotFound: The fallback model is not there.
            PermissionDenied: The one who asks may not ask it either.
        """
        changes = _changes(body, never_null=_NEVER_NULL | {"channel"})
        if "fallback_model" in changes:
            self._check_fallback(who, body.fallback_model)
        return self.fleet.groups.modify(who.project.id, name, changes)

    def modify_device(
        self, who: ProjectAuthority, device_id: str, body: DeviceChangeBody
    ) -> Device:
        """Change a device; its key takes the terms of the group it comes into.

        Raises:
            PermissionDenied: The one who asks may make no such key.
        """
        changes = _changes(body, never_null=_NEVER_NULL)
        if "name" in changes:
            changes["name"] = as_name(changes["name"])
        if "group" in changes:
            changes["group_name"] = changes.pop("group")
            self._check_may_key(who, changes["group_name"])
        return self.fleet.devices.modify(who.project.id, device_id, changes)

    def create_code(self, who: ProjectAuthority, body: CodeBody) -> tuple[EnrolmentCode, str]:
        """Make an enrolment code.

        Raises:
            PermissionDenied: The one who asks may make no key like the device's.
        """
        self._check_may_key(who, body.group)
        return self.fleet.enrolment.create(
            who.project.id,
            group=body.group,
            name=body.name,
            lifetime_s=float(body.expires_in_s),
            labels=_labels(body.metadata),
        )

    def start_rollout(self, who: ProjectAuthority, body: RolloutBody) -> Rollout:
        """Start a rollout.

        Raises:
            InvalidRequest: Its stages do not grow to all devices.
        """
        percents = [stage.percent for stage in body.stages]
        if percents[-1] != 100:
            raise InvalidRequest("stages: the last one must be 100 percent", param="stages")
        if any(here >= there for here, there in pairwise(percents)):
            raise InvalidRequest("stages: each must be larger than the one before", param="stages")
        new = NewRollout(
            channel=body.channel,
            bundle_id=body.bundle_id,
            stages=tuple(Stage(item.percent, item.min_s) for item in body.stages),
            max_failure_percent=body.max_failure_percent,
            min_reports=body.min_reports,
            labels=_labels(body.metadata),
        )
        return self.fleet.rollouts.create(who.project.id, new)

    def _check_may_key(self, who: ProjectAuthority, group: str) -> None:
        """Check that a key for a device of a group can do nothing that the maker's cannot."""
        try:
            fallback_model = self.fleet.groups.get(who.project.id, group).fallback_model
        except NotFound:
            if group != DEFAULT_GROUP:
                raise
            # It is made when the first device comes.
            fallback_model = None
        self._check_terms(who, fallback_model)

    def _check_fallback(self, who: ProjectAuthority, model: str | None) -> None:
        if model is None:
            return
        entry = self.snapshots.current.resolve(model, who.project.id)
        who.access.check_model(entry.name, entry.root)
        self._check_terms(who, model)

    def _check_terms(self, who: ProjectAuthority, fallback_model: str | None) -> None:
        terms = device_terms(fallback_model)
        if fallback_model is None:
            # It asks no model at all, which is within whatever list there is.
            terms = replace(terms, models=who.access.key.models)
        who.check_is_restricted_alike(terms)


def _labels(metadata: dict[str, str] | None) -> dict[str, str]:
    check_metadata(metadata or {})
    return metadata or {}


def _changes(
    body: GroupChangeBody | DeviceChangeBody, *, never_null: frozenset[str]
) -> dict[str, Any]:
    """Return what a body changes, by attribute.

    Raises:
        InvalidRequest: It takes away what cannot be missing.
    """
    changes = {name: getattr(body, name) for name in body.model_fields_set}
    for name in never_null & changes.keys():
        if changes[name] is None:
            raise InvalidRequest(f"{name}: cannot be null", param=name)
    if "metadata" in changes:
        changes["labels"] = _labels(changes.pop("metadata"))
    return changes
