"""What the API can do with exports, bundles and devices, the command can do too."""

from typing import Any

import typer.main

from maas.cli.main import app
from tests.api.conftest import RunningGateway

COMMANDS = {
    "POST /v1/exports": "export",
    "GET /v1/exports": "exports list",
    "GET /v1/exports/{export_id}": "exports show",
    "GET /v1/exports/{export_id}/events": "exports events",
    "POST /v1/exports/{export_id}/cancel": "exports cancel",
    "GET /v1/bundles": "bundle list",
    "GET /v1/bundles/signing_key": "bundle key",
    "GET /v1/bundles/{bundle_id}": "bundle show",
    "DELETE /v1/bundles/{bundle_id}": "bundle delete",
    "GET /v1/bundles/{bundle_id}/content": "bundle download",
    "GET /v1/devices": "device list",
    "GET /v1/devices/{device_id}": "device show",
    "POST /v1/devices/{device_id}": "device assign",
    "DELETE /v1/devices/{device_id}": "device retire",
    "GET /v1/devices/{device_id}/events": "device events",
    "GET /v1/devices/summary": "device summary",
    "POST /v1/devices/enrolment_codes": "device enrol-code",
    "GET /v1/devices/enrolment_codes": "device code list",
    "DELETE /v1/devices/enrolment_codes/{code_id}": "device code delete",
    "POST /v1/devices/groups": "device group create",
    "GET /v1/devices/groups": "device group list",
    "GET /v1/devices/groups/{group_name}": "device group show",
    "POST /v1/devices/groups/{group_name}": "device group set",
    "DELETE /v1/devices/groups/{group_name}": "device group delete",
    "GET /v1/devices/channels": "device channel list",
    "GET /v1/devices/channels/{channel_name}": "device channel show",
    "POST /v1/devices/channels/{channel_name}": "device channel set",
    "DELETE /v1/devices/channels/{channel_name}": "device channel delete",
    "POST /v1/devices/rollouts": "device rollout start",
    "GET /v1/devices/rollouts": "device rollout list",
    "GET /v1/devices/rollouts/{rollout_id}": "device rollout show",
    "POST /v1/devices/rollouts/{rollout_id}/pause": "device rollout pause",
    "POST /v1/devices/rollouts/{rollout_id}/resume": "device rollout resume",
    "POST /v1/devices/rollouts/{rollout_id}/cancel": "device rollout cancel",
}
# Those that a device sends itself: maas-edge.
OF_DEVICES = {"POST /v1/devices/enrol", "POST /v1/devices/heartbeat"}


def _command(name: str) -> Any:
    """Return a command; nothing where there is none of this name."""
    found: Any = typer.main.get_command(app)
    for word in name.split():
        found = getattr(found, "commands", {}).get(word)
    return found


def test_every_route_has_its_command(gateway: RunningGateway) -> None:
    document = gateway.client.get("/openapi.json").json()
    routes = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
        if path.startswith(("/v1/exports", "/v1/bundles", "/v1/devices"))
    }
    assert routes == COMMANDS.keys() | OF_DEVICES
    missing = [name for name in COMMANDS.values() if _command(name) is None]
    assert missing == []


def test_every_list_can_be_gone_on_with(gateway: RunningGateway) -> None:
    document = gateway.client.get("/openapi.json").json()
    for route, name in COMMANDS.items():
        method, _, path = route.partition(" ")
        offered = document["paths"][path][method.lower()].get("parameters", ())
        for parameter in {"after", "limit"} & {item["name"] for item in offered}:
            taken = {item.name for item in _command(name).params}
            assert parameter in taken, (route, parameter)
