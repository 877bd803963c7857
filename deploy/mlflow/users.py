"""The roles and users of an MLflow server that asks for passwords: made, changed, listed.

Every command may be run again; what is there already is left. MLFLOW_TRACKING_URI names the server,
MLFLOW_TRACKING_USERNAME and _PASSWORD an admin. Passwords of others come from the environment
(MLFLOW_PASSWORD_ADA), from a file (ada, in the folder MLFLOW_PASSWORDS), or are asked for: never
from the command line. Roles work only on a server with workspaces on (`--enable-workspaces`):
without them MLflow lets everybody make experiments. Speaks MLflow's REST API, since its own client
of users needs the whole server installed. Leaves out rights on single experiments.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import requests

WORKSPACE: Final = "default"
ADMIN: Final = "admin"  # MLflow's own mark on a user, no role
Grants = dict[tuple[str, str], str]
# What a role may do: (kind of thing, which) -> level. `workspace: USE` is the right to make new
# things; whoever makes a thing may delete it.
ROLES: Final[dict[str, Grants]] = {
    "reader": {("experiment", "*"): "READ", ("registered_model", "*"): "READ"},
    "trainer": {
        ("workspace", "*"): "USE", ("experiment", "*"): "EDIT", ("registered_model", "*"): "READ",
    },
}  # fmt: skip


class Wrong(Exception):
    """One message for whoever runs this."""


@dataclass(frozen=True)
class Server:
    """An MLflow server, and the admin who speaks to it."""

    url: str
    user: str
    password: str

    def ask(self, method: str, path: str, version: str = "2.0", **body: object) -> dict[str, Any]:
        """What it answers. Raises `Wrong` where it is silent or refuses."""
        url = f"{self.url.rstrip('/')}/api/{version}/mlflow/{path}"
        words: dict[str, Any] = {"params": body} if method == "GET" else {"json": body}
        mine = (self.user, self.password)
        try:
            answer = requests.request(method, url, auth=mine, timeout=30, **words)
        except requests.RequestException as error:
            raise Wrong(
                f"no MLflow server answers at {self.url} ({type(error).__name__})"
            ) from None
        if answer.status_code != 200:
            raise Wrong(self._refused(answer))
        return answer.json() if answer.content.strip() else {}

    def _refused(self, answer: requests.Response) -> str:
        if answer.status_code == 401:
            return (
                f"{self.url} takes no user {self.user} with the password in "
                "MLFLOW_TRACKING_PASSWORD"
            )
        if answer.status_code == 403:
            return (
                f"{self.user} is no admin at {self.url}; users and roles are an admin's to change"
            )
        if answer.status_code == 404 and "RESOURCE" not in answer.text:
            return f"{self.url} has no users: start it with `mlflow server --app-name basic-auth`"
        told = answer.text
        if answer.headers.get("content-type", "").startswith("application/json"):
            told = str(answer.json().get("message", told))
        return f"{self.url}: {told[:300]}"

    def roles(self) -> dict[str, dict[str, Any]]:
        found = self.ask("GET", "roles/list", "3.0", workspace=WORKSPACE)["roles"]
        return {role["name"]: role for role in found}

    def users(self) -> dict[str, dict[str, Any]]:
        """Everybody whom the server knows, with their roles."""
        return {user["username"]: user for user in self.ask("GET", "users/list")["users"]}


def make_roles(server: Server) -> None:
    """Make the roles, or give them the rights that they are to have."""
    there = server.roles()
    for name, wanted in ROLES.items():
        new = {"workspace": WORKSPACE, "name": name}
        role = there.get(name) or server.ask("POST", "roles/create", "3.0", **new)["role"]
        has = {(p["resource_type"], p["resource_pattern"]): p for p in role["permissions"]}
        for key in [key for key, right in has.items() if wanted.get(key) != right["permission"]]:
            old = has.pop(key)["id"]
            server.ask("DELETE", "roles/permissions/remove", "3.0", role_permission_id=old)
        for kind, which in wanted.keys() - has.keys():
            server.ask(
                "POST", "roles/permissions/add", "3.0", role_id=role["id"], resource_type=kind,
                resource_pattern=which, permission=wanted[kind, which],
            )  # fmt: skip
        print(f"role {name}: {'there' if name in there else 'made'}")


def put(server: Server, name: str, role: str) -> None:
    """Make the user where there is none, and have them hold this role alone."""
    if role not in (*ROLES, ADMIN):
        raise Wrong(f"role of {name}: got {role!r}; allowed: {', '.join((*ROLES, ADMIN))}")
    roles = server.roles()
    if role in ROLES and role not in roles:
        raise Wrong(f"{server.url} has no role {role} yet; `sync` makes the roles")
    if new := name not in server.users():
        server.ask("POST", "users/create", username=name, password=password_of(name))
    user = server.users()[name]
    if (role == ADMIN) != user["is_admin"]:
        server.ask("PATCH", "users/update-admin", username=name, is_admin=role == ADMIN)
    for held in user["roles"]:
        if held["name"] in ROLES and held["name"] != role:
            server.ask("DELETE", "roles/unassign", "3.0", username=name, role_id=held["id"])
        elif role == "reader" and re.fullmatch(r"__user_\d+__", held["name"]):
            _take_back(server, name, held["permissions"])
    if role in ROLES and role not in (held["name"] for held in user["roles"]):
        server.ask("POST", "roles/assign", "3.0", username=name, role_id=roles[role]["id"])
    print(f"user {name}, {role}: {'made' if new else 'there'}")


def _take_back(server: Server, name: str, rights: list[dict[str, Any]]) -> None:
    """A trainer who becomes a reader loses the rights on what they made."""
    for right in rights:
        server.ask(
            "POST", "users/permissions/revoke", "3.0", username=name,
            resource_type=right["resource_type"], resource_id=right["resource_pattern"],
        )  # fmt: skip


def rotate(server: Server, name: str) -> None:
    """Give a user the password that the environment, a file, or whoever is asked, tells."""
    if name not in server.users():
        raise Wrong(f"there is no user {name}; `list` shows who there is")
    proof = {"current_password": server.password} if name == server.user else {}
    new = password_of(name)
    server.ask("PATCH", "users/update-password", username=name, password=new, **proof)
    print(f"user {name}: has a new password")


def remove(server: Server, name: str) -> None:
    server.ask("DELETE", "users/delete", username=name)
    print(f"user {name}: removed")


def show(server: Server) -> None:
    for name, user in sorted(server.users().items()):
        held = [role["name"] for role in user["roles"] if role["name"] in ROLES]
        print(f"{name}: {ADMIN if user['is_admin'] else ', '.join(held) or 'no role'}")


def password_of(name: str) -> str:
    """A user's password: from the environment, a file, or asked for twice at a terminal."""
    variable = "MLFLOW_PASSWORD_" + re.sub(r"\W", "_", name).upper()
    if found := os.environ.get(variable):
        return found
    folder = os.environ.get("MLFLOW_PASSWORDS")
    if folder and (file := Path(folder) / name).is_file():
        return file.read_text(encoding="utf-8").strip()
    if not sys.stdin.isatty():
        where = "in the folder MLFLOW_PASSWORDS names" if folder is None else f"in {folder}"
        raise Wrong(f"no password for {name}: give it in {variable}, or in a file {name} {where}")
    given = getpass.getpass(f"New password of {name}, 12 characters or more: ")
    if given != getpass.getpass("Once more: "):
        raise Wrong("the two differ; nothing was changed")
    return given


