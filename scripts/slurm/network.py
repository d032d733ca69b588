#!/usr/bin/env python3
"""What a node of a job asks of its network: its own address, and ports that are free.

python network.py address [--peer HOST] [--interface NAME]    prints `<address> <interface>`
python network.py ports NUM                                   prints that many free TCP ports
"""

import argparse
import ipaddress
import socket

import psutil


def addresses() -> dict[str, str]:
    """IPv4 address of every interface that is up, by the interface's name."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return {
        name: entry.address
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family == socket.AF_INET
    }


def own_address(*, peer: str | None, interface: str | None) -> tuple[str, str]:
    """Address under which the other nodes reach this one.

    Args:
        peer: name of another node; the address is the one from which this node would reach it.
        interface: name of the interface to use, whatever the routes say.

    Returns:
        (address, name of its interface).

    Raises:
        ValueError: there is no such interface, or none but the loopback.
    """
    by_name = addresses()
    if interface is not None:
        if interface not in by_name:
            raise ValueError(f"INTERFACE={interface}: no such interface is up here; there are {sorted(by_name)}")
        return by_name[interface], interface
    # Any address will do where the peer's name means nothing: the default route's interface.
    found = _source_address(peer) if peer else None
    found = found or _source_address("203.0.113.1")
    outside = {name: address for name, address in by_name.items() if not ipaddress.ip_address(address).is_loopback}
    for name, address in {**outside, **by_name}.items():
        if found in (None, address):
            return address, name
    raise ValueError(f"no interface has the address {found}; set INTERFACE to one of {sorted(by_name)}")


def _source_address(peer: str) -> str | None:
    """Address that a packet to the peer would carry; None without a route, or where the peer is this machine itself.

    Nothing is sent: connecting a datagram socket only looks the route up.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if ipaddress.ip_address(address).is_loopback else address


def free_ports(num: int) -> list[int]:
    """TCP ports that nobody listens on, all different."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(num)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def main() -> None:
    """Answer one question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    address = commands.add_parser("address")
    address.add_argument("--peer")
    address.add_argument("--interface")
    commands.add_parser("ports").add_argument("num", type=int)
    arguments = parser.parse_args()
    if arguments.command == "ports":
        print(*free_ports(arguments.num))
        return
    try:
        print(*own_address(peer=arguments.peer or None, interface=arguments.interface or None))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
