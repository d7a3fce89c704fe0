"""What `up` remembers for `down` and for the next `up`. No secret: the token stays in its file."""

import platform
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from jobs.cluster.one_machine.ports import ChosenPorts
from jobs.cluster.one_machine.services import Service
from orchestrator.errors import InputError
from orchestrator.layout import Storage
from orchestrator.results import read_json, write_json


@dataclass(frozen=True)
class State:
    """The services that were started on this machine for one storage, and where they listen."""

    host: str
    ports: ChosenPorts
    token: str  # the file, not what is in it
    services: tuple[Service, ...] = ()

    def find(self, name: str) -> Service | None:
        return next((service for service in self.services if service.name == name), None)

    def with_service(self, service: Service) -> "State":
        others = tuple(other for other in self.services if other.name != service.name)
        return replace(self, services=(*others, service))


def load_state(storage: Path) -> State | None:
    """None where nothing was started. Raises InputError where another machine did."""
    file = Storage(storage).cluster_state
    if not file.exists():
        return None
    document = read_json(file)
    if document["host"] != platform.node():
        raise InputError(
            f"{file} says that {document['host']} runs a cluster with this storage, and this is {platform.node()}; "
            f"run `backbone down` there, or use another --storage; if that machine is gone, delete the file"
        )
    services = tuple(Service(**service) for service in document["services"])
    ports = {field.name: document["ports"][field.name] for field in fields(ChosenPorts)}  # earlier versions noted more
    return State(document["host"], ChosenPorts(**ports), document["token"], services)


def save_state(storage: Path, state: State) -> None:
    file = Storage(storage).cluster_state
    write_json(file, asdict(state))
    file.chmod(0o600)


def delete_state(storage: Path) -> None:
    (Storage(storage).cluster_state).unlink(missing_ok=True)
