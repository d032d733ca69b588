#!/usr/bin/env python3
"""Wait until so many nodes are in the Ray cluster at RAY_ADDRESS; exit code 1 and a sentence when they do not come."""

import argparse
import os
import sys
import time

import ray


def alive() -> list[str]:
    """Addresses of the nodes that are in the cluster."""
    return sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])


def main() -> None:
    """Wait for the nodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-nodes", type=int, required=True)
    parser.add_argument("--timeout-s", type=float, required=True)
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.timeout_s
    while True:
        try:
            ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
            break
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() > deadline:
                sys.exit(f"no Ray at {os.environ['RAY_ADDRESS']} within {arguments.timeout_s:g} s: {error}")
            time.sleep(1.0)
    while len(found := alive()) < arguments.num_nodes:
        if time.monotonic() > deadline:
            sys.exit(
                f"{len(found)} of {arguments.num_nodes} nodes joined Ray within {arguments.timeout_s:g} s ({found}); "
                "see ray-<node>.log beside this file, and set INTERFACE if the nodes do not reach each other"
            )
        time.sleep(0.5)


if __name__ == "__main__":
    main()
