"""Users of a project: found by id or by address."""

from maas.core.errors import InvalidRequest
from maas.gateway.authority import ProjectAuthority
from maas.gateway.organization.project_users.schemas import MemberBody, ProjectUser, shown


def add(who: ProjectAuthority, body: MemberBody) -> ProjectUser:
    """Give a user of the organisation a role in the project.

    Raises:
        InvalidRequest: Neither id nor address is given, or both.
        NotFound: The organisation has no such user.
    """
    users = who.tenancy.users
    if body.user_id is not None and body.email is None:
        user = users.get(who.organization_id, body.user_id)
    elif body.email is not None and body.user_id is None:
        user = users.find_by_email(who.organization_id, body.email)
    else:
        raise InvalidRequest("give user_id or email, and not both", param="user_id")
    return shown(user, users.add_member(who.project.id, user.id, body.role))