def named(text: str) -> list[tuple[str, str]]:
    """Users and roles from `ada=trainer bob=reader`."""
    pairs = [word.partition("=") for word in text.replace(",", " ").split()]
    if odd := [name for name, equals, role in pairs if not (name and equals and role)]:
        raise Wrong(f"MLFLOW_USERS: got {' '.join(odd)!r}; expected NAME=ROLE NAME=ROLE ...")
    return [(name, role) for name, _, role in pairs]


def connect() -> Server:
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    for name in names:
        if not os.environ.get(name):
            raise Wrong(f"{name} is not set: it takes the server's address, an admin, a password")
    return Server(*(os.environ[name] for name in names))


def run(asked: argparse.Namespace) -> None:
    server = connect()
    match asked.command:
        case "sync":
            make_roles(server)
            for name, role in named(os.environ.get("MLFLOW_USERS", "")):
                put(server, name, role)
        case "add":
            put(server, asked.name, asked.role)
        case "rotate":
            rotate(server, asked.name)
        case "remove":
            remove(server, asked.name)
        case "list":
            show(server)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Roles and users of an MLflow server.")
    commands = made.add_subparsers(dest="command", required=True)
    commands.add_parser("sync", help="the roles, and the users that MLFLOW_USERS names")
    add = commands.add_parser("add", help="a user, or another role for one")
    add.add_argument("name")
    add.add_argument("role", choices=[*ROLES, ADMIN])
    for command, does in (("rotate", "a new password"), ("remove", "a user who is to go")):
        commands.add_parser(command, help=does).add_argument("name")
    commands.add_parser("list", help="who there is, and their roles")
    return made


def main(words: list[str] | None = None) -> int:
    asked = parser().parse_args(words)
    try:
        run(asked)
    except Wrong as wrong:
        print(wrong, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
